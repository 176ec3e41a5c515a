"""The prior: every query is the average query."""

import numpy as np

from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor
from eccos_integrations.predictors.history import Arrays, History


class PriorPredictor(Predictor):
    """Forecasts each model's mean, drawn towards that of its kin where outcomes are few.

    The baseline any other predictor has to beat: it knows which model is good, not which query is hard.
    """

    name = "prior"

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """Nothing beside the means."""
        return {}

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """Nothing: the means decide."""
        nothing = np.zeros((len(x), *arrays["count"].shape))
        return Estimate(nothing, nothing)

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """Nothing: a mean hardly depends on one of its values."""
        return self.estimate(history.x, arrays)

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """Nothing beside the means."""
        return {}
