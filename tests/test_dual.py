import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import AssignmentProblem, solve
from eccos_integrations.assignment import lagrangian_bound
from tests.contracts.problems import in_other_money
from tests.contracts.solvers import SolverContract

FEASIBLE = {"optimal", "feasible"}
FEW = settings(deadline=None, max_examples=40)


class TestDual(SolverContract):
    def solve(self, problem, **limits):
        return solve(problem, method="auto", **limits)


def batch(n, m=10, seed=0, *, floor=0.75, share=1.5, **rows):
    """A pool from cheap and weak to dear and strong, queries from easy to hard."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 1, (n, 1))
    quality = 1 / (1 + np.exp(hardness - 4 * (np.linspace(0.3, 0.9, m) - 0.5) + rng.normal(0, 0.5, (n, m))))
    cost = np.exp(np.linspace(0, 3.5, m)) * np.exp(rng.normal(0, 0.5, (n, 1)) + rng.normal(0, 0.2, (n, m)))
    given = {"min_quality": floor, "capacity": np.full(m, share * n / m)} | rows
    return AssignmentProblem(cost, quality, **given)


def objective(problem, solution):
    return -solution.mean_quality * problem.n if problem.maximises_quality else solution.total_cost_usd


@st.composite
def mixed(draw):
    """10 to 60 queries, 2 to 5 models, any mix of rows around what a random assignment uses."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(st.integers(10, 60)), draw(st.integers(2, 5))
    family = draw(st.sampled_from(["plain", "identical", "equally good", "rounded", "duplicates", "binary", "spread"]))
    cost = rng.random((n, m)) * np.linspace(1, 10, m)
    quality = rng.random((n, m)) * 0.6 + np.linspace(0, 0.4, m)
    if family == "identical":
        cost, quality = np.tile(cost[0], (n, 1)), np.tile(quality[0], (n, 1))
    elif family == "equally good":
        quality = np.full((n, m), 0.7)
    elif family == "rounded":
        cost, quality = cost.round(0) + 1, quality.round(1)
    elif family == "duplicates":
        cost[:, 1], quality[:, 1] = cost[:, 0], quality[:, 0]
    elif family == "binary":
        quality = (rng.random((n, m)) < quality).astype(float)
    elif family == "spread":
        cost *= np.exp(rng.normal(0, 2, (n, m)))
    some, at = rng.integers(m, size=n), np.arange(n)
    used = np.bincount(some, minlength=m)
    rows = draw(st.sets(st.sampled_from(["floor", "groups", "budget", "capacity", "tokens", "share", "forbidden"])))
    given = {}
    if "groups" in rows:
        labels = rng.choice(["a", "b"], size=n)
        floors = {label: float(quality[at, some][labels == label].mean()) for label in set(labels.tolist())}
        given |= {"groups": labels.tolist(), "min_quality": floors}
    elif "floor" in rows:
        given["min_quality"] = float(quality[at, some].mean())
    if "budget" in rows:
        given["max_mean_cost_usd"] = float(cost[at, some].mean() * draw(st.sampled_from([0.7, 1.0, 1.2])))
    if "capacity" in rows:
        given["capacity"] = used + 1
    weights = rng.random((n, m)) * 100
    others = {
        "tokens": {"loads": {"tokens": (weights, np.bincount(some, weights=weights[at, some], minlength=m) * 1.1)}},
        "share": {"min_share": used / n / 2},
        "forbidden": {"forbidden": (rng.random((n, m)) < 0.2) & (np.arange(m) != some[:, None])},
    }
    for name in rows & set(others):
        given |= others[name]
    return AssignmentProblem(cost, quality, **given)


