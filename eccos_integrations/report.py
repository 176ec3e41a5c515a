"""What a router says of itself."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from eccos_integrations.guarantee import Guarantee
from eccos_integrations.learnt import Learnt
from eccos_integrations.predictors.selection import Trial


@dataclass(frozen=True)
class ModelReport:
    """One model on past queries, forecast by predictors that had not seen them. NaN: nothing was observed.

    Args:
        name: The model.
        outcomes: How many of its outcomes were observed.
        quality: Their mean.
        forecast_quality: What was forecast for them.
        cost_usd: Mean cost of the calls whose cost was observed.
        forecast_cost_usd: What was forecast for them.
    """

    name: str
    outcomes: int
    quality: float
    forecast_quality: float
    cost_usd: float
    forecast_cost_usd: float


@dataclass(frozen=True)
class Report:
    """What a router chose from, and how its forecasts did on queries they had not seen.

    Args:
        best: The best single model.
        predictor: The one in use.
        trials: What `predictor="auto"` chose from; empty where a predictor was named.
        models: One line each.
        chosen_quality_bias: Forecast minus realised mean quality of those a routing chooses, before calibration.
        chosen_cost_bias: Forecast over realised cost of those, minus 1, before calibration.
        guarantee: What is certified of the router's policy, if it asks for confidence.
    """

    best: str
    predictor: str
    trials: tuple[Trial, ...]
    models: tuple[ModelReport, ...]
    chosen_quality_bias: float
    chosen_cost_bias: float
    guarantee: Guarantee | None

    @classmethod
    def of(cls, learnt: Learnt, guarantee: Guarantee | None) -> Self:
        """The report on what a router has learnt."""
        history = learnt.history

        def means(j: int, forecast: str, outcome: str) -> tuple[float, float]:
            expected, came = getattr(history, forecast)[:, j], getattr(history, outcome)[:, j]
            seen = np.isfinite(came)
            return (float(came[seen].mean()), float(expected[seen].mean())) if seen.any() else (math.nan, math.nan)

        models = []
        for j, name in enumerate(learnt.pool.names):
            quality, forecast_quality = means(j, "quality", "outcome")
            cost, forecast_cost = means(j, "cost_usd", "outcome_cost_usd")
            outcomes = int(np.isfinite(history.outcome[:, j]).sum())
            models.append(ModelReport(name, outcomes, quality, forecast_quality, cost, forecast_cost))
        return cls(
            best=learnt.best,
            predictor=getattr(learnt.predictor, "name", type(learnt.predictor).__name__),
            trials=tuple(learnt.trials),
            models=tuple(models),
            chosen_quality_bias=learnt.calibration.chosen_quality_bias,
            chosen_cost_bias=learnt.calibration.chosen_cost_bias,
            guarantee=guarantee,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with None for NaN."""
        cleaned: dict[str, Any] = without_nan(asdict(self))
        return cleaned

    def __str__(self) -> str:
        width = max(len(line.name) for line in (*self.models,))
        lines = [f"best single model: {self.best}; predictor: {self.predictor}"]
        if self.trials:
            lines.append("routed cost in cross-validation, as a share of the best single model's:")
            lines += [f"  {trial.predictor:<12} {_score(trial)}" for trial in self.trials]
        lines.append(f"{'':{width}}  outcomes  quality  forecast  USD/1,000  forecast")
        lines += [
            f"{m.name:{width}}  {m.outcomes:8d}  {m.quality:7.3f}  {m.forecast_quality:8.3f}"
            f"  {1000 * m.cost_usd:9.3f}  {1000 * m.forecast_cost_usd:8.3f}"
            for m in self.models
        ]
        lines.append(f"of the chosen, before calibration: quality forecast {self.chosen_quality_bias:+.3f}, "
                     f"cost forecast {self.chosen_cost_bias:+.1%}")  # fmt: skip
        if self.guarantee is not None:
            lines.append(self.guarantee.voided or self.guarantee.message)
        return "\n".join(lines)


def _score(trial: Trial) -> str:
    if trial.skipped:
        return f"skipped: {trial.skipped}"
    return f"{trial.score:.3f}{'  used' if trial.used else ''}"


def without_nan(value: Any) -> Any:
    """The value with None for every NaN in it: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
