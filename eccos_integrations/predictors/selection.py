"""`predictor="auto"`: which predictors route well here, by what their routing realises in cross-validation."""

import copy
import logging
from dataclasses import dataclass

import numpy as np

from eccos_integrations.encoders import EncoderLike, make_encoder
from eccos_integrations.errors import ConfigError, MissingExtraError
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Predictor
from eccos_integrations.predictors.forecast import Forecast, ForecastMaker
from eccos_integrations.predictors.hybrid import PARTS, HybridPredictor
from eccos_integrations.predictors.prior import PriorPredictor
from eccos_integrations.predictors.routed import FLOORS, realised, routed_cost

logger = logging.getLogger("eccos")

FOLDS = 5
# A part is left out of the blend if its routing costs this many times the best part's. Choosing more finely than that
# chooses by luck: the one best in cross-validation routes worse on new queries than the mean of several.
VETO = 1.25
LEAST_SAVING = 0.6  # of the best part's: where little can be saved, those that save nothing would only dilute


@dataclass(frozen=True)
class Trial:
    """How one candidate did in cross-validation.

    Args:
        predictor: Its name.
        score: Realised cost of routing by it at the policy's floor and somewhat below, as a share of the best single
            model's (with a budget alone: the share of quality lost). Lower is better; NaN if skipped.
        used: Whether it is part of the predictor that was chosen.
        skipped: Why it was not tried, or "".
    """

    predictor: str
    score: float
    used: bool = False
    skipped: str = ""


def choose(
    table: OutcomeTable, pool: ModelPool, policy: Policy, best: str, encoder: EncoderLike, *, seed: int
) -> tuple[Predictor, Forecast, list[Trial]]:
    """Try the candidates on held-out folds, and fit the mean of those that route well on everything.

    Candidates are compared by what their routing realises, never by squared error or log-loss: the assignment takes
    whoever is over-estimated, so a small error on average may still route badly. The best single model (score 1) and
    the prior are always among them; where the blend routes no better than the prior, the prior it is.

    Args:
        table: The history; its columns are models of the pool.
        pool: The models to forecast.
        policy: What the routing is for.
        best: The best single model.
        encoder: See `eccos_integrations.encoders.make_encoder`.
        seed: Same seed, same choice.

    Returns:
        The fitted predictor, its forecasts of the table (each query by a predictor that has not seen it), the trials.
    """
    encoder = make_encoder(encoder)  # once: a callable remembers the texts
    skipped = _skipped()
    parts = [name for name in PARTS if name not in skipped]
    folds = table.folds(FOLDS, seed)
    fitted = [
        HybridPredictor(encoder.unfitted(), parts).fit(table.take(_others(table, fold)), pool, seed=seed)
        for fold in folds
    ]

    def held_out(*blends: tuple[str, ...]) -> list[Forecast]:
        by_fold = [
            hybrid.forecasts([table.queries[row] for row in fold], blends)
            for hybrid, fold in zip(fitted, folds, strict=True)
        ]
        return [Forecast.concatenate(of_blend, folds) for of_blend in zip(*by_fold, strict=True)]

    scores = {
        name: routed_score(forecast, table, policy, best)
        for name, forecast in zip(parts, held_out(*((name,) for name in parts)), strict=True)
    }
    least = min(scores.values())
    kept = tuple(
        name for name in parts if scores[name] <= VETO * least and 1 - scores[name] >= LEAST_SAVING * (1 - least)
    )
    blend, prior = held_out(kept, (PriorPredictor.name,))
    score = routed_score(blend, table, policy, best)
    if score >= scores[PriorPredictor.name]:
        kept, blend, score = (PriorPredictor.name,), prior, scores[PriorPredictor.name]
    trials = [Trial("best single", _score_of_one(table, policy, best))]
    trials += [Trial(name, scores[name], used=name in kept) for name in parts]
    trials += [Trial(name, np.nan, skipped=why) for name, why in skipped.items()]
    trials.append(Trial("auto", score, used=True))
    for trial in trials:
        logger.info("predictor %s: score %.4f%s", trial.predictor, trial.score, ", used" if trial.used else "")
    chosen = PriorPredictor(encoder.unfitted()) if len(kept) == 1 and kept[0] == PriorPredictor.name else None
    return (chosen or HybridPredictor(encoder.unfitted(), kept)).fit(table, pool, seed=seed), blend, trials


def _score_of_one(table: OutcomeTable, policy: Policy, model: str) -> float:
    """Score of sending everything to the best single model."""
    column = table.models.index(model)
    if policy.min_quality is not None or policy.max_mean_cost_usd is None:
        return 1.0
    affordable = np.nanmean(table.cost_usd[:, column]) <= policy.max_mean_cost_usd
    return 1 - float(np.nanmean(table.quality[:, column])) if affordable else 1.0


def _skipped() -> dict[str, str]:
    """Parts that cannot be tried here, and why."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return {"trained": str(MissingExtraError("torch", "neural"))}
    return {}


def out_of_fold(predictor: ForecastMaker, table: OutcomeTable, pool: ModelPool, *, seed: int) -> Forecast:
    """Forecast of every query by a copy of the predictor, encoder included, fitted without it."""
    folds = table.folds(FOLDS, seed)
    parts = []
    for fold in folds:
        fresh = _fresh(predictor)
        fresh.fit(table.take(_others(table, fold)), pool, seed=seed)
        parts.append(fresh.forecast([table.queries[row] for row in fold]).select(pool.names).check(len(fold)))
    return Forecast.concatenate(parts, folds)


def _others(table: OutcomeTable, fold: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(len(table)), fold)


def _fresh(predictor: ForecastMaker) -> ForecastMaker:
    if isinstance(predictor, Predictor):
        return predictor.unfitted()
    try:
        return copy.deepcopy(predictor)
    except TypeError as error:
        raise ConfigError(f"predictor: {type(predictor).__name__} cannot be copied for cross-validation ({error}); "
                          "give it __deepcopy__")  from None  # fmt: skip


def routed_score(forecast: Forecast, table: OutcomeTable, policy: Policy, best: str) -> float:
    """What routing by this forecast realises at the policy's floor or budget, the price set in hindsight.

    Args:
        forecast: Of every query of the table, out of fold.
        table: The outcomes; cells that were not observed count neither way.
        policy: Its floor (per group: the highest) or budget.
        best: The best single model.

    Returns:
        Mean, over the policy's floor and those from all of the best single model's quality to 95 % of it, of the least
        mean cost among prices that realise the floor, as a share of that model's and at most 1: one floor alone would
        be met or missed by a single query. With a budget alone 1 minus the highest mean quality within it; with neither
        the least cost.
    """
    forecast = forecast.select(table.models)
    arrays = forecast.quality, forecast.cost_usd, table.quality, table.cost_usd
    column = table.models.index(best)
    if policy.min_quality is None:
        quality, cost = realised(*arrays)
        if policy.max_mean_cost_usd is not None:
            return 1 - float(quality[cost <= policy.max_mean_cost_usd].max(initial=0.0))
        dearest = float(np.nanmean(forecast.cost_usd[:, column]))
        return float(cost.min(initial=dearest) / dearest) if dearest > 0 else 1.0
    floor = max(policy.min_quality.values()) if isinstance(policy.min_quality, dict) else policy.min_quality
    if policy.relative_to is None:
        floor /= max(float(np.nanmean(table.quality[:, column])), 1e-9)
    return routed_cost(*arrays, column, [floor, *FLOORS])
