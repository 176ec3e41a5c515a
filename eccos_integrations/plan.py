"""What a router decides, one decision per query and a plan for a batch, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eccos_integrations.assignment import Solution
from eccos_integrations.assignment.problem import IntArray
from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee import Guarantee
from eccos_integrations.outcomes import MEASURES
from eccos_integrations.predictors import Forecast


@dataclass(frozen=True)
class Decision:
    """Which model one query goes to, and why. Holds no text of the query.

    Args:
        id: Name to give feedback by.
        model: The model; None where no load was left for the query.
        quality: Forecast quality on that model; NaN if None.
        cost_usd: Forecast USD on that model; NaN if None.
        ranking: All models it may go to, best first, for fallback.
        reason: How it was chosen, in words.
        floor_met: Whether the policy's floor holds for the plan it belongs to.
    """

    id: str
    model: str | None
    quality: float
    cost_usd: float
    ranking: tuple[str, ...]
    reason: str
    floor_met: bool


@dataclass(frozen=True)
class Feedback:
    """What was observed after a decision; None = not observed.

    Raises:
        ConfigError: A value is out of range; names it.
    """

    decision_id: str
    model: str
    quality: float | None = None
    cost_usd: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    latency_s: float | None = None

    def __post_init__(self) -> None:
        for name, most in MEASURES.items():
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, int | float | np.number) and 0 <= value <= most and math.isfinite(value)
            ):
                raise ConfigError(
                    f"{name}: {value!r} is out of range; it must be at least 0, finite, quality at most 1"
                )

    @property
    def measures(self) -> frozenset[str]:
        """Names of what was observed."""
        return frozenset(name for name in MEASURES if getattr(self, name) is not None)


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """The decisions of one batch, made jointly.

    Args:
        decisions: One per query, in order.
        assignment: (N,) position of the model in the router's `models`, -1 where no load was left.
        floor: The floor on forecast mean quality that was asked for, absolute; by group where given by group.
        floor_met: Whether it holds, over the placed queries: on forecasts, or by the guarantee where there is one.
        solution: The solver's answer, with its proof.
        forecast: (N, M) that it was made by.
        guarantee: What is certain about outcomes, where the policy asks for confidence; None: it is on forecasts.
    """

    decisions: Sequence[Decision]
    assignment: IntArray
    floor: float | Mapping[str, float] | None
    floor_met: bool
    solution: Solution
    forecast: Forecast
    guarantee: Guarantee | None = None

    def __repr__(self) -> str:
        return (
            f"Plan({len(self)} queries, mean_quality={self.mean_quality:.4f}, "
            f"total_cost_usd={self.total_cost_usd:.6g}, floor_met={self.floor_met})"
        )

    def __len__(self) -> int:
        return len(self.decisions)

    @property
    def models(self) -> list[str | None]:
        """The model of each query, None where no load was left."""
        return [decision.model for decision in self.decisions]

    @property
    def mean_quality(self) -> float:
        """Forecast mean quality of the placed queries."""
        return self.solution.mean_quality

    @property
    def mean_cost_usd(self) -> float:
        """Forecast mean USD of the placed queries."""
        return self.solution.mean_cost_usd

    @property
    def total_cost_usd(self) -> float:
        """Forecast USD of the batch."""
        return self.solution.total_cost_usd

    @property
    def shares(self) -> dict[str, float]:
        """Share of the queries each model got, largest first; models without any are left out."""
        placed = [model for model in self.models if model is not None]
        names, counts = np.unique(placed, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {str(names[k]): float(counts[k] / len(self)) for k in order}
