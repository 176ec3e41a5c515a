"""The exact assignment by scipy's mixed-integer solver (HiGHS), for batches small enough for it."""

import itertools
import time

import numpy as np

from eccos_integrations.assignment.answers import answer, judged, missed, objective_of
from eccos_integrations.assignment.placing import filled
from eccos_integrations.assignment.problem import AssignmentProblem, FloatArray, IntArray
from eccos_integrations.assignment.program import SOFT, Answer, Program
from eccos_integrations.assignment.solution import Prices, Solution, lagrangian_bound
from eccos_integrations.assignment.types import Types
from eccos_integrations.errors import ConfigError

# What HiGHS solves in about its time limit on two cores. Larger batches have to be split.
MOST_CELLS = 60_000
ATTEMPTS = 3  # at rows tightened by what rounding to whole queries missed
MOST_ROUNDINGS = 4096  # ways of making a relaxation whole that are tried, some 50 microseconds each


def solve_milp(
    problem: AssignmentProblem, *, gap: float = 1e-4, time_limit_s: float = 60.0, types: Types | None = None
) -> Solution:
    """Solve the whole problem as one mixed-integer program.

    Args:
        problem: At most `MOST_CELLS` pairs of a model and a query, alike queries counted once.
        gap: Relative distance from the optimum at which to stop.
        time_limit_s: Seconds after which the best answer so far is returned, with its gap.
        types: The distinct queries, where they are known already.

    Returns:
        A solution; an infeasible problem is an answer too: the nearest assignment, and which row is missed.

    Raises:
        ConfigError: The problem is too large.
    """
    if problem.n == 0:
        return answer(problem, np.zeros(0, dtype=np.int64), "optimal", "nothing to assign", 0.0, Prices())
    types = Types.in_problem(problem) if types is None else types
    if len(types) * problem.m > MOST_CELLS:
        raise ConfigError(
            f"{problem.n} queries x {problem.m} models are too many for one exact solve (at most {MOST_CELLS} pairs); "
            f"plan in batches of {MOST_CELLS // problem.m} queries"
        )
    deadline = time.monotonic() + time_limit_s
    program = Program.of(problem, types)
    prices, shares = program.relax(deadline)
    bound = lagrangian_bound(problem, prices)
    rounded = _rounded(problem, program, shares)
    if rounded is not None and objective_of(problem, rounded) - bound <= gap * objective_of(problem, rounded):
        return judged(problem, rounded, bound, prices, gap, np.inf)
    tightened = program
    for _ in range(ATTEMPTS):
        found = tightened.solve(program.objective, gap=gap, deadline=deadline)
        bound = max(bound, found.bound * program.cost_scale) if tightened is program else bound
        if found.assignment is None:
            break
        if problem.is_feasible(found.assignment):
            candidates = [found.assignment] if rounded is None else [found.assignment, rounded]
            better = min(candidates, key=lambda assignment: objective_of(problem, assignment))
            return judged(problem, better, bound, prices, gap, found.quality_bound)
        tightened = tightened.tighten(problem, found.assignment)
    if rounded is not None:
        return judged(problem, rounded, bound, prices, gap, np.inf)
    return _nearest(problem, program, bound, prices, gap=gap, deadline=deadline)


def relaxed_prices(problem: AssignmentProblem) -> Prices:
    """Prices of the linear relaxation: enough to route single queries by, without an assignment."""
    return Program.of(problem, Types.in_problem(problem)).relax()[0] if problem.n else Prices()


def _rounded(problem: AssignmentProblem, program: Program, shares: FloatArray) -> IntArray | None:
    """The best feasible way to make the relaxation whole: few queries are split, and all their choices are tried.

    A vertex of the relaxation splits at most as many queries as there are rows beside one-model-per-query.
    """
    if len(program.types) < problem.n:  # shares are counts then
        return None
    used = shares > 1e-9
    options = [program.model[used & (program.query == i)] for i in np.unique(program.query[used])]
    if len(options) < problem.n or np.prod([float(len(choices)) for choices in options]) > MOST_ROUNDINGS:
        return None
    best, best_value = None, np.inf
    split = [i for i, choices in enumerate(options) if len(choices) > 1]
    assignment = np.array([choices[0] for choices in options])
    for choice in itertools.product(*(options[i] for i in split)):
        assignment[split] = choice
        value = objective_of(problem, assignment)
        if value < best_value and problem.is_feasible(assignment):
            best, best_value = assignment.copy(), value
    return best


def _nearest(
    problem: AssignmentProblem, program: Program, bound: float, prices: Prices, *, gap: float, deadline: float
) -> Solution:
    """The assignment that misses least: each kind of soft row in turn is missed as little as possible, then cost."""
    best: Answer | None = None
    for kind in SOFT:
        if time.monotonic() > deadline:  # HiGHS takes long to notice
            break
        shortfall = (program.soft == kind).astype(float)
        if not shortfall.any():
            continue
        found = program.solve(shortfall, gap=0.0, deadline=deadline, give=SOFT)
        if found.assignment is None:
            break
        best = found
        if problem.is_feasible(found.assignment):  # the rows did hold, by less than the solver's tolerance
            return judged(problem, found.assignment, bound, prices, gap, np.inf)
        program = program.keep(kind, found.value)
    late = time.monotonic() > deadline
    if not late:
        last = program.solve(program.objective, gap=gap, deadline=deadline, give=SOFT)
        best, late = last if last.assignment is not None else best, last.timed_out
    if best is None or best.assignment is None:
        best, late = Answer(filled(problem, np.full(problem.n, -1)), np.inf, -np.inf, timed_out=True), True
        assert best.assignment is not None
    if problem.is_feasible(best.assignment):
        return judged(problem, best.assignment, bound, prices, gap, np.inf)
    if late:
        message = "stopped at the time limit; rows may be missed that can be met: " + missed(problem, best.assignment)
        return answer(problem, best.assignment, "time_limit", message, bound, prices)
    return answer(problem, best.assignment, "infeasible", missed(problem, best.assignment), np.inf, prices)
