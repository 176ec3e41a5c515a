"""Replay: a recorded table as models."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, OutcomeTable, load_sample
from eccos_integrations.replay import Reference, load_sample_references, replay, wrong_answer


@pytest.fixture(scope="module")
def table():
    return load_sample()


@pytest.fixture(scope="module")
def references():
    return load_sample_references()


def test_every_recorded_answer_of_the_sample_grades_as_recorded(table, references):
    models = replay(table, references)
    for column, name in enumerate(table.models):
        graded = [
            references[query_id].is_met_by(models[name](query).text)
            for query_id, query in zip(table.query_ids, table.queries, strict=True)
        ]
        np.testing.assert_array_equal(graded, table.quality[:, column] == 1)


def test_tokens_and_cost_are_the_recorded_ones(table, references):
    answer = replay(table, references)[table.models[3]](table.queries[5])
    assert (answer.model, answer.input_tokens, answer.output_tokens, answer.cost_usd) == (
        table.models[3],
        table.input_tokens[5, 3],
        table.output_tokens[5, 3],
        table.cost_usd[5, 3],
    )


def test_the_question_is_found_inside_a_longer_prompt(table, references):
    model = replay(table, references)[table.models[0]]
    question = table.queries[7]
    assert model(f"You are helpful.\n\n{question}\n\nAnswer briefly.") == model(question)


def test_an_unknown_question_and_an_unobserved_cell_are_errors_without_the_prompt():
    table = OutcomeTable(["a", "b"], ["first question", "second question"], ["m", "n"], [[1, np.nan], [0, 1]])
    models = replay(table)
    with pytest.raises(ConfigError, match="no record") as unknown:
        models["m"]("something secret")
    assert "secret" not in str(unknown.value)
    with pytest.raises(ConfigError, match="not observed on query_id 'a'"):
        models["n"]("first question")


def test_without_references_the_answer_says_which_it_is():
    table = OutcomeTable(["a"], ["q"], ["good", "bad"], [[0.5, 0.4]])
    models = replay(table)
    assert models["good"]("q").text == "a right answer"
    assert models["bad"]("q").text == "a wrong answer"


def test_wrong_answers_depend_on_the_seed_alone(table, references):
    first, again = (replay(table, references, seed=3) for _ in range(2))
    assert all(first[m](q) == again[m](q) for m in table.models for q in table.queries[:50])
    other = replay(table, references, seed=4)
    assert any(first[m](q) != other[m](q) for m in table.models for q in table.queries[:200])


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(literals, st.integers(0, 100))
def test_a_wrong_literal_is_never_the_reference(value, seed):
    reference = Reference(repr(value), "python_literal")
    assert reference.is_met_by(reference.answer)
    assert not reference.is_met_by(wrong_answer(reference, random.Random(seed)))


@given(st.integers(-(10**6), 10**6), st.integers(0, 100))
def test_a_wrong_number_is_never_the_reference(value, seed):
    reference = Reference(f"{value:,}", "number")
    assert reference.is_met_by(str(value))
    assert not reference.is_met_by(wrong_answer(reference, random.Random(seed)))


@pytest.mark.parametrize("text", ["", "x = 1", "9" * 5000, "[" * 500, "__import__('os').getcwd()", "\x00", "{1: [}"])
def test_a_hostile_answer_is_graded_wrong_and_never_run(text):
    assert not Reference("[1, 2]", "python_literal").is_met_by(text)
    assert not Reference("7", "number").is_met_by(text)
