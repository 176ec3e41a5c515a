"""A forecast as a thing of its own, and what routing by it realises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, Forecast
from eccos_integrations.predictors.routed import FLOORS, price_range, realised, routed_cost
from tests.contracts.predictors import MEASURES, assert_equal


def full_forecast(n=5, models=("a", "b", "c"), seed=0):
    rng = np.random.default_rng(seed)
    return Forecast(list(models), **{name: rng.random((n, len(models))) for name in MEASURES})


def test_what_is_left_out_of_a_forecast_is_not_known():
    cells = np.array([[0.1, 0.2], [0.3, 0.4]])
    forecast = Forecast(["a", "b"], cells, cells)
    for name in MEASURES[2:]:
        assert getattr(forecast, name).shape == (2, 2)
        assert np.isnan(getattr(forecast, name)).all(), name
    assert len(forecast.check(2)) == 2


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_of_the_wrong_shape_is_refused_by_name(name):
    arrays = {measure: np.zeros((2, 2)) for measure in MEASURES} | {name: np.zeros((2, 3))}
    with pytest.raises(ConfigError, match=rf"{name}.*\(2, 3\)"):
        Forecast(["a", "b"], **arrays)


@pytest.mark.parametrize(
    ("name", "value"), [("quality", 1.2), ("quality", np.nan), ("cost_usd", -1.0), ("cost_usd", np.inf)]
)
def test_a_value_that_cannot_be_planned_with_is_refused_by_name(name, value):
    arrays = {"quality": np.full((2, 1), 0.5), "cost_usd": np.ones((2, 1))}
    arrays[name][1] = value
    with pytest.raises(ConfigError, match=name):
        Forecast(["a"], **arrays).check(2)


def test_a_forecast_of_another_number_of_queries_is_refused():
    with pytest.raises(ConfigError, match="quality"):
        full_forecast(5).check(4)


def test_a_forecast_gives_the_columns_asked_for_of_every_measure():
    forecast = full_forecast()
    selected = forecast.select(["c", "a"])
    for name in MEASURES:
        np.testing.assert_array_equal(getattr(selected, name), getattr(forecast, name)[:, [2, 0]])
    assert_equal(forecast.select(["a", "b", "c"]), forecast, tolerance=0)
    with pytest.raises(ConfigError, match="'d'"):
        forecast.select(["a", "d"])


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(7)), st.integers(1, 6))
def test_parts_taken_and_concatenated_are_the_whole(order, cut):
    forecast = full_forecast(7)
    rows = [np.array(order[:cut]), np.array(order[cut:])]
    assert_equal(Forecast.concatenate([forecast.take(part) for part in rows], rows), forecast, tolerance=0)


def cases(n=40, m=4, observed=1.0, seed=0):
    rng = np.random.default_rng(seed)
    outcome = (rng.random((n, m)) < np.linspace(0.9, 0.4, m)).astype(float)
    outcome_cost = np.exp(rng.normal(size=(n, m)) * 0.3) * np.geomspace(10, 0.1, m)
    outcome[rng.random((n, m)) >= observed] = np.nan
    outcome_cost[rng.random((n, m)) >= observed] = np.nan
    return rng.random((n, m)), np.exp(rng.normal(size=(n, m))), outcome, outcome_cost


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), observed=st.sampled_from([0.1, 0.6, 1.0]))
def test_what_is_realised_is_what_a_plain_loop_finds(seed, observed):
    quality, cost, outcome, outcome_cost = cases(n=12, observed=observed, seed=seed)
    expected = []
    for price in price_range(cost):
        reached, paid = [], []
        for i in range(12):
            j = min(range(4), key=lambda j, i=i, price=price: cost[i, j] - price * quality[i, j])
            if np.isfinite(outcome[i, j]):
                reached.append(outcome[i, j])
                paid.append(outcome_cost[i, j] if np.isfinite(outcome_cost[i, j]) else cost[i, j])
        if reached:
            expected.append((np.mean(reached), np.mean(paid)))
    found = np.column_stack(realised(quality, cost, outcome, outcome_cost))
    np.testing.assert_allclose(found, np.reshape(expected, (-1, 2)), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), floor=st.sampled_from([1.0, 0.95, 0.5]))
def test_the_routed_cost_is_the_least_that_realises_the_floor(seed, floor):
    quality, cost, outcome, outcome_cost = cases(seed=seed)
    reached, paid = realised(quality, cost, outcome, outcome_cost)
    least = min([p for q, p in zip(reached, paid, strict=True) if q >= floor * outcome[:, 0].mean()], default=np.inf)
    expected = min(1.0, least / outcome_cost[:, 0].mean())
    assert routed_cost(quality, cost, outcome, outcome_cost, 0, [floor]) == pytest.approx(expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), observed=st.sampled_from([0.0, 0.3, 1.0]))
def test_no_forecast_costs_more_than_always_asking_the_best(seed, observed):
    quality, cost, outcome, outcome_cost = cases(n=15, observed=observed, seed=seed)
    assert 0 <= routed_cost(quality, cost, outcome, outcome_cost, 0) <= 1


def test_a_perfect_forecast_costs_what_the_oracle_pays():
    _, _, outcome, outcome_cost = cases(n=300)
    cheapest_right = np.where(outcome == 1, outcome_cost, np.inf).min(axis=1)
    oracle = np.where(np.isfinite(cheapest_right), cheapest_right, outcome_cost.min(axis=1))
    reachable = outcome.max(axis=1).mean() / outcome[:, 0].mean()  # of the best single model's quality
    found = routed_cost(outcome, outcome_cost, outcome, outcome_cost, 0, [reachable])
    assert found == pytest.approx(oracle.mean() / outcome_cost[:, 0].mean())
    assert routed_cost(outcome, outcome_cost, outcome, outcome_cost, 0) <= found


def test_a_forecast_that_knows_nothing_saves_nothing_at_the_highest_floor():
    rng = np.random.default_rng(0)
    outcome = (rng.random((500, 2)) < [0.9, 0.5]).astype(float)
    cost = np.tile([10.0, 1.0], (500, 1))
    assert routed_cost(np.full((500, 2), 0.7), cost, outcome, cost, 0, [1.0]) == 1.0
    assert routed_cost(outcome, cost, outcome, cost, 0, [1.0]) < 0.6


def test_higher_floors_cost_at_least_as_much():
    quality, cost, outcome, outcome_cost = cases(n=200)
    knowing = 0.5 * quality + 0.5 * outcome
    by_floor = [routed_cost(knowing, cost, outcome, outcome_cost, 0, [floor]) for floor in sorted(FLOORS)]
    assert by_floor == sorted(by_floor)
    assert routed_cost(knowing, cost, outcome, outcome_cost, 0) == pytest.approx(np.mean(by_floor))


def test_where_the_best_model_is_free_nothing_can_be_saved():
    quality, cost, outcome, _ = cases()
    assert routed_cost(quality, np.zeros_like(cost), outcome, np.zeros_like(cost), 0) == 1.0
    assert routed_cost(quality, cost, outcome, np.zeros_like(cost), 0) == 1.0


def test_where_the_best_model_was_never_observed_nothing_can_be_saved():
    quality, cost, outcome, outcome_cost = cases()
    outcome[:, 0] = np.nan
    assert routed_cost(quality, cost, outcome, outcome_cost, 0) == 1.0
