"""Ways of routing, each behind the same few questions, so that one function can measure them all."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.routing_parts.baselines import (
    Clusters,
    Logistic,
    LogisticHeads,
    LogisticMeanCost,
    ManyNeighbours,
    Neighbours,
    TaskMeans,
)
from eccos_integrations import Forecast, ModelPool, OutcomeTable, Policy, Router
from eccos_integrations.encoders import Encoder
from eccos_integrations.evaluation.baselines import cheapest, threshold
from eccos_integrations.evaluation.curve import PRICES, ROUNDING, Curve, sweep
from eccos_integrations.history import best_single
from eccos_integrations.predictors import PREDICTORS, ForecastMaker

AUTO_FLOOR = 0.97  # the floor that predictor="auto" chooses for
FOLDS = 5


class Way(ABC):
    """A way of routing.

    Args:
        name: What it is.
        encoder: Name of its encoder, or "".
        baseline: Whether it is something to beat.
    """

    def __init__(self, name: str, encoder: str = "", *, baseline: bool = False) -> None:
        self.name = name
        self.encoder = encoder
        self.baseline = baseline

    @abstractmethod
    def fit(self, table: OutcomeTable, seed: int) -> None:
        """Learn from past outcomes."""

    @abstractmethod
    def settings(self, queries: Sequence[str]) -> Iterable[np.ndarray]:
        """The columns (N,) chosen at every setting of its knob."""

    @abstractmethod
    def choose(self, queries: Sequence[str], floor: float) -> np.ndarray:
        """The columns (N,) chosen at the setting that past outcomes call for at this share of the best's quality."""

    def forecast(self, queries: Sequence[str]) -> Forecast | None:
        """What it expects, if it says so."""
        return None

    def decide(self, query: str) -> None:
        """One decision from text."""
        self.choose([query], AUTO_FLOOR)


class BestSingle(Way):
    """Every query to the model that was best on the past ones."""

    def fit(self, table, seed):
        """Learn which model that is."""
        self.table, self.best = table, best_single(table)

    def settings(self, queries):
        """There is one."""
        yield self.choose(queries, 1.0)

    def choose(self, queries, floor):
        """The same at every floor."""
        return np.full(len(queries), self.table.models.index(self.best))


class Priced(Way):
    """A router: the least `cost - price * quality`, at the price at which past queries met the floor.

    Args:
        name: What it is.
        predictor: What `Router.fit` takes.
        vectors: The encoder.
        encoder: Its name.
        baseline: Whether it is something to beat.
    """

    def __init__(
        self, name: str, predictor: str | ForecastMaker, vectors: Encoder, encoder: str = "", *, baseline: bool = False
    ) -> None:
        super().__init__(name, encoder, baseline=baseline)
        self.predictor = predictor
        self.vectors = vectors
        self.router: Router

    def fit(self, table, seed):
        """Fit the router."""
        self.models = table.models
        self.router = Router.fit(table, None, policy_at(AUTO_FLOOR), self.predictor, self.vectors, seed)

    def forecast(self, queries):
        """The router's."""
        return self.router.forecast(queries).select(self.models)

    def settings(self, queries):
        """Every price of quality."""
        return sweep(self.forecast(queries))

    def choose(self, queries, floor):
        """What `router.route` says, for all queries at once; tested to be the same."""
        forecast = self.forecast(queries)
        prices = self.router.prices(policy_at(floor))
        return np.argmin((1 + prices.budget) * forecast.cost_usd - prices.quality * forecast.quality, axis=1)

    def decide(self, query):
        """By the router itself."""
        self.router.route(query)


class Threshold(Way):
    """The AIOS rule over plain 16 nearest neighbours: the cheapest model forecast to reach a level, else the best."""

    def __init__(self, vectors: Encoder, encoder: str) -> None:
        super().__init__("AIOS threshold", encoder, baseline=True)
        self.neighbours = Neighbours(vectors)

    def fit(self, table, seed):
        """Learn the neighbours, and how good the best single model is."""
        self.neighbours.fit(table, ModelPool.from_outcomes(table), seed=seed)
        self.best = table.models.index(best_single(table))
        self.level = float(table.quality[:, self.best].mean())

    def forecast(self, queries):
        """The neighbours'."""
        return self.neighbours.forecast(queries)

    def settings(self, queries):
        """Every level in 0..1."""
        forecast = self.forecast(queries)
        return (threshold(forecast, level) for level in np.linspace(0, 1, PRICES))

    def choose(self, queries, floor):
        """The level is the floor."""
        return threshold(self.forecast(queries), floor * self.level)


