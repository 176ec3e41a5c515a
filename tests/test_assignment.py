import time

import numpy as np
import pytest

from eccos_integrations import AssignmentProblem, ConfigError, solve
from eccos_integrations.assignment import adjusted_cost, lagrangian_bound, relaxed_prices
from tests.contracts.solvers import ExactSolverContract

COST = np.array([[1.0, 3.0], [1.0, 3.0]])
QUALITY = np.array([[0.5, 0.9], [0.8, 0.9]])
ONES = np.ones((2, 2))


class TestMilp(ExactSolverContract):
    def solve(self, problem, **limits):
        return solve(problem, method="milp", gap=0, **limits)


@pytest.mark.parametrize("method", ["auto", "milp"])
def test_the_dearer_model_goes_where_it_helps_most(method):
    solution = solve(AssignmentProblem(COST, QUALITY, min_quality=0.85), method)
    assert (solution.assignment.tolist(), solution.total_cost_usd, solution.status) == ([1, 0], 4.0, "optimal")


def test_one_query_goes_to_the_cheapest_model_that_is_good_enough():
    problem = AssignmentProblem([[1.0, 2.0, 3.0]], [[0.5, 0.8, 0.9]], min_quality=0.7)
    assert solve(problem).assignment.tolist() == [1]


def test_a_budget_alone_buys_the_highest_quality():
    solution = solve(AssignmentProblem(COST, QUALITY, max_mean_cost_usd=2.0), gap=0)
    assert (solution.assignment.tolist(), solution.mean_quality) == ([1, 0], pytest.approx(0.85))
    assert (solution.status, solution.lower_bound) == ("optimal", -np.inf)


def test_free_models_are_no_special_case():
    solution = solve(AssignmentProblem(COST * 0, QUALITY, min_quality=0.9), gap=0)
    assert (solution.status, solution.total_cost_usd, solution.gap) == ("optimal", 0.0, 0.0)
    assert solution.assignment.tolist() == [1, 1]


def test_a_query_forbidden_everywhere_is_left_out_and_the_others_are_placed():
    forbidden = np.array([[True, True], [False, False]])
    solution = solve(AssignmentProblem(COST, QUALITY, forbidden=forbidden))
    assert (solution.assignment.tolist(), solution.status) == ([-1, 0], "infeasible")
    assert "1 of 2 queries fit nowhere under forbidden" in solution.message


def test_nothing_allowed_places_nothing():
    solution = solve(AssignmentProblem(COST, QUALITY, forbidden=np.ones((2, 2), dtype=bool)))
    assert (solution.assignment.tolist(), solution.status) == ([-1, -1], "infeasible")


def test_a_floor_per_group_is_about_that_group_alone():
    solution = solve(
        AssignmentProblem(COST, QUALITY, min_quality={"easy": 0.0, "hard": 0.9}, groups=["easy", "hard"]), gap=0
    )
    assert solution.assignment.tolist() == [0, 1]
    assert set(solution.slack) == {"min_quality[easy]", "min_quality[hard]"}


def test_a_group_that_cannot_reach_its_floor_is_named():
    floors = {"easy": 0.5, "hard": 0.95}
    solution = solve(AssignmentProblem(COST, QUALITY, min_quality=floors, groups=["easy", "hard"]))
    assert solution.status == "infeasible"
    assert "min_quality[hard] is 0.9500, the best reachable is 0.9000" in solution.message
    assert "min_quality[easy] is" not in solution.message


def test_a_share_that_capacity_forbids_is_named():
    solution = solve(AssignmentProblem(COST, QUALITY, min_share=[0.0, 1.0], capacity=[2, 1]))
    assert (solution.assignment >= 0).all()
    assert "min_share is missed by 1 queries" in solution.message


def test_switching_costs_keep_a_query_where_it_is():
    stay = np.array([[5.0, 0.0], [0.0, 5.0]])
    solution = solve(AssignmentProblem(COST, QUALITY, switch_cost_usd=stay))
    assert (solution.assignment.tolist(), solution.total_cost_usd) == ([1, 0], 4.0)


@pytest.mark.parametrize("name", ["min_quality", "max_mean_cost_usd", "min_share", "capacity", "forbidden"])
def test_a_load_cannot_take_the_name_of_another_row(name):
    with pytest.raises(ConfigError, match=name):
        AssignmentProblem(COST, QUALITY, min_quality=0.95, loads={name: (ONES, [9, 9])})


