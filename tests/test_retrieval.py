"""Retrieval, and the index of neighbours under it."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, ModelPool, OutcomeTable
from eccos_integrations.predictors import PriorPredictor, RetrievalPredictor, neighbours
from eccos_integrations.predictors.history import QUALITY
from eccos_integrations.predictors.neighbours import SIMILARITY_DIGITS, Neighbours, appended
from tests.contracts.tables import make_table, numbered, points


def unit(seed, n, dimensions=8):
    return points(seed, n, dimensions)[0].astype(np.float32)


def brute_force(vectors, x, k):
    """The k most similar, ties in the order of the rows."""
    similarity = np.clip((x @ vectors.T.astype(np.float64)).round(SIMILARITY_DIGITS), 0, 1)
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, rows, axis=1), rows


def texts(start, stop):
    return [f"{i:04}" for i in range(start, stop)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), n=st.integers(1, 60), k=st.integers(1, 12), alike=st.integers(0, 5))
def test_neighbours_are_the_most_similar_and_ties_go_by_row(seed, n, k, alike):
    vectors = unit(seed, n)
    vectors[: min(alike, n)] = vectors[-1]
    x = np.vstack([unit(seed + 1, 5), vectors[-1:]]).astype(np.float64)
    k = min(k, n)
    similarity, rows = Neighbours(vectors).nearest(x, k, n)
    expected, expected_rows = brute_force(vectors, x, n)
    np.testing.assert_allclose(similarity, expected[:, :k], atol=2e-5)
    apart = np.abs(np.diff(expected, axis=1, prepend=2, append=-1)) > 2e-5  # from the one before, and the one after
    alone = (apart[:, :-1] & apart[:, 1:])[:, :k]
    np.testing.assert_array_equal(rows[alone], expected_rows[:, :k][alone])
    if k <= alike < n:
        assert rows[-1].tolist() == list(range(k))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), parts=st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_neighbours_added_later_are_found_like_those_there_from_the_start(seed, parts):
    vectors = unit(seed, 20 + sum(parts))
    index = Neighbours(vectors[:20])
    for start, size in zip(np.cumsum([20, *parts]), parts, strict=False):
        index.add(vectors[start : start + size])
    assert len(index) == len(vectors)
    x = unit(seed + 1, 4).astype(np.float64)
    for found, whole in zip(index.nearest(x, 5, len(vectors)),
                            Neighbours(vectors).nearest(x, 5, len(vectors)), strict=True):  # fmt: skip
        np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize("exact", [1000, 50])
def test_who_asks_among_the_first_gets_as_many_however_many_came_since(monkeypatch, exact):
    monkeypatch.setattr(neighbours, "EXACT", exact)
    vectors = unit(0, 400)
    before, index = Neighbours(vectors[:100]), Neighbours(vectors[:100])
    index.add(np.tile(vectors[:50], (6, 1)))  # nearer than most of the first
    x = vectors[:50].astype(np.float64)
    for found, expected in zip(index.nearest(x, 10, 100), before.nearest(x, 10, 100), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_beyond_the_exact_size_nearly_all_neighbours_are_found(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT", 500)
    rng = np.random.default_rng(0)
    centres = unit(1, 30, dimensions=16)
    vectors = centres[rng.integers(0, 30, 6000)] + 0.15 * rng.normal(size=(6000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = Neighbours(vectors[:5000])
    index.add(vectors[5000:])
    x = vectors[::97].astype(np.float64)
    _, rows = index.nearest(x, 10, 6000)
    _, expected = brute_force(vectors, x, 10)
    found = [len(set(a) & set(b)) / 10 for a, b in zip(rows, expected, strict=True)]
    assert np.mean(found) >= 0.9


def test_neighbours_may_be_asked_while_more_are_added():
    vectors = unit(0, 3000)
    index = Neighbours(vectors[:1000])
    x = unit(1, 20).astype(np.float64)
    expected = Neighbours(vectors[:1000]).nearest(x, 5, 1000)

    def ask(_):
        return [index.nearest(x, 5, 1000) for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        asked = threads.map(ask, range(3))
        for start in range(1000, 3000, 50):
            index.add(vectors[start : start + 50])
        for similarity, rows in (found for part in asked for found in part):
            np.testing.assert_allclose(similarity, expected[0], atol=1e-5)
            np.testing.assert_array_equal(rows, expected[1])
    assert len(index) == 3000


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 9), max_size=12), start=st.integers(1, 5), fork=st.integers(0, 11))
def test_an_array_that_grows_changes_for_no_reader(sizes, start, fork):
    array = np.arange(3.0 * start).reshape(start, 3)
    states = [(array, array.copy())]
    for step, size in enumerate(sizes):
        before = states[min(fork, step)][0] if step == fork + 1 else states[-1][0]  # two may go on from one
        rows = np.full((size, 3), 100.0 + step)
        grown = appended(before, rows)
        states.append((grown, np.vstack([before, rows])))
        for seen, expected in states:
            np.testing.assert_array_equal(seen, expected)


def test_an_array_grows_without_copying_all_of_it_each_time():
    array = np.zeros((10, 4))
    moved = 0
    for _ in range(5000):
        before, array = array, appended(array, np.ones((1, 4)))
        moved += not np.shares_memory(before, array)
    assert len(array) == 5010
    assert moved < 25


def test_an_array_that_was_loaded_grows():
    kept = io.BytesIO()
    np.savez(kept, grown=appended(appended(np.zeros((3, 2, 2)), np.ones((1, 2, 2))), np.ones((1, 2, 2))))
    kept.seek(0)
    loaded = np.load(kept)["grown"]
    before = loaded.copy()
    more = appended(appended(loaded, np.full((1, 2, 2), 7.0)), np.full((1, 2, 2), 8.0))
    np.testing.assert_array_equal(loaded, before)
    np.testing.assert_array_equal(more[-3:, 0, 0], [1, 7, 8])


def test_growing_a_part_of_an_array_leaves_the_rest_alone():
    whole = np.arange(10.0)
    grown = appended(whole[:4], np.array([99.0]))
    assert grown.tolist() == [0, 1, 2, 3, 99]
    assert whole.tolist() == list(range(10))


@pytest.mark.parametrize(("n", "k"), [(200, 16), (200, 1), (10, 16), (40, 100)])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_retrieval_equals_a_plain_search_over_all_neighbours(n, k, temperature):
    vectors, encoder = points(seed=n + k, n=n + 50)
    rng = np.random.default_rng(0)
    quality = np.where(rng.random((n, 3)) < 0.9, rng.random((n, 3)), np.nan)
    quality[:, :2] = np.where(np.isfinite(quality).sum(axis=1, keepdims=True) < 2, 0.5, quality[:, :2])
    table = numbered(quality)
    predictor = RetrievalPredictor(encoder, k=k, strength=3.0, temperature=temperature)
    predictor.fit(table, ModelPool.from_outcomes(table))
    expected_total, expected_weight = [], []
    for query in vectors[n:]:
        similarity = vectors[:n] @ query
        near = np.argsort(-similarity, kind="stable")[:k]
        weight = similarity[near].clip(min=0)[:, None] ** (1 / temperature)
        known = np.isfinite(quality[near])
        total = (weight * known).sum(axis=0) + 3.0
        expected_total.append((weight * np.where(known, quality[near], 0)).sum(axis=0) / total)
        expected_weight.append((weight * known).sum(axis=0) / total)
    arrays = predictor.arrays()
    x = np.hstack([vectors[n:], np.zeros((50, 18))])
    estimate = predictor.estimate(x, arrays)
    np.testing.assert_allclose(estimate.total[:, QUALITY], expected_total, atol=1e-4)
    np.testing.assert_allclose(estimate.weight[:, QUALITY], expected_weight, atol=1e-4)


def test_retrieval_leans_to_the_outcome_of_an_identical_past_query():
    _, encoder = points(seed=1, n=80)
    table = numbered((np.random.default_rng(2).random((80, 3)) < 0.6).astype(float))
    pool = ModelPool.from_outcomes(table)
    forecast = RetrievalPredictor(encoder, k=1, strength=1.0).fit(table, pool).forecast(table.queries)
    lean = forecast.quality - PriorPredictor(encoder).fit(table, pool).forecast(table.queries).quality
    assert lean[table.quality == 1].mean() > 0.1
    assert lean[table.quality == 0].mean() < -0.1


def test_retrieval_finds_what_one_text_says_and_no_other_does():
    quality = np.tile([[0.0, 0.5]], (100, 1))
    quality[42, 0] = 1.0
    table = numbered(quality)
    _, encoder = points(seed=0, n=100, dimensions=50)
    predictor = RetrievalPredictor(encoder, k=1, strength=1.0).fit(table, ModelPool.from_outcomes(table))
    assert predictor.forecast(table.queries).quality[:, 0].argmax() == 42


def test_a_query_held_out_does_not_see_itself():
    _, encoder = points(seed=3, n=60, dimensions=40)
    quality = np.zeros((60, 2))
    quality[7] = 1.0
    table = numbered(quality)
    predictor = RetrievalPredictor(encoder, k=60, strength=1.0).fit(table, ModelPool.from_outcomes(table))
    assert predictor.forecast([table.queries[7]]).quality.min() > 0.1
    vectors = predictor.see(table.queries, predictor.arrays())
    past = type("Past", (), {"x": vectors, "values": predictor.arrays()["values"]})
    assert predictor.held_out(past, predictor.arrays()).total[7, QUALITY].max() == 0


def test_retrieval_of_a_text_like_no_other_is_the_prior():
    vectors, _ = points(seed=4, n=30)
    vectors = np.abs(vectors)
    table = numbered((np.random.default_rng(0).random((30, 3)) < 0.5).astype(float))
    pool = ModelPool.from_outcomes(table)

    def encoder(asked):
        return np.array([vectors[int(text)] if int(text) < 30 else -np.ones(8) for text in asked])

    found = RetrievalPredictor(encoder).fit(table, pool).forecast(["0040"])
    np.testing.assert_allclose(found.quality, PriorPredictor(encoder).fit(table, pool).forecast(["0040"]).quality)


def test_feedback_on_one_model_pushes_out_no_neighbour_of_another():
    _, encoder = points(seed=5, n=160)
    table = numbered((np.random.default_rng(0).random((100, 3)) < 0.5).astype(float))
    predictor = RetrievalPredictor(encoder, k=20).fit(table, ModelPool.from_outcomes(table))
    before = predictor.forecast(texts(100, 160)).quality
    more = numbered(np.ones((60, 1)), start=100)
    predictor.update(OutcomeTable(more.query_ids, more.queries, ["m1"], quality=more.quality, cost_usd=more.cost_usd))
    after = predictor.forecast(texts(100, 160)).quality
    np.testing.assert_allclose(after[:, [0, 2]], before[:, [0, 2]], atol=0.02)  # m1 is kin to both
    assert (after[:, 1] > before[:, 1] + 0.05).all()


def test_retrieval_beyond_the_exact_size_forecasts_nearly_the_same(monkeypatch):
    table = make_table(900, seed=2)
    pool = ModelPool.from_outcomes(table)
    exact = RetrievalPredictor(k=20).fit(table, pool).forecast(table.queries[:50])
    monkeypatch.setattr(neighbours, "EXACT", 100)
    approximate = RetrievalPredictor(k=20).fit(table, pool).forecast(table.queries[:50])
    assert np.abs(exact.quality - approximate.quality).mean() < 0.05


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": -3}, {"strength": 0.0}, {"strength": np.nan}, {"temperature": 0.0},
                                   {"temperature": np.inf}])  # fmt: skip
def test_retrieval_refuses_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RetrievalPredictor(**wrong)
