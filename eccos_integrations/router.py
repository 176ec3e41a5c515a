"""The router: learn from outcomes, then plan batches jointly or route single queries by the current prices."""

import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np

from eccos_integrations.artifact import read_artifact, write_artifact
from eccos_integrations.assignment import Prices, adjusted_cost, solve
from eccos_integrations.encoders import EncoderLike, make_encoder
from eccos_integrations.errors import ConfigError, InfeasibleError
from eccos_integrations.history import best_single, learnable
from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.packing import Contents, pack, unpack
from eccos_integrations.plan import Decision, Feedback, Plan
from eccos_integrations.planning import assignment_problem, too_long
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors import PREDICTORS, Forecast, ForecastMaker, Predictor
from eccos_integrations.predictors.selection import Trial, choose, out_of_fold
from eccos_integrations.pricing import floor_met, settled

logger = logging.getLogger("eccos")

SAMPLE = 500  # past queries kept as forecasts (no text): what a single query's prices are computed from
# Forecasts err by far more than this share of the cost, and on small batches a smaller gap takes seconds to prove.
PLAN_GAP = 1e-3
PLAN_TIME_LIMIT_S = 10.0  # then the best assignment so far, with its gap
PRICED_POLICIES = 128  # whose prices are kept
REMEMBERED = 100_000  # decisions that feedback can still name


