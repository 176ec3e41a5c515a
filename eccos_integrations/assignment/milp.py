"""The exact assignment by scipy's mixed-integer solver (HiGHS), for batches small enough for it."""

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, eye_array, hstack, vstack

from eccos_integrations.assignment.problem import (
    AssignmentProblem,
    FloatArray,
    IntArray,
    Prices,
    Solution,
    Status,
    lagrangian_bound,
)
from eccos_integrations.errors import ConfigError

# What HiGHS solves in about its time limit on two cores. Larger batches have to be split.
MOST_CELLS = 60_000
# HiGHS lets a row be missed by 1e-6; in rows scaled up by this that is far below any unit that matters. What is still
# missed after rounding to 0/1 is tightened by a little more than HiGHS' tolerance and solved again.
ROW_SCALE = 1e3
TIGHTENING = 4e-6
ATTEMPTS = 3
# Beyond this many mean costs per unit of quality, cost only breaks ties.
LARGEST_PRICE = 1e4
MOST_ROUNDINGS = 4096  # ways of making a relaxation whole that are tried, some 50 microseconds each
FLOOR = "min_quality"
# Rows that give way where not all can hold, the last one first.
SOFT = ("placed", "min_share", "max_mean_cost_usd", FLOOR)


def solve_milp(problem: AssignmentProblem, *, gap: float = 1e-4, time_limit_s: float = 60.0) -> Solution:
    """Solve the whole problem as one mixed-integer program.

    Args:
        problem: At most `MOST_CELLS` (query, model) pairs.
        gap: Relative distance from the optimum at which to stop.
        time_limit_s: Seconds after which the best answer so far is returned, with its gap.

    Returns:
        A solution; an infeasible problem is an answer too: the nearest assignment, and which row is missed.

    Raises:
        ConfigError: The problem is too large.
    """
    if problem.n * problem.m > MOST_CELLS:
        raise ConfigError(
            f"{problem.n} queries x {problem.m} models are too many for one exact solve (at most {MOST_CELLS} pairs); "
            f"plan in batches of {MOST_CELLS // problem.m} queries"
        )
    if problem.n == 0:
        return _solution(problem, np.zeros(0, dtype=np.int64), "optimal", "nothing to assign", 0.0, Prices())
    deadline = time.monotonic() + time_limit_s
    program = _Program.of(problem)
    prices, shares = program.relax()
    bound = lagrangian_bound(problem, prices)
    rounded = _rounded(problem, program, shares)
    if rounded is not None and _objective(problem, rounded) - bound <= gap * _objective(problem, rounded):
        return _judged(problem, rounded, bound, prices, gap, np.inf)
    tightened = program
    for _ in range(ATTEMPTS):
        answer = tightened.solve(program.objective, gap=gap, deadline=deadline)
        bound = max(bound, answer.bound * program.cost_scale) if tightened is program else bound
        if answer.assignment is None:
            break
        if problem.is_feasible(answer.assignment):
            candidates = [answer.assignment] if rounded is None else [answer.assignment, rounded]
            better = min(candidates, key=lambda assignment: _objective(problem, assignment))
            return _judged(problem, better, bound, prices, gap, answer.quality_bound)
        tightened = tightened.tighten(problem, answer.assignment)
    if rounded is not None:
        return _judged(problem, rounded, bound, prices, gap, np.inf)
    return _nearest(problem, program, bound, prices, gap=gap, deadline=deadline)


def relaxed_prices(problem: AssignmentProblem) -> Prices:
    """Prices of the linear relaxation: enough to route single queries by, without an assignment."""
    return _Program.of(problem).relax()[0] if problem.n else Prices()


def _rounded(problem: AssignmentProblem, program: "_Program", shares: FloatArray) -> IntArray | None:
    """The best feasible way to make the relaxation whole: few queries are split, and all their choices are tried.

    A vertex of the relaxation splits at most as many queries as there are rows beside one-model-per-query.
    """
    options = [program.model[(program.query == i) & (shares > 1e-9)] for i in np.unique(program.query[shares > 1e-9])]
    if len(options) < problem.n or np.prod([float(len(choices)) for choices in options]) > MOST_ROUNDINGS:
        return None
    best, best_value = None, np.inf
    split = [i for i, choices in enumerate(options) if len(choices) > 1]
    assignment = np.array([choices[0] for choices in options])
    for choice in itertools.product(*(options[i] for i in split)):
        assignment[split] = choice
        value = _objective(problem, assignment)
        if value < best_value and problem.is_feasible(assignment):
            best, best_value = assignment.copy(), value
    return best