def test_a_load_may_be_called_anything_else_without_touching_the_floor():
    cost, quality = np.random.default_rng(0).random((2, 20, 3))
    loads = {"min_quality_checks": (np.ones((20, 3)), [20, 20, 20])}
    plain, loaded = (solve(AssignmentProblem(cost, quality, min_quality=0.7, loads=given)) for given in ({}, loads))
    assert loaded.prices.quality == pytest.approx(plain.prices.quality)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("cost_usd", {"cost_usd": [1.0, 2.0]}),
        ("cost_usd", {"cost_usd": np.zeros((2, 0))}),
        ("cost_usd", {"cost_usd": [[1.0, np.nan], [1, 1]]}),
        ("cost_usd", {"cost_usd": [[1.0, -1.0], [1, 1]]}),
        ("cost_usd", {"cost_usd": [[1.0, np.inf], [1, 1]]}),
        ("cost_usd", {"cost_usd": [[1.0], [1.0, 2.0]]}),
        ("cost_usd", {"cost_usd": "dear"}),
        ("quality", {"quality": QUALITY[:, :1]}),
        ("quality", {"quality": QUALITY + 0.2}),
        ("quality", {"quality": [[0.5, np.nan], [1, 1]]}),
        ("quality", {"quality": [[0.5, "good"], [1, 1]]}),
        ("min_quality", {"min_quality": 1.1}),
        ("min_quality", {"min_quality": -0.1}),
        ("min_quality", {"min_quality": np.nan}),
        ("min_quality", {"min_quality": "high"}),
        ("min_quality", {"min_quality": [0.5, 0.5]}),
        ("min_quality", {"groups": ["a", "b"]}),
        ("min_quality", {"groups": ["a", "b"], "min_quality": 0.5}),
        ("min_quality", {"min_quality": {"a": 0.5}}),
        ("min_quality.*'b'", {"groups": ["a", "b"], "min_quality": {"a": 0.5}}),
        ("min_quality.b.", {"groups": ["a", "b"], "min_quality": {"a": 0.5, "b": 2}}),
        ("groups", {"groups": ["a"], "min_quality": {"a": 0.5}}),
        ("max_mean_cost_usd", {"max_mean_cost_usd": -1}),
        ("max_mean_cost_usd", {"max_mean_cost_usd": np.nan}),
        ("max_mean_cost_usd", {"max_mean_cost_usd": np.inf}),
        ("capacity", {"capacity": [1, -1]}),
        ("capacity", {"capacity": [1, np.nan]}),
        ("capacity", {"capacity": [1]}),
        ("capacity", {"capacity": 3}),
        ("min_share", {"min_share": [0.5, 1.5]}),
        ("min_share", {"min_share": [0.5]}),
        ("switch_cost_usd", {"switch_cost_usd": [[-1, 0], [0, 0]]}),
        ("switch_cost_usd", {"switch_cost_usd": [1, 0]}),
        ("forbidden", {"forbidden": [[1, 0], [0, 0]]}),
        ("forbidden", {"forbidden": [True, False]}),
        ("loads.*tokens.*weights", {"loads": {"tokens": (-ONES, [1, 1])}}),
        ("loads.*tokens.*weights", {"loads": {"tokens": ([1, 1], [1, 1])}}),
        ("loads.*tokens.*limits", {"loads": {"tokens": (ONES, [1, np.nan])}}),
        ("loads.*tokens.*limits", {"loads": {"tokens": (ONES, [1])}}),
        ("loads", {"loads": {"tokens": ONES[:1]}}),
        ("loads", {"loads": [ONES]}),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, given):
    with pytest.raises(ConfigError, match=f"^{field}"):
        AssignmentProblem(**{"cost_usd": COST, "quality": QUALITY, **given})


@pytest.mark.parametrize(
    ("name", "given"),
    [("method", {"method": "guess"}), ("gap", {"gap": -0.1}), ("gap", {"gap": np.nan})]
    + [("time_limit_s", {"time_limit_s": limit}) for limit in (0, -1.0, np.nan)],
)
def test_a_wrong_argument_of_solve_is_refused_by_name(name, given):
    with pytest.raises(ConfigError, match=name):
        solve(AssignmentProblem(COST, QUALITY), **given)


def test_too_large_a_problem_is_refused_with_the_size_that_is_not():
    cells = np.random.default_rng(0).random((30_001, 2))
    with pytest.raises(ConfigError, match=r"30001 queries x 2 models .* batches of 30000"):
        solve(AssignmentProblem(cells, cells), "milp")


