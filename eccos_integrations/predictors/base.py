"""What all predictors share: seeing queries, shrinkage towards a prior, and tokens into money."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from eccos_integrations.encoders import Encoder, EncoderLike, make_encoder
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import columns
from eccos_integrations.predictors.forecast import Forecast
from eccos_integrations.predictors.history import (
    LEAST_SHARE,
    PRIOR_STRENGTH,
    QUALITY,
    SPEND,
    Arrays,
    History,
    byte_lengths,
    columns_of,
    measured,
    priors,
    values_of,
)
from eccos_integrations.predictors.routed import routed_cost
from eccos_integrations.predictors.surface import LENGTH, SURFACES, surface

MOST_DEVIATIONS = 5.0  # a surface feature counts at most this many standard deviations from its mean
LEAST_DEVIATION = 1e-6
# Of the variance of a right/wrong label, the share that is taken to lie between queries, not within one.
BETWEEN_QUERIES = 0.25
LENDING = 20.0  # outcomes after which a model relies on its own as much as on its kin's


@dataclass(frozen=True, eq=False)
class Estimate:
    """What outcomes of similar queries say: the forecast is total + (1 - weight) * prior.

    Args:
        total: (N, 2, M) weighted sums of observed values.
        weight: (N, 2, M) sums of the weights: 0 where nothing was observed, near 1 where much was.
        spend_range: Gives two (N, M): what nine in ten calls spend more than, and less than, on the scale of
            `History.values`. None where a predictor has no opinion of its own: how held-out forecasts err says it then.
    """

    total: FloatArray
    weight: FloatArray
    spend_range: Callable[[], tuple[FloatArray, FloatArray]] | None = None


class Predictor(ABC):
    """Forecasts quality, output tokens and cost of every model on any query.

    A subclass says what outcomes of past queries mean for a new one (`learn`, `estimate`, `learn_more`): always a
    weighted sum of observed values, so that what is thin is drawn towards the prior and new outcomes can be added at
    once. Everything else is here. Learnt arrays are replaced, never changed: forecasts may run beside updates.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
    """

    name: ClassVar[str]
    # Learnt arrays whose last axis is the model, and what the column of a new model starts with.
    per_model: ClassVar[Mapping[str, float]] = {}

    def __init__(self, encoder: EncoderLike = "lexical") -> None:
        self.encoder: Encoder = make_encoder(encoder)
        self._state: tuple[ModelPool, Arrays] | None = None
        self._changing = threading.Lock()  # one change at a time; forecasts need not wait

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_changing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.Lock())

    @property
    def pool(self) -> ModelPool:
        """The models forecast, by name."""
        return self._fitted()[0]

    def fit(self, table: OutcomeTable, pool: ModelPool, *, seed: int = 0) -> Self:
        """Learn from a table of past outcomes.

        Rows and columns are put in a fixed order first: the order of queries and models in the table changes nothing.

        Args:
            table: The history; models of the pool it does not have get the prior.
            pool: The models to forecast.
            seed: Same seed, same forecasts.
        """
        pool = ModelPool(sorted(pool, key=lambda model: model.name))
        table = columns_of(table, pool.names)
        table = table.take(np.argsort(table.query_ids, kind="stable"))
        arrays = priors(table, pool)
        vectors = self.encoder.fit(table.queries, seed=seed).encode(table.queries)
        looks = surface(table.queries)
        arrays["dimensions"] = np.array(vectors.shape[1])
        arrays["surface"] = np.array([looks.mean(axis=0), np.maximum(looks.std(axis=0), LEAST_DEVIATION)])
        history = History(
            x=_joined(vectors, looks, arrays),
            values=values_of(table, pool.names, arrays),
            quality=table.quality,
            cost_usd=table.cost_usd,
            input_tokens=tokens_of_input(table.queries, arrays),
        )
        arrays |= self.learn(history, pool, arrays, seed)
        arrays |= errors_of(history.values, composed(self.held_out(history, arrays), arrays), arrays["count"])
        self._state = pool, arrays
        return self

    def forecast(self, queries: Sequence[str]) -> Forecast:
        """Forecast every model of the pool on these queries; columns sorted by name."""
        pool, arrays = self._fitted()
        distinct = list(dict.fromkeys(queries))  # equal texts get equal forecasts, to the last bit
        estimate = self.estimate(self.see(distinct, arrays), arrays)
        forecast = forecast_of(estimate, tokens_of_input(distinct, arrays), pool, arrays)
        if len(distinct) == len(queries):
            return forecast
        position = {query: row for row, query in enumerate(distinct)}
        return forecast.take(np.array([position[query] for query in queries], dtype=np.int64))

    def update(self, table: OutcomeTable) -> None:
        """Learn from more outcomes at once, without a refit. Models that are not in the pool are left out.

        Args:
            table: The new outcomes only.
        """
        with self._changing:
            pool, arrays = self._fitted()
            self._state = pool, self._more(table.queries, values_of(table, pool.names, arrays), arrays)

    def add(self, model: Model, outcomes: OutcomeTable | None = None) -> None:
        """Forecast one more model; no other model's forecast changes.

        Args:
            model: Not in the pool yet.
            outcomes: What it did on some queries, if that is known; other models' columns are left out.

        Raises:
            ConfigError: The model is there already, or its cost cannot be known.
        """
        known = None
        if outcomes is not None and np.isfinite(measured(outcomes, "quality", [model.name])).any():
            known = outcomes.select([model.name])
        with self._changing:
            pool, arrays = columns.with_model(*self._fitted(), model, known, self.per_model)
            if known is not None:
                arrays = self._more(known.queries, values_of(known, pool.names, arrays), arrays)
            self._state = pool, arrays

    def remove(self, name: str) -> None:
        """Forecast one model less.

        Raises:
            ConfigError: The model is not in the pool, or the last one.
        """
        with self._changing:
            self._state = columns.without_model(*self._fitted(), name, self.per_model)

    def average(self) -> Forecast:
        """Forecast of the average query, (1, M)."""
        pool, arrays = self._fitted()
        nothing = np.zeros((1, *arrays["count"].shape))
        fixed, per_byte = arrays["input_tokens"]
        typical_bytes = np.expm1(arrays["surface"][0][LENGTH])
        return forecast_of(Estimate(nothing, nothing), (fixed + per_byte * typical_bytes)[None, :], pool, arrays)

    def copy(self) -> Self:
        """A predictor that knows the same and learns on its own from here."""
        return self.restore(self.settings(), self.arrays(), self.encoder, self.pool)

    def unfitted(self) -> Self:
        """A predictor of the same settings that has learnt nothing yet."""
        return type(self)(encoder=self.encoder.unfitted(), **self.settings())

    def settings(self) -> dict[str, Any]:
        """Constructor arguments beside the encoder; plain JSON."""
        return {}

    def arrays(self) -> Arrays:
        """What was learnt, as arrays."""
        return {} if self._state is None else self._state[1]

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Arrays, encoder: Encoder, pool: ModelPool) -> Self:
        """The predictor that `settings` and `arrays` were taken from."""
        predictor = cls(encoder=encoder, **settings)
        predictor._state = ModelPool(sorted(pool, key=lambda model: model.name)), dict(arrays)
        return predictor

    @abstractmethod
    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """Everything `estimate` needs beside the priors in `arrays`."""

    @abstractmethod
    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """What the outcomes say of queries that look like x (N, D)."""

    @abstractmethod
    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """What the outcomes of all other queries say of each query of the history."""

    @abstractmethod
    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """The arrays that change with more outcomes; values (N, 2, M) of queries x (N, D)."""

    def _more(self, queries: Sequence[str], values: FloatArray, arrays: Arrays) -> Arrays:
        """The arrays after these outcomes (N, 2, M) too; a query of which nothing was observed teaches nothing."""
        observed = np.isfinite(values)
        rows = np.flatnonzero(observed.any(axis=(1, 2))).tolist()
        if not rows:
            return arrays
        arrays = arrays | {
            "total": arrays["total"] + np.where(observed, values, 0.0).sum(axis=0),
            "count": arrays["count"] + observed.sum(axis=0),
        }
        return arrays | self.learn_more(self.see([queries[row] for row in rows], arrays), values[rows], arrays)

    def _fitted(self) -> tuple[ModelPool, Arrays]:
        if self._state is None:
            raise ConfigError(f"predictor: this {self.name} predictor has learnt nothing yet; call fit first")
        return self._state

    def see(self, queries: Sequence[str], arrays: Arrays) -> FloatArray:
        """What queries look like, (N, D): vectors of the encoder beside the surface."""
        dimensions = int(arrays["dimensions"])
        if not queries:
            return np.zeros((0, dimensions + SURFACES))
        vectors = self.encoder.encode(queries)
        if vectors.shape[1] != dimensions:
            raise ConfigError(f"encoder: gives {vectors.shape[1]} dimensions, the predictor was fitted with "
                              f"{dimensions}; give the encoder it was fitted with")  # fmt: skip
        return _joined(vectors, surface(queries), arrays)


def forecast_of(estimate: Estimate, input_tokens: FloatArray, pool: ModelPool, arrays: Arrays) -> Forecast:
    """An estimate as a forecast: shrunk, on the scale of tokens, priced."""
    values = composed(estimate, arrays)
    typical = arrays["typical_spend"]

    def spend(share: FloatArray) -> FloatArray:
        return typical * np.maximum(share - LEAST_SHARE, 0.0)

    in_usd = arrays["spend_in_usd"]
    share = np.exp(values[:, SPEND])
    expected = spend(share * arrays["smearing"])
    if estimate.spend_range is None:
        p10, p90 = share * arrays["low"], share * arrays["high"]
    else:
        p10, p90 = (np.exp(own) for own in estimate.spend_range())
    output_tokens = np.where(in_usd, np.nan, expected)
    cost_usd = np.where(in_usd, expected, pool.cost_usd(input_tokens, output_tokens))
    unknown = (1 - np.clip(estimate.weight[:, QUALITY], 0, 1)) * BETWEEN_QUERIES
    unknown = unknown + 1 / (arrays["count"][QUALITY] + PRIOR_STRENGTH)
    return Forecast(
        models=pool.names,
        quality=np.clip(values[:, QUALITY], 0, 1),
        cost_usd=cost_usd,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        latency_s=np.where(np.isfinite(arrays["latency_s"]), arrays["latency_s"], pool.latency_s(output_tokens)),
        quality_std=np.sqrt(arrays["variance"] * unknown),
        output_tokens_p10=np.where(in_usd, np.nan, spend(p10)),
        output_tokens_p90=np.where(in_usd, np.nan, spend(p90)),
    )


def routed_cost_of(estimate: Estimate, history: History, pool: ModelPool, arrays: Arrays) -> float:
    """What routing the history by a held-out estimate of it would cost: see `routed_cost`."""
    arrays = arrays | errors_of(history.values, composed(estimate, arrays), arrays["count"])
    forecast = forecast_of(estimate, history.input_tokens, pool, arrays)
    total, count = arrays["total"][QUALITY], arrays["count"][QUALITY]
    best = int(np.argmax(np.divide(total, count, out=np.full(len(count), -np.inf), where=count > 0)))
    return routed_cost(forecast.quality, forecast.cost_usd, history.quality, history.cost_usd, best)


def composed(estimate: Estimate, arrays: Arrays) -> FloatArray:
    """(N, 2, M) values, drawn towards each model's mean, and towards what its kin do where it has few outcomes."""
    count = arrays["count"]
    mean = (arrays["total"] + PRIOR_STRENGTH * arrays["kin_mean"]) / (count + PRIOR_STRENGTH)
    rest = 1 - estimate.weight
    own = estimate.total + rest * mean
    # What is lent is how queries differ, around what was observed: around a mean that its own kin drew down, a good
    # model would lend a bonus.
    deviation = estimate.total - estimate.weight * arrays["total"] / np.maximum(count, 1)
    lent = np.einsum("nvk,jk->nvj", deviation, arrays["kin"])
    drawn: FloatArray = own + rest * lent * (LENDING / (count + LENDING))
    return drawn