class Router:
    """Assigns queries to the models of a pool at least cost under a policy.

    Make one with `Router.fit` or `Router.load`.

    Args:
        pool: The models, in the order of `models`.
        policy: What holds unless a call brings its own.
        best: The best single model on the fitted outcomes.
        predictor: A fitted predictor of the pool's models.
        sample: Out-of-fold forecasts of past queries.
        trials: What `predictor="auto"` chose from.

    Example:
        >>> from eccos_integrations import Policy, load_sample
        >>> train, test = load_sample().split(0.7, seed=0)
        >>> router = Router.fit(train, policy=Policy(min_quality=0.97, relative_to="best"), predictor="retrieval")
        >>> plan = router.plan(test.queries)
        >>> plan.floor_met, plan.solution.status
        (True, 'optimal')
        >>> router.route("What is 2 + 2?").model in router.models
        True
    """

    def __init__(
        self,
        pool: ModelPool,
        policy: Policy,
        best: str,
        predictor: ForecastMaker,
        sample: Forecast,
        trials: Sequence[Trial] = (),
    ) -> None:
        self.pool = pool
        self.policy = policy
        self.best = best
        self.predictor = predictor
        self.trials = tuple(trials)
        self._sample = sample
        self._prices: OrderedDict[str, tuple[Prices, bool]] = OrderedDict()  # by policy
        self._decided: OrderedDict[str, str] = OrderedDict()  # decision id -> model
        self._feedback: list[Feedback] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        name = getattr(self.predictor, "name", type(self.predictor).__name__)
        return f"Router({len(self.pool)} models, best={self.best!r}, predictor={name!r}, policy={self.policy!r})"

    @property
    def models(self) -> list[str]:
        """Names of the models, the columns of every forecast and assignment."""
        return self.pool.names

    @property
    def feedbacks(self) -> list[Feedback]:
        """What `feedback` was told, oldest first."""
        return list(self._feedback)

    @classmethod
    def fit(
        cls,
        table: OutcomeTable,
        pool: ModelPool | None = None,
        policy: Policy | None = None,
        predictor: str | ForecastMaker = "auto",
        encoder: EncoderLike = "lexical",
        seed: int = 0,
    ) -> Self:
        """Learn from past outcomes.

        Args:
            table: What the models did on past queries.
            pool: The models to route to, default those of the table with the prices its costs imply.
            policy: What must hold, default the best single model's quality (on forecasts) at least cost.
            predictor: `"auto"` (the one that routes best in cross-validation), `"prior"`, `"retrieval"`, `"trained"`,
                or an object with `fit` and `forecast`.
            encoder: `"lexical"`, a sentence-transformers name or folder, or a function from texts to an array.
            seed: Same seed, same router.

        Raises:
            ConfigError: The table is too small to learn from, a model has neither price nor cost, or a name is unknown.
        """
        policy = Policy(min_quality=1.0, relative_to="best") if policy is None else policy
        pool = ModelPool.from_outcomes(table) if pool is None else pool
        table = learnable(table, pool)
        policy.check_models(pool.names)
        best = best_single(table)
        trials: list[Trial] = []
        if predictor == "auto":
            fitted: ForecastMaker
            fitted, sample, trials = choose(table, pool, policy, best, encoder, seed=seed)
        else:
            fitted = _named(predictor, encoder) if isinstance(predictor, str) else predictor
            if not (hasattr(fitted, "fit") and hasattr(fitted, "forecast")):
                raise ConfigError(f"predictor: {type(fitted).__name__} has no fit and forecast; see ForecastMaker")
            sample = out_of_fold(fitted, table, pool, seed=seed)
            fitted.fit(table, pool, seed=seed)
        kept = np.sort(np.random.default_rng(seed).permutation(len(table))[:SAMPLE])
        return cls(pool, policy, best, fitted, sample.check(len(table)).take(kept), trials)

    def check_members(self, names: Iterable[str]) -> None:
        """Refuse members that are not exactly this router's models.

        Raises:
            ConfigError: Names what is missing and what is too much.
        """
        names = list(names)
        missing = [name for name in self.models if name not in names]
        unknown = [name for name in names if name not in self.models]
        if missing or unknown:
            raise ConfigError(
                f"members: missing {missing}, unknown {unknown}; give one member for each of the router's models "
                f"{self.models}, or fit the router on a smaller pool"
            )

    def forecast(self, queries: Sequence[str]) -> Forecast:
        """What each model is expected to do with each query; columns in the order of `models`.

        Raises:
            ConfigError: The queries are not strings.
        """
        if isinstance(queries, str):
            raise ConfigError("queries: got one string; give a list, or use route() for a single query")
        if not isinstance(queries, Iterable):
            raise ConfigError(f"queries: got a {type(queries).__name__}; give a list of strings")
        queries = list(queries)
        if wrong := [type(query).__name__ for query in queries if not isinstance(query, str)]:
            raise ConfigError(f"queries: got a {wrong[0]}; give strings")
        return self.predictor.forecast(queries).select(self.models).check(len(queries))

    def plan(self, queries: Sequence[str], policy: Policy | None = None, groups: Sequence[str] | None = None) -> Plan:
        """Assign a batch jointly: one solve over all its queries, proven within a thousandth of the least cost.

        Args:
            queries: The batch.
            policy: Default the router's own.
            groups: One label per query where the policy's floor is per group.

        Raises:
            InfeasibleError: No assignment meets every row and the policy says `on_infeasible="raise"`.
            ConfigError: The policy names an unknown model or group, or the batch is too large for one solve.
        """
        policy = self._checked(policy)
        forecast = self.forecast(queries)
        problem = assignment_problem(forecast, policy, self.pool, self.best, groups)
        solution = solve(problem, gap=PLAN_GAP, time_limit_s=PLAN_TIME_LIMIT_S)
        if solution.status == "infeasible" and policy.on_infeasible == "raise":
            raise InfeasibleError(solution.message)
        if solution.status in ("infeasible", "time_limit"):
            logger.warning("plan of %d queries: %s", problem.n, solution.message)
        met = floor_met(problem, solution)
        adjusted = adjusted_cost(problem, solution.prices)
        reason = f"planned jointly, {problem.n} queries in one solve"
        decisions = [
            self._decision(column, forecast, row, adjusted[row], reason, floor_met=met)
            for row, column in enumerate(solution.assignment)
        ]
        return Plan(decisions, solution.assignment, problem.min_quality, met, solution)

    def route(self, query: str, policy: Policy | None = None) -> Decision:
        """Decide one query at the prices at which past queries met the policy. Fast, greedy, no load limits.

        Args:
            query: The text.
            policy: Default the router's own; its capacity, deadline and `on_infeasible` are for plans and do not count.

        Raises:
            ConfigError: The policy's floor is per group, which only a plan can keep.
        """
        policy = self._checked(policy)
        forecast = self.forecast([query])
        prices, met = self._current_prices(policy)
        adjusted = (1 + prices.budget) * forecast.cost_usd[0] - prices.quality * forecast.quality[0]
        adjusted[too_long(forecast, self.pool)[0]] = np.inf
        column = int(np.argmin(adjusted)) if np.isfinite(adjusted).any() else -1
        return self._decision(column, forecast, 0, adjusted, "routed at the current prices", floor_met=met)

    def feedback(
        self,
        decision_id: str,
        *,
        quality: float | None = None,
        cost_usd: float | None = None,
        input_tokens: float | None = None,
        output_tokens: float | None = None,
        latency_s: float | None = None,
    ) -> None:
        """Say what came of a decision. Kept in memory, in `feedbacks`.

        Raises:
            ConfigError: No such decision, or a value is out of range.
        """
        values = {"quality": quality, "cost_usd": cost_usd, "input_tokens": input_tokens,
                  "output_tokens": output_tokens, "latency_s": latency_s}  # fmt: skip
        for name, value in values.items():
            most = 1 if name == "quality" else np.inf
            if value is not None and not (isinstance(value, Real) and 0 <= value <= most and np.isfinite(value)):
                raise ConfigError(
                    f"{name}: {value!r} is out of range; it must be at least 0, finite, quality at most 1"
                )
        with self._lock:
            if decision_id not in self._decided:
                raise ConfigError(f"decision_id: {decision_id!r} is not a decision of this router that placed a query, "
                                  f"or is older than the last {REMEMBERED}")  # fmt: skip
            self._feedback.append(Feedback(decision_id, self._decided[decision_id], **values))

    def save(self, folder: str | Path) -> None:
        """Write the router to a folder, which appears whole or not at all. No prompt is in it.

        Raises:
            ConfigError: The predictor is an object of your own, which only you can save.
            ArtifactError: The folder holds something else.
        """
        contents = Contents(self.pool, self.policy, self.best, self.predictor, self._sample, self.trials)
        write_artifact(Path(folder), *pack(contents))

    @classmethod
    def load(cls, folder: str | Path, encoder: EncoderLike | None = None) -> Self:
        """Read a saved router. Downloads nothing and runs nothing that was saved.

        Args:
            folder: What `save` was given.
            encoder: The function the router was fitted with, if it was; a function cannot be saved.

        Raises:
            ArtifactError: A file is missing, damaged, or from a newer version.
        """
        contents = unpack(*read_artifact(Path(folder)), encoder=encoder)
        return cls(**vars(contents))

    def _checked(self, policy: Policy | None) -> Policy:
        """The policy, or the router's own."""
        if policy is None:
            return self.policy
        if not isinstance(policy, Policy):
            raise ConfigError(f"policy: got a {type(policy).__name__}; give Policy(min_quality=...)")
        policy.check_models(self.models)
        return policy

    def _current_prices(self, policy: Policy) -> tuple[Prices, bool]:
        """Prices at which the sample meets the policy, and whether it can."""
        key = policy.model_dump_json(exclude={"capacity", "deadline_s"})
        known = self._prices.get(key)
        if known is None:
            without_limits = policy.model_copy(update={"capacity": None, "deadline_s": None})
            problem = assignment_problem(self._sample, without_limits, self.pool, self.best)
            solution = solve(problem, gap=PLAN_GAP, time_limit_s=PLAN_TIME_LIMIT_S)
            known = settled(problem, solution.prices), floor_met(problem, solution)
            with self._lock:
                self._prices[key] = known
                while len(self._prices) > PRICED_POLICIES:
                    self._prices.popitem(last=False)
        return known

    def _decision(
        self, column: int, forecast: Forecast, row: int, adjusted: FloatArray, reason: str, *, floor_met: bool
    ) -> Decision:
        order = [int(j) for j in np.argsort(adjusted, kind="stable") if np.isfinite(adjusted[j])]
        decision_id = uuid.uuid4().hex
        if column < 0:
            ranking = tuple(self.models[j] for j in order)
            return Decision(decision_id, None, np.nan, np.nan, ranking, "no model has room for it", floor_met)
        model = self.models[column]
        with self._lock:
            self._decided[decision_id] = model
            while len(self._decided) > REMEMBERED:
                self._decided.popitem(last=False)
        return Decision(
            id=decision_id,
            model=model,
            quality=float(forecast.quality[row, column]),
            cost_usd=float(forecast.cost_usd[row, column]),
            ranking=(model, *(self.models[j] for j in order if j != column)),
            reason=reason,
            floor_met=floor_met,
        )


def _named(predictor: str, encoder: EncoderLike) -> Predictor:
    if predictor not in PREDICTORS:
        raise ConfigError(
            f"predictor: {predictor!r} is unknown; give 'auto', one of {list(PREDICTORS)}, "
            "or an object with fit and forecast"
        )
    return PREDICTORS[predictor](make_encoder(encoder).unfitted())
