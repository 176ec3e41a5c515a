"""The models to choose from: prices, limits, speed and abilities, read from and written to TOML."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.settings import Settings

# Prices are taken as recovered when they explain the recorded costs to this relative error (costs are often rounded).
PRICE_TOLERANCE = 0.01


class Model(Settings):
    """One LLM of the pool: what it costs, what it can carry, what it can do. None means unknown or no limit.

    Args:
        name: The name the outcome table and the members use.
        input_usd_per_million_tokens: Price of a million input tokens.
        output_usd_per_million_tokens: Price of a million output tokens.
        cached_input_usd_per_million_tokens: Price of a million input tokens served from the provider's cache.
        max_concurrency: Most calls in flight.
        requests_per_minute: Most calls in any minute.
        tokens_per_minute: Most tokens, input and output, in any minute.
        base_latency_s: Seconds before the first output token.
        output_tokens_per_s: Speed after that.
        context_window: Most tokens of input and output together.
        max_output_tokens: Most tokens of one answer.
        tools: Whether it can call tools.
        vision: Whether it reads images.
        json_output: Whether it can be held to a JSON schema.
        description: What it is good at, in words.

    Raises:
        ConfigError: A field is unknown or out of range.

    Example:
        >>> Model(name="small", input_usd_per_million_tokens=0.15, output_usd_per_million_tokens=0.6).has_prices
        True
    """

    name: str = Field(min_length=1)
    input_usd_per_million_tokens: NonNegativeFloat | None = None
    output_usd_per_million_tokens: NonNegativeFloat | None = None
    cached_input_usd_per_million_tokens: NonNegativeFloat | None = None
    max_concurrency: PositiveInt | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    base_latency_s: NonNegativeFloat | None = None
    output_tokens_per_s: PositiveFloat | None = None
    context_window: PositiveInt | None = None
    max_output_tokens: PositiveInt | None = None
    tools: bool | None = None
    vision: bool | None = None
    json_output: bool | None = None
    description: str = ""

    @property
    def has_prices(self) -> bool:
        """Whether input and output prices are both known. An unknown price is never taken for zero."""
        return self.input_usd_per_million_tokens is not None and self.output_usd_per_million_tokens is not None


@dataclass(frozen=True)
class ModelPool:
    """The models to choose from, in a fixed order.

    Args:
        models: At least one, names distinct.

    Raises:
        ConfigError: The pool is empty or a name repeats.

    Example:
        >>> pool = ModelPool([Model(name="small"), Model(name="large")])
        >>> pool.names, pool["large"].name, "medium" in pool
        (['small', 'large'], 'large', False)
    """

    models: Sequence[Model]

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        if not self.models:
            raise ConfigError("the pool is empty; give at least one model")
        for position, model in enumerate(self.models):
            if not isinstance(model, Model):
                raise ConfigError(f"models: item {position} is a {type(model).__name__}; give Model(name=...)")
        names = self.names
        if len(set(names)) != len(names):
            repeated = next(name for i, name in enumerate(names) if name in names[:i])
            raise ConfigError(f"pool: the name {repeated!r} stands twice; give each model a name of its own")

    @property
    def names(self) -> list[str]:
        """The models' names, in order."""
        return [model.name for model in self.models]

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Model:
        for model in self.models:
            if model.name == name:
                return model
        raise ConfigError(f"model {name!r} is not in the pool, which has {self.names}")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a pool from TOML: one `[[models]]` table per model, keys as the arguments of `Model`.

        Raises:
            ConfigError: The file is missing, is not TOML, or a field is wrong.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise ConfigError(f"{path}: cannot be read; check the path") from None
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, too long an integer
            raise ConfigError(f"{path.name}: not valid TOML ({error})") from None
        tables = content.get("models")
        if set(content) != {"models"} or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigError(f"{path.name}: expected [[models]] tables and nothing else; found {sorted(content)}")
        return cls([Model(**table) for table in tables])

    def write(self, path: str | Path) -> None:
        """Write the pool as TOML; what is unknown is left out. The file appears whole or not at all."""
        import tomli_w

        from eccos_integrations.formats import replacing

        with replacing(Path(path)) as file:
            tomli_w.dump({"models": [model.model_dump(exclude_defaults=True) for model in self.models]}, file)

    @classmethod
    def from_outcomes(cls, table: OutcomeTable) -> Self:
        """A pool of the table's models, with the prices its tokens and costs imply.

        Where tokens are missing or do not explain the cost, prices stay unknown and cost is forecast from cost itself.

        Raises:
            ConfigError: A model has no cost data at all; names the model.
        """
        models = []
        for j, name in enumerate(table.models):
            if not np.isfinite(table.cost_usd[:, j]).any():
                raise ConfigError(
                    f"cost_usd: no cost of model {name!r} was observed and no price is known; "
                    "add cost_usd to the table, or give a pool with input and output prices"
                )
            prices = _implied_prices(table.input_tokens[:, j], table.output_tokens[:, j], table.cost_usd[:, j])
            models.append(Model(name=name, **prices))
        return cls(models)

    def cost_usd(self, input_tokens: ArrayLike, output_tokens: ArrayLike) -> FloatArray:
        """Cost of calls with these token counts.

        Args:
            input_tokens: (N, M), columns in the order of the pool.
            output_tokens: (N, M).

        Returns:
            (N, M) USD; NaN for models without prices.
        """
        input_price, output_price = self._prices
        cost: FloatArray = (np.asarray(input_tokens) * input_price + np.asarray(output_tokens) * output_price) / 1e6
        return cost

    def latency_s(self, output_tokens: FloatArray) -> FloatArray:
        """Seconds of calls with these output tokens (N, M); NaN for models whose speed is not known."""
        base, per_second = self._speeds
        seconds: FloatArray = base + output_tokens / per_second
        return seconds

    @cached_property
    def _prices(self) -> FloatArray:
        """(2, M) USD per million input and output tokens, NaN where one of them is unknown."""
        unknown = (np.nan, np.nan)
        return np.array([
            (m.input_usd_per_million_tokens, m.output_usd_per_million_tokens) if m.has_prices else unknown
            for m in self.models
        ], dtype=np.float64).T  # fmt: skip

    @cached_property
    def _speeds(self) -> FloatArray:
        """(2, M) seconds before the first token and tokens per second, NaN where unknown."""
        speeds = [(m.base_latency_s, m.output_tokens_per_s) for m in self.models]
        return np.array(speeds, dtype=np.float64).T  # None becomes NaN


def _implied_prices(input_tokens: FloatArray, output_tokens: FloatArray, cost_usd: FloatArray) -> dict[str, float]:
    """Prices by non-negative least squares on relative error; empty where they do not explain the cost."""
    from scipy.optimize import nnls

    known = np.isfinite(input_tokens) & np.isfinite(output_tokens) & np.isfinite(cost_usd) & (cost_usd > 0)
    tokens = np.column_stack([input_tokens[known], output_tokens[known]])
    if len(tokens) < 2 or np.linalg.matrix_rank(tokens) < 2:  # one price cannot be told from the other
        return {}
    relative = tokens / cost_usd[known, None]
    scale = relative.max(axis=0)
    prices = nnls(relative / scale, np.ones(known.sum()))[0] / scale
    if np.abs(relative @ prices - 1).max() > PRICE_TOLERANCE:
        return {}
    # Costs are recorded to few digits; six digits per million tokens is finer than any price list.
    input_usd, output_usd = (float(round(price * 1e6, 6)) for price in prices)
    return {"input_usd_per_million_tokens": input_usd, "output_usd_per_million_tokens": output_usd}
