"""The paper's own rule for the multipliers, kept for comparison: steps along the violations, one pass each."""

import time

import numpy as np

from eccos_integrations.assignment.answers import answer, cost_scale, judged, missed
from eccos_integrations.assignment.problem import AssignmentProblem
from eccos_integrations.assignment.rows import Rows
from eccos_integrations.assignment.solution import Prices, Solution

PASSES = 300
STEP = 100.0  # first step, in mean costs per unit of a row's mean use


def solve_subgradient(problem: AssignmentProblem, *, gap: float, time_limit_s: float) -> Solution:
    """Follow the subgradient of the dual with falling steps; the best assignment on the way that keeps every row.

    Source: arXiv 2502.20576, section 3 (multiplier update); cost is normalised here so that one step fits all scales.

    Args:
        problem: Of any size.
        gap: Relative distance from the optimum at which to stop.
        time_limit_s: Seconds after which to stop.

    Returns:
        A solution; `"time_limit"` where no pass kept every row, which proves nothing.
    """
    if problem.n == 0:
        return answer(problem, np.zeros(0, dtype=np.int64), "optimal", "nothing to assign", 0.0, Prices())
    deadline = time.monotonic() + time_limit_s
    rows = Rows.of(problem, cost_scale(problem))
    y = np.zeros(len(rows.bounds))
    best_y, bound, best, value = y, -np.inf, None, np.inf
    scan = None
    for k in range(PASSES):
        scan = rows.scan(y)
        if scan.bound > bound:
            best_y, bound = y, scan.bound
        if scan.value < value and rows.is_feasible(scan.choice):
            best, value = scan.choice, scan.value
        if (best is not None and value - bound <= gap * abs(value)) or time.monotonic() > deadline:
            break
        y = np.maximum(y + STEP / np.sqrt(k + 1) * (scan.used - rows.bounds) / problem.n, 0.0)
    assert scan is not None
    prices = rows.prices(best_y)
    if best is None:
        choice = scan.choice.astype(np.int64)
        words = f"no pass kept every row: {missed(problem, choice)}"
        return answer(problem, choice, "time_limit", words, bound * rows.scale, prices)
    quality_bound = -bound if problem.maximises_quality else np.inf
    return judged(problem, best.astype(np.int64), bound * rows.scale, prices, gap, quality_bound)
