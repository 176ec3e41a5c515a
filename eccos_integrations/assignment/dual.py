"""The assignment of large batches by the dual search, and the nearest answer where rows conflict."""

import time
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from eccos_integrations.assignment.answers import answer, cost_scale, judged, missed
from eccos_integrations.assignment.placing import hopeless, placeable, subset
from eccos_integrations.assignment.problem import ROUNDING, AssignmentProblem
from eccos_integrations.assignment.rows import Rows
from eccos_integrations.assignment.search import Search
from eccos_integrations.assignment.solution import Prices, Solution

# Cost as a tie-breaker where quality is what counts, in mean costs per unit of quality.
TIE = 1e-6
QUALITY_FIRST: dict[str, Any] = {"cost_weight": TIE, "quality_weight": 1.0, "with_floors": False}
# How close phase one comes to the best reachable quality.
PHASE_GAP = 1e-5
FINE_GAP = 1e-9


def solve_dual(problem: AssignmentProblem, *, gap: float, time_limit_s: float, seed: int = 0) -> Solution:
    """Solve by the Lagrangian dual and an exact core.

    Args:
        problem: Of any size.
        gap: Relative distance from the optimum at which to stop.
        time_limit_s: Seconds after which the best answer so far is returned, with its gap.
        seed: Of the sample and of how ties are broken.

    Returns:
        A solution; an infeasible problem is an answer too: the nearest assignment, and which row is missed.
    """
    if problem.n == 0:
        return answer(problem, np.zeros(0, dtype=np.int64), "optimal", "nothing to assign", 0.0, Prices())
    deadline = time.monotonic() + time_limit_s
    # Small products on many threads wait for each other longer than they compute.
    with _threads().limit(limits=1, user_api="blas"):
        return _Solve(problem, gap, deadline, seed).run()


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


class _Solve:
    """One call of `solve_dual`."""

    def __init__(self, problem: AssignmentProblem, gap: float, deadline: float, seed: int) -> None:
        self.problem, self.gap, self.deadline, self.seed = problem, gap, deadline, seed
        self.rows = Rows.of(problem, cost_scale(problem), seed)

    def search(self, rows: Rows, gap: float) -> Search:
        """A search under some of the rows."""
        return Search(rows, gap, self.deadline, self.seed)

    def run(self) -> Solution:
        """The solution, or the nearest answer."""
        if hopeless(self.problem):
            return self._part()
        main = self._search(self.rows, self.gap).run()
        best = None
        if main.choice is None and time.monotonic() < self.deadline:
            best = self._search(replace(self.rows, **QUALITY_FIRST), PHASE_GAP).run()
            best = best.finish() if best.stuck else best
            if best.choice is not None and not self.problem.is_feasible(best.choice) and not self._too_high(best, main):
                best.gap = FINE_GAP
                best.finish()
            top = replace(self.rows, cost_weight=0.0, quality_weight=1.0).scan(np.zeros(len(main.y))).choice
            reached = next((c for c in (best.choice, top) if c is not None and self.problem.is_feasible(c)), None)
            if reached is not None:
                main.take(reached)
            elif best.choice is not None and self._too_high(best, main):
                return self._nearest(best, main)
        if not main.over and main.stuck:
            main.finish()
        if main.choice is not None:
            bound = main.bound * self.rows.scale
            quality_bound = -main.bound if self.problem.maximises_quality else np.inf
            choice = main.choice.astype(np.int64)
            found = judged(self.problem, choice, bound, self.rows.prices(main.y), self.gap, quality_bound)
            late = found.status == "feasible" and time.monotonic() > self.deadline
            return replace(found, message=f"stopped at the time limit, {found.message}") if late else found
        if best is not None and best.choice is not None:
            return self._unsure(best, main)
        return self._without_floors(main)

    def _search(self, rows: Rows, gap: float) -> Search:
        return Search(rows, gap, self.deadline, self.seed)

    def _too_high(self, best: Search, main: Search) -> bool:
        """Whether multipliers prove that the floors, or those of some groups, cannot be met: Farkas' lemma."""
        assert best.choice is not None
        slack = self.problem.slack(best.choice)
        short = np.array([float(np.min(slack[floor]) < 0) for floor in self.problem.floors])
        nothing = replace(self.rows, cost_weight=0.0, quality_weight=0.0)
        directions = (np.append(np.ones(len(short)), best.y), np.append(short, best.y), main.y / (1 + main.y.max()))
        return any(nothing.bound(y) > 0 for y in directions)

    def _without_floors(self, main: Search) -> Solution:
        """The nearest answer where the other rows conflict among themselves."""
        given_way: dict[str, Any] = {"with_floors": False, "quality_weight": TIE, "cost_weight": 1.0}
        for also in ({"with_budget": False}, {"with_budget": False, "with_shares": False}):
            rows = replace(self.rows, **given_way | also)
            least = self._search(rows, PHASE_GAP).run()
            least = least.finish() if least.stuck else least
            if least.choice is None:
                continue
            if main.infeasible or self._too_dear(least):
                return self._nearest(least, main)
            return self._unsure(least, main)
        return self._part()

    def _too_dear(self, least: Search) -> bool:
        """Whether these multipliers of the other rows prove that the budget, if any, cannot be met."""
        budget = self.problem.max_mean_cost_usd
        if budget is None:
            return False
        exact = replace(least.rows, quality_weight=0.0).bound(least.y) * self.rows.scale
        return exact > budget * (1 + ROUNDING) * self.problem.n

    def _nearest(self, nearest: Search, main: Search) -> Solution:
        assert nearest.choice is not None
        choice = nearest.choice.astype(np.int64)
        words = missed(self.problem, choice)
        return answer(self.problem, choice, "infeasible", words, np.inf, self.rows.prices(main.y))

    def _unsure(self, nearest: Search, main: Search) -> Solution:
        assert nearest.choice is not None
        choice = nearest.choice.astype(np.int64)
        words = "no assignment found that keeps every row, nor a proof that there is none: " + missed(
            self.problem, choice
        )
        return answer(self.problem, choice, "time_limit", words, main.bound * self.rows.scale, self.rows.prices(main.y))

    def _part(self) -> Solution:
        """The answer where not every query finds a place: as many as possible, and the best for those."""
        choice = placeable(self.problem, self._search)
        inside = np.flatnonzero(choice >= 0)
        prices = Prices()
        if time.monotonic() > self.deadline:
            words = "stopped at the time limit; rows may be missed that can be met: " + missed(self.problem, choice)
            return answer(self.problem, choice, "time_limit", words, -np.inf, prices)
        if 0 < len(inside) < self.problem.n:
            part = _Solve(subset(self.problem, inside), self.gap, self.deadline, self.seed).run()
            kept = part.assignment if (part.assignment >= 0).all() else choice[inside]
            choice[inside], prices = kept, part.prices
        return answer(self.problem, choice, "infeasible", missed(self.problem, choice), np.inf, prices)
