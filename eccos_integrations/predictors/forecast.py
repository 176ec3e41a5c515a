"""What a predictor says of queries: a `Forecast`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import MEASURES, FloatArray, OutcomeTable
from eccos_integrations.pool import ModelPool


@dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """What each model is expected to do with each query. What is left out is not known: NaN.

    Args:
        models: M names, the columns.
        quality: (N, M) expected score in 0..1.
        cost_usd: (N, M) expected USD.
        input_tokens: (N, M).
        output_tokens: (N, M), NaN where only cost was ever observed.
        latency_s: (N, M) seconds, NaN where nothing is known.
        quality_std: (N, M) standard deviation of what is not known about the expected score.
        output_tokens_p10: (N, M) nine in ten answers are longer.
        output_tokens_p90: (N, M) nine in ten answers are shorter.
    """

    models: list[str]
    quality: FloatArray
    cost_usd: FloatArray
    input_tokens: FloatArray = None  # type: ignore[assignment]  # NaN, in __post_init__
    output_tokens: FloatArray = None  # type: ignore[assignment]
    latency_s: FloatArray = None  # type: ignore[assignment]
    quality_std: FloatArray = None  # type: ignore[assignment]
    output_tokens_p10: FloatArray = None  # type: ignore[assignment]
    output_tokens_p90: FloatArray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            given = getattr(self, field.name)
            array = np.full(np.shape(self.quality), np.nan) if given is None else np.asarray(given, dtype=np.float64)
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
        if list(models) == self.models:
            return self
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
    """What `Router.fit(predictor=...)` takes: an object of your own needs these two methods.

    With a third, `update(table)`, it also learns from feedback.
    """

    def fit(self, table: OutcomeTable, pool: ModelPool, *, seed: int = 0) -> Any:
        """Learn from a table of past outcomes."""

    def forecast(self, queries: list[str]) -> Forecast:
        """Forecast every model of the pool on these queries."""
