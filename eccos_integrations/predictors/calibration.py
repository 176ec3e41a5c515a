"""What forecasts are wrong by on queries the predictor had not seen: of all, and of those a routing would choose."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.predictors.forecast import Forecast
from eccos_integrations.predictors.routed import price_range

STRENGTH = 100.0  # outcomes that "no correction" is worth
RANGE = (0.9, 1.0)  # of the best single model's mean quality: the routings whose choices are looked at


@dataclass(frozen=True)
class Calibration:
    """Corrections by model; a model that is not named is not corrected.

    Args:
        quality_shift: Added to the forecast quality.
        cost_factor: Multiplies the forecast cost.
        chosen_quality_bias: Forecast minus realised mean quality of the chosen, before these corrections.
        chosen_cost_bias: Forecast over realised cost of the chosen, minus 1, likewise.
    """

    quality_shift: Mapping[str, float] = field(default_factory=dict)
    cost_factor: Mapping[str, float] = field(default_factory=dict)
    chosen_quality_bias: float = 0.0
    chosen_cost_bias: float = 0.0

    def apply(self, forecast: Forecast) -> Forecast:
        """The forecast, corrected."""
        shift = np.array([self.quality_shift.get(name, 0.0) for name in forecast.models])
        factor = np.array([self.cost_factor.get(name, 1.0) for name in forecast.models])
        return replace(forecast, quality=np.clip(forecast.quality + shift, 0, 1), cost_usd=forecast.cost_usd * factor)


def aligned(unseen: Forecast, sample: Forecast, fitted: Forecast) -> Forecast:
    """Forecasts of predictors that saw less, moved to the level of the one that saw all, model by model.

    A mean of fewer outcomes is drawn closer to the prior. Where all queries look alike that is all the difference there
    is, and a price set on the one level would send every query the wrong way on the other.

    Args:
        unseen: (N, M) what to move.
        sample: (n, M) some of its rows.
        fitted: (n, M) the same queries by the predictor that saw all.
    """
    mean, goal = sample.cost_usd.mean(axis=0), fitted.cost_usd.mean(axis=0)
    factor = np.divide(goal, mean, out=np.ones(len(mean)), where=mean > 0)
    shift = fitted.quality.mean(axis=0) - sample.quality.mean(axis=0)
    return replace(unseen, quality=np.clip(unseen.quality + shift, 0, 1), cost_usd=unseen.cost_usd * factor)


def calibrate(forecast: Forecast, table: OutcomeTable, best: str) -> Calibration:
    """Corrections of a predictor from its out-of-fold forecasts of a table.

    Of each model: the mean error of its quality. Of the chosen, because a routing picks whoever is mistaken in its
    favour: the cost of the queries that each model gets. Their quality is not corrected, only reported: lowering all
    but the best by what their choosers over-estimate made routing dearer on every table tried, for it is the same on
    queries that are mistaken and on those that are not. Corrections are drawn towards none where outcomes are few.

    Args:
        forecast: (N, M) of queries the predictor had not seen.
        table: What came of them; cells that were not observed count neither way.
        best: The best single model.
    """
    forecast = forecast.select(table.models)
    error = table.quality - forecast.quality
    observed = np.isfinite(error)
    shift = np.where(observed, error, 0.0).sum(axis=0) / (observed.sum(axis=0) + STRENGTH)
    chosen = _chosen(forecast, table, table.models.index(best))
    seen = chosen * observed
    paid = np.isfinite(table.cost_usd)
    spent = (chosen * np.where(paid, table.cost_usd, 0.0)).sum(axis=0)
    expected = (chosen * np.where(paid, forecast.cost_usd, 0.0)).sum(axis=0)
    unchanged = STRENGTH * forecast.cost_usd.mean(axis=0)
    total = unchanged + expected
    factor = np.divide(unchanged + spent, total, out=np.ones(len(total)), where=total > 0)
    return Calibration(
        quality_shift=dict(zip(table.models, shift.tolist(), strict=True)),
        cost_factor=dict(zip(table.models, factor.tolist(), strict=True)),
        chosen_quality_bias=-float((seen * np.where(observed, error, 0.0)).sum()) / max(float(seen.sum()), 1e-9),
        chosen_cost_bias=float(expected.sum() / spent.sum() - 1) if spent.sum() > 0 else 0.0,
    )


def _chosen(forecast: Forecast, table: OutcomeTable, best: int) -> FloatArray:
    """(N, M) share of the routings in range that send a query to a model."""
    rows = np.arange(len(table))
    yardstick = float(np.nanmean(table.quality[:, best]))
    times, routings = np.zeros(table.quality.shape), 0
    for price in price_range(forecast.cost_usd):
        model = np.argmin(forecast.cost_usd - price * forecast.quality, axis=1)
        outcome = table.quality[rows, model]
        if np.isfinite(outcome).any() and RANGE[0] <= np.nanmean(outcome) / max(yardstick, 1e-9) <= RANGE[1]:
            times[rows, model] += 1
            routings += 1
    return times / max(routings, 1)