def _objective(problem: AssignmentProblem, assignment: IntArray) -> float:
    """What is minimised: total cost, or minus total quality."""
    taken = -problem.quality if problem.maximises_quality else problem.paid_usd
    return float(taken[np.arange(problem.n), assignment].sum())


@dataclass(frozen=True, eq=False)
class _Answer:
    """What one run of HiGHS gave: an assignment or None, and bounds on the objective."""

    assignment: IntArray | None
    value: float
    bound: float
    timed_out: bool

    @property
    def quality_bound(self) -> float:
        """Largest total quality, where quality is maximised."""
        return -self.bound


@dataclass(frozen=True, eq=False)
class _Program:
    """The problem over variables [x, unplaced, shortfall]: allowed cells, one per query, one per soft row.

    Rows are `at_most @ variables <= bound` and `placed @ variables == 1`.

    Args:
        query: (K,) query of each allowed cell.
        model: (K,) model of each allowed cell.
        objective: (K + N + S,) scaled cost, or minus quality where quality is maximised.
        cost_scale: USD per unit of the objective.
        placed: (N, K + N + S).
        at_most: (R, K + N + S).
        bound: (R,).
        rows: (R,) name and model (-1 = all) of each row.
        unit: (R,) turns a row's multiplier into one per natural unit of the row.
        soft: (K + N + S,) entry of SOFT each shortfall variable belongs to, "" for x.
        models: M.
        maximises_quality: What the objective is.
    """

    query: IntArray
    model: IntArray
    objective: FloatArray
    cost_scale: float
    placed: csr_array
    at_most: csr_array
    bound: FloatArray
    rows: list[tuple[str, int]]
    unit: FloatArray
    soft: NDArray[np.str_]
    models: int
    maximises_quality: bool

    @classmethod
    def of(cls, problem: AssignmentProblem) -> "_Program":
        """Sparse rows of the problem."""
        allowed = np.ones((problem.n, problem.m), dtype=bool) if problem.forbidden is None else ~problem.forbidden
        query, model = np.nonzero(allowed)
        paid = problem.paid_usd[allowed]
        scale = float(paid.mean()) if paid.size and paid.mean() > 0 else 1.0
        objective = -problem.quality[allowed] if problem.maximises_quality else paid / scale

        rows: list[tuple[str, int]] = []
        cells: list[tuple[FloatArray, float]] = []  # coefficients over the allowed cells, bound
        units: list[float] = []  # of one row, in the row's natural unit
        kinds: list[str] = []  # entry of SOFT, "" for rows that never give way
        for name, floor in problem.floors.items():
            inside = problem.members(name)[query]
            cells.append((np.where(inside, floor - problem.quality[allowed], 0.0), 0.0))
            rows.append((name, -1))
            units.append(1.0)
            kinds.append(FLOOR)
        if problem.max_mean_cost_usd is not None:
            cells.append(((paid - problem.max_mean_cost_usd) / scale, 0.0))
            rows.append(("max_mean_cost_usd", -1))
            units.append(1.0)
            kinds.append("max_mean_cost_usd")
        for name, (weights, limits) in problem.column_limits.items():
            for j in np.flatnonzero(np.isfinite(limits)):
                unit = max(float(weights[:, j].max()), 1e-300)
                cells.append((np.where(model == j, weights[allowed] / unit, 0.0), limits[j] / unit))
                rows.append((name, int(j)))
                units.append(unit)
                kinds.append("")
        if problem.min_share is not None:
            for j in np.flatnonzero(problem.least_counts > 0):
                cells.append((np.where(model == j, -1.0, 0.0), -problem.least_counts[j]))
                rows.append(("min_share", int(j)))
                units.append(1.0)
                kinds.append("min_share")

        shortfalls = [kind for kind in kinds if kind]
        soft = np.array([""] * len(query) + ["placed"] * problem.n + shortfalls)
        give = csr_array((len(rows), len(shortfalls)))
        if shortfalls:
            at = [i for i, kind in enumerate(kinds) if kind]
            give = csr_array((-np.full(len(at), ROW_SCALE), (at, range(len(at)))), shape=give.shape)
        matrix = csr_array(np.array([row for row, _ in cells]) * ROW_SCALE if cells else (0, len(query)))
        one_each = csr_array((np.ones(len(query)), (query, np.arange(len(query)))), shape=(problem.n, len(query)))
        return cls(
            query=query,
            model=model,
            objective=np.concatenate([objective, np.zeros(problem.n + len(shortfalls))]),
            cost_scale=scale,
            placed=hstack([one_each, eye_array(problem.n), csr_array((problem.n, len(shortfalls)))], format="csr"),
            at_most=hstack([matrix, csr_array((len(rows), problem.n)), give], format="csr"),
            bound=np.array([bound * ROW_SCALE for _, bound in cells]),
            rows=rows,
            unit=ROW_SCALE / np.array(units),
            soft=soft,
            models=problem.m,
            maximises_quality=problem.maximises_quality,
        )

    @property
    def is_cell(self) -> NDArray[np.bool_]:
        """Which variables are cells x, not shortfalls."""
        return np.equal(self.soft, "")

    def solve(self, objective: FloatArray, *, gap: float, deadline: float, give: tuple[str, ...] = ()) -> _Answer:
        """Minimise `objective`; only the soft rows named in `give` may be missed."""
        free = np.isin(self.soft, give)
        result = milp(
            objective,
            integrality=self.is_cell.astype(int),
            bounds=Bounds(0, np.where(self.is_cell, 1.0, np.where(free, np.inf, 0.0))),
            constraints=[LinearConstraint(self.placed, 1, 1), LinearConstraint(self.at_most, -np.inf, self.bound)],
            # Without presolve: as fast here, and HiGHS then has few solutions to transform back, which it prints about.
            options={"mip_rel_gap": gap, "time_limit": max(deadline - time.monotonic(), 0.1), "presolve": False},
        )
        timed_out = result.status == 1
        if result.x is None:
            return _Answer(None, np.inf, -np.inf, timed_out)
        return _Answer(self._assignment(result.x), float(result.fun), float(result.mip_dual_bound), timed_out)

    def _assignment(self, x: FloatArray) -> IntArray:
        chosen = np.flatnonzero(x[: len(self.query)] > 0.5)
        assignment = np.full(self.placed.shape[0], -1)
        assignment[self.query[chosen]] = self.model[chosen]
        return assignment

    def tighten(self, problem: AssignmentProblem, assignment: IntArray) -> "_Program":
        """The same program with the rows this assignment misses pulled in by HiGHS' tolerance."""
        slack = problem.slack(assignment)
        missed = [bool(np.atleast_1d(slack[name])[max(j, 0)] < 0) for name, j in self.rows]
        return replace(self, bound=self.bound - TIGHTENING * ROW_SCALE * np.array(missed))

    def keep(self, kind: str, at_most: float) -> "_Program":
        """The same program with the total shortfall of one kind held to what was reached."""
        row = csr_array((self.soft == kind).astype(float)[None, :])
        return replace(
            self,
            at_most=vstack([self.at_most, row], format="csr"),
            bound=np.append(self.bound, at_most * (1 + 1e-9) + 1e-9),
            rows=[*self.rows, (kind, -1)],
            unit=np.append(self.unit, 1.0),
        )

    def relax(self) -> tuple[Prices, FloatArray]:
        """Multipliers and shares (K,) of the linear relaxation; a row that cannot hold is priced at `LARGEST_PRICE`."""
        penalty = np.where(self.soft == "placed", 10 * LARGEST_PRICE, LARGEST_PRICE)
        result = linprog(
            np.where(self.is_cell, self.objective, penalty),
            A_ub=self.at_most,
            b_ub=self.bound,
            A_eq=self.placed,
            b_eq=np.ones(self.placed.shape[0]),
            bounds=(0, None),
            method="highs",
        )
        if result.status != 0:  # prices of zero are still valid prices
            return Prices(), np.zeros(len(self.query))
        multiplier = np.maximum(-result.ineqlin.marginals, 0.0) * self.unit
        return self._named(multiplier), result.x[: len(self.query)]

    def _named(self, multiplier: FloatArray) -> Prices:
        """Multipliers of the rows as prices in USD."""
        by_name: dict[str, FloatArray] = {}
        for (name, j), value in zip(self.rows, multiplier, strict=True):
            by_name.setdefault(name, np.zeros(self.models))[max(j, 0)] = value
        budget = float(by_name.pop("max_mean_cost_usd", np.zeros(1))[0])
        if self.maximises_quality:
            # The rows are priced in quality; what a USD buys of it turns them into USD.
            usd = self.cost_scale * (min(1 / budget, LARGEST_PRICE) if budget > 0 else LARGEST_PRICE)
            quality: float | dict[str, float] = usd
            budget = 0.0
        else:
            usd = self.cost_scale
            floors = {name: float(by_name.pop(name)[0] * usd) for name in list(by_name) if name.startswith(FLOOR)}
            quality = floors.pop(FLOOR, 0.0)
            if floors:
                quality = {name.removeprefix(f"{FLOOR}[").removesuffix("]"): price for name, price in floors.items()}
        min_share = by_name.pop("min_share", np.zeros(self.models)) * usd
        return Prices(quality, budget, {name: value * usd for name, value in by_name.items()}, min_share)


