"""From past queries to the prices that single queries are decided by."""

import threading
from collections import OrderedDict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.assignment import AssignmentProblem, Prices, Solution, adjusted_cost, solve
from eccos_integrations.assignment.solution import quality_price
from eccos_integrations.learnt import Learnt
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.planning import assignment_problem
from eccos_integrations.policy import Policy
from eccos_integrations.predictors import Forecast
from eccos_integrations.ranking import Ranking

SAMPLE = 500  # past queries that a single query's prices are computed from
POLICIES = 128  # whose prices are kept
# Forecasts err by far more than this share of the cost, and on small batches a smaller gap takes seconds to prove.
GAP = 1e-3
TIME_LIMIT_S = 10.0  # then the best assignment so far, with its gap


class CurrentPrices:
    """Prices at which a sample of past queries meets a policy, and whether it can."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int], tuple[Learnt, Prices, bool]] = OrderedDict()  # by policy, tokens
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]  # a copy starts afresh

    def of(self, policy: Policy, learnt: Learnt, added_tokens: int = 0) -> tuple[Prices, bool]:
        """The policy's prices; its capacity and deadline do not count.

        Args:
            policy: What must hold.
            learnt: With the past queries.
            added_tokens: Of input that calls have beside their query: quality is then dearer for all.
        """
        key = policy.model_dump_json(exclude={"capacity", "deadline_s"}), added_tokens
        known = self._known.get(key)
        if known is None or known[0].history is not learnt.history:
            without_limits = policy.model_copy(update={"capacity": None, "deadline_s": None})
            added = np.nan_to_num(learnt.pool.cost_usd(added_tokens, 0))
            cost_usd = learnt.history.cost_usd[:SAMPLE] + added
            sample = Forecast(learnt.pool.names, learnt.history.quality[:SAMPLE], cost_usd)
            problem = assignment_problem(sample, without_limits, learnt.pool, learnt.best)
            solution = solve(problem, gap=GAP, time_limit_s=TIME_LIMIT_S)
            known = learnt, settled(problem, solution.prices), floor_met(problem, solution)
            with self._lock:
                self._known[key] = known
                while len(self._known) > POLICIES:
                    self._known.popitem(last=False)
        return known[1], known[2]

    def ranking(
        self, policy: Policy, learnt: Learnt, forecast: Forecast, added_tokens: FloatArray | None = None
    ) -> Ranking:
        """How queries rank the models at the policy's prices.

        Args:
            policy: What must hold.
            learnt: With the past queries.
            forecast: (N, M).
            added_tokens: (N,) input of each call beside its query; None: there is none.
        """
        levels = [0] * len(forecast) if added_tokens is None else _levels(added_tokens).tolist()
        at = {level: self.of(policy, learnt, level) for level in set(levels)}
        budget = np.array([at[level][0].budget for level in levels]).reshape(-1, 1)
        quality = np.array([quality_price(at[level][0], "min_quality") for level in levels]).reshape(-1, 1)
        adjusted = (1 + budget) * forecast.cost_usd - quality * forecast.quality
        return Ranking(adjusted, ["routed at the current prices"] * len(levels), all(met for _, met in at.values()))


def _levels(added_tokens: FloatArray) -> NDArray[np.int64]:
    """Tokens to the nearest half of a power of two, below 32 none: few enough values to know prices for each."""
    halves = np.round(2 * np.log2(np.maximum(added_tokens, 1.0)))
    return np.where(halves < 10, 0, np.round(2 ** (halves / 2))).astype(np.int64)


def floor_met(problem: AssignmentProblem, solution: Solution) -> bool:
    """Whether every floor holds over the placed queries, of which there are some."""
    nothing_placed = problem.n > 0 and bool((solution.assignment < 0).all())
    kept = all(np.min(solution.slack[name]) >= 0 for name in problem.floors)
    return kept and not (problem.floors and nothing_placed)


def settled(problem: AssignmentProblem, prices: Prices) -> Prices:
    """The prices moved off their ties: queries that look alike all go one way, and that way must hold.

    Where a floor and a budget cannot both hold, the floor gives way.

    Args:
        problem: Past queries under the policy, without limits on load.
        prices: At which they meet it if they may be split.
    """
    floor_held = _moved(problem, prices, "min_quality", towards=1) if problem.floors else None
    if problem.max_mean_cost_usd is None:
        return floor_held or prices
    if floor_held is not None and _row_slack(problem, floor_held, "max_mean_cost_usd") >= 0:
        return floor_held
    return _moved(problem, prices, "max_mean_cost_usd", towards=-1)


def _moved(problem: AssignmentProblem, prices: Prices, row: str, *, towards: int) -> Prices:
    """The quality price moved by a hair, and on in growing steps until the row holds."""
    assert isinstance(prices.quality, float)
    for step in 1e-9 * 2.0 ** np.arange(60):
        prices = replace(prices, quality=max(prices.quality, 1e-300) * (1 + step) ** towards)
        if _row_slack(problem, prices, row) >= 0:
            break
    return prices


def _row_slack(problem: AssignmentProblem, prices: Prices, row: str) -> float:
    """Slack of a row where each query goes where the prices send it."""
    return float(np.min(problem.slack(adjusted_cost(problem, prices).argmin(axis=1))[row]))
