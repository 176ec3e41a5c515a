from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError
from eccos_integrations.encoders import LexicalEncoder, lexical
from tests.contracts.encoders import HISTORY, NEW, SavedEncoderContract
from tests.contracts.processes import run_python


class TestLexical(SavedEncoderContract):
    def make(self):
        return LexicalEncoder()


class TestLexicalOfFewDimensions(SavedEncoderContract):
    def make(self):
        return LexicalEncoder(dimensions=2)


def near(encoder, *texts):
    vectors = encoder.encode(list(texts))
    return vectors[0] @ vectors[1:].T


def test_lexical_puts_similar_texts_closer_than_unrelated_ones():
    encoder = LexicalEncoder().fit(HISTORY)
    similar, unrelated = near(encoder, "prove that theorem", "the proof of a theorem", "add two numbers")
    assert similar > unrelated + 0.2


def test_lexical_hears_no_case_but_hears_the_order_of_words():
    encoder = LexicalEncoder().fit([*HISTORY, "dog bites man", "man bites dog"])
    shouted, turned = near(encoder, "dog bites man", "DOG BITES MAN", "man bites dog")
    assert shouted == pytest.approx(1)
    assert turned < 0.99


def test_lexical_knows_nothing_of_words_it_never_met():
    assert not LexicalEncoder().fit(HISTORY).encode(["žluťoučký kůň", "", "  "]).any()


def test_lexical_keeps_at_most_the_dimensions_asked_for():
    texts = [f"word{i} word{i + 1} word{i % 7}" for i in range(300)]
    assert LexicalEncoder(dimensions=16).fit(texts).encode(texts).shape == (300, 16)


@pytest.mark.parametrize("texts", [[], [""], ["same"] * 60, ["?!"] * 3, [f"unique{i}" for i in range(60)]])
def test_lexical_fits_any_history(texts):
    vectors = LexicalEncoder().fit(texts).encode([*texts, "other"])
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all(np.isclose(lengths, 1) | (lengths == 0))


def test_lexical_is_the_same_in_every_process():
    code = """
from eccos_integrations.encoders import LexicalEncoder
from tests.contracts.encoders import HISTORY, NEW
print(LexicalEncoder().fit(HISTORY).encode(NEW).round(9).tolist())
"""
    assert run_python(code) == f"{LexicalEncoder().fit(HISTORY).encode(NEW).round(9).tolist()}\n"


@pytest.mark.parametrize("dimensions", [0, -1])
def test_lexical_refuses_to_have_no_dimensions(dimensions):
    with pytest.raises(ConfigError, match="dimensions"):
        LexicalEncoder(dimensions=dimensions)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(alphabet="ab ?é\u6771", max_size=12), max_size=8))
def test_lexical_gives_a_text_one_vector_whatever_stands_beside_it(texts):
    encoder = LexicalEncoder(dimensions=8).fit([*HISTORY, "a b", "b a", "a ? b", "ab é"])
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], vector)


def test_lexical_gives_many_texts_the_vectors_of_each_alone(sample):
    encoder = LexicalEncoder().fit(sample.queries[:300])
    alone = np.vstack([encoder.encode([text]) for text in sample.queries])
    np.testing.assert_array_equal(encoder.encode(sample.queries), alone)


def test_lexical_weighs_a_word_less_the_more_texts_have_it():
    encoder = LexicalEncoder().fit([f"the {word}" for word in ("sun", "moon", "sea", "sky", "wind", "rain")])
    same_common, same_rare = near(encoder, "the sun", "the moon", "bright sun")
    assert same_rare > same_common + 0.2


def test_lexical_remembers_so_many_short_words_and_forgets_nothing_that_matters(monkeypatch):
    texts = [f"{HISTORY[i % 6]} {i} {'long' * 50}" for i in range(100)]
    expected = LexicalEncoder().fit(texts).encode(texts)
    monkeypatch.setattr(lexical, "REMEMBERED", 5)
    encoder = LexicalEncoder().fit(texts)
    with ThreadPoolExecutor(8) as threads:
        for vectors in threads.map(lambda _: encoder.encode(texts), range(40)):
            np.testing.assert_array_equal(vectors, expected)
    assert 0 < len(encoder._codes) <= 5 + 8  # each thread may add one before it looks again
    assert max(map(len, encoder._codes)) <= lexical.LONGEST_REMEMBERED
