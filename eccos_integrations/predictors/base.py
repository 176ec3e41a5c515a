"""What every predictor gives, a `Forecast`, and what all of ours share: encoding, priors, tokens into money."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import Encoder, EncoderLike, make_encoder
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import MEASURES, FloatArray, OutcomeTable, column_means
from eccos_integrations.pool import ModelPool

# A model's own mean counts fully only beside this many outcomes of the pool's mean.
PRIOR_STRENGTH = 4.0
# Where no input tokens were ever recorded: the usual English average.
TOKENS_PER_BYTE = 0.25


@dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """What each model is expected to do with each query.

    Args:
        models: M names, the columns.
        quality: (N, M) expected score in 0..1.
        cost_usd: (N, M) expected USD.
        input_tokens: (N, M).
        output_tokens: (N, M), NaN where only cost was ever observed.
        latency_s: (N, M) seconds, NaN where nothing is known.
    """

    models: list[str]
    quality: FloatArray
    cost_usd: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray
    latency_s: FloatArray

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            array = np.asarray(getattr(self, field.name), dtype=np.float64)
            if array.ndim != 2 or array.shape[1] != len(self.models):
                raise ConfigError(f"forecast: {field.name} has shape {array.shape}, expected (queries, models) with "
                                  f"{len(self.models)} models")  # fmt: skip
            object.__setattr__(self, field.name, array)

    def __repr__(self) -> str:
        return f"Forecast({len(self)} queries x {len(self.models)} models)"

    def __len__(self) -> int:
        return len(self.quality)

    def select(self, models: Sequence[str]) -> "Forecast":
        """The forecast of these models, in this order.

        Raises:
            ConfigError: A model was not forecast.
        """
        if missing := [name for name in models if name not in self.models]:
            raise ConfigError(f"forecast: no column for {missing}; it has {self.models}")
        columns = [self.models.index(name) for name in models]
        arrays = {f.name: getattr(self, f.name)[:, columns] for f in dataclasses.fields(self)[1:]}
        return Forecast(models=list(models), **arrays)

    def take(self, rows: NDArray[np.int64]) -> "Forecast":
        """The forecast of these queries (positions), in this order."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)[1:]}
        return Forecast(models=self.models, **arrays)

    @classmethod
    def concatenate(cls, parts: "Sequence[Forecast]", rows: Sequence[NDArray[np.int64]]) -> "Forecast":
        """Forecasts of parts of a table put back in the table's order; `rows` are the positions of each part."""
        order = np.argsort(np.concatenate(rows))
        names = [f.name for f in dataclasses.fields(cls)[1:]]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names}
        return cls(models=parts[0].models, **arrays)

    def check(self, n: int) -> "Forecast":
        """Itself, if it can be planned with.

        Raises:
            ConfigError: A shape or a value cannot be right; names the array.
        """
        shape = (n, len(self.models))
        for name in ("quality", "cost_usd"):
            array = getattr(self, name)
            if array.shape != shape:
                raise ConfigError(f"forecast: {name} has shape {array.shape}, expected (queries, models) = {shape}")
            most = MEASURES[name]
            if not (np.isfinite(array) & (array >= 0) & (array <= most)).all():
                raise ConfigError(f"forecast: {name} must be finite and in 0..{most:g} for every query and model")
        return self