@FEW
@given(mixed())
def test_the_dual_is_within_its_gap_of_the_exact_optimum(problem):
    exact = solve(problem, "milp", gap=1e-6, time_limit_s=2)
    solution = solve(problem, "dual", time_limit_s=5)
    if exact.status == "infeasible":
        assert solution.status not in FEASIBLE
    if exact.status not in FEASIBLE:
        return
    if solution.status == "time_limit":  # it says so, and so does its answer
        assert not problem.is_feasible(solution.assignment)
        return
    assert solution.status in FEASIBLE
    assert problem.is_feasible(solution.assignment)
    value, least = objective(problem, solution), objective(problem, exact)
    assert value - least <= solution.gap * abs(value) + 1e-6 * abs(least)
    assert value >= least - (exact.gap + 1e-6) * abs(least)


@FEW
@given(mixed())
def test_prices_alone_reproduce_the_bound(problem):
    solution = solve(problem, "dual", time_limit_s=5)
    if problem.maximises_quality or solution.status not in FEASIBLE:
        return
    assert lagrangian_bound(problem, solution.prices) == pytest.approx(
        solution.lower_bound, rel=1e-9, abs=1e-9 * solution.total_cost_usd
    )
    assert solution.lower_bound <= solution.total_cost_usd * (1 + 1e-12)


ROWS = {
    "floor alone": {"capacity": None},
    "capacity": {},
    "budget alone": {"min_quality": None, "max_mean_cost_usd": 6.0},
    "budget and floor": {"max_mean_cost_usd": 14.0},
    "shares": {"min_share": np.full(10, 0.03)},
    "groups": {"groups": ["a", "b", "c", "d"] * 1250, "min_quality": {"a": 0.7, "b": 0.72, "c": 0.74, "d": 0.0}},
    "forbidden": {"forbidden": np.random.default_rng(1).random((5000, 10)) < 0.1},
    "tokens": {"loads": {"tokens": (np.random.default_rng(2).random((5000, 10)), np.full(10, 350.0))}},
    "switch": {"switch_cost_usd": np.random.default_rng(3).random((5000, 10))},
}


@pytest.mark.parametrize("name", ROWS)
def test_five_thousand_queries_are_solved_to_the_gap_under_any_row(name):
    problem = batch(5000, **ROWS[name])
    solution = solve(problem)
    assert problem.is_feasible(solution.assignment)
    assert solution.status == "optimal"
    assert solution.gap <= 1e-4


@pytest.mark.parametrize("share", [1.15, 3.0])
def test_twenty_thousand_queries_are_solved_to_the_gap(share):
    problem = batch(20_000, floor=0.65, share=share)
    solution = solve(problem)
    assert (solution.status, problem.is_feasible(solution.assignment)) == ("optimal", True)
    assert lagrangian_bound(problem, solution.prices) >= solution.total_cost_usd * (1 - 1e-4)


def alike(name):
    problem = batch(10_000, floor=0.7)
    cost, quality = problem.cost_usd.copy(), problem.quality.copy()
    rows = {"min_quality": 0.7, "capacity": np.full(10, 4000.0)}
    if name == "identical queries":
        cost, quality = np.tile(cost[0], (10_000, 1)), np.tile(quality[0], (10_000, 1))
        rows["min_quality"] = float(0.7 * quality[0].max() + 0.3 * quality[0].mean())
    elif name == "all models equally good":
        quality[:] = 0.7
    elif name == "rounded":
        cost, quality = cost.round(0) + 1, quality.round(2)
    elif name == "duplicate models":
        cost[:, 1::2], quality[:, 1::2] = cost[:, ::2], quality[:, ::2]
    elif name == "right or wrong":
        quality = (np.random.default_rng(1).random(quality.shape) < quality).astype(float)
    elif name == "one quality per model":
        quality = np.tile(quality.mean(axis=0), (10_000, 1))
    return AssignmentProblem(cost, quality, **rows)


FAMILIES = ["identical queries", "all models equally good", "rounded", "duplicate models", "right or wrong",
            "one quality per model"]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_ties_are_split_as_the_rows_ask(name):
    problem = alike(name)
    solution = solve(problem, time_limit_s=20)
    assert problem.is_feasible(solution.assignment)
    assert solution.gap <= 1e-4
    assert lagrangian_bound(problem, solution.prices) <= solution.total_cost_usd * (1 + 1e-12)


