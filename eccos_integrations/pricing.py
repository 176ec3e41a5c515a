"""From the solution of past queries to the prices that single queries are decided by."""

from dataclasses import replace

import numpy as np

from eccos_integrations.assignment import AssignmentProblem, Prices, Solution, adjusted_cost


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
