"""Forecasts that anyone would try first: what ours have to beat. All take complete tables and the same vectors.

Each is what `Router.fit(predictor=...)` takes. A deep copy has learnt nothing, so that cross-validation is honest.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from eccos_integrations import Forecast, ModelPool, OutcomeTable
from eccos_integrations.encoders import EncoderLike, make_encoder

NEGLIGIBLE = 1e-3  # share of a model's mean cost; the logarithm needs something above nothing


class Baseline(ABC):
    """Learns from the encoder's vectors.

    Args:
        encoder: Fitted on the history only, as ours.
    """

    def __init__(self, encoder: EncoderLike) -> None:
        self.encoder = make_encoder(encoder).unfitted()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.encoder)

    def fit(self, table: OutcomeTable, pool: ModelPool, *, seed: int = 0) -> Self:
        """Learn from a complete table."""
        self.models = table.models
        self._learn(self.encoder.fit(table.queries, seed=seed).encode(table.queries), table, seed)
        return self

    def forecast(self, queries: Sequence[str]) -> Forecast:
        """Quality and cost; tokens and latency are left open."""
        return as_forecast(self.models, *self._estimate(self.encoder.encode(queries)))

    @abstractmethod
    def _learn(self, vectors: np.ndarray, table: OutcomeTable, seed: int) -> None:
        """Learn from vectors (N, D)."""

    @abstractmethod
    def _estimate(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quality and cost, (N, M) each."""


class Neighbours(Baseline):
    """Plain means of quality and cost over the k nearest past queries."""

    k = 16

    def _learn(self, vectors, table, seed):
        self.vectors, self.quality, self.cost_usd = vectors, table.quality, table.cost_usd

    def _estimate(self, vectors):
        k = min(self.k, len(self.vectors))
        nearest = np.argpartition(-vectors @ self.vectors.T, k - 1, axis=1)[:, :k]
        return self.quality[nearest].mean(axis=1), self.cost_usd[nearest].mean(axis=1)


class ManyNeighbours(Neighbours):
    """The same with more of them."""

    k = 64


class Logistic(Baseline):
    """A logistic regression per model (C = 3) on right or wrong; a score between counts as both, by its share.

    Cost by `LogCost`.
    """

    def _learn(self, vectors, table, seed):
        self.heads = LogisticHeads(vectors, table.quality)
        self.cost = LogCost(vectors, table.cost_usd)

    def _estimate(self, vectors):
        return self.heads(vectors), self.cost(vectors)


class LogisticMeanCost(Logistic):
    """The same with each model's mean cost."""

    def _learn(self, vectors, table, seed):
        self.heads = LogisticHeads(vectors, table.quality)
        self.mean_cost_usd = table.cost_usd.mean(axis=0)

    def _estimate(self, vectors):
        return self.heads(vectors), np.tile(self.mean_cost_usd, (len(vectors), 1))


class Clusters(Baseline):
    """Mean quality within 16 clusters of k-means, cost by `LogCost`."""

    clusters = 16

    def _learn(self, vectors, table, seed):
        from sklearn.cluster import KMeans

        k = min(self.clusters, len(np.unique(vectors, axis=0)))
        found = KMeans(k, n_init=4, random_state=seed).fit(vectors)
        self.centres = found.cluster_centers_
        self.quality = np.array([table.quality[found.labels_ == label].mean(axis=0) for label in range(k)])
        self.cost = LogCost(vectors, table.cost_usd)

    def _estimate(self, vectors):
        distance = (self.centres**2).sum(axis=1) - 2 * vectors @ self.centres.T
        return self.quality[distance.argmin(axis=1)], self.cost(vectors)