@pytest.mark.parametrize("name", ["identical queries", "rounded"])
def test_the_same_seed_breaks_ties_the_same_way(name):
    problem = alike(name)
    first, second = (solve(problem, seed=3).assignment for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e3])
def test_the_currency_does_not_matter(factor):
    problem = batch(3000)
    here, there = solve(problem), solve(in_other_money(problem, factor))
    assert there.total_cost_usd == pytest.approx(here.total_cost_usd * factor, rel=1e-4)
    assert there.status == here.status == "optimal"


@pytest.mark.parametrize("reach", [0.99, 0.999, 1 - 1e-7, 1.0])
def test_a_floor_close_to_what_is_attainable_is_met(reach):
    problem = batch(5000, share=100)
    attainable = float(problem.quality.max(axis=1).mean())
    problem = dataclasses.replace(problem, min_quality=attainable * reach)
    solution = solve(problem)
    assert solution.status in FEASIBLE
    assert problem.is_feasible(solution.assignment)


def test_a_floor_out_of_reach_is_told_with_the_best_that_is_reachable():
    problem = batch(20_000, floor=0.95)
    best = solve(dataclasses.replace(problem, min_quality=None, max_mean_cost_usd=1e9), gap=1e-6).mean_quality
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert solution.mean_quality == pytest.approx(best, abs=1e-4)
    assert f"min_quality is 0.9500, the best reachable is {solution.mean_quality:.4f}" in solution.message
    assert solution.slack["min_quality"] == pytest.approx(solution.mean_quality - 0.95)
    assert np.min(solution.slack["capacity"]) >= 0


def test_a_budget_below_the_least_cost_is_told_with_the_least():
    problem = batch(5000, floor=0.1, max_mean_cost_usd=0.5)
    least = solve(dataclasses.replace(problem, max_mean_cost_usd=None, min_quality=0.0)).mean_cost_usd
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert solution.mean_cost_usd == pytest.approx(least, rel=1e-4)
    assert "max_mean_cost_usd is 0.5, the least reachable is" in solution.message


def test_a_floor_that_the_budget_forbids_is_told_with_the_budget_that_would_do():
    problem = batch(5000, floor=0.75, max_mean_cost_usd=5.0)
    needed = solve(dataclasses.replace(problem, max_mean_cost_usd=None)).mean_cost_usd
    solution = solve(problem)
    assert (solution.status, solution.slack["max_mean_cost_usd"] >= 0) == ("infeasible", True)
    said = float(solution.message.split("the least max_mean_cost_usd that reaches every floor is ")[1])
    assert said == pytest.approx(needed, rel=1e-3)


def test_what_finds_no_place_is_left_out_and_the_rest_is_placed():
    problem = batch(5000, floor=0.5, share=0.9)
    solution = solve(problem)
    assert (solution.status, int((solution.assignment < 0).sum())) == ("infeasible", 500)
    assert "500 of 5000 queries fit nowhere under capacity" in solution.message
    assert (np.bincount(solution.assignment[solution.assignment >= 0], minlength=10) <= 450).all()


def test_what_was_reached_at_the_time_limit_is_an_answer():
    problem = batch(20_000)
    started = time.monotonic()
    solution = solve(problem, gap=0, time_limit_s=0.05)
    assert time.monotonic() - started < 5
    assert solution.status in {"time_limit", "feasible", "optimal"}
    assert (solution.status == "optimal") == (solution.gap <= 1e-6)
    assert (np.bincount(solution.assignment[solution.assignment >= 0], minlength=10) <= problem.capacity).all()


def test_the_papers_rule_stays_within_the_bound_it_proves():
    problem = batch(2000, floor=0.6, capacity=None)
    solution, best = solve(problem, "subgradient"), solve(problem)
    assert solution.status in FEASIBLE
    assert problem.is_feasible(solution.assignment)
    assert solution.lower_bound <= best.total_cost_usd <= solution.total_cost_usd * (1 + 1e-4)
    assert solution.total_cost_usd - solution.lower_bound <= solution.gap * solution.total_cost_usd * (1 + 1e-9)
