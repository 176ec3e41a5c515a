"""The curve of realised cost over realised quality, and the share of the best model's cost read from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import Forecast, OutcomeTable
from eccos_integrations.evaluation import realise
from eccos_integrations.evaluation.baselines import one_model
from eccos_integrations.evaluation.curve import PRICES, TARGETS, Curve, sweep


def table_of(quality, cost_usd) -> OutcomeTable:
    n, m = np.shape(quality)
    names = [f"q{i}" for i in range(n)], [f"text {i}" for i in range(n)], [f"model-{j}" for j in range(m)]
    return OutcomeTable(*names, quality=quality, cost_usd=cost_usd)


def forecast_of(table: OutcomeTable, quality=None, cost_usd=None) -> Forecast:
    """A forecast that knows the outcomes, but for what is given."""
    quality = table.quality if quality is None else np.array(quality)
    cost_usd = table.cost_usd if cost_usd is None else np.array(cost_usd)
    unknown = np.full(quality.shape, np.nan)
    return Forecast(
        models=table.models,
        quality=quality,
        cost_usd=cost_usd,
        input_tokens=unknown,
        output_tokens=unknown,
        latency_s=unknown,
    )


@st.composite
def tables(draw) -> OutcomeTable:
    n, m = draw(st.integers(2, 12)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return table_of(rng.integers(0, 2, (n, m)).astype(float), rng.lognormal(-6, 1, (n, m)))


@pytest.fixture
def hard_and_easy() -> OutcomeTable:
    """The small model, at a tenth of the price, answers half of ten queries; the large one all of them."""
    small = [1.0] * 5 + [0.0] * 5
    return table_of(np.column_stack([small, np.ones(10)]), np.tile([0.1, 1.0], (10, 1)))


def test_at_no_price_of_quality_every_query_goes_to_its_cheapest_model_and_at_a_high_one_to_its_best(hard_and_easy):
    first, last = list(sweep(forecast_of(hard_and_easy), prices=[0.0, 1e6]))
    assert first.tolist() == [0] * 10
    assert last.tolist() == [0] * 5 + [1] * 5


def test_the_default_prices_reach_from_the_cheapest_to_the_best(hard_and_easy):
    assignments = list(sweep(forecast_of(hard_and_easy)))
    assert len(assignments) == PRICES
    assert assignments[0].tolist() == [0] * 10
    assert assignments[-1].tolist() == [0] * 5 + [1] * 5


def test_the_least_cost_is_that_of_the_cheapest_setting_that_reached_the_quality():
    curve = Curve(quality=np.array([0.5, 0.8, 0.7, 0.9]), cost_usd=np.array([1.0, 2.0, 3.0, 4.0]))
    assert curve.least_cost_usd(0.7) == 2.0
    assert curve.least_cost_usd(0.8) == 2.0
    assert curve.least_cost_usd(0.85) == 4.0
    assert curve.least_cost_usd(0.95) == np.inf


def test_knowing_the_outcomes_costs_what_the_cheapest_right_models_cost(hard_and_easy):
    best = realise(hard_and_easy, one_model(hard_and_easy, "model-1"))
    curve = Curve.of(sweep(forecast_of(hard_and_easy)), hard_and_easy)
    assert curve.cost_share(best) == pytest.approx((5 * 0.1 + 5 * 1.0) / 10)


def test_a_forecast_that_tells_no_query_from_another_saves_nothing_where_only_the_best_reaches_the_targets(
    hard_and_easy,
):
    best = realise(hard_and_easy, one_model(hard_and_easy, "model-1"))
    means = np.tile(hard_and_easy.quality.mean(axis=0), (10, 1))
    assert Curve.of(sweep(forecast_of(hard_and_easy, means)), hard_and_easy).cost_share(best) == 1.0


def test_the_share_is_the_mean_over_the_targets_of_one_at_most():
    curve = Curve(quality=np.array([0.5, 0.76, 0.8]), cost_usd=np.array([0.1, 0.2, 5.0]))
    best = realise(table_of([[0.8]], [[1.0]]), np.array([0]))
    assert TARGETS == (1.0, 0.99, 0.97, 0.95)
    # 0.8 x 0.95 is reached at 0.2; the others at 5, five times what asking the best model costs.
    assert curve.cost_share(best) == pytest.approx((1 + 1 + 1 + 0.2) / 4)
    assert curve.cost_share(best, targets=[0.95]) == pytest.approx(0.2)


def test_where_the_best_model_is_free_nothing_can_be_saved():
    curve = Curve(quality=np.array([1.0]), cost_usd=np.array([0.0]))
    assert curve.cost_share(realise(table_of([[1.0]], [[0.0]]), np.array([0]))) == 1.0


def test_cells_that_were_not_observed_count_neither_way():
    table = table_of([[1.0, np.nan], [0.0, 1.0]], [[1.0, np.nan], [1.0, 3.0]])
    curve = Curve.of([np.array([0, 0]), np.array([1, 1])], table)
    assert curve.quality.tolist() == [0.5, 1.0]
    assert curve.cost_usd.tolist() == [1.0, 3.0]


@settings(deadline=None, max_examples=60)
@given(tables(), st.floats(1e-3, 1e3))
def test_the_currency_changes_no_share(table, rate):
    best_name = table.models[int(np.argmax(table.quality.mean(axis=0)))]
    dearer = table_of(table.quality, table.cost_usd * rate)
    share, same = (
        Curve.of(sweep(forecast_of(t)), t).cost_share(realise(t, one_model(t, best_name))) for t in (table, dearer)
    )
    assert share == pytest.approx(same)


@settings(deadline=None, max_examples=60)
@given(tables())
def test_the_share_lies_between_nothing_and_one_and_a_lower_target_costs_no_more(table):
    best_name = table.models[int(np.argmax(table.quality.mean(axis=0)))]
    best = realise(table, one_model(table, best_name))
    curve = Curve.of(sweep(forecast_of(table)), table)
    at = [curve.cost_share(best, targets=[target]) for target in TARGETS]
    assert all(0 < share <= 1 for share in at)
    assert at == sorted(at, reverse=True)
    assert curve.cost_share(best) == pytest.approx(np.mean(at))
