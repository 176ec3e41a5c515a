"""The prior: every query is the average query."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.outcomes import FloatArray
from eccos_integrations.predictors.base import Predictor, Targets


class PriorPredictor(Predictor):
    """Forecasts each model's mean, drawn towards the pool's mean where outcomes are few.

    The baseline any other predictor has to beat: it knows which model is good, not which query is hard.
    """

    name = "prior"

    def _learn(self, vectors: FloatArray, targets: Targets, seed: int) -> dict[str, NDArray[Any]]:
        return {}

    def _estimate(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        shape = (len(vectors), len(self.pool))
        return (
            np.broadcast_to(self._learnt["prior_quality"], shape),
            np.broadcast_to(self._learnt["prior_spend"], shape),
        )
