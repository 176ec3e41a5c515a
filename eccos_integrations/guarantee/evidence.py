"""What routing at a price of quality brings: forecasts of queries beside what came of them."""

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray

PRICES = 40  # tried
MOST_ROWS = 4096  # of the fit part that the prices are taken from
WORST_ROWS = 2  # added to a spread, in case no loss was drawn by luck


@dataclass(frozen=True, eq=False)
class Evidence:
    """Forecasts of queries that the predictor has not seen, beside what came of them.

    Args:
        quality: (N, M) forecast.
        cost_usd: (N, M) forecast.
        outcome: (N, M) observed quality, 0..1; NaN where not observed.
        outcome_cost_usd: (N, M) observed cost; NaN where not observed. Orders the prices, proves nothing.

    Raises:
        ConfigError: The shapes differ, a forecast is not finite, or an outcome is not within 0..1.
    """

    quality: FloatArray
    cost_usd: FloatArray
    outcome: FloatArray
    outcome_cost_usd: FloatArray

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 2 or values.shape != self.quality.shape:
                raise ConfigError(f"{name}: shape {values.shape}; give (queries, models), alike in all four")
            if name in {"quality", "cost_usd"} and not np.isfinite(values).all():
                raise ConfigError(f"{name}: a forecast is NaN or infinite; forecast every query for every model")
        if (wrong := self.outcome[(self.outcome < 0) | (self.outcome > 1)]).size:
            raise ConfigError(f"outcome: {wrong[0]:g} is not within 0..1; give scores, and NaN where not observed")

    def __len__(self) -> int:
        return len(self.quality)

    def joined(self, other: "Evidence") -> "Evidence":
        """The rows of both."""
        parts = ([getattr(each, column.name) for each in (self, other)] for column in fields(self))
        return Evidence(*(np.concatenate(part) for part in parts))


