"""A blend of predictors that err differently."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor, forecast_of, tokens_of_input
from eccos_integrations.predictors.clusters import ClustersPredictor
from eccos_integrations.predictors.forecast import Forecast
from eccos_integrations.predictors.history import Arrays, History
from eccos_integrations.predictors.prior import PriorPredictor
from eccos_integrations.predictors.retrieval import RetrievalPredictor
from eccos_integrations.predictors.ridge import RidgePredictor
from eccos_integrations.predictors.trained import TrainedPredictor
from eccos_integrations.predictors.trees import TreesPredictor

PARTS: dict[str, type[Predictor]] = {
    part.name: part
    for part in (
        PriorPredictor,
        RidgePredictor,
        TreesPredictor,
        RetrievalPredictor,
        ClustersPredictor,
        TrainedPredictor,
    )
}
DEFAULT = ("ridge", "trees", "retrieval", "clusters")


class HybridPredictor(Predictor):
    """A weighted mean of what other predictors say, over one encoding of the queries.

    Learners of different families err on different queries; their mean errs less, and over-estimates less. Equal
    weights are hard to beat. OmniRouter's blend (arXiv 2502.20576 v6) is the case of two parts, gamma and delta of it
    `parts={"trained": gamma, "retrieval": 1 - gamma}, spend={"trained": delta, "retrieval": 1 - delta}`.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        parts: Names of predictors, of equal weight; or a weight for each.
        spend: Weights for what calls use up, where they differ from those for quality.
    """

    name = "hybrid"

    def __init__(
        self,
        encoder: EncoderLike = "lexical",
        parts: Sequence[str] | Mapping[str, float] = DEFAULT,
        spend: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(encoder)
        quality = dict(parts) if isinstance(parts, Mapping) else dict.fromkeys(parts, 1.0)
        self._weights = [_shares("parts", quality), _shares("spend", dict(spend or quality))]
        names = [name for name in PARTS if any(name in weights for weights in self._weights)]
        self._parts = {name: PARTS[name](self.encoder) for name in names}
        self._split: tuple[Arrays, dict[str, Arrays]] | None = None  # what was learnt, and the same by part

    @property
    def parts(self) -> dict[str, float]:
        """Weight of each part in the forecast quality."""
        return dict(self._weights[0])

    def settings(self) -> dict[str, Any]:
        """Weights of the parts, for quality and for spend."""
        return {"parts": self._weights[0], "spend": self._weights[1]}

    def forecasts(self, queries: Sequence[str], blends: Iterable[Sequence[str]]) -> list[Forecast]:
        """Forecasts of the same queries by several blends of equal weights, each of some of the parts."""
        pool, arrays = self._fitted()
        x = self.see(queries, arrays)
        estimates = {name: part.estimate(x, self._of(name, arrays)) for name, part in self._parts.items()}
        tokens = tokens_of_input(queries, arrays)
        return [
            forecast_of(_blend(estimates, [dict.fromkeys(names, 1 / len(names))] * 2), tokens, pool, arrays)
            for names in blends
        ]

    @property
    def per_model(self) -> Mapping[str, float]:  # type: ignore[override]  # those of the parts
        """Learnt arrays whose last axis is the model."""
        return {f"{name}.{key}": start for name, part in self._parts.items() for key, start in part.per_model.items()}

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """What each part learns."""
        return self._gathered(lambda _, part: part.learn(history, pool, arrays, seed))

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """The blend of the parts' estimates."""
        return self._blended(lambda name, part: part.estimate(x, self._of(name, arrays)))

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """The blend of the parts' held-out estimates."""
        return self._blended(lambda name, part: part.held_out(history, self._of(name, arrays)))

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """What changes in each part."""
        return self._gathered(lambda name, part: part.learn_more(x, values, self._of(name, arrays)))

    def _of(self, name: str, arrays: Arrays) -> Arrays:
        """What one part learnt, beside what all share."""
        known = self._split
        if known is None or known[0] is not arrays:
            shared = {key: array for key, array in arrays.items() if "." not in key}
            parts = {part: dict(shared) for part in self._parts}
            for key, array in arrays.items():
                part, _, own = key.rpartition(".")
                if part:
                    parts[part][own] = array
            known = self._split = (arrays, parts)
        return known[1][name]

    def _gathered(self, learn: Callable[[str, Predictor], Arrays]) -> Arrays:
        return {f"{name}.{key}": a for name, part in self._parts.items() for key, a in learn(name, part).items()}

    def _blended(self, estimate: Callable[[str, Predictor], Estimate]) -> Estimate:
        return _blend({name: estimate(name, part) for name, part in self._parts.items()}, self._weights)


def _blend(estimates: Mapping[str, Estimate], weights: Sequence[Mapping[str, float]]) -> Estimate:
    """The weighted mean; weights for quality and for spend."""
    shares = [np.array([[[by_name.get(name, 0.0)] for by_name in weights]]) for name in estimates]
    total = sum(share * one.total for share, one in zip(shares, estimates.values(), strict=True))
    weight = sum(share * one.weight for share, one in zip(shares, estimates.values(), strict=True))
    return Estimate(np.asarray(total), np.asarray(weight))


def _shares(field: str, weights: dict[str, float]) -> dict[str, float]:
    """The weights as shares of their sum."""
    if unknown := [name for name in weights if name not in PARTS]:
        raise ConfigError(f"hybrid: {field} names {unknown}; give some of {list(PARTS)}")
    total = float(sum(weights.values()))
    if not 0 < total < np.inf or min(weights.values()) < 0:
        raise ConfigError(f"hybrid: {field}={weights}; give weights of at least 0 that are not all 0")
    return {name: weight / total for name, weight in weights.items()}
