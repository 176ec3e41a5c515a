"""A problem as a mixed-integer program in sparse rows, as scipy's solvers (HiGHS) take it."""

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, eye_array, hstack, vstack

from eccos_integrations.assignment.answers import cost_scale
from eccos_integrations.assignment.problem import AssignmentProblem, FloatArray, IntArray
from eccos_integrations.assignment.solution import Prices
from eccos_integrations.assignment.types import Types

# HiGHS lets a row be missed by 1e-6; in rows scaled up by this that is far below any unit that matters. What is still
# missed after rounding to 0/1 is tightened by a little more than HiGHS' tolerance and solved again.
ROW_SCALE = 1e3
TIGHTENING = 4e-6
# Beyond this many mean costs per unit of quality, cost only breaks ties.
LARGEST_PRICE = 1e4
FLOOR = "min_quality"
# Rows that give way where not all can hold, the last one first.
SOFT = ("placed", "min_share", "max_mean_cost_usd", FLOOR)


@dataclass(frozen=True, eq=False)
class Answer:
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
class Program:
    """The problem over variables [x, unplaced, shortfall]: allowed cells, one per type of query, one per soft row.

    Queries that are alike are one: a cell says how many of them a model gets. Rows are `at_most @ variables <= bound`
    and `placed @ variables == count`. Below, N is the number of types.

    Args:
        types: The distinct queries.
        query: (K,) type of each allowed cell.
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
        floors: Names of the floors.
        maximises_quality: What the objective is.
    """

    types: Types
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
    floors: list[str]
    maximises_quality: bool

    @classmethod
    def of(cls, problem: AssignmentProblem, types: Types) -> "Program":
        """Sparse rows of the problem."""
        n, first = len(types), types.first
        allowed = np.ones((n, problem.m), dtype=bool) if problem.forbidden is None else ~problem.forbidden[first]
        query, model = np.nonzero(allowed)
        paid = problem.paid_usd[first][allowed]
        quality = problem.quality[first][allowed]
        scale = cost_scale(problem)
        objective = -quality if problem.maximises_quality else paid / scale

        rows: list[tuple[str, int]] = []
        cells: list[tuple[FloatArray, float]] = []  # coefficients over the allowed cells, bound
        units: list[float] = []  # of one row, in the row's natural unit
        kinds: list[str] = []  # entry of SOFT, "" for rows that never give way
        for name, floor in problem.floors.items():
            inside = problem.members(name)[first][query]
            cells.append((np.where(inside, floor - quality, 0.0), 0.0))
            rows.append((name, -1))
            units.append(1.0)
            kinds.append(FLOOR)
        if problem.budget_binds:
            assert problem.max_mean_cost_usd is not None
            cells.append(((paid - problem.max_mean_cost_usd) / scale, 0.0))
            rows.append(("max_mean_cost_usd", -1))
            units.append(1.0)
            kinds.append("max_mean_cost_usd")
        for name, (weights, limits) in problem.column_limits.items():
            used = weights[first]
            for j in np.flatnonzero(limits < types.count @ used):  # the others cannot bind
                unit = float(used[:, j].max())
                cells.append((np.where(model == j, used[allowed] / unit, 0.0), limits[j] / unit))
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
        soft = np.array([""] * len(query) + ["placed"] * n + shortfalls)
        give = csr_array((len(rows), len(shortfalls)))
        if shortfalls:
            at = [i for i, kind in enumerate(kinds) if kind]
            give = csr_array((-np.full(len(at), ROW_SCALE), (at, range(len(at)))), shape=give.shape)
        matrix = csr_array(np.array([row for row, _ in cells]) * ROW_SCALE if cells else (0, len(query)))
        one_each = csr_array((np.ones(len(query)), (query, np.arange(len(query)))), shape=(n, len(query)))
        return cls(
            types=types,
            query=query,
            model=model,
            objective=np.concatenate([objective, np.zeros(n + len(shortfalls))]),
            cost_scale=scale,
            placed=hstack([one_each, eye_array(n), csr_array((n, len(shortfalls)))], format="csr"),
            at_most=hstack([matrix, csr_array((len(rows), n)), give], format="csr"),
            bound=np.array([bound * ROW_SCALE for _, bound in cells]),
            rows=rows,
            unit=ROW_SCALE / np.array(units),
            soft=soft,
            models=problem.m,
            floors=list(problem.floors),
            maximises_quality=problem.maximises_quality,
        )

    @property
    def is_cell(self) -> NDArray[np.bool_]:
        """Which variables are cells x, not shortfalls."""
        return np.equal(self.soft, "")

    def solve(self, objective: FloatArray, *, gap: float, deadline: float, give: tuple[str, ...] = ()) -> Answer:
        """Minimise `objective`; only the soft rows named in `give` may be missed."""
        free = np.isin(self.soft, give)
        largest = np.where(free, np.inf, 0.0)
        largest[: len(self.query)] = self.types.count[self.query]
        # How many queries each model gets is a variable too: to branch on it settles what alike queries leave open.
        n, every = self.placed.shape
        none = csr_array((n, self.models)), csr_array((len(self.bound), self.models))
        of_model = csr_array((np.ones(len(self.model)), (self.model, np.arange(len(self.model)))), (self.models, every))
        result = milp(
            np.append(objective, np.zeros(self.models)),
            integrality=np.append(self.is_cell, np.ones(self.models)).astype(int),
            bounds=Bounds(0, np.append(largest, np.full(self.models, len(self.types.of)))),
            constraints=[
                LinearConstraint(hstack([self.placed, none[0]]), self.types.count, self.types.count),
                LinearConstraint(hstack([self.at_most, none[1]]), -np.inf, self.bound),
                LinearConstraint(hstack([of_model, -eye_array(self.models)]), 0, 0),
            ],
            # Without presolve: as fast here, and HiGHS then has few solutions to transform back, which it prints about.
            options={"mip_rel_gap": gap, "time_limit": max(deadline - time.monotonic(), 0.1), "presolve": False},
        )
        timed_out = result.status == 1
        if result.x is None:
            return Answer(None, np.inf, -np.inf, timed_out)
        bound = result.fun if result.mip_dual_bound is None else result.mip_dual_bound  # None where no cell is allowed
        return Answer(self._assignment(result.x), float(result.fun), float(bound), timed_out)

    def _assignment(self, x: FloatArray) -> IntArray:
        return self.types.spread(self.query, self.model, np.rint(x[: len(self.query)]).astype(np.int64))

    def tighten(self, problem: AssignmentProblem, assignment: IntArray) -> "Program":
        """The same program with the rows this assignment misses pulled in by HiGHS' tolerance."""
        slack = problem.slack(assignment)
        short = [bool(np.atleast_1d(slack[name])[max(j, 0)] < 0) for name, j in self.rows]
        return replace(self, bound=self.bound - TIGHTENING * ROW_SCALE * np.array(short))

    def keep(self, kind: str, at_most: float) -> "Program":
        """The same program with the total shortfall of one kind held to what was reached."""
        row = csr_array((self.soft == kind).astype(float)[None, :])
        return replace(
            self,
            at_most=vstack([self.at_most, row], format="csr"),
            bound=np.append(self.bound, at_most * (1 + 1e-9) + 1e-9),
            rows=[*self.rows, (kind, -1)],
            unit=np.append(self.unit, 1.0),
        )

    def relax(self, deadline: float = np.inf) -> tuple[Prices, FloatArray]:
        """Multipliers and shares (K,) of the linear relaxation; a row that cannot hold is priced at `LARGEST_PRICE`."""
        penalty = np.where(self.soft == "placed", 10 * LARGEST_PRICE, LARGEST_PRICE)
        result = linprog(
            np.where(self.is_cell, self.objective, penalty),
            A_ub=self.at_most,
            b_ub=self.bound,
            A_eq=self.placed,
            b_eq=self.types.count,
            bounds=(0, None),
            method="highs",
            options={"time_limit": max(deadline - time.monotonic(), 0.1)},
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
            floors = {name: float(by_name.pop(name)[0] * usd) for name in self.floors}
            quality = floors.pop(FLOOR, 0.0)
            if floors:
                quality = {name.removeprefix(f"{FLOOR}[").removesuffix("]"): price for name, price in floors.items()}
        min_share = by_name.pop("min_share", np.zeros(self.models)) * usd
        return Prices(quality, budget, {name: value * usd for name, value in by_name.items()}, min_share)