def price_grid(fit: Evidence) -> FloatArray:
    """Prices of quality to try, (P,), rising in equal steps of the logarithm of what is spent.

    From one that sends nearly every query to its cheapest model, to one that sends nearly every query to the model that
    is forecast best.
    """
    some = slice(None, None, -(-len(fit) // MOST_ROWS) or 1)
    quality, cost = fit.quality[some], fit.cost_usd[some]
    if not quality.size:
        return np.zeros(0)
    turns = []  # prices at which a query may leave its cheapest model, or turn to its best
    for model in (np.argmin(cost, axis=1)[:, None], np.argmax(quality, axis=1)[:, None]):
        dearer, better = (each - np.take_along_axis(each, model, axis=1) for each in (cost, quality))
        trade = np.sign(dearer) * np.sign(better) > 0
        with np.errstate(over="ignore"):
            turns.append(dearer[trade] / better[trade])
    steps = np.concatenate(turns)
    steps = steps[np.isfinite(steps)]
    if not steps.size:  # the cheapest model is the best, or all cost the same: every price says the same
        return np.ones(1)
    low, high = np.quantile(steps, [0.001, 0.999])
    prices = np.geomspace(low / 2, high * 2, 10 * PRICES)
    spent = np.take_along_axis(cost, choices(quality, cost, prices), axis=1).mean(axis=0)
    spent = np.maximum.accumulate(spent)
    least = max(spent[0], 1e-6 * spent[-1])  # free models have no logarithm
    tried = np.searchsorted(spent, np.geomspace(least, spent[-1], PRICES), side="right") - 1
    return prices[np.unique(tried)]


def choices(quality: FloatArray, cost_usd: FloatArray, prices: FloatArray) -> NDArray[np.int64]:
    """(N, P) model that each price sends each query to."""
    chosen = [np.argmin(cost_usd - price * quality, axis=1) for price in prices]
    return np.array(chosen, dtype=np.int64).reshape(len(prices), len(quality)).T


@dataclass(frozen=True, eq=False)
class Routed:
    """What routing at each of P prices brought.

    A price's *gain* on a row is the quality of the chosen minus the floor times the yardstick. Its mean is below zero
    exactly where the floor is not kept.

    Args:
        quality: (N, P) outcome of the chosen, NaN where the row says nothing.
        cost_usd: (N, P) cost of the chosen.
        yardstick: (N, 1) what a floor is a fraction of: outcome of the best single model, or 1 for absolute floors.
        dearest_usd: Mean cost of the best single model; infinite for absolute floors.
    """

    quality: FloatArray
    cost_usd: FloatArray
    yardstick: FloatArray
    dearest_usd: float

    @classmethod
    def observed(cls, evidence: Evidence, prices: FloatArray, best: int | None) -> Self:
        """Every row where the chosen model and the best were observed: for estimates."""
        chosen = choices(evidence.quality, evidence.cost_usd, prices)
        known = np.isfinite(evidence.outcome_cost_usd)
        spent = np.where(known, evidence.outcome_cost_usd, evidence.cost_usd)
        return cls(
            quality=np.take_along_axis(evidence.outcome, chosen, axis=1),
            cost_usd=np.take_along_axis(spent, chosen, axis=1),
            yardstick=np.ones((len(evidence), 1)) if best is None else evidence.outcome[:, [best]],
            dearest_usd=math.inf if best is None or not len(evidence) else float(spent[:, best].mean()),
        )

    @classmethod
    def provable(cls, evidence: Evidence, prices: FloatArray, best: int | None) -> Self:
        """Rows whose choice does not lean on outcomes: for proofs.

        A row counts for a price if every model that the price sends any row to was observed on it, and so was the best.
        Dropping just the rows whose own choice was not observed would favour queries that go to well observed models.
        A model observed on less than half of the rows drops none: it counts at its worst where it was not.
        """
        seen = np.isfinite(evidence.outcome)
        needed = 2 * seen.sum(axis=0) >= len(evidence)
        routed = cls.observed(replace(evidence, outcome=np.where(seen, evidence.outcome, 0.0)), prices, best)
        chosen = choices(evidence.quality, evidence.cost_usd, prices)
        for column, models in enumerate(chosen.T):
            used = np.bincount(models, minlength=len(needed)) > 0
            if best is not None:
                used[best] = True
            routed.quality[~seen[:, used & needed].all(axis=1), column] = np.nan
        if best is not None:
            routed.yardstick[~seen[:, best]] = 1.0
        return routed

    def shuffled(self, seed: int) -> "Routed":
        """The rows in an order drawn by the seed, the same whatever order they came in."""
        by_value = np.lexsort((*self.quality.T, *self.yardstick.T))
        rows = by_value[np.random.default_rng(seed).permutation(len(by_value))]
        return replace(self, quality=self.quality[rows], cost_usd=self.cost_usd[rows], yardstick=self.yardstick[rows])

    def gains(self, columns: list[int], floors: FloatArray) -> FloatArray:
        """(N, K) gains of K prices (by column), each at its floor; NaN where the row says nothing."""
        return self.quality[:, columns] - floors * self.yardstick

    def moments(self, columns: list[int], floors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(K,) mean gain, -inf where no row says anything, and (K,) its spread, some rows of the worst kind added."""
        gains = self.gains(columns, floors)
        n = np.isfinite(gains).sum(axis=0)
        mean = np.nansum(gains, axis=0) / np.maximum(n, 1)
        squares = np.nansum((gains - mean) ** 2, axis=0) + WORST_ROWS * floors**2
        return np.where(n > 0, mean, -np.inf), np.sqrt(squares / (n + WORST_ROWS))

    def safest_first(self, floor: float) -> list[int]:
        """Columns to test at this floor: surest gain first, then only those that cost less than all before.

        None that costs more than the best single model, which needs no proof.
        """
        columns = [*range(self.quality.shape[1])]
        mean, spread = self.moments(columns, np.full(len(columns), floor))
        cost = self.cost_usd.sum(axis=0) / max(len(self.cost_usd), 1)
        order, least = [], np.nextafter(self.dearest_usd, np.inf)
        for column in np.argsort(-mean / np.maximum(spread, 1e-12), kind="stable"):
            if cost[column] < least and mean[column] > -np.inf:
                order.append(int(column))
                least = cost[column]
        return order
