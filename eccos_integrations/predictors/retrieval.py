"""ECCOS-R: what the models did on the most similar past queries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor, routed_cost_of
from eccos_integrations.predictors.history import Arrays, History
from eccos_integrations.predictors.neighbours import Neighbours, appended
from eccos_integrations.predictors.routed import CLEARLY

# Neighbours, strength and temperature that are tried; the first unless another routes clearly cheaper: on the tables
# looked at it was never far from the best, and small differences are luck.
SHAPES = ((200, 30.0, 1.0), (500, 60.0, 1.0), (64, 30.0, 0.5))
CHUNK = 1024  # queries estimated at once: bounds what the neighbours take


class RetrievalPredictor(Predictor):
    """Similarity-weighted mean over the k nearest past queries, drawn towards each model's mean.

    With similarities s and outcomes y of the neighbours that observed a model, the estimate is
    sum s^(1/temperature) y / (sum s^(1/temperature) + strength). No observed neighbour leaves the prior. Queries that
    were asked of one model alone, as feedback is, are neighbours in a group of their own: they push out no others.

    Source: ECCOS-R of arXiv 2502.20576 and its authors' code (agiresearch/AIOS, EccosRStrategy), which takes plain
    means over k = 16; the weighting is OmniRouter's (v6), the shrinkage ours.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        k: Neighbours asked for.
        strength: How many perfectly similar neighbours the prior is worth.
        temperature: Below 1 the most similar neighbours count more.

    What is left out is chosen on the history, each query forecast from all others, by what routing by it would cost.
    """

    name = "retrieval"
    # `own` names the group of queries that were asked of this model alone; -1: there are none.
    per_model = {"values": np.nan, "own": -1.0}  # noqa: RUF012

    def __init__(
        self,
        encoder: EncoderLike = "lexical",
        k: int | None = None,
        strength: float | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__(encoder)
        given = [value for value in (k, strength, temperature) if value is not None]
        if not all(0 < value < np.inf for value in given) or (k is not None and k < 1):
            raise ConfigError(f"retrieval: k={k}, strength={strength}, temperature={temperature}; k must be at "
                              "least 1, strength and temperature positive")  # fmt: skip
        self.k = k
        self.strength = strength
        self.temperature = temperature
        self._known: tuple[NDArray[Any], Neighbours] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}  # the index is built again where it is asked

    def settings(self) -> dict[str, Any]:
        """K, strength and temperature."""
        return {"k": self.k, "strength": self.strength, "temperature": self.temperature}

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """The past queries and their outcomes themselves."""
        self._known = None
        m = history.values.shape[2]
        nothing: Arrays = {
            "vectors": np.zeros((0, history.x.shape[1]), dtype=np.float32),
            "values": np.zeros((0, 2, m)),
            "group": np.zeros(0, dtype=np.int64),
            "own": np.full(m, -1),
        }
        learnt = _with(nothing, history.x, history.values)
        own = (self.k, self.strength, self.temperature)
        shapes = [
            tuple(usual if given is None else given for given, usual in zip(own, shape, strict=True))
            for shape in SHAPES
        ]
        distinct = [learnt | {"shape": np.array(shape, dtype=np.float64)} for shape in dict.fromkeys(shapes)]
        if len(distinct) == 1:
            return distinct[0]
        costs = [routed_cost_of(self.held_out(history, each), history, pool, arrays) for each in distinct]
        best = int(np.argmin(costs))
        return distinct[best if costs[best] < CLEARLY * costs[0] else 0]

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """The nearest past queries' outcomes."""
        neighbours = self._neighbours(arrays)
        parts = []
        for start in range(0, max(len(x), 1), CHUNK):
            part = x[start : start + CHUNK]
            similarity, rows = neighbours.nearest(part, _k(arrays), len(arrays["values"]))
            parts.append(self._weighed(similarity, rows, arrays))
        return Estimate(np.concatenate([p.total for p in parts]), np.concatenate([p.weight for p in parts]))

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """The nearest other queries' outcomes."""
        n = len(history.x)
        similarity, rows = self._neighbours(arrays).nearest(history.x, min(_k(arrays) + 1, n), n)
        return self._weighed(np.where(rows == np.arange(n)[:, None], 0.0, similarity), rows, arrays)

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """More past queries."""
        neighbours, n = self._neighbours(arrays), len(arrays["vectors"])
        more = _with(arrays, x, values)
        if len(neighbours) == n:  # else it has grown for another predictor that was restored from the same arrays
            neighbours.add(more["vectors"][n:], more["group"][n:])
            self._known = (more["vectors"], neighbours)
        return more

    def _neighbours(self, arrays: Arrays) -> Neighbours:
        """The index of the vectors: built once after fitting and after loading, never read from a file."""
        known, vectors = self._known, arrays["vectors"]
        if known is not None and len(vectors) <= len(known[0]) and vectors.base is known[0].base:
            return known[1]
        neighbours = Neighbours(vectors, arrays["group"])
        if known is None or len(vectors) > len(known[0]):  # a forecast that began before an update comes late
            self._known = (vectors, neighbours)
        return neighbours

    def _weighed(self, similarity: FloatArray, rows: NDArray[np.int64], arrays: Arrays) -> Estimate:
        """The neighbours' values by similarity, query by query: all at once would not fit a core's cache."""
        _, strength, temperature = arrays["shape"]
        weights = similarity ** (1 / temperature)
        total, weight = (np.empty((len(rows), *arrays["values"].shape[1:])) for _ in range(2))
        for row, (share, near) in enumerate(zip(weights, rows, strict=True)):
            values = arrays["values"][near].reshape(len(near), -1)
            observed = np.isfinite(values)
            if observed.all():
                total[row], weight[row] = (share @ values).reshape(total.shape[1:]), share.sum()
            else:
                total[row] = (share @ np.where(observed, values, 0.0)).reshape(total.shape[1:])
                weight[row] = (share @ observed).reshape(total.shape[1:])
        return Estimate(total / (weight + strength), weight / (weight + strength))


def _k(arrays: Arrays) -> int:
    return min(int(arrays["shape"][0]), len(arrays["values"]))


def _with(arrays: Arrays, x: FloatArray, values: FloatArray) -> Arrays:
    """The arrays with more past queries; group 0 is of those that several models were asked."""
    asked = np.asarray(np.isfinite(values).any(axis=1))
    own = arrays["own"].copy()
    group = np.zeros(len(x), dtype=np.int64)
    for j in range(asked.shape[1]):
        alone = asked[:, j] & (asked.sum(axis=1) == 1)
        if alone.any():
            if own[j] < 0:
                own[j] = 1 + max(arrays["group"].max(initial=0), own.max())
            group[alone] = own[j]
    return {
        "vectors": appended(arrays["vectors"], x.astype(np.float32)),
        "values": appended(arrays["values"], values),
        "group": appended(arrays["group"], group),
        "own": own,
    }