class ForecastMaker(Protocol):
    """What `Router.fit(predictor=...)` takes: an object of your own needs these two methods."""

    def fit(self, table: OutcomeTable, pool: ModelPool, *, seed: int = 0) -> Any:
        """Learn from a table of past outcomes."""

    def forecast(self, queries: list[str]) -> Forecast:
        """Forecast every model of the pool on these queries."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What a predictor learns, columns in the order of the names.

    `spend` is what a call uses up, in the unit that turns into money: output tokens for a model with prices whose
    tokens were observed, USD for any other.

    Args:
        quality: (N, M), NaN = not observed.
        spend: (N, M), NaN = not observed.
        spend_is_usd: (M,) bool.
    """

    quality: FloatArray
    spend: FloatArray
    spend_is_usd: NDArray[np.bool_]

    @classmethod
    def of(cls, table: OutcomeTable, pool: ModelPool) -> "Targets":
        """Targets of a table whose columns are the pool's models."""
        counts_tokens = np.isfinite(table.output_tokens).any(axis=0)
        counts_cost = np.isfinite(table.cost_usd).any(axis=0)
        has_prices = np.array([model.has_prices for model in pool])
        spend_is_usd = ~has_prices | (~counts_tokens & counts_cost)
        return cls(table.quality, np.where(spend_is_usd, table.cost_usd, table.output_tokens), spend_is_usd)


class Predictor(ABC):
    """Forecasts quality, output tokens and cost of every model on any query.

    A subclass learns from vectors (`_learn`) and estimates from vectors (`_estimate`); everything else is here. Rows
    and columns are put in a fixed order first, so the order of queries and models in the table changes nothing.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
    """

    name: ClassVar[str]

    def __init__(self, encoder: EncoderLike = "lexical") -> None:
        self.encoder: Encoder = make_encoder(encoder)
        self.pool: ModelPool
        self._learnt: dict[str, NDArray[Any]] = {}

    def fit(self, table: OutcomeTable, pool: ModelPool, *, seed: int = 0) -> Self:
        """Learn from a table of past outcomes.

        Args:
            table: The history; models of the pool it does not have get the prior.
            pool: The models to forecast.
            seed: Same seed, same forecasts.
        """
        self.pool = ModelPool(sorted(pool, key=lambda model: model.name))
        table = _columns_of(table, self.pool.names)
        table = table.take(np.argsort(table.query_ids, kind="stable"))
        targets = Targets.of(table, self.pool)
        self._learnt = {
            **_prior(table, targets),
            "spend_is_usd": targets.spend_is_usd,
            "input_tokens": _input_token_rates(table),
            "latency_s": column_means(table.latency_s),
        }
        vectors = self.encoder.fit(table.queries, seed=seed).encode(table.queries)
        self._learnt["dimensions"] = np.array(vectors.shape[1])
        self._learnt.update(self._learn(vectors, targets, seed))
        return self

    def forecast(self, queries: Sequence[str]) -> Forecast:
        """Forecast every model of the pool on these queries; columns sorted by name."""
        if not self._learnt:
            raise ConfigError(f"predictor: this {self.name} predictor has learnt nothing yet; call fit first")
        if queries:
            vectors = self.encoder.encode(queries)
            if vectors.shape[1] != self._learnt["dimensions"]:
                raise ConfigError(f"encoder: gives {vectors.shape[1]} dimensions, the predictor was fitted with "
                                  f"{self._learnt['dimensions']}; give the encoder it was fitted with")  # fmt: skip
            quality, spend = self._estimate(vectors)
        else:
            quality = spend = np.zeros((0, len(self.pool)))
        fixed, per_byte = self._learnt["input_tokens"]
        lengths = np.array([len(query.encode("utf-8", "surrogatepass")) for query in queries], dtype=np.float64)
        input_tokens = fixed + per_byte * lengths[:, None]
        spend_is_usd = self._learnt["spend_is_usd"]
        output_tokens = np.where(spend_is_usd, np.nan, spend)
        cost_usd = np.where(spend_is_usd, spend, self.pool.cost_usd(input_tokens, output_tokens))
        return Forecast(
            models=self.pool.names,
            quality=np.clip(quality, 0, 1),
            cost_usd=cost_usd,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            latency_s=self._latency_s(output_tokens),
        )

    def unfitted(self) -> Self:
        """A predictor of the same settings that has learnt nothing yet."""
        return type(self)(encoder=self.encoder.unfitted(), **self.settings())

    @abstractmethod
    def _learn(self, vectors: FloatArray, targets: Targets, seed: int) -> dict[str, NDArray[Any]]:
        """Learn from vectors (N, D); returns everything `_estimate` needs, as arrays. The prior is in `_learnt`."""

    @abstractmethod
    def _estimate(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Quality and spend, (N, M) each, from vectors (N, D)."""

    def _latency_s(self, output_tokens: FloatArray) -> FloatArray:
        """Observed mean latency, else what the pool says of speed, else NaN."""
        speed = np.array([
            (np.nan if m.base_latency_s is None else m.base_latency_s,
             np.nan if m.output_tokens_per_s is None else m.output_tokens_per_s)
            for m in self.pool
        ])  # fmt: skip
        observed = np.broadcast_to(self._learnt["latency_s"], output_tokens.shape)
        return np.where(np.isfinite(observed), observed, speed[:, 0] + output_tokens / speed[:, 1])

    def settings(self) -> dict[str, Any]:
        """Constructor arguments beside the encoder; plain JSON."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learnt, as arrays."""
        return self._learnt

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], encoder: Encoder, pool: ModelPool
    ) -> Self:
        """The predictor that `settings` and `arrays` were taken from."""
        predictor = cls(encoder=encoder, **settings)
        predictor.pool = ModelPool(sorted(pool, key=lambda model: model.name))
        predictor._learnt = dict(arrays)
        return predictor