def errors_of(values: FloatArray, held_out: FloatArray, count: FloatArray) -> Arrays:
    """How held-out forecasts err, (M,) each: variance of quality, and factors on spend for mean, p10 and p90.

    The mean of what was averaged on the log scale is too low; the factor that repairs it is Duan's smearing estimate
    ("Smearing Estimate: A Nonparametric Retransformation Method", JASA 78, 1983).
    """
    error = values - held_out
    share = count / (count + PRIOR_STRENGTH)
    found = {"variance": np.full(count.shape[1], np.nan), "smearing": np.full(count.shape[1], np.nan),
             "low": np.full(count.shape[1], np.nan), "high": np.full(count.shape[1], np.nan)}  # fmt: skip
    for j in range(count.shape[1]):
        quality, spend = (error[np.isfinite(error[:, v, j]), v, j] for v in (QUALITY, SPEND))
        if len(quality):
            found["variance"][j] = np.mean(quality**2)
        if len(spend):
            # Of the bias only what so many outcomes vouch for: to repair all of it would undo the shrinkage.
            spend = spend - PRIOR_STRENGTH / (len(spend) + PRIOR_STRENGTH) * spend.mean()
            found["smearing"][j] = np.exp(spend).mean()
            found["low"][j], found["high"][j] = np.exp(np.quantile(spend, [0.1, 0.9]))
    fallback = {"variance": 0.25, "smearing": 1 + LEAST_SHARE, "low": 1.0, "high": 1.0}
    for name, per_model in found.items():
        seen = np.isfinite(per_model)
        pooled = fallback[name]
        if seen.any():  # nobody is surer of a model that was never observed than of any that was
            pooled = per_model[seen].max() if name == "variance" else per_model[seen].mean()
        trust = share[QUALITY if name == "variance" else SPEND]
        found[name] = np.where(seen, trust * np.nan_to_num(per_model) + (1 - trust) * pooled, pooled)
    return dict(found)


def _joined(vectors: FloatArray, looks: FloatArray, arrays: Arrays) -> FloatArray:
    """Vectors and standardised surface side by side, of equal say and unit length."""
    mean, deviation = arrays["surface"]
    standard = np.clip((looks - mean) / deviation, -MOST_DEVIATIONS, MOST_DEVIATIONS) / np.sqrt(SURFACES)
    x = np.hstack([vectors, standard])
    length = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    unit: FloatArray = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    return unit


def tokens_of_input(queries: Sequence[str], arrays: Arrays) -> FloatArray:
    """(N, M) input tokens of queries, by their length."""
    fixed, per_byte = arrays["input_tokens"]
    tokens: FloatArray = fixed + per_byte * byte_lengths(queries)[:, None]
    return tokens
