"""`predictor="auto"`: the predictor that routes best on queries it has not seen."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eccos_integrations.encoders import EncoderLike, make_encoder
from eccos_integrations.errors import ConfigError, MissingExtraError
from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Forecast, ForecastMaker, Predictor
from eccos_integrations.predictors.prior import PriorPredictor
from eccos_integrations.predictors.retrieval import RetrievalPredictor
from eccos_integrations.predictors.trained import TrainedPredictor

logger = logging.getLogger("eccos")

FOLDS = 5
PRICES = 200  # quality prices tried for each candidate


@dataclass(frozen=True)
class Trial:
    """How one candidate did in cross-validation.

    Args:
        predictor: Its name.
        score: Realised cost of routing by it at the policy's floor, as a share of the best single model's (with a
            budget alone: the share of quality lost). Lower is better; NaN if skipped.
        skipped: Why it was not tried, or "".
    """

    predictor: str
    score: float
    skipped: str = ""


def choose(
    table: OutcomeTable, pool: ModelPool, policy: Policy, best: str, encoder: EncoderLike, *, seed: int
) -> tuple[Predictor, Forecast, list[Trial]]:
    """Try the candidates on held-out folds and fit the one that routes best on everything.

    Candidates are compared by what their routing realises, never by squared error or log-loss: the assignment takes
    whoever is over-estimated, so a small error on average may still route badly. The prior stands first and wins ties.

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
    candidates: Sequence[type[Predictor]] = (PriorPredictor, RetrievalPredictor, TrainedPredictor)
    trials: list[Trial] = []
    forecasts: dict[str, Forecast] = {}
    for candidate in candidates:
        predictor = candidate(encoder.unfitted())
        try:
            forecast = out_of_fold(predictor, table, pool, seed=seed)
        except MissingExtraError as error:
            if candidate is PriorPredictor:  # it needs nothing itself: what is missing is the encoder's
                raise
            trials.append(Trial(candidate.name, np.nan, skipped=str(error)))
            continue
        forecasts[candidate.name] = forecast
        trials.append(Trial(candidate.name, routed_score(forecast, table, policy, best)))
        logger.info("predictor %s: score %.4f", candidate.name, trials[-1].score)
    winner = min((trial for trial in trials if not trial.skipped), key=lambda trial: trial.score).predictor
    chosen = next(candidate for candidate in candidates if candidate.name == winner)
    fitted = chosen(encoder.unfitted()).fit(table, pool, seed=seed)
    return fitted, forecasts[winner], trials


def out_of_fold(predictor: ForecastMaker, table: OutcomeTable, pool: ModelPool, *, seed: int) -> Forecast:
    """Forecast of every query by a copy of the predictor, encoder included, fitted without it."""
    folds = table.folds(FOLDS, seed)
    parts = []
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(table)), fold)
        fresh = _fresh(predictor)
        fresh.fit(table.take(rest), pool, seed=seed)
        parts.append(fresh.forecast([table.queries[row] for row in fold]).select(pool.names).check(len(fold)))
    return Forecast.concatenate(parts, folds)


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
        Least mean cost over the best single model's among prices that realise the floor, at most 1; with a budget alone
        1 minus the highest mean quality within it.
    """
    forecast = forecast.select(table.models)
    best_column = table.models.index(best)
    quality, cost = _realised(forecast, table)
    best_quality = float(np.nanmean(table.quality[:, best_column]))
    best_cost = float(np.nanmean(forecast.cost_usd[:, best_column]))
    if best_cost <= 0:  # where calls are free, nothing can be saved
        return 1.0
    if policy.min_quality is None:
        if policy.max_mean_cost_usd is None:
            return float(cost.min(initial=np.inf) / best_cost) if len(cost) else 1.0
        within = quality[cost <= policy.max_mean_cost_usd]
        return 1 - float(within.max(initial=0.0))
    floor = max(policy.min_quality.values()) if isinstance(policy.min_quality, dict) else policy.min_quality
    floor *= best_quality if policy.relative_to == "best" else 1.0
    reached = cost[quality >= floor]
    return float(min(1.0, reached.min(initial=np.inf) / best_cost))


def _realised(forecast: Forecast, table: OutcomeTable) -> tuple[FloatArray, FloatArray]:
    """Realised mean quality and mean cost of routing at each of a range of quality prices."""
    cost = np.where(np.isfinite(table.cost_usd), table.cost_usd, forecast.cost_usd)
    scale = float(forecast.cost_usd.mean())
    rows = np.arange(len(table))
    qualities, costs = [], []
    for price in np.concatenate([[0.0], scale * np.geomspace(1e-3, 1e4, PRICES)]):
        chosen = np.argmin(forecast.cost_usd - price * forecast.quality, axis=1)
        observed = np.isfinite(table.quality[rows, chosen])
        if observed.any():
            qualities.append(table.quality[rows, chosen][observed].mean())
            costs.append(cost[rows, chosen][observed].mean())
    return np.array(qualities), np.array(costs)
