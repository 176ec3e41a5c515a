import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations.predictors.surface import MOST_BYTES, SURFACES, surface
from tests.contracts.tables import ODD_TEXTS

ANY = st.text(st.characters(), max_size=60)  # lone surrogates too


@settings(deadline=None, max_examples=100)
@given(st.lists(ANY, max_size=6))
def test_any_text_has_a_finite_surface_that_depends_on_no_other_text(texts):
    together = surface(texts)
    assert together.shape == (len(texts), SURFACES)
    assert np.isfinite(together).all()
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(surface([text])[0], row)


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_have_finite_surfaces(name):
    found = surface([ODD_TEXTS[name]])
    assert found.shape == (1, SURFACES)
    assert np.isfinite(found).all()
    assert (found >= 0).all()


@settings(deadline=None, max_examples=50)
@given(ANY)
def test_the_same_text_has_the_same_surface_in_any_process_and_order(text):
    once, again = surface([text, "between", text])[[0, 2]]
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("What is 12 + 34 + 56?", "What is twelve plus thirty-four plus fifty-six?"),
        ("A) one B) two C) three", "one or two or three"),
        ("def f(x): return x", "a function that gives back what it got"),
        ("WHO WROTE THIS", "who wrote this"),
        ("a long text " * 20, "a long text"),
        ("東京の人口は", "the people of Tokyo"),
        ("line\nby\nline", "line by line"),
    ],
)
def test_texts_that_look_different_differ(more, less):
    first, second = surface([more, less])
    assert (first > second).any()


def test_words_alone_do_not_matter_only_what_they_look_like():
    np.testing.assert_array_equal(*surface(["the cat sat on the mat", "the dog lay in the bed"]))


def test_of_a_huge_text_the_length_counts_in_full_and_the_rest_from_its_start():
    start = "lorem ipsum " * (MOST_BYTES // 12 + 1)
    shorter, longer, other = surface([start + "x" * 10, start + "x" * 1_000_000, start + "?" * 1_000_000])
    assert (shorter != longer).sum() == 1
    np.testing.assert_array_equal(longer, other)
