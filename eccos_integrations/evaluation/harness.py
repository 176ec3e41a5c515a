"""`evaluate`: fit on one part of a table, route the other, and look up what that realised."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import DataError
from eccos_integrations.evaluation import baselines
from eccos_integrations.evaluation.metrics import Realised, realise
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors import Forecast, ForecastMaker
from eccos_integrations.report import without_nan
from eccos_integrations.router import Router

FLOORS = (0.95, 0.97, 0.99, 1.0)


@dataclass(frozen=True)
class Row:
    """One way of routing the test part.

    Args:
        name: What it is.
        floor: Fraction of the best single model's quality asked for; None for rules without a floor.
        realised: What it did, from the outcomes.
        forecast_quality: Mean quality it was expected to have; NaN for rules that expect nothing.
        forecast_cost_usd: Mean cost likewise.
        quality_of_best: Realised quality as a share of the best single model's.
        cost_of_best: Realised cost as a share of the best single model's.
    """

    name: str
    floor: float | None
    realised: Realised
    forecast_quality: float
    forecast_cost_usd: float
    quality_of_best: float
    cost_of_best: float


@dataclass(frozen=True)
class Evaluation:
    """What ECCOS and the baselines realised on queries the router had not seen.

    Args:
        best: The best single model on the fit part: what shares "of best" refer to.
        predictor: The predictor used.
        fit_queries: Number of queries fitted on.
        test_queries: Number of queries routed.
        test_fraction: As asked.
        seed: As asked.
        rows: One per way of routing.
        trials: Score by candidate, where the predictor was chosen by cross-validation.
    """

    best: str
    predictor: str
    fit_queries: int
    test_queries: int
    test_fraction: float
    seed: int
    rows: tuple[Row, ...]
    trials: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: NaN becomes None."""
        cleaned: dict[str, Any] = without_nan(asdict(self))
        return cleaned


def evaluate(
    table: OutcomeTable,
    pool: ModelPool | None = None,
    *,
    test_fraction: float = 0.3,
    seed: int = 0,
    floors: Sequence[float] = FLOORS,
    predictor: str | ForecastMaker = "auto",
    encoder: EncoderLike = "lexical",
) -> Evaluation:
    """Fit on one part, route the other by ECCOS and by every baseline, and report what was realised.

    Args:
        table: Outcomes.
        pool: Models to route to, default those of the table.
        test_fraction: Share of the queries held out.
        seed: Of the split and the fit.
        floors: Fractions of the best single model's quality to route at.
        predictor: See `Router.fit`.
        encoder: See `Router.fit`.

    Raises:
        ConfigError: The table cannot be fitted on.
        DataError: The table cannot be split.

    Example:
        >>> from eccos_integrations import load_sample
        >>> report = evaluate(load_sample(), predictor="retrieval", floors=[0.97])
        >>> [row.name for row in report.rows][:2], report.test_queries
        (['best single', 'hindsight best'], 300)
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction: {test_fraction} leaves one side empty; give a number between 0 and 1")
    fit, test = (_priced(part, pool) for part in table.split(1 - test_fraction, seed))
    policies = [Policy(min_quality=floor, relative_to="best") for floor in floors]
    router = Router.fit(fit, pool, policies[0] if policies else None, predictor, encoder, seed)
    known = [name for name in router.models if name in test.models]
    fit, test = fit.select(known), test.select(known)
    forecast = router.forecast(test.queries).select(known)
    best_forecast = float(forecast.quality[:, known.index(router.best)].mean())
    best = realise(test, baselines.one_model(test, router.best))

    def row(name: str, assignment: Any, floor: float | None = None, *, expects: bool = True) -> Row:
        realised = realise(test, assignment)
        placed = assignment >= 0
        expected_quality, expected_cost = (
            float(array[placed, assignment[placed]].mean()) if expects and placed.any() else math.nan
            for array in (forecast.quality, forecast.cost_usd)
        )
        return Row(
            name,
            floor,
            realised,
            expected_quality,
            expected_cost,
            quality_of_best=realised.mean_quality / best.mean_quality if best.mean_quality else math.nan,
            cost_of_best=realised.mean_cost_usd / best.mean_cost_usd if best.mean_cost_usd else math.nan,
        )

    rows = [
        row("best single", baselines.one_model(test, router.best)),
        row("hindsight best", baselines.one_model(test, baselines.hindsight_best(test))),
        row("cheapest", baselines.one_model(test, baselines.cheapest(fit))),
        row("random", baselines.random_choice(test, seed=seed)),
        row("round-robin", baselines.round_robin(test)),
    ]
    rows += [row("threshold", baselines.threshold(forecast, floor * best_forecast), floor) for floor in floors]
    rows += [
        row("eccos", _assignment(router, test, forecast, policy), floor)
        for floor, policy in zip(floors, policies, strict=True)
    ]
    rows.append(row("oracle", baselines.oracle(test), expects=False))
    return Evaluation(
        best=router.best,
        predictor=getattr(router.predictor, "name", type(router.predictor).__name__),
        fit_queries=len(fit),
        test_queries=len(test),
        test_fraction=test_fraction,
        seed=seed,
        rows=tuple(rows),
        trials={trial.predictor: trial.score for trial in router.trials},
    )


def _priced(table: OutcomeTable, pool: ModelPool | None) -> OutcomeTable:
    """The table with costs that were not observed computed from tokens, where the pool knows the prices."""
    if pool is None:
        return table
    table = table.select([name for name in table.models if name in pool])
    prices = ModelPool([pool[name] for name in table.models])
    computed = prices.cost_usd(table.input_tokens, table.output_tokens)
    return replace(table, cost_usd=np.where(np.isfinite(table.cost_usd), table.cost_usd, computed))


def _assignment(router: Router, test: OutcomeTable, forecast: Forecast, policy: Policy) -> Any:
    """The plan's models as columns of the test table."""
    models = router.plan(test.queries, policy).models
    return np.array([-1 if name is None else forecast.models.index(name) for name in models])