def test_equal_queries_count_once_and_are_solved_exactly_whatever_their_number():
    one = np.random.default_rng(0).random((3, 4))
    quality, cost = np.tile(one, (20_000, 1)), np.tile(one[::-1] + 0.1, (20_000, 1))
    capacity = np.full(4, 20_000)
    problem = AssignmentProblem(cost, quality, min_quality=float(quality.mean()), capacity=capacity)
    solution = solve(problem, "milp", gap=1e-6)
    assert solution.status == "optimal"
    assert problem.is_feasible(solution.assignment)
    assert solution.lower_bound <= solution.total_cost_usd <= solution.lower_bound * (1 + 1e-6)


def test_a_problem_does_not_change_with_the_arrays_it_was_made_from():
    cost, forbidden = COST.copy(), np.zeros((2, 2), dtype=bool)
    problem = AssignmentProblem(cost, QUALITY, forbidden=forbidden)
    cost[:], forbidden[:] = 7, True
    assert solve(problem).total_cost_usd == 2.0


@pytest.mark.parametrize("method", ["auto", "milp"])
def test_the_time_limit_is_honoured(method):
    rng = np.random.default_rng(0)
    cost = rng.random((6000, 10)) * np.linspace(1, 30, 10)
    quality = rng.random((6000, 10)) * 0.6 + np.linspace(0, 0.4, 10)
    problem = AssignmentProblem(cost, quality.clip(0, 1), min_quality=0.8, capacity=np.full(10, 750))
    started = time.monotonic()
    solution = solve(problem, method, gap=0, time_limit_s=0.2)
    assert time.monotonic() - started < 10  # the rows of 60,000 pairs are built and relaxed once, whatever the limit
    assert (np.bincount(solution.assignment[solution.assignment >= 0], minlength=10) <= 750).all()


def test_stopping_early_is_never_called_optimal():
    rng = np.random.default_rng(0)
    alike = rng.random(3)[None, :] + 1e-3 * rng.random((400, 1))  # queries hardly differ: endless ties
    problem = AssignmentProblem(alike, np.tile([0.3, 0.55, 0.9], (400, 1)), min_quality=0.6173)
    solution = solve(problem, gap=0, time_limit_s=0.1)
    assert solution.status in {"optimal", "feasible"}
    assert (solution.status == "optimal") == (solution.gap <= 1e-6)
    assert solution.mean_quality >= 0.6173 - 1e-12
    assert solution.lower_bound <= solution.total_cost_usd


def test_prices_route_each_query_as_the_relaxation_does():
    rng = np.random.default_rng(0)
    cost, quality = rng.random((300, 4)) * [1, 2, 4, 8], rng.random((300, 4)) * 0.5 + [0, 0.1, 0.3, 0.5]
    problem = AssignmentProblem(cost, quality, min_quality=0.65, capacity=[300, 300, 300, 100])
    prices = relaxed_prices(problem)
    routed = adjusted_cost(problem, prices).argmin(axis=1)
    assert problem.mean_quality(routed) == pytest.approx(0.65, abs=0.01)
    assert np.bincount(routed, minlength=4)[3] == pytest.approx(100, abs=3)
    assert lagrangian_bound(problem, prices) == pytest.approx(solve(problem).total_cost_usd, rel=0.01)


def test_a_dearer_floor_has_a_higher_price():
    cost, quality = np.random.default_rng(0).random((2, 100, 4))
    prices = [solve(AssignmentProblem(cost, quality, min_quality=floor)).prices.quality for floor in (0.2, 0.7, 0.78)]
    assert prices[0] == 0 < prices[1] < prices[2]


def test_a_forbidden_model_has_no_finite_adjusted_cost():
    problem = AssignmentProblem(COST, QUALITY, forbidden=[[True, False], [False, False]])
    assert adjusted_cost(problem, relaxed_prices(problem)).tolist() == [[np.inf, 3], [1, 3]]


def test_a_solution_and_a_problem_say_what_they_are_in_one_line():
    problem = AssignmentProblem(COST, QUALITY, min_quality=0.85, capacity=[1, 1])
    assert repr(problem) == "AssignmentProblem(2 queries x 2 models, rows: min_quality, capacity)"
    assert repr(solve(problem)).startswith("Solution(optimal, 2 queries, mean_quality=0.8500, total_cost_usd=4")
