"""What must hold while the total cost is minimised."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from eccos_integrations.errors import ConfigError
from eccos_integrations.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class Policy(Settings):
    """A quality floor, a budget, and the most queries each model may get in one plan.

    Without a floor and without a budget the cheapest model wins every query. With a budget alone, quality is maximised.

    Args:
        min_quality: Floor on the mean quality of a batch, in 0..1, or one floor per group of queries.
        relative_to: `"best"` makes the floor a fraction of what the best single model would reach on the same queries.
            "Best" is the model with the highest mean quality on the data the router was fitted on.
        max_mean_cost_usd: Budget: most USD per query, on average over the batch.
        capacity: Most queries a model may get in one plan, by name; never exceeded. L in arXiv 2502.20576, section 3.
        deadline_s: Seconds in which a plan's calls shall be done: turns the pool's max_concurrency, requests_per_minute
            and tokens_per_minute into what each model may get in it.
        confidence: Certify the floor on outcomes, not on forecasts, at this confidence: see `Guarantee`. A part of the
            history is kept back for it at fit.
        bound: How to certify: `"wsr"` (betting, rigorous), `"clt"` (Student's t, asymptotic) or `"crossfit"` (Student's
            t over all of the history, approximate; keeps nothing back).
        on_infeasible: `"best_effort"` plans the nearest assignment and says so, `"raise"` raises `InfeasibleError`.

    Raises:
        ConfigError: A field is unknown or out of range.

    Example:
        >>> Policy(min_quality=0.97, relative_to="best").min_quality
        0.97
    """

    min_quality: Share | dict[str, Share] | None = None
    relative_to: Literal["best"] | None = None
    max_mean_cost_usd: NonNegativeFloat | None = None
    capacity: dict[str, NonNegativeInt] | None = None
    deadline_s: PositiveFloat | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    bound: Literal["wsr", "clt", "crossfit"] = "wsr"
    on_infeasible: Literal["best_effort", "raise"] = "best_effort"

    def model_post_init(self, _context: object) -> None:
        """Refuse what says nothing."""
        if self.relative_to is not None and self.min_quality is None:
            raise ConfigError("relative_to needs min_quality, the fraction of the best model's quality to keep")
        if self.confidence is None:
            if self.bound != "wsr":
                raise ConfigError("bound needs confidence, such as 0.95")
            return
        if not isinstance(self.min_quality, float):
            raise ConfigError("confidence certifies one floor for all queries; give min_quality as one number")
        if self.max_mean_cost_usd is not None:
            raise ConfigError("max_mean_cost_usd: a budget and a certified floor cannot both be kept; leave one out")

    def check_models(self, names: list[str]) -> None:
        """Refuse a policy that speaks of models that are not there.

        Raises:
            ConfigError: `capacity` names a model that is not among `names`.
        """
        if unknown := [name for name in self.capacity or {} if name not in names]:
            raise ConfigError(f"capacity: {unknown} not in the pool, which has {names}")

    def floors(self, best_quality: Mapping[str | None, float]) -> float | dict[str, float] | None:
        """The floors as absolute numbers.

        Args:
            best_quality: Mean quality the best single model is forecast to reach, under None for the whole batch and
                under each group's label.

        Raises:
            ConfigError: `min_quality` names groups, and a group of the batch has no floor.
        """
        scale = best_quality if self.relative_to == "best" else dict.fromkeys(best_quality, 1.0)
        if not isinstance(self.min_quality, dict):
            return None if self.min_quality is None else self.min_quality * scale[None]
        groups = [label for label in best_quality if label is not None]
        if missing := [label for label in groups if label not in self.min_quality]:
            raise ConfigError(f"min_quality: no floor for the groups {missing}; give one for each, 0 for none")
        return {label: self.min_quality[label] * scale[label] for label in groups}