class WinRate(Way):
    """As RouteLLM: the best model where it is likely enough to do better than the cheapest one, else the cheapest.

    The chance is a logistic regression's on past wins; its threshold is set on held-out folds of the past.
    """

    def __init__(self, vectors: Encoder, encoder: str) -> None:
        super().__init__("win rate, 2 models", encoder, baseline=True)
        self.vectors = vectors

    def fit(self, table, seed):
        """Learn who wins, and what each threshold realised on held-out folds."""
        self.strong = table.models.index(best_single(table))
        self.weak = table.models.index(cheapest(table))
        chances = np.empty(len(table))
        for fold in table.folds(FOLDS, seed):
            rest = table.take(np.setdiff1d(np.arange(len(table)), fold))
            self.learn(rest, seed)
            chances[fold] = self.chance([table.queries[row] for row in fold])
        self.levels = levels_of(chances)
        self.past = Curve.of(self.at(chances, self.levels), table)
        self.past_quality = float(table.quality[:, self.strong].mean())
        self.learn(table, seed)

    def learn(self, table: OutcomeTable, seed: int) -> None:
        """Learn who wins."""
        self.fitted = self.vectors.unfitted().fit(table.queries, seed=seed)
        wins = table.quality[:, self.strong] > table.quality[:, self.weak]
        self.head = LogisticHeads(self.fitted.encode(table.queries), wins[:, None].astype(float))

    def chance(self, queries: Sequence[str]) -> np.ndarray:
        """That the strong model does better, (N,)."""
        return self.head(self.fitted.encode(queries))[:, 0]

    def at(self, chances: np.ndarray, levels: Iterable[float]) -> Iterator[np.ndarray]:
        """The columns chosen at each level."""
        for level in levels:
            yield np.where(chances >= level, self.strong, self.weak)

    def settings(self, queries):
        """Every threshold, from always the strong model to never."""
        chances = self.chance(queries)
        return self.at(chances, levels_of(chances))

    def choose(self, queries, floor):
        """The cheapest threshold that held on the past."""
        holds = self.past.quality >= floor * self.past_quality - ROUNDING  # always the strong one does
        level = self.levels[int(np.argmin(np.where(holds, self.past.cost_usd, np.inf)))]
        return next(self.at(self.chance(queries), [level]))


def ways(table: OutcomeTable, encoders: Mapping[str, Encoder]) -> Iterator[Way]:
    """Every way there is: the baselines, each predictor, `auto`; over each encoder."""
    first = next(iter(encoders.values()))
    yield BestSingle("best single", baseline=True)
    if table.tasks is not None:
        told = TaskMeans(dict(zip(table.queries, table.tasks, strict=True)))
        yield Priced("task mean (told)", told, first, baseline=True)
    makers: dict[str, Any] = {
        "k-NN 16": Neighbours,
        "k-NN 64": ManyNeighbours,
        "logistic": Logistic,
        "logistic + mean cost": LogisticMeanCost,
        "k-means 16": Clusters,
    }
    for name, vectors in encoders.items():
        for label, maker in makers.items():
            yield Priced(label, maker(vectors), vectors, name, baseline=True)
        yield Threshold(vectors, name)
        yield WinRate(vectors, name)
        for predictor in (*PREDICTORS, "auto"):
            yield Priced(predictor, predictor, vectors, name)


def policy_at(floor: float) -> Policy:
    """A floor at this share of the best single model's quality."""
    return Policy(min_quality=floor, relative_to="best")


def levels_of(chances: np.ndarray) -> np.ndarray:
    """Thresholds from always to never."""
    return np.append(np.quantile(chances, np.linspace(0, 1, PRICES)), np.inf)
