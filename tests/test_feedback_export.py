"""The table of a feedback log says what was written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ArtifactError, DataError, Decision, Policy
from eccos_integrations.outcomes import MEASURES
from eccos_integrations.serving.feedback import FeedbackLog
from tests.contracts.tables import ODD_TEXTS


def decision(name, model="small"):
    return Decision(name, model, 0.5, 0.001, (model,), "routed", floor_met=True)


def rows(log, table="decision", columns="*"):
    with log._file.reading() as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY number").fetchall()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feedback.db"


@pytest.fixture(params=["file", "memory"])
def log(request, path):
    with FeedbackLog(path if request.param == "file" else None, store_text=True) as log:
        yield log


def test_what_was_used_and_graded_stands_in_the_table(log):
    log.decided(decision("d"), "2 + 2?", policy=Policy(), conversation="c", input_tokens=5, output_tokens=9)
    usage = {"input_tokens": 6, "output_tokens": 11, "cost_usd": 0.002, "latency_s": 0.5}
    log.used("d", "small", cached_tokens=4, **usage)
    log.graded("d", 0.75, source="thumb")
    table = log.to_table()
    assert (table.queries, table.models) == (["2 + 2?"], ["small"])
    for name, value in {**usage, "quality": 0.75}.items():
        assert getattr(table, name).tolist() == [[value]], name


def test_the_last_label_of_a_decision_counts(log):
    log.decided(decision("d"), "q")
    for quality in (0.0, 1.0, 0.25):
        log.graded("d", quality)
    assert log.to_table().quality.tolist() == [[0.25]]
    assert rows(log, "label", "quality") == [(0.0,), (1.0,), (0.25,)]


def test_a_label_goes_to_the_model_that_answered(log):
    log.decided(decision("d", "small"), "q")
    log.used("d", "small", outcome="RateLimitError", cost_usd=9)
    log.used("d", "large", cost_usd=2)
    log.graded("d", 1.0)
    table = log.to_table()
    assert table.models == ["large"], "a failed attempt is no outcome"
    assert (table.quality.tolist(), table.cost_usd.tolist()) == ([[1.0]], [[2.0]])


def test_a_label_without_an_answer_is_no_outcome(log):
    log.decided(decision("d"), "q")
    log.used("d", "small", outcome="cancelled")
    log.graded("d", 0.0)
    with pytest.raises(DataError, match="no outcome was observed"):
        log.to_table()


def test_an_empty_log_says_what_to_log_first(log):
    with pytest.raises(DataError, match=r"used\(\) and graded\(\)"):
        log.to_table()


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_any_text_comes_back_as_it_was(log, text):
    log.decided(decision("d"), text, conversation=text)
    log.graded("d", 1.0)
    assert log.to_table().queries == [text]


def test_texts_kept_elsewhere_find_their_outcomes(path):
    with FeedbackLog(path) as log:
        for name in "abc":
            log.decided(decision(name), f"query {name}")
            log.graded(name, 1.0)
        with pytest.raises(DataError, match=r"3 queries were logged without their text.*unknown='drop'"):
            log.to_table()
        assert log.to_table(["query a", "query b", "query c", "query d"]).queries == ["query a", "query b", "query c"]
        assert log.to_table(["query b"], unknown="drop").queries == ["query b"]
        digests = log.to_table(["query b"], unknown="digest")
        assert digests.queries == [digests.query_ids[0], "query b", digests.query_ids[2]]
        with pytest.raises(DataError, match="no outcome"):
            log.to_table(unknown="drop")


def test_damage_found_later_is_told_too(path):
    with FeedbackLog(path, store_text=True) as log:
        for name in range(20):
            log.decided(decision(str(name)), "q" * 2000)
            log.graded(str(name), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole[: 9 * 4096] + b"\xff" * (len(whole) - 9 * 4096))
    with FeedbackLog(path) as log, pytest.raises(ArtifactError, match=r"feedback\.db is damaged"):
        log.to_table()


QUERIES = ["a", "b", "a ", "\ud800", "a\x00"]
MODELS = ["large", "medium", "small"]
measure = st.none() | st.floats(0, 1)
attempts = st.lists(
    st.tuples(st.sampled_from(MODELS), st.sampled_from(["ok", "Timeout"]), measure, measure), max_size=3
)
decisions = st.lists(
    st.tuples(st.sampled_from(QUERIES), st.sampled_from(MODELS), attempts, st.lists(st.floats(0, 1), max_size=2)),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(decisions=decisions)
def test_the_table_is_the_mean_of_what_was_written(decisions):
    expected: dict[tuple[str, str], dict[str, list[float]]] = {}

    def observe(query, model, name, value):
        if value is not None:
            expected.setdefault((query, model), {}).setdefault(name, []).append(value)

    with FeedbackLog(None, store_text=True) as log:
        for number, (query, model, tried, labels) in enumerate(decisions):
            log.decided(decision(str(number), model), query)
            for asked, outcome, cost_usd, latency_s in tried:
                log.used(str(number), asked, outcome=outcome, cost_usd=cost_usd, latency_s=latency_s)
                if outcome == "ok":
                    observe(query, asked, "cost_usd", cost_usd)
                    observe(query, asked, "latency_s", latency_s)
            for label in labels:
                log.graded(str(number), label)
            answered = [asked for asked, outcome, *_ in tried if outcome == "ok"] if tried else [model]
            if labels and answered:
                observe(query, answered[-1], "quality", labels[-1])
        if not expected:
            with pytest.raises(DataError):
                log.to_table()
            return
        table = log.to_table()
    got = {
        (query, model): {
            name: getattr(table, name)[i, j] for name in MEASURES if not np.isnan(getattr(table, name)[i, j])
        }
        for i, query in enumerate(table.queries)
        for j, model in enumerate(table.models)
    }
    got = {cell: measures for cell, measures in got.items() if measures}
    means = {cell: {name: np.mean(values) for name, values in seen.items()} for cell, seen in expected.items()}
    assert got.keys() == means.keys()
    for cell, measures in means.items():
        assert got[cell] == pytest.approx(measures), cell
