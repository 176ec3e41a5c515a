"""From an assignment to a solution: its figures, its verdict, and the words for what is missed."""

import numpy as np

from eccos_integrations.assignment.problem import AssignmentProblem, IntArray
from eccos_integrations.assignment.solution import Prices, Solution, Status


def objective_of(problem: AssignmentProblem, assignment: IntArray) -> float:
    """What is minimised: total cost, or minus total quality."""
    if problem.maximises_quality:
        return -float(problem.quality[np.arange(problem.n), assignment].sum())
    return float(problem.paid_by(assignment).sum())


def cost_scale(problem: AssignmentProblem) -> float:
    """USD that count as 1, by the cheapest model of each query: one dear model must not blur the others."""
    every = max(problem.n // 10_000, 1)
    paid = problem.cost_usd[::every]
    if problem.switch_cost_usd is not None:
        paid = paid + problem.switch_cost_usd[::every]
    for scale in (paid.min(axis=1).mean(), np.median(paid), paid.mean(), problem.cost_usd.mean()):
        if scale > 0:
            return float(scale)
    return 1.0


def judged(
    problem: AssignmentProblem, assignment: IntArray, bound: float, prices: Prices, gap: float, quality_bound: float
) -> Solution:
    """A feasible assignment with its gap: optimal if the gap is what was asked for."""
    reached = objective_of(problem, assignment)
    distance = reached + quality_bound if problem.maximises_quality else reached - bound
    # Where nothing costs anything the gap is a distance between two sums of rounding errors.
    largest = 1.0 if problem.maximises_quality else float(problem.cost_usd.max(initial=0.0))
    reached_gap = distance / max(abs(reached), 1e-12 * largest * problem.n, 1e-300)
    # HiGHS' own tolerances allow for a gap of this size where it reports none.
    optimal = reached_gap <= gap + 1e-6
    status: Status = "optimal" if optimal else "feasible"
    message = f"proven within {max(reached_gap, 0):.1e} of the optimum"
    return answer(problem, assignment, status, message, bound, prices, max(reached_gap, 0.0))


def missed(problem: AssignmentProblem, assignment: IntArray) -> str:
    """Which rows the nearest assignment misses, and what it reaches."""
    slack = problem.slack(assignment)
    words = []
    if unplaced := int((assignment < 0).sum()):
        full = [*problem.column_limits, *(["forbidden"] if problem.forbidden is not None else [])]
        words.append(f"{unplaced} of {problem.n} queries fit nowhere under {' and '.join(full)}")
    if problem.min_share is not None and np.min(slack["min_share"]) < 0:
        words.append(f"min_share is missed by {-slack['min_share'].clip(max=0).sum():g} queries")  # type: ignore[union-attr]
    if problem.max_mean_cost_usd is not None and slack["max_mean_cost_usd"] < 0:
        words.append(f"max_mean_cost_usd is {problem.max_mean_cost_usd:.6g}, the least reachable is "
                     f"{problem.mean_cost_usd(assignment):.6g}")  # fmt: skip
    for name, floor in problem.floors.items():
        if slack[name] < 0:
            words.append(f"{name} is {floor:.4f}, the best reachable is {floor + slack[name]:.4f}")
    held = [name for name in problem.row_names if np.min(slack[name]) >= 0]
    return "; ".join(words) + (f" (kept: {', '.join(held)})" if held else "")


def answer(
    problem: AssignmentProblem, assignment: IntArray, status: Status, message: str, bound: float, prices: Prices,
    gap: float = np.nan,
) -> Solution:  # fmt: skip
    """A solution with all its figures."""
    mean = problem.mean_cost_usd(assignment)
    return Solution(
        assignment=assignment,
        status=status,
        message=message,
        mean_quality=problem.mean_quality(assignment),
        mean_cost_usd=mean,
        total_cost_usd=float(problem.paid_by(assignment).sum()),
        lower_bound=-np.inf if problem.maximises_quality and bound < np.inf else bound,
        gap=gap,
        prices=prices,
        slack=problem.slack(assignment),
    )


def better(one: Solution, other: Solution) -> Solution:
    """The one of two answers to a problem that says more: feasible before infeasible before undecided, then the gap.

    Where neither is better it is the other one.
    """
    rank = {"optimal": 0, "feasible": 0, "infeasible": 1, "time_limit": 2}
    return min(other, one, key=lambda solution: (rank[solution.status], np.nan_to_num(solution.gap)))
