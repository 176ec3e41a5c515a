"""What a router learns from a table of outcomes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eccos_integrations.encoders import EncoderLike, make_encoder
from eccos_integrations.errors import ConfigError
from eccos_integrations.guarantee import Evidence
from eccos_integrations.history import best_single, learnable, repriced
from eccos_integrations.outcomes import OutcomeTable, words
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors import PREDICTORS, Forecast, ForecastMaker, Predictor
from eccos_integrations.predictors.calibration import Calibration, aligned, calibrate
from eccos_integrations.predictors.history import columns_of
from eccos_integrations.predictors.selection import Trial, choose, out_of_fold

HISTORY = 20_000  # past queries kept, as forecasts and outcomes: what prices and certificates are computed from
ALIGNED = 1000  # of them that the finished predictor forecasts again, to level the others with it
KEPT_BACK = 0.3  # share of the table that is certified on


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a router is made of.

    Args:
        pool: The models, the columns of everything.
        policy: What holds unless a call brings its own.
        best: The best single model on the fitted outcomes.
        predictor: Fitted on them.
        history: Forecasts of past queries by predictors that had not seen them, beside what came of them.
        held_out: The same for queries kept back to certify on; None if none were.
        calibration: Corrections of the predictor's forecasts; those in the evidence are corrected.
        trials: What `predictor="auto"` chose from.
        outcomes: The table, where its texts shall be kept.
    """

    pool: ModelPool
    policy: Policy
    best: str
    predictor: ForecastMaker
    history: Evidence
    held_out: Evidence | None = None
    calibration: Calibration = field(default_factory=Calibration)
    trials: Sequence[Trial] = ()
    outcomes: OutcomeTable | None = None

    def forecast(self, queries: Sequence[str]) -> Forecast:
        """The predictor's forecast, corrected; columns in the order of the pool.

        Raises:
            ConfigError: The queries are not strings, or the predictor is one's own and its forecast cannot be used.
        """
        if isinstance(queries, str):
            raise ConfigError("queries: got one string; give a list, or use route() for a single query")
        if not isinstance(queries, Iterable):
            raise ConfigError(f"queries: got a {type(queries).__name__}; give a list of strings")
        queries = list(queries)
        if wrong := [type(query).__name__ for query in queries if not isinstance(query, str)]:
            raise ConfigError(f"queries: got a {wrong[0]}; give strings")
        forecast = self.predictor.forecast(queries).select(self.pool.names).check(len(queries))
        return self.calibration.apply(forecast)


def learn(
    table: OutcomeTable,
    pool: ModelPool | None,
    policy: Policy | None,
    predictor: str | ForecastMaker,
    encoder: EncoderLike,
    seed: int,
    calibration: OutcomeTable | None,
    *,
    store_text: bool,
) -> Learnt:
    """See `Router.fit`."""
    policy = Policy(min_quality=1.0, relative_to="best") if policy is None else policy
    pool = ModelPool.from_outcomes(table) if pool is None else pool
    table = whole = repriced(learnable(table, pool), pool)
    policy.check_models(pool.names)
    if calibration is not None:
        _check_calibration(calibration, table)
    elif policy.confidence is not None and policy.bound != "crossfit":
        table, calibration = table.split(1 - KEPT_BACK, seed)
        table = learnable(table, pool)
    best = best_single(table)
    trials: list[Trial] = []
    fitted: ForecastMaker
    if predictor == "auto":
        fitted, unseen, trials = choose(table, pool, policy, best, encoder, seed=seed)
    else:
        fitted = _named(predictor, encoder) if isinstance(predictor, str) else predictor
        if not (hasattr(fitted, "fit") and hasattr(fitted, "forecast")):
            raise ConfigError(f"predictor: {type(fitted).__name__} has no fit and forecast; see ForecastMaker")
        unseen = out_of_fold(fitted, table, pool, seed=seed)
        fitted.fit(table, pool, seed=seed)
    unseen = unseen.check(len(table))
    kept = np.random.default_rng(seed).permutation(len(table))[:HISTORY]  # in this order: any first part is a sample
    some = kept[:ALIGNED]
    again = fitted.forecast([table.queries[row] for row in some]).select(pool.names).check(len(some))
    unseen = aligned(unseen, unseen.take(some), again)
    correction = calibrate(unseen, table, best)
    history = _evidence(correction.apply(unseen.take(kept)), table.take(kept), pool)
    held_out = None
    if calibration is not None:
        forecast = fitted.forecast(calibration.queries).select(pool.names).check(len(calibration))
        calibration = repriced(columns_of(calibration, pool.names), pool)
        held_out = _evidence(correction.apply(forecast), calibration, pool)
    return Learnt(pool, policy, best, fitted, history, held_out, correction, trials, whole if store_text else None)


def _evidence(forecast: Forecast, table: OutcomeTable, pool: ModelPool) -> Evidence:
    forecast, table = forecast.select(pool.names), columns_of(table, pool.names)
    return Evidence(forecast.quality, forecast.cost_usd, table.quality, table.cost_usd)


def _named(predictor: str, encoder: EncoderLike) -> Predictor:
    if predictor not in PREDICTORS:
        raise ConfigError(
            f"predictor: {predictor!r} is unknown; give 'auto', one of {list(PREDICTORS)}, "
            "or an object with fit and forecast"
        )
    return PREDICTORS[predictor](make_encoder(encoder).unfitted())


def _check_calibration(calibration: OutcomeTable, table: OutcomeTable) -> None:
    if not isinstance(calibration, OutcomeTable):
        raise ConfigError(f"calibration: got a {type(calibration).__name__}; give an OutcomeTable")
    if not set(calibration.models) & set(table.models):
        raise ConfigError(
            f"calibration: none of its models {calibration.models} is in the table, which has {table.models}"
        )
    seen = {words(query) for query in table.queries}
    if again := sum(words(query) in seen for query in calibration.queries):
        raise ConfigError(f"calibration: {again} of its {len(calibration)} queries are in the table too; "
                          "what was learnt from cannot certify")  # fmt: skip