def _columns_of(table: OutcomeTable, models: list[str]) -> OutcomeTable:
    """The table with exactly these columns, unobserved where it lacks one."""
    columns = {name: j for j, name in enumerate(table.models)}
    measures = {}
    for name in MEASURES:
        unobserved = np.full(len(table), np.nan)
        array = getattr(table, name)
        measures[name] = np.column_stack([array[:, columns[m]] if m in columns else unobserved for m in models])
    return OutcomeTable(table.query_ids, table.queries, models, tasks=table.tasks, **measures)


def _prior(table: OutcomeTable, targets: Targets) -> dict[str, FloatArray]:
    """Per-model means, drawn towards the pool's mean where outcomes are few; the pool's mean where there are none."""
    quality = _shrunk_means(targets.quality)
    spend = np.empty(len(quality))
    for unit in (True, False):  # USD and tokens have means of their own
        columns = targets.spend_is_usd == unit
        if columns.any():
            spend[columns] = _shrunk_means(targets.spend[:, columns])
            if np.isnan(spend[columns]).any():  # none of these was observed, but another kind of model may have been
                means = column_means(table.cost_usd if unit else table.output_tokens)
                spend[columns] = np.nanmean(means) if np.isfinite(means).any() else np.nan
    return {
        "prior_quality": quality,
        "prior_spend": spend,
        "outcomes": np.isfinite(targets.quality).sum(axis=0).astype(np.float64),
    }


def _shrunk_means(values: FloatArray) -> FloatArray:
    count = np.isfinite(values).sum(axis=0)
    means = column_means(values)
    pool_mean = np.nanmean(means) if count.any() else np.nan
    shrunk: FloatArray = (np.nan_to_num(means) * count + PRIOR_STRENGTH * pool_mean) / (count + PRIOR_STRENGTH)
    return shrunk


def _input_token_rates(table: OutcomeTable) -> FloatArray:
    """(2, M): input tokens of a query are the first row plus the second times its length in bytes."""
    from scipy.optimize import nnls

    lengths = np.array([len(query.encode("utf-8", "surrogatepass")) for query in table.queries], dtype=np.float64)
    rates = np.full((2, len(table.models)), np.nan)
    for j in range(len(table.models)):
        known = np.isfinite(table.input_tokens[:, j])
        if known.any():
            rates[:, j] = nnls(np.column_stack([np.ones(known.sum()), lengths[known]]), table.input_tokens[known, j])[0]
    seen = np.isfinite(rates[0])
    rates[:, ~seen] = rates[:, seen].mean(axis=1, keepdims=True) if seen.any() else [[0.0], [TOKENS_PER_BYTE]]
    return rates
