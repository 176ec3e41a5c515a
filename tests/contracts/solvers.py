"""What every solver must do, judged by brute force on small problems."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eccos_integrations import AssignmentProblem, Prices
from eccos_integrations.assignment import adjusted_cost, lagrangian_bound
from tests.contracts.problems import ROWS, BruteForce, in_other_money, permuted, problems

# Solvers share one contract, so several classes inherit one test.
PROPERTY = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.filter_too_much]
)
FEW = settings(PROPERTY, max_examples=25)
HARD = tuple(row for row in ROWS if row in {"capacity", "loads", "forbidden", "switch"})
SCALES = [1e-9, 1e-6, 1e-3, 1.0, 1e3]


class SolverContract:
    """Rows, bounds and verdicts; `solve` is the solver under test."""

    def solve(self, problem, **limits):
        raise NotImplementedError

    @PROPERTY
    @given(problems())
    def test_every_row_is_kept_whenever_that_is_possible(self, problem):
        every = BruteForce(problem)
        solution = self.solve(problem)
        assert solution.assignment.shape == (every.n,)
        if every.feasible.any():
            assert solution.status != "infeasible"
            assert every.feasible[every.row_of(solution.assignment)]
        else:
            assert solution.status == "infeasible"

    @PROPERTY
    @given(problems())
    def test_loads_and_forbidden_pairs_are_never_violated_and_as_many_queries_as_can_be_are_placed(self, problem):
        every = BruteForce(problem)
        assert every.nearest[every.row_of(self.solve(problem).assignment)]

    @PROPERTY
    @given(problems())
    def test_the_figures_are_those_of_the_assignment(self, problem):
        every = BruteForce(problem)
        solution = self.solve(problem)
        row = every.row_of(solution.assignment)
        assert solution.total_cost_usd == pytest.approx(every.cost[row])
        if every.count[row]:
            assert solution.mean_quality == pytest.approx(every.quality[row] / every.count[row])
            assert solution.mean_cost_usd == pytest.approx(every.cost[row] / every.count[row])
        else:
            assert np.isnan([solution.mean_quality, solution.mean_cost_usd]).all()

    @PROPERTY
    @given(problems(), st.sampled_from(SCALES))
    def test_no_lower_bound_exceeds_the_optimum(self, problem, scale):
        problem = in_other_money(problem, scale)
        every = BruteForce(problem)
        assume(every.feasible.any())
        solution = self.solve(problem)
        least = every.cost[every.feasible].min() + 1e-9 * scale
        assert solution.lower_bound <= least
        assert lagrangian_bound(problem, solution.prices) <= least

    @PROPERTY
    @given(problems(), st.data())
    def test_no_prices_bound_more_than_the_optimum(self, problem, data):
        every = BruteForce(problem)
        assume(every.feasible.any())
        price = st.floats(0, 100, allow_subnormal=False)
        one_each = st.lists(price, min_size=every.m, max_size=every.m).map(np.array)
        by_group = {label: data.draw(price) for label in "ab"}
        prices = Prices(
            quality=data.draw(price) if problem.groups is None else by_group,
            budget=data.draw(price),
            loads={name: data.draw(one_each) for name in ("capacity", *problem.loads)},
            min_share=data.draw(one_each),
        )
        least = every.cost[every.feasible].min()
        assert lagrangian_bound(problem, prices) <= least + 1e-7

    @FEW
    @given(problems(rows=HARD, always=["floor"]))
    def test_a_missed_floor_is_missed_by_the_least_and_the_message_says_what_is_reachable(self, problem):
        every = BruteForce(problem)
        assume(not (every.nearest & every.floors_kept).any() and every.count[every.nearest].any())
        solution = self.solve(problem)
        best = every.quality[every.nearest].max() / every.count[every.nearest][0]
        assert solution.status == "infeasible"
        assert solution.mean_quality == pytest.approx(best, abs=1e-6)
        assert f"min_quality is {problem.min_quality:.4f}, the best reachable is {best:.4f}" in solution.message

    @FEW
    @given(problems(rows=HARD, always=["budget"]))
    def test_a_missed_budget_is_missed_by_the_least_and_the_message_says_what_is_reachable(self, problem):
        every = BruteForce(problem)
        assume(not (every.nearest & every.budget_kept).any() and every.count[every.nearest].any())
        solution = self.solve(problem)
        least = every.cost[every.nearest].min() / every.count[every.nearest][0]
        assert solution.status == "infeasible"
        assert solution.mean_cost_usd == pytest.approx(least, rel=1e-6)
        said = re.search(r"max_mean_cost_usd is (\S+), the least reachable is (\S+)", solution.message)
        assert [float(figure) for figure in said.groups()] == pytest.approx(
            [problem.max_mean_cost_usd, least], rel=1e-5
        )

    @FEW
    @given(problems(rows=("floor", "switch", "forbidden"), always=["capacity"]))
    def test_queries_without_a_place_are_counted_in_the_message(self, problem):
        every = BruteForce(problem)
        unplaced = every.n - every.count[every.nearest][0]
        assume(unplaced)
        solution = self.solve(problem)
        assert (solution.assignment == -1).sum() == unplaced
        assert f"{unplaced} of {every.n} queries fit nowhere under capacity" in solution.message

    @pytest.mark.parametrize("labels", [None, "ab"])
    def test_no_queries_are_an_answer(self, labels):
        nothing = np.zeros((0, 2))
        floors = {"min_quality": 0.5} if labels is None else {"min_quality": dict.fromkeys(labels, 0.5), "groups": []}
        problem = AssignmentProblem(nothing, nothing, max_mean_cost_usd=1, capacity=[0, 0], min_share=[1, 0], **floors)
        solution = self.solve(problem)
        assert (solution.status, solution.assignment.tolist(), solution.total_cost_usd) == ("optimal", [], 0)

    @pytest.mark.parametrize("reach", ["best model", "best per query"])
    @pytest.mark.parametrize("seed", range(20))
    def test_a_floor_that_can_just_be_met_is_met(self, reach, seed):
        rng = np.random.default_rng(seed)
        cost, quality = rng.random((2, 200, 4))
        floor = quality.mean(axis=0).max() if reach == "best model" else quality.max(axis=1).mean()
        solution = self.solve(AssignmentProblem(cost, quality, min_quality=floor))
        assert solution.status in {"optimal", "feasible"}
        assert solution.mean_quality >= floor - 1e-12

    def test_all_models_equally_good_makes_the_cheapest_win(self):
        cost = np.random.default_rng(0).random((30, 4))
        solution = self.solve(AssignmentProblem(cost, np.full((30, 4), 0.7), min_quality=0.7))
        assert solution.assignment.tolist() == cost.argmin(axis=1).tolist()

    def test_a_bound_far_above_any_cost_or_load_binds_nothing(self):
        cost, quality = np.array([[1e-6, 3e-6]] * 2), np.array([[0.5, 0.9], [0.8, 0.9]])
        loads = {"tokens": (np.array([[0, 5], [0, 5]]), np.array([1e9, 1e15]))}
        solution = self.solve(AssignmentProblem(cost, quality, min_quality=0.85, max_mean_cost_usd=1e9, loads=loads))
        assert (solution.status, solution.assignment.tolist()) == ("optimal", [1, 0])

    def test_a_model_priced_out_of_reach_does_not_blur_the_others(self):
        rng = np.random.default_rng(59)
        cheap = 1 + rng.random((5, 2))
        problem = AssignmentProblem(np.column_stack([cheap, np.full(5, 1e9)]), rng.random((5, 3)), capacity=[5, 5, 5])
        solution = self.solve(problem)
        assert solution.total_cost_usd == pytest.approx(cheap.min(axis=1).sum(), rel=1e-3)
        assert solution.lower_bound <= cheap.min(axis=1).sum() * (1 + 1e-9)


class ExactSolverContract(SolverContract):
    """What a solver that proves optimality must do on top; `solve` closes the gap."""

    @settings(PROPERTY, max_examples=100)
    @given(problems())
    def test_the_objective_is_the_least_of_all_feasible_assignments(self, problem):
        every = BruteForce(problem)
        assume(every.feasible.any())
        solution = self.solve(problem)
        assert solution.status == "optimal"
        assert every.objective[every.row_of(solution.assignment)] == pytest.approx(
            every.objective[every.feasible].min(), rel=1e-6, abs=1e-9
        )

    @PROPERTY
    @given(problems(), st.sampled_from(SCALES), st.data())
    def test_order_and_currency_change_nothing(self, problem, scale, data):
        every = BruteForce(problem)
        assume(every.feasible.any())
        rows = data.draw(st.permutations(range(every.n)))
        columns = data.draw(st.permutations(range(every.m)))
        solution = self.solve(in_other_money(permuted(problem, rows, columns), scale))
        back = np.empty(every.n, dtype=int)
        back[rows] = np.array(columns)[solution.assignment]
        least = every.objective[every.feasible].min()
        assert every.objective[every.row_of(back)] == pytest.approx(least, rel=1e-6, abs=1e-9)
        assert solution.total_cost_usd == pytest.approx(every.cost[every.row_of(back)] * scale)
        if (every.objective[every.feasible] < least + 1e-6).sum() == 1:  # unique
            assert back.tolist() == self.solve(problem).assignment.tolist()

    @FEW
    @given(problems(rows=HARD, always=["floor"]))
    def test_where_not_all_is_possible_the_nearest_answers_the_cheapest_wins(self, problem):
        every = BruteForce(problem)
        assume(not every.feasible.any())
        near = every.nearest
        kept = near & every.floors_kept
        near = kept if kept.any() else near & (every.quality >= every.quality[near].max() - 1e-9)
        assert self.solve(problem).total_cost_usd == pytest.approx(every.cost[near].min(), abs=1e-6)

    @PROPERTY
    @given(problems(rows=("floor", "groups", "capacity", "forbidden", "switch", "budget")))
    def test_a_query_never_pays_more_than_the_prices_say_where_nothing_is_split(self, problem):
        every = BruteForce(problem)
        assume(every.feasible.any())
        solution = self.solve(problem)
        adjusted = adjusted_cost(problem, solution.prices)
        assume(solution.gap == 0 and solution.lower_bound == lagrangian_bound(problem, solution.prices) > -np.inf)
        chosen = adjusted[np.arange(every.n), solution.assignment]
        assert chosen == pytest.approx(adjusted.min(axis=1), abs=1e-6)
