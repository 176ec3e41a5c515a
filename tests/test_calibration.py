import numpy as np
import pytest

from eccos_integrations import Forecast, OutcomeTable
from eccos_integrations.predictors.calibration import Calibration, aligned, calibrate

MODELS = ["large", "small"]


def table_of(quality, cost_usd):
    ids = [f"q{i}" for i in range(len(quality))]
    return OutcomeTable(ids, ids, MODELS, quality=quality, cost_usd=cost_usd)


def routed(n=2000, seed=0, *, over=0.0, cost=1.0):
    """Outcomes, and forecasts of them: the small model's quality too high by `over`, its cost by a factor."""
    rng = np.random.default_rng(seed)
    chance = np.column_stack([np.full(n, 0.9), rng.uniform(0.5, 1.0, n)])
    paid = np.tile([0.01, 0.001], (n, 1)) * rng.lognormal(0, 0.3, (n, 2))
    table = table_of((rng.random((n, 2)) < chance).astype(float), paid)
    quality = chance + np.array([0.0, over])
    expected = np.tile([0.01, 0.001 * cost], (n, 1)) * np.exp(0.3**2 / 2)
    return table, Forecast(MODELS, quality.clip(0, 1), expected)


def test_forecasts_that_are_right_are_left_as_they_are():
    table, forecast = routed()
    calibration = calibrate(forecast, table, "large")
    corrected = calibration.apply(forecast)
    np.testing.assert_allclose(corrected.quality, forecast.quality, atol=0.02)
    np.testing.assert_allclose(corrected.cost_usd, forecast.cost_usd, rtol=0.03)
    assert abs(calibration.chosen_quality_bias) < 0.02
    assert abs(calibration.chosen_cost_bias) < 0.05


def test_a_model_that_is_over_estimated_everywhere_is_brought_down_to_what_it_does():
    table, forecast = routed(over=0.1)
    calibration = calibrate(forecast, table, "large")
    assert calibration.chosen_quality_bias > 0.02
    assert calibration.quality_shift["small"] == pytest.approx(
        -float((forecast.quality - table.quality)[:, 1].mean()), abs=0.03
    )
    assert abs(calibration.quality_shift["large"]) < 0.02


def test_costs_of_the_chosen_are_corrected_model_by_model():
    table, forecast = routed(cost=2.0)
    calibration = calibrate(forecast, table, "large")
    assert calibration.cost_factor["small"] == pytest.approx(0.5, abs=0.1)
    assert calibration.cost_factor["large"] == pytest.approx(1, abs=0.05)


def test_what_the_chosen_are_over_estimated_by_is_reported_not_corrected():
    rng = np.random.default_rng(1)
    n = 3000
    chance = np.full(n, 0.7)
    noise = rng.normal(0, 0.15, n)  # right on average, wrong for whom it is chosen
    table = table_of(
        (rng.random((n, 2)) < np.column_stack([np.full(n, 0.85), chance])).astype(float), np.tile([0.01, 0.001], (n, 1))
    )
    forecast = Forecast(MODELS, np.column_stack([np.full(n, 0.85), (chance + noise).clip(0, 1)]), table.cost_usd)
    calibration = calibrate(forecast, table, "large")
    assert calibration.chosen_quality_bias > 0.02
    assert max(map(abs, calibration.quality_shift.values())) < 0.02


def test_few_outcomes_change_little():
    table, forecast = routed(n=5, over=0.1)
    shift = calibrate(forecast, table, "large").quality_shift
    assert max(map(abs, shift.values())) < 0.06


def test_cells_that_were_not_observed_count_neither_way():
    table, forecast = routed(over=0.1)
    gaps = np.where(np.random.default_rng(0).random(table.quality.shape) < 0.5, np.nan, 1.0)
    sparse = table_of(table.quality * gaps, table.cost_usd * gaps)
    whole, part = (calibrate(forecast, each, "large").quality_shift for each in (table, sparse))
    assert part["small"] == pytest.approx(whole["small"], abs=0.04)


def test_a_calibration_knows_models_by_name():
    forecast = Forecast(["new", "small"], [[0.5, 0.5]], [[1.0, 1.0]])
    corrected = Calibration(quality_shift={"small": 0.6}, cost_factor={"small": 2.0, "gone": 9.0}).apply(forecast)
    assert corrected.quality.tolist() == [[0.5, 1.0]]
    assert corrected.cost_usd.tolist() == [[1.0, 2.0]]


def test_forecasts_from_less_are_moved_to_the_level_of_the_one_that_saw_all():
    unseen = Forecast(MODELS, [[0.8, 0.5], [0.6, 0.3]], [[2.0, 1.0], [4.0, 0.0]])
    fitted = Forecast(MODELS, [[0.9, 0.4], [0.7, 0.2]], [[4.0, 1.0], [8.0, 0.0]])
    moved = aligned(unseen, unseen, fitted)
    np.testing.assert_allclose(moved.quality, fitted.quality)
    np.testing.assert_allclose(moved.cost_usd, fitted.cost_usd)
