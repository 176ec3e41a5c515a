"""Cost against quality, both realised, over all settings of a router's knob: compares forecasts, promises nothing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from eccos_integrations.assignment.problem import IntArray
from eccos_integrations.evaluation.metrics import Realised, realise
from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.predictors import Forecast

TARGETS = (1.0, 0.99, 0.97, 0.95)  # shares of the best single model's quality
PRICES = 241
ROUNDING = 1e-12  # means of the same numbers in another order differ by this much


@dataclass(frozen=True, eq=False)
class Curve:
    """What each setting realised.

    Args:
        quality: (P,) mean quality.
        cost_usd: (P,) mean cost.
    """

    quality: FloatArray
    cost_usd: FloatArray

    @classmethod
    def of(cls, assignments: Iterable[IntArray], table: OutcomeTable) -> Self:
        """Look the assignments of all settings up in the outcomes."""
        points = [realise(table, assignment) for assignment in assignments]
        return cls(np.array([p.mean_quality for p in points]), np.array([p.mean_cost_usd for p in points]))

    def least_cost_usd(self, quality: float) -> float:
        """Cost of the cheapest setting that reached this quality; inf if none did."""
        return float(self.cost_usd[self.quality >= quality - ROUNDING].min(initial=np.inf))

    def cost_share(self, best: Realised, targets: Sequence[float] = TARGETS) -> float:
        """Least cost at the targets as a share of the best single model's, their mean; lower is better.

        A target that is not reached, or only at a higher cost, counts 1: the best single model could be asked instead.

        Args:
            best: What the best single model realised on the same queries.
            targets: Shares of its quality.
        """
        if not best.mean_cost_usd > 0:  # where calls are free, nothing can be saved
            return 1.0
        reached = [self.least_cost_usd(target * best.mean_quality) for target in targets]
        return float(np.minimum(1.0, np.array(reached) / best.mean_cost_usd).mean())


def sweep(forecast: Forecast, prices: Sequence[float] | FloatArray | None = None) -> Iterator[IntArray]:
    """At each price of quality, the column of every query's least `cost - price * quality`.

    Args:
        forecast: Of the queries.
        prices: USD per unit of quality; default `PRICES` of them, from nothing to far more than any model costs.
    """
    if prices is None:
        prices = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, PRICES - 1)]) * forecast.cost_usd.mean()
    for price in prices:
        yield np.argmin(forecast.cost_usd - price * forecast.quality, axis=1)