class TaskMeans:
    """Mean quality and cost of the query's task, which it is *told*: no router of ours is.

    Args:
        tasks: Task by text; the mean of all tasks stands in for a text not listed.
    """

    def __init__(self, tasks: Mapping[str, str]) -> None:
        self.tasks = tasks

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.tasks)

    def fit(self, table: OutcomeTable, pool: ModelPool, *, seed: int = 0) -> Self:
        """Learn from a complete table with tasks."""
        assert table.tasks is not None
        self.models = table.models
        tasks = np.array(table.tasks)
        rows = {None: np.ones(len(table), dtype=bool)} | {task: tasks == task for task in sorted(set(table.tasks))}
        self.means = {task: (table.quality[r].mean(axis=0), table.cost_usd[r].mean(axis=0)) for task, r in rows.items()}
        return self

    def forecast(self, queries: Sequence[str]) -> Forecast:
        """Means of each query's task."""
        known = (self.tasks.get(query) for query in queries)
        quality, cost = zip(*(self.means[task if task in self.means else None] for task in known), strict=True)
        return as_forecast(self.models, np.array(quality), np.array(cost))


class LogisticHeads:
    """Per column of outcomes in 0..1 the probability of 1."""

    def __init__(self, vectors: np.ndarray, outcomes: np.ndarray, c: float = 3.0) -> None:
        from sklearn.linear_model import LogisticRegression

        both = np.concatenate([vectors, vectors])
        label = np.repeat([1, 0], len(vectors))
        self.weights = np.zeros((vectors.shape[1], outcomes.shape[1]))
        self.bias = np.empty(outcomes.shape[1])
        for j, outcome in enumerate(outcomes.T):
            share = np.concatenate([outcome, 1 - outcome])
            if not 0 < outcome.mean() < 1:
                self.bias[j] = 20 * (2 * outcome.mean() - 1)
                continue
            rows = share > 0
            head = LogisticRegression(C=c, max_iter=500).fit(both[rows], label[rows], sample_weight=share[rows])
            self.weights[:, j], self.bias[j] = head.coef_[0], head.intercept_[0]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Probabilities, (N, M)."""
        return 1 / (1 + np.exp(-(vectors @ self.weights + self.bias)))


class LogCost:
    """Ridge on the logarithm of cost, its strength by leave-one-out error, times Duan's smearing factor per model.

    Source: Duan, "Smearing Estimate: A Nonparametric Retransformation Method", JASA 78(383), 1983.
    """

    strengths = np.geomspace(0.1, 100, 7)

    def __init__(self, vectors: np.ndarray, cost_usd: np.ndarray) -> None:
        self.least = np.maximum(NEGLIGIBLE * cost_usd.mean(axis=0), 1e-300)
        logs = np.log(np.maximum(cost_usd, self.least))
        self.centre, self.bias = vectors.mean(axis=0), logs.mean(axis=0)
        left, scale, axes = np.linalg.svd(vectors - self.centre, full_matrices=False)
        projected = left.T @ (logs - self.bias)
        best = np.full(logs.shape[1], np.inf)
        self.weights = np.zeros((vectors.shape[1], logs.shape[1]))
        self.smearing = np.ones(logs.shape[1])
        for strength in self.strengths:
            kept = scale**2 / (scale**2 + strength)
            leverage = (left**2) @ kept + 1 / len(vectors)
            left_out = (logs - self.bias - left @ (kept[:, None] * projected)) / np.maximum(1 - leverage, 1e-3)[:, None]
            error = (left_out**2).mean(axis=0)
            better = error < best
            best = np.where(better, error, best)
            weights = axes.T @ ((scale / (scale**2 + strength))[:, None] * projected)
            self.weights[:, better] = weights[:, better]
            self.smearing[better] = np.exp(left_out[:, better]).mean(axis=0)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Expected cost, (N, M)."""
        return np.exp((vectors - self.centre) @ self.weights + self.bias) * self.smearing


def as_forecast(models: list[str], quality: np.ndarray, cost_usd: np.ndarray) -> Forecast:
    """A forecast of quality and cost alone."""
    unknown = np.full(quality.shape, np.nan)
    return Forecast(
        models=models,
        quality=np.clip(quality, 0, 1),
        cost_usd=cost_usd,
        input_tokens=unknown,
        output_tokens=unknown,
        latency_s=unknown,
    )
