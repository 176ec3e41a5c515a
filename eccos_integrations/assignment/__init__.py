"""Assignment: which model each query goes to, with a proof of how good the answer is."""

import time
from dataclasses import replace
from typing import Literal, get_args

from eccos_integrations.assignment.answers import better
from eccos_integrations.assignment.dual import solve_dual
from eccos_integrations.assignment.milp import relaxed_prices, solve_milp
from eccos_integrations.assignment.pacing import Pacer
from eccos_integrations.assignment.problem import AssignmentProblem
from eccos_integrations.assignment.solution import Prices, Solution, adjusted_cost, lagrangian_bound
from eccos_integrations.assignment.subgradient import solve_subgradient
from eccos_integrations.assignment.types import Types
from eccos_integrations.errors import ConfigError

Method = Literal["auto", "milp", "dual", "subgradient"]
TINY = 600  # pairs: exact at once
SMALL = 6_000  # pairs: exact where the dual leaves a gap


def solve(
    problem: AssignmentProblem,
    method: Method = "auto",
    *,
    gap: float = 1e-4,
    time_limit_s: float = 60.0,
    seed: int = 0,
) -> Solution:
    """Assign each query to a model at least cost under every row of the problem.

    Args:
        problem: See `AssignmentProblem`.
        method: `"milp"` solves exactly by mixed-integer programming; `"dual"` by its Lagrangian dual, fast at any
            size; `"subgradient"` by the paper's own multiplier rule, for comparison; `"auto"` picks by size.
        gap: Relative distance from the optimum that is good enough.
        time_limit_s: Seconds after which the best answer so far is returned, with its gap.
        seed: Of the sample the dual starts from, and of how ties are broken.

    Returns:
        A solution. An infeasible problem is an answer too, never an error: see `Solution.status`.

    Raises:
        ConfigError: The method is unknown, a limit is not positive, or the problem is too large for the method.

    Example:
        >>> problem = AssignmentProblem(cost_usd=[[1, 3], [1, 3]], quality=[[0.5, 0.9], [0.8, 0.9]], min_quality=0.85)
        >>> solution = solve(problem)
        >>> solution.assignment.tolist(), solution.status, solution.total_cost_usd
        ([1, 0], 'optimal', 4.0)
    """
    if method not in get_args(Method):
        raise ConfigError(f"method: {method!r} is unknown; give one of {', '.join(get_args(Method))}")
    if not gap >= 0 or not time_limit_s > 0:
        raise ConfigError(f"gap={gap}, time_limit_s={time_limit_s}: the gap must be at least 0, the time limit above 0")
    started = time.monotonic()
    solution = _solve(problem, method, gap, time_limit_s, seed)
    left = time_limit_s - (time.monotonic() - started)
    if solution.status != "infeasible" or not problem.budget_binds or left <= 0 or (solution.assignment < 0).any():
        return solution
    if all(solution.slack[floor] >= 0 for floor in problem.floors):
        return solution
    unbounded = _solve(replace(problem, max_mean_cost_usd=None), method, gap, left, seed)
    if unbounded.status not in {"optimal", "feasible"}:
        return solution
    words = f"the least max_mean_cost_usd that reaches every floor is {unbounded.mean_cost_usd:.6g}"
    return replace(solution, message=f"{solution.message}; {words}")


def _solve(problem: AssignmentProblem, method: Method, gap: float, time_limit_s: float, seed: int) -> Solution:
    if method == "subgradient":
        return solve_subgradient(problem, gap=gap, time_limit_s=time_limit_s)
    started = time.monotonic()
    types = None if method == "dual" else Types.in_problem(problem)
    cells = (problem.n if types is None else len(types)) * problem.m
    if method == "milp" or (method == "auto" and cells <= TINY):
        return solve_milp(problem, gap=gap, time_limit_s=time_limit_s, types=types)
    solution = solve_dual(problem, gap=gap, time_limit_s=time_limit_s, seed=seed)
    left = time_limit_s - (time.monotonic() - started)
    if method == "dual" or solution.status == "optimal" or cells > SMALL or left <= 0:
        return solution
    return better(solution, solve_milp(problem, gap=gap, time_limit_s=left, types=types))


__all__ = [
    "AssignmentProblem",
    "Method",
    "Pacer",
    "Prices",
    "Solution",
    "adjusted_cost",
    "lagrangian_bound",
    "relaxed_prices",
    "solve",
]