def _nearest(
    problem: AssignmentProblem, program: _Program, bound: float, prices: Prices, *, gap: float, deadline: float
) -> Solution:
    """The assignment that misses least: each kind of soft row in turn is missed as little as possible, then cost."""
    best: _Answer | None = None
    for kind in SOFT:
        shortfall = (program.soft == kind).astype(float)
        if not shortfall.any():
            continue
        answer = program.solve(shortfall, gap=0.0, deadline=deadline, give=SOFT)
        if answer.assignment is None:
            break
        best = answer
        if problem.is_feasible(answer.assignment):  # the rows did hold, by less than the solver's tolerance
            return _judged(problem, answer.assignment, bound, prices, gap, np.inf)
        program = program.keep(kind, answer.value)
    last = program.solve(program.objective, gap=gap, deadline=deadline, give=SOFT)
    best = last if last.assignment is not None else best
    if best is None or best.assignment is None:
        nowhere = np.full(problem.n, -1)
        return _solution(problem, nowhere, "time_limit", "no assignment found in the time given", np.nan, prices)
    if problem.is_feasible(best.assignment):
        return _judged(problem, best.assignment, bound, prices, gap, np.inf)
    if last.timed_out:
        message = "stopped at the time limit; rows may be missed that can be met: " + _missed(problem, best.assignment)
        return _solution(problem, best.assignment, "time_limit", message, bound, prices)
    return _solution(problem, best.assignment, "infeasible", _missed(problem, best.assignment), np.inf, prices)


