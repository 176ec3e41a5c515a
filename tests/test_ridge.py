"""The ridge head against the systems of equations it stands for, solved directly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, ModelPool
from eccos_integrations.predictors import RidgePredictor
from eccos_integrations.predictors.history import QUALITY, SPEND, History
from eccos_integrations.predictors.ridge import BLOCK
from tests.contracts.tables import numbered, points, priced

PENALTY = 5.0


def solved(x, y, penalty):
    """Ridge coefficients of one model, from the rows that observed it."""
    seen = np.isfinite(y)
    return np.linalg.solve(x[seen].T @ x[seen] + penalty * np.eye(x.shape[1]), x[seen].T @ y[seen])


def outcomes(n, m, observed=1.0, seed=0):
    rng = np.random.default_rng(seed)
    quality = rng.random((n, m))
    cost = np.exp(rng.normal(size=(n, m)))
    seen = rng.random((n, m)) < observed
    seen[0] = True
    return np.where(seen, quality, np.nan), np.where(seen, cost, np.nan)


def fitted(n=60, m=3, observed=1.0, dimensions=8):
    vectors, encoder = points(seed=n, n=n + 60, dimensions=dimensions)
    table = numbered(*outcomes(n, m, observed))
    return RidgePredictor(encoder, penalty=PENALTY).fit(table, ModelPool.from_outcomes(table)), vectors, table


def history(x, values):
    n, _, m = values.shape
    return History(x, values, values[:, QUALITY], np.ones((n, m)), np.ones((n, m)))


def random_history(seed, n=40, m=4, dimensions=6, observed=0.6):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dimensions))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    values = np.where(rng.random((n, 2, m)) < observed, rng.normal(size=(n, 2, m)), np.nan)
    observed = np.isfinite(values)
    arrays = {
        "total": np.where(observed, values, 0).sum(axis=0),
        "count": observed.sum(axis=0).astype(float),
    }
    return history(x, values), arrays


def learnt(past, arrays, penalty=PENALTY):
    ridge = RidgePredictor(penalty=penalty)
    return ridge, arrays | ridge.learn(past, priced(*"abcd"), arrays, 0)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), observed=st.sampled_from([0.05, 0.5, 0.9, 1.0]))
def test_whatever_was_observed_each_model_is_solved_from_its_own_rows(seed, observed):
    past, arrays = random_history(seed, observed=observed)
    ridge, arrays = learnt(past, arrays)
    x = np.random.default_rng(seed + 1).normal(size=(7, past.x.shape[1]))
    estimate = ridge.estimate(x, arrays)
    for v in (QUALITY, SPEND):
        for j in range(past.values.shape[2]):
            y = past.values[:, v, j]
            ones = np.where(np.isfinite(y), 1.0, np.nan)
            penalty = arrays["penalty"][v]
            np.testing.assert_allclose(estimate.total[:, v, j], x @ solved(past.x, y, penalty), atol=1e-9)
            np.testing.assert_allclose(estimate.weight[:, v, j], x @ solved(past.x, ones, penalty), atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), observed=st.sampled_from([0.3, 1.0]))
def test_a_held_out_estimate_is_that_of_a_fit_without_the_query(seed, observed):
    past, arrays = random_history(seed, n=25, observed=observed)
    ridge, arrays = learnt(past, arrays)
    held_out = ridge.held_out(past, arrays)
    for row in range(25):
        rest = np.arange(25) != row
        for v in (QUALITY, SPEND):
            for j in range(past.values.shape[2]):
                y, penalty = past.values[rest, v, j], arrays["penalty"][v]
                ones = np.where(np.isfinite(y), 1.0, np.nan)
                total, weight = past.x[row] @ np.column_stack([
                    solved(past.x[rest], y, penalty), solved(past.x[rest], ones, penalty)
                ])  # fmt: skip
                np.testing.assert_allclose(held_out.total[row, v, j], total, atol=1e-8)
                np.testing.assert_allclose(held_out.weight[row, v, j], weight, atol=1e-8)


def test_the_penalty_on_spend_is_the_one_with_the_least_held_out_error():
    rng = np.random.default_rng(0)
    past, _ = random_history(0, n=200, dimensions=20, observed=1.0)
    found = {}
    for name, signal in (("learnable", 8.0), ("noise", 0.0)):
        spend = signal * past.x[:, :1] + 0.1 * rng.normal(size=(200, 4))
        values = np.stack([past.values[:, QUALITY], spend], axis=1)
        arrays = {"total": values.sum(axis=0), "count": np.full((2, 4), 200.0)}
        found[name] = learnt(history(past.x, values), arrays)[1]["penalty"][SPEND]
    assert found["learnable"] == 3.0
    assert found["noise"] == 100.0


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    batches=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    observed=st.sampled_from([0.2, 0.7, 1.0]),
)
def test_updates_equal_the_closed_form_on_everything_seen(seed, batches, observed):
    past, arrays = random_history(seed, observed=0.7)
    ridge, arrays = learnt(past, arrays)
    xs, ys = [past.x], [past.values]
    for i, n in enumerate(batches):
        more, _ = random_history(seed + 1 + i, n=n, observed=observed)
        arrays = arrays | ridge.learn_more(more.x, more.values, arrays)
        xs.append(more.x)
        ys.append(more.values)
    x, values = np.concatenate(xs), np.concatenate(ys)
    new = np.random.default_rng(seed).normal(size=(5, x.shape[1]))
    estimate = ridge.estimate(new, arrays)
    for v in (QUALITY, SPEND):
        for j in range(values.shape[2]):
            coefficients = solved(x, values[:, v, j], arrays["penalty"][v])
            np.testing.assert_allclose(estimate.total[:, v, j], new @ coefficients, atol=1e-6)


def test_a_thousand_updates_one_by_one_lose_no_digits_that_matter():
    past, arrays = random_history(3, observed=1.0)
    ridge, arrays = learnt(past, arrays)
    more, _ = random_history(4, n=1000, observed=1.0)
    one_by_one, at_once = arrays, arrays | ridge.learn_more(more.x, more.values, arrays)
    for row in range(1000):
        one = slice(row, row + 1)
        one_by_one = one_by_one | ridge.learn_more(more.x[one], more.values[one], one_by_one)
    np.testing.assert_allclose(one_by_one["solution"], at_once["solution"], atol=1e-9)
    assert len(more.x) > 3 * BLOCK


def test_the_forecast_is_the_closed_form_around_each_models_mean():
    predictor, vectors, table = fitted()
    arrays = predictor.arrays()
    new = vectors[60:80]
    x = np.hstack([vectors[:60], np.zeros((60, 18))])  # equal surfaces say nothing
    count = 60
    raw = table.quality.mean(axis=0)
    mean = (count * raw + 4 * arrays["kin_mean"][QUALITY]) / (count + 4)
    forecast = predictor.forecast([f"{i:04}" for i in range(60, 80)])
    own = np.column_stack([
        mean[j] + new @ solved(x, table.quality[:, j] - mean[j], PENALTY)[:8] for j in range(3)
    ])  # fmt: skip
    deviation = np.column_stack([new @ solved(x, table.quality[:, j] - raw[j], PENALTY)[:8] for j in range(3)])
    weight = new @ solved(x, np.ones(60), PENALTY)[:8]
    lent = deviation @ arrays["kin"].T * 20 / (count + 20)
    np.testing.assert_allclose(forecast.quality, np.clip(own + (1 - weight)[:, None] * lent, 0, 1), atol=1e-9)


def test_models_that_leave_take_their_matrices_with_them():
    predictor, _, _ = fitted()
    sizes = []
    for round_ in range(4):
        quality, cost = outcomes(12, 1, seed=round_)
        known = numbered(quality, cost, start=60)
        renamed = type(known)(known.query_ids, known.queries, ["guest"], quality=quality, cost_usd=cost)
        predictor.add(*priced("guest"), renamed)
        predictor.remove("guest")
        sizes.append(sum(array.nbytes for array in predictor.arrays().values()))
    assert sizes[-1] == sizes[0]


def test_a_stronger_penalty_keeps_closer_to_the_mean():
    vectors, encoder = points(seed=0, n=200)
    quality = (vectors[:, :1] * [1.0, -1.0] > 0).astype(float)
    table = numbered(quality)
    spread = [
        RidgePredictor(encoder, penalty=penalty).fit(table, ModelPool.from_outcomes(table)).forecast(table.queries)
        .quality.std(axis=0).mean() for penalty in (1.0, 10.0, 100.0, 1e6)
    ]  # fmt: skip
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 0.2
    assert spread[-1] < 0.01


@pytest.mark.parametrize("penalty", [0.0, -1.0, np.inf, np.nan])
def test_a_penalty_that_cannot_be_is_refused(penalty):
    with pytest.raises(ConfigError, match="penalty"):
        RidgePredictor(penalty=penalty)
