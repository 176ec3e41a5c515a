"""The router: learn from outcomes, then plan batches jointly or route single queries by the current prices."""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.artifact import read_artifact, write_artifact
from eccos_integrations.assignment import Prices, adjusted_cost, solve
from eccos_integrations.certified import Certificates, certified_ranking, holds, place
from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError, InfeasibleError
from eccos_integrations.guarantee import DriftTest, Guarantee
from eccos_integrations.learnt import Learnt, learn
from eccos_integrations.online import Exploration, feedback_table, taught, with_model, without_model
from eccos_integrations.outcomes import FloatArray, OutcomeTable
from eccos_integrations.packing import pack, unpack
from eccos_integrations.plan import Decision, Feedback, Plan
from eccos_integrations.planning import assignment_problem, too_long
from eccos_integrations.policy import Policy
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import Forecast, ForecastMaker
from eccos_integrations.predictors.selection import Trial
from eccos_integrations.pricing import GAP, TIME_LIMIT_S, CurrentPrices, floor_met
from eccos_integrations.ranking import FIRST, Ranking
from eccos_integrations.recent import RecentDecisions
from eccos_integrations.report import Report

logger = logging.getLogger("eccos")


class Router:
    """Assigns queries to the models of a pool at least cost under a policy.

    Make one with `Router.fit` or `Router.load`.

    Args:
        learnt: What it knows.

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

    def __init__(self, learnt: Learnt) -> None:
        self._learnt = learnt
        self._certificates = Certificates(learnt)
        self._prices = CurrentPrices()
        self._exploration = Exploration()
        self._recent = RecentDecisions()
        self._feedback: list[Feedback] = []
        self.attached: dict[str, Any] = {}  # what others keep for as long as it lives; no copy has it
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_lock", "attached"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), attached={})

    def __repr__(self) -> str:
        name = getattr(self.predictor, "name", type(self.predictor).__name__)
        return f"Router({len(self.pool)} models, best={self.best!r}, predictor={name!r}, policy={self.policy!r})"

    @property
    def pool(self) -> ModelPool:
        """The models."""
        return self._learnt.pool

    @property
    def models(self) -> list[str]:
        """Names of the models, the columns of every forecast and assignment."""
        return self.pool.names

    @property
    def policy(self) -> Policy:
        """What holds unless a call brings its own."""
        return self._learnt.policy

    @property
    def best(self) -> str:
        """The best single model on the fitted outcomes."""
        return self._learnt.best

    @property
    def predictor(self) -> ForecastMaker:
        """What forecasts, with all that feedback has taught it."""
        return self._learnt.predictor

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What `predictor="auto"` chose from."""
        return tuple(self._learnt.trials)

    @property
    def feedbacks(self) -> list[Feedback]:
        """What `feedback` was told, oldest first."""
        return list(self._feedback)

    @property
    def outcomes(self) -> OutcomeTable | None:
        """The table it was fitted on, where that was to be kept."""
        return self._learnt.outcomes

    @classmethod
    def fit(
        cls,
        table: OutcomeTable,
        pool: ModelPool | None = None,
        policy: Policy | None = None,
        predictor: str | ForecastMaker = "auto",
        encoder: EncoderLike = "lexical",
        seed: int = 0,
        *,
        calibration: OutcomeTable | None = None,
        store_text: bool = False,
    ) -> Self:
        """Learn from past outcomes.

        Args:
            table: What the models did on past queries.
            pool: The models to route to, default those of the table with the prices its costs imply.
            policy: What must hold, default the best single model's quality (on forecasts) at least cost.
            predictor: `"auto"` (the mean of those that route well in cross-validation), the name of one (`"prior"`,
                `"ridge"`, `"trees"`, `"retrieval"`, `"clusters"`, `"trained"`, `"hybrid"`), or an object with `fit` and
                `forecast`.
            encoder: `"lexical"`, `"static"`, `"minilm"`, several joined by `+`, a sentence-transformers name or folder,
                or a function from texts to an array.
            seed: Same seed, same router.
            calibration: Outcomes to certify on where the policy asks for confidence: drawn like the queries to come,
                none of them in the table. Default a part of the table.
            store_text: Keep the table, prompts included, in `outcomes` and in what `save` writes.

        Raises:
            ConfigError: The table is too small to learn from, a model has neither price nor cost, or a name is unknown.
        """
        learnt = learn(table, pool, policy, predictor, encoder, seed, calibration, store_text=store_text)
        router = cls(learnt)
        if learnt.policy.confidence is not None:
            router._certificates.of(learnt.policy, learnt)
        return router

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

    def forecast(self, queries: Sequence[str], policy: Policy | None = None) -> Forecast:
        """What each model is expected to do with each query; columns in the order of `models`.

        Args:
            queries: Their texts.
            policy: That they are for: one that is certified is so on the forecasts as they were fitted. Default none:
                the newest, with all that feedback has taught.

        Raises:
            ConfigError: The queries are not strings.
        """
        learnt = self._learnt if policy is None else self._basis(self._checked(policy))[0]
        return learnt.forecast(queries)

    def rank(self, forecast: Forecast, policy: Policy | None = None, added_tokens: FloatArray | None = None) -> Ranking:
        """How queries rank the models at the current prices: what `route` and a dispatcher's windows decide by.

        Args:
            forecast: Of the queries, under the same policy.
            policy: Default the router's own; its capacity, deadline and `on_infeasible` are for plans and do not count.
            added_tokens: (N,) input of each call beside its query; the forecast's costs hold it already. Quality is
                priced for calls of about this size.

        Raises:
            ConfigError: The policy's floor is per group, which only a plan can keep.
        """
        policy = self._checked(policy)
        learnt, guarantee = self._basis(policy)
        if guarantee is not None and learnt is self._certificates.fitted:
            ranking = certified_ranking(forecast, guarantee, learnt)
        else:
            ranking = self._prices.ranking(policy, learnt, forecast, added_tokens)
        for row in range(len(forecast)):
            with self._lock:
                explored = self._exploration.turn()
            if explored is not None and explored in forecast.models:
                ranking.adjusted[row, forecast.models.index(explored)] = -2 * FIRST
                ranking.reasons[row] = f"explores {explored}, of which little is known"
        return ranking

    def decide(self, query: str, forecast: Forecast, row: int, ranking: Ranking, column: int) -> Decision:
        """Make the decision of one query, which `feedback` may name from then on.

        Args:
            query: The text.
            forecast: Of its window.
            row: Of the query in it.
            ranking: Of the window.
            column: Of the model it goes to; negative where no load was left.
        """
        adjusted, reason = ranking.adjusted[row], ranking.reasons[row]
        return self._recent.decide(query, column, forecast, row, adjusted, reason, floor_met=ranking.floor_met)

    def plan(
        self,
        queries: Sequence[str],
        policy: Policy | None = None,
        groups: Sequence[str] | None = None,
        *,
        forbidden: NDArray[np.bool_] | None = None,
    ) -> Plan:
        """Assign a batch jointly: one solve over all its queries, proven within a thousandth of the least cost.

        With `Policy(confidence=...)` every query goes where the certified price sends it; what came of that on outcomes
        kept back stands in `plan.guarantee`.

        Args:
            queries: The batch.
            policy: Default the router's own.
            groups: One label per query where the policy's floor is per group.
            forbidden: (N, M) where a query may not go, beside context windows that are too short.

        Raises:
            InfeasibleError: No assignment meets every row and the policy says `on_infeasible="raise"`.
            ConfigError: The policy names an unknown model or group, or the batch is too large for one solve.
        """
        policy = self._checked(policy)
        learnt, guarantee = self._basis(policy)
        queries = list(queries) if isinstance(queries, Iterable) and not isinstance(queries, str) else queries
        forecast = learnt.forecast(queries)
        problem = assignment_problem(forecast, policy, learnt.pool, learnt.best, groups, forbidden)
        if (shares := self._exploration.shares(learnt.pool, problem)) is not None:
            problem = replace(problem, min_share=shares)
        if guarantee is not None and learnt is self._certificates.fitted:
            column = learnt.pool.names.index(learnt.best)
            solution, why = place(problem, guarantee, column, gap=GAP, time_limit_s=TIME_LIMIT_S)
            guarantee = replace(guarantee, voided=guarantee.voided or why)
        else:
            solution = solve(problem, gap=GAP, time_limit_s=TIME_LIMIT_S)
        if solution.status == "infeasible" and policy.on_infeasible == "raise":
            raise InfeasibleError(solution.message)
        if solution.status in ("infeasible", "time_limit"):
            logger.warning("plan of %d queries: %s", problem.n, solution.message)
        met = floor_met(problem, solution) if guarantee is None else holds(guarantee)
        adjusted = adjusted_cost(problem, solution.prices)
        reason = f"planned jointly, {problem.n} queries in one solve"
        decisions = [
            self._recent.decide(query, column, forecast, row, adjusted[row], reason, floor_met=met)
            for row, (query, column) in enumerate(zip(queries, solution.assignment, strict=True))
        ]
        return Plan(decisions, solution.assignment, problem.min_quality, met, solution, forecast, guarantee)

    def route(self, query: str, policy: Policy | None = None) -> Decision:
        """Decide one query at the prices at which past queries met the policy. Fast, greedy, no load limits.

        Args:
            query: The text.
            policy: Default the router's own; its capacity, deadline and `on_infeasible` are for plans and do not count.

        Raises:
            ConfigError: The policy's floor is per group, which only a plan can keep.
        """
        policy = self._checked(policy)
        forecast = self.forecast([query], policy)
        ranking = self.rank(forecast, policy)
        adjusted = ranking.adjusted[0]
        adjusted[too_long(forecast, self.pool)[0]] = np.inf
        return self.decide(query, forecast, 0, ranking, int(adjusted.argmin()) if (adjusted < np.inf).any() else -1)

    def prices(self, policy: Policy | None = None) -> Prices:
        """Prices at which past queries met the policy: what `route` decides by where nothing is certified."""
        return self._prices.of(self._checked(policy), self._learnt)[0]

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
        """Say what came of a decision; forecasts learn from it at once.

        Kept in memory, in `feedbacks`. Said twice, it is learnt once. Outcomes that leave their forecasts void
        certificates; those of the router's own choices never renew one.

        Raises:
            ConfigError: No such decision, or a value is out of range.
        """
        feedback = Feedback(decision_id, "", quality, cost_usd, input_tokens, output_tokens, latency_s)
        with self._lock:
            recent = self._recent.get(decision_id)
            if recent is None:
                raise ConfigError(f"decision_id: {decision_id!r} is not a decision of this router that placed a query, "
                                  "or one long ago")  # fmt: skip
            feedback = replace(feedback, model=recent.model)
            self._feedback.append(feedback)
            news = feedback_table(feedback, recent)
            if news is None:
                return
            if quality is not None and "quality" not in recent.learnt:
                self._exploration.seen(recent.model)
                self._certificates.watch(quality - recent.quality)
            recent.learnt |= feedback.measures
            self._learnt = taught(self._learnt, news, frozen=self._certificates.fitted.predictor)

    def add_model(self, model: Model, outcomes: OutcomeTable | None = None, *, explore: float = 0.02) -> None:
        """Route to one more model from now on; no other model's forecast changes. Certificates are void from here on.

        Args:
            model: Not in the pool yet.
            outcomes: What it did on some queries. Without any it is forecast like models of like price and description.
            explore: Share of the queries that go to it whatever the prices say, until enough is known of it.

        Raises:
            ConfigError: The model is there already, its cost cannot be known, the predictor cannot add models, or the
                share is not in 0..1. Nothing has changed then.
        """
        if not 0 <= explore <= 1:
            raise ConfigError(f"explore: {explore!r}; give a share of the queries from 0 to 1")
        with self._lock:
            self._learnt = with_model(self._learnt, model, outcomes)
            self._exploration.start(model.name, explore, outcomes)

    def remove_model(self, name: str) -> None:
        """Route to one model less from now on. Certificates are void from here on.

        Where it was the best single model, the best of the rest on the fitted outcomes takes its place.

        Raises:
            ConfigError: No such model, or fewer than two would be left.
        """
        with self._lock:
            self._learnt = without_model(self._learnt, name)
            self._exploration.stop(name)

    def report(self) -> Report:
        """What the router chose from, how its forecasts did on queries they had not seen, and what is certified."""
        guarantee = None if self.policy.confidence is None else self._certificates.of(self.policy, self._learnt)
        return Report.of(self._learnt, guarantee)

    def save(self, folder: str | Path) -> None:
        """Write the router to a folder, which appears whole or not at all. No prompt is in it, unless asked for at fit.

        Raises:
            ConfigError: The predictor is an object of your own, which only you can save.
            ArtifactError: The folder holds something else.
        """
        with self._lock:
            drift = self._certificates.drift
            online = {"exploration": self._exploration.state(), "drift": None if drift is None else drift.state()}
            contents = pack(self._learnt, self._certificates.fitted, online)
        write_artifact(Path(folder), *contents)

    @classmethod
    def load(cls, folder: str | Path, encoder: EncoderLike | None = None) -> Self:
        """Read a saved router. Downloads nothing and runs nothing that was saved.

        Args:
            folder: What `save` was given.
            encoder: The function the router was fitted with, if it was; a function cannot be saved.

        Raises:
            ArtifactError: A file is missing, damaged, or from a newer version.
        """
        learnt, fitted, online = unpack(*read_artifact(Path(folder)), encoder=encoder)
        router = cls(fitted)
        router._learnt = learnt
        router._exploration = Exploration.restore(online["exploration"])
        if online["drift"] is not None:
            router._certificates.drift = DriftTest.restore(online["drift"])
        return router

    def _checked(self, policy: Policy | None) -> Policy:
        """The policy, or the router's own."""
        if policy is None:
            return self.policy
        if not isinstance(policy, Policy):
            raise ConfigError(f"policy: got a {type(policy).__name__}; give Policy(min_quality=...)")
        policy.check_models(self.models)
        return policy

    def _basis(self, policy: Policy) -> tuple[Learnt, Guarantee | None]:
        """What to decide by: what certificates are about where the policy asks for one, else what is known by now."""
        now = self._learnt
        if policy.confidence is None:
            return now, None
        guarantee = self._certificates.of(policy, now)
        return (self._certificates.fitted if self._certificates.fitted.pool is now.pool else now), guarantee
