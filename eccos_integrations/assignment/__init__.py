"""Assignment: which model each query goes to, with a proof of how good the answer is."""

from typing import Literal

from eccos_integrations.assignment.milp import relaxed_prices, solve_milp
from eccos_integrations.assignment.problem import (
    AssignmentProblem,
    Prices,
    Solution,
    adjusted_cost,
    lagrangian_bound,
)
from eccos_integrations.errors import ConfigError

Method = Literal["auto", "milp"]


def solve(
    problem: AssignmentProblem, method: Method = "auto", *, gap: float = 1e-4, time_limit_s: float = 60.0
) -> Solution:
    """Assign each query to a model at least cost under every row of the problem.

    Args:
        problem: See `AssignmentProblem`.
        method: `"milp"` solves exactly by mixed-integer programming; `"auto"` picks by size.
        gap: Relative distance from the optimum that is good enough.
        time_limit_s: Seconds after which the best answer so far is returned, with its gap.

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
    if method not in ("auto", "milp"):
        raise ConfigError(f"method: {method!r} is unknown; give 'auto' or 'milp'")
    if not gap >= 0 or not time_limit_s > 0:
        raise ConfigError(f"gap={gap}, time_limit_s={time_limit_s}: the gap must be at least 0, the time limit above 0")
    return solve_milp(problem, gap=gap, time_limit_s=time_limit_s)


__all__ = [
    "AssignmentProblem",
    "Method",
    "Prices",
    "Solution",
    "adjusted_cost",
    "lagrangian_bound",
    "relaxed_prices",
    "solve",
]