def _missed(problem: AssignmentProblem, assignment: IntArray) -> str:
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
    return "; ".join(words) + (f" (while {', '.join(held)} hold)" if held else "")


def _judged(
    problem: AssignmentProblem, assignment: IntArray, bound: float, prices: Prices, gap: float, quality_bound: float
) -> Solution:
    """A feasible assignment with its gap: optimal if the gap is what was asked for."""
    reached = _objective(problem, assignment)
    distance = reached + quality_bound if problem.maximises_quality else reached - bound
    reached_gap = distance / max(abs(reached), 1e-300)
    # HiGHS' own tolerances allow for a gap of this size where it reports none.
    optimal = reached_gap <= gap + 1e-6
    status: Status = "optimal" if optimal else "feasible"
    message = f"proven within {max(reached_gap, 0):.1e} of the optimum"
    return _solution(problem, assignment, status, message, bound, prices, max(reached_gap, 0.0))


def _solution(
    problem: AssignmentProblem, assignment: IntArray, status: Status, message: str, bound: float, prices: Prices,
    gap: float = np.nan,
) -> Solution:  # fmt: skip
    placed = assignment >= 0
    mean = problem.mean_cost_usd(assignment)
    return Solution(
        assignment=assignment,
        status=status,
        message=message,
        mean_quality=problem.mean_quality(assignment),
        mean_cost_usd=mean,
        total_cost_usd=float(problem.paid_usd[placed, assignment[placed]].sum()),
        lower_bound=bound,
        gap=gap,
        prices=prices,
        slack=problem.slack(assignment),
    )
