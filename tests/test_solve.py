"""Many random problems, and a solve that is interrupted."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from eccos_integrations import AssignmentProblem, solve
from eccos_integrations.assignment import lagrangian_bound

CASES = 500


def random_problem(rng: np.random.Generator) -> AssignmentProblem:
    """Up to 40 queries and 6 models; any rows; ties, duplicates, binary and equal quality among them."""
    n, m = int(rng.integers(1, 41)), int(rng.integers(1, 7))
    quality = np.clip(rng.normal(0.6, 0.2, (n, 1)) + rng.normal(0, 0.15, (n, m)), 0, 1)
    cost = rng.lognormal(0, 1, (n, m)) * np.geomspace(1, 20, m) * 10.0 ** rng.integers(-9, 3)
    family = rng.integers(7)
    if family == 1:
        quality, cost = np.tile(quality[:1], (n, 1)), np.tile(cost[:1], (n, 1))
    elif family == 2:
        quality, cost = quality.round(1), cost.mean() * np.ceil(4 * cost / cost.mean())
    elif family == 3:
        quality = (rng.random((n, m)) < quality).astype(float)
    elif family == 4:
        quality = np.full((n, m), 0.7)
    elif family == 5:
        quality[:, 0], cost[:, 0] = quality[:, -1], cost[:, -1]
    elif family == 6:
        cost = cost * rng.pareto(1.1, (n, 1)).clip(0.01, 1e4)
    rows = {}
    if rng.random() < 0.75:
        low, high = quality.mean(), quality.max(axis=1).mean()
        rows["min_quality"] = float(min(1, rng.choice([low + rng.random() * (high - low), high, high * 1.01])))
    if rng.random() < 0.3:
        rows["max_mean_cost_usd"] = float(cost.mean() * rng.uniform(0.05, 1.2))
    if rng.random() < 0.5:
        rows["capacity"] = rng.multinomial(n + rng.integers(0, n + 1), np.ones(m) / m).astype(float)
    if rng.random() < 0.3:
        weights = rng.lognormal(5, 1, (n, m))
        rows["loads"] = {"tokens": (weights, rng.uniform(0.5, 2.5) * weights.sum(axis=0) / m)}
    if rng.random() < 0.2:
        rows["min_share"] = rng.random(m) * 0.6 / m
    if rng.random() < 0.3:
        rows["forbidden"] = rng.random((n, m)) < 0.15
    if rng.random() < 0.3:
        rows["switch_cost_usd"] = cost * rng.random((n, m))
    return AssignmentProblem(cost, quality, **rows)


@pytest.mark.slow
def test_500_random_problems_are_solved_as_the_exact_program_solves_them():
    """The objective equals milp's, or is within its proven gap; the bound from prices alone never exceeds it."""
    rng = np.random.default_rng(0)
    statuses = {"optimal": 0, "feasible": 0, "infeasible": 0}
    for case in range(CASES):
        problem = random_problem(rng)
        ours = solve(problem, method="dual", gap=1e-9, time_limit_s=20)
        exact = solve(problem, method="milp", gap=0, time_limit_s=20)
        statuses[ours.status] += 1
        assert problem.is_feasible(ours.assignment) == problem.is_feasible(exact.assignment), case
        assert (ours.status == "infeasible") == (exact.status == "infeasible"), case
        if ours.status == "infeasible":
            continue
        sign = -1 if problem.maximises_quality else 1
        values = problem.quality if problem.maximises_quality else problem.paid_usd
        rows = np.arange(problem.n)
        reached = sign * values[rows, ours.assignment].sum()
        best = sign * values[rows, exact.assignment].sum()
        assert best - 1e-9 * abs(best) <= reached, case
        assert reached - best <= (ours.gap + 1e-9) * abs(reached), case
        if not problem.maximises_quality:
            assert lagrangian_bound(problem, ours.prices) <= best + 1e-9 * abs(best), case
            assert ours.lower_bound <= best * (1 + 1e-9), case
    assert min(statuses["optimal"], statuses["infeasible"]) > CASES / 10


INTERRUPTED = """
import numpy as np
from eccos_integrations import AssignmentProblem, solve
rng = np.random.default_rng(0)
quality, cost = rng.random((60_000, 20)), rng.random((60_000, 20))
problem = AssignmentProblem(cost, quality, min_quality=0.9, capacity=np.full(20, 3_100))
print("started", flush=True)
while True:
    solve(problem, gap=0, time_limit_s=60)
"""


def test_an_interrupted_solve_leaves_nothing_running():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in error
