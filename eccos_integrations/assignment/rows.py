"""The rows of a problem as arithmetic over chunks of queries: reduced costs, what an assignment uses, exact bounds.

Every row reads `use <= bound`. With a multiplier `y >= 0` per row, query i on model j has the reduced cost

    (cost_weight + y_budget) * c_ij - (quality_weight + y_floor(i)) * a_ij + sum_r y_rj * w_rij - y_share_j

so that any objective and any row is one pass over the raw arrays. Cost is in units of `scale` USD, loads in units of
their mean weight. Arrays are worked on transposed, (M, n), in chunks that fit a core's cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.assignment.blocks import Block, Scan, two_least
from eccos_integrations.assignment.problem import ROUNDING, AssignmentProblem, FloatArray, IntArray
from eccos_integrations.assignment.solution import CHUNK_CELLS, Prices

# Beyond this many mean costs per unit of quality, cost only breaks ties.
LARGEST_PRICE = 1e4
# Reduced costs this many tilts apart are no tie.
TIED = 2.0
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Rows:
    """The coupling rows of a problem in the order floors, budget, loads by model, shares by model.

    Args:
        problem: Whose rows these are.
        scale: USD that count as 1.
        cost_weight: Of cost in the objective.
        quality_weight: Of quality in the objective.
        with_floors: Whether the floors count.
        with_budget: Whether the budget counts.
        with_shares: Whether the least shares count.
        tilt: Largest tilt of the costs, which tells equal queries apart: a query's models are made dearer by up to
            this much, in a proportion of its own.
        seed: Of the tilt.
    """

    problem: AssignmentProblem
    scale: float
    cost_weight: float = 1.0
    quality_weight: float = 0.0
    with_floors: bool = True
    with_budget: bool = True
    with_shares: bool = True
    tilt: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, problem: AssignmentProblem, scale: float, seed: int = 0) -> "Rows":
        """The problem's own objective under all its rows."""
        if problem.maximises_quality:
            return cls(problem, scale, 0.0, 1.0, seed=seed)
        return cls(problem, scale, seed=seed)

    def with_tilt(self, tilt: float) -> "Rows":
        """The same rows with the costs tilted."""
        return replace(self, tilt=tilt)

    # -- layout

    @cached_property
    def floors(self) -> FloatArray:
        """(G,) floors, relaxed by rounding."""
        return np.array(list(self.problem.floors.values()) if self.with_floors else []) - ROUNDING

    @cached_property
    def budgeted(self) -> bool:
        """Whether there is a budget row."""
        return self.with_budget and self.problem.budget_binds

    @cached_property
    def columns(self) -> list[tuple[str, IntArray, FloatArray, FloatArray]]:
        """Per load its name, the models it can bind, their limits and the units, in the problem's own measure."""
        columns = []
        for name, (weights, limits) in self.problem.column_limits.items():
            totals = np.full(self.problem.m, float(self.problem.n)) if name == "capacity" else weights.sum(axis=0)
            binding = np.flatnonzero(limits < totals)
            columns.append((name, binding, limits[binding], totals[binding] / max(self.problem.n, 1)))
        return columns

    @cached_property
    def shares(self) -> IntArray:
        """Models that must get some queries."""
        return np.flatnonzero(self.with_shares & (self.problem.least_counts > 0))

    @cached_property
    def bounds(self) -> FloatArray:
        """(D,) right-hand sides."""
        problem = self.problem
        sizes = np.bincount(self._floor_index, minlength=len(self.floors))[: len(self.floors)]
        parts = [-self.floors * sizes]
        if self.budgeted:
            assert problem.max_mean_cost_usd is not None
            parts.append(np.array([problem.max_mean_cost_usd / self.scale * (1 + ROUNDING) * problem.n]))
        parts += [limits / units for _, _, limits, units in self.columns]
        parts.append(-problem.least_counts[self.shares])
        return np.concatenate(parts)

    @cached_property
    def _floor_index(self) -> IntArray:
        return self.problem.floor_index

    @cached_property
    def several(self) -> bool:
        """Whether floors are per group."""
        return len(self.floors) > 1

    @cached_property
    def slopes(self) -> FloatArray:
        """(M,) proportions of the tilt, distinct."""
        order = np.random.default_rng(self.seed).permutation(self.problem.m).astype(np.float64)
        return order * (self.tilt / max(self.problem.m - 1, 1))

    def split(self, y: FloatArray) -> tuple[FloatArray, float, list[FloatArray], FloatArray]:
        """Multipliers as floors (G,), budget, per load (M,) and shares (M,)."""
        m, at = self.problem.m, len(self.floors)
        floors, budget = y[:at], 0.0
        if self.budgeted:
            budget, at = float(y[at]), at + 1
        loads = []
        for _, binding, _, units in self.columns:
            price = np.zeros(m)
            price[binding] = y[at : at + len(binding)] / units
            loads.append(price)
            at += len(binding)
        shares = np.zeros(m)
        shares[self.shares] = y[at:]
        return floors, budget, loads, shares

    def prices(self, y: FloatArray) -> Prices:
        """Multipliers as prices in USD."""
        floors, budget, loads, shares = self.split(y)
        usd = self.scale
        quality: float | dict[str, float]
        if self.problem.maximises_quality:
            # The rows are priced in quality; what a USD buys of it turns them into USD.
            usd *= min(1 / budget, LARGEST_PRICE) if budget > 0 else LARGEST_PRICE
            quality, budget = usd, 0.0
        elif self.problem.groups is not None:
            assert isinstance(self.problem.min_quality, dict)
            quality = {label: float(v * usd) for label, v in zip(self.problem.min_quality, floors, strict=True)}
        else:
            quality = float(floors[0] * usd) if len(floors) else 0.0
        named = {name: price * usd for (name, *_), price in zip(self.columns, loads, strict=True)}
        return Prices(quality, budget, named, shares * usd)

    # -- blocks

    def block(self, queries: slice | IntArray) -> Block:
        """These queries, transposed; views where they are a slice."""
        problem = self.problem
        paid = problem.cost_usd[queries].T
        if problem.switch_cost_usd is not None:
            paid = paid + problem.switch_cost_usd[queries].T
        at = (
            np.arange(problem.n)[queries] if isinstance(queries, np.ndarray) else np.arange(queries.start, queries.stop)
        )
        gather = (lambda array: np.ascontiguousarray(array[queries].T)) if isinstance(queries, np.ndarray) else (
            lambda array: array[queries].T
        )  # fmt: skip
        return Block(
            paid=np.divide(paid, self.scale, out=np.empty(paid.shape)),
            quality=gather(problem.quality),
            floor=self._floor_index[queries] if self.several else None,
            weights=[
                None if name == "capacity" else gather(problem.column_limits[name][0]) for name, *_ in self.columns
            ],
            closed=None if problem.forbidden is None else gather(problem.forbidden),
            tilt=np.mod(at * GOLDEN + self.seed * 0.1, 1.0).astype(np.float64) if self.tilt else None,
        )

    def chunks(self) -> Iterator[slice]:
        """Slices of the queries that fit the cache."""
        step = max(256, CHUNK_CELLS // self.problem.m)
        for start in range(0, self.problem.n, step):
            yield slice(start, min(start + step, self.problem.n))

    def reduced(self, block: Block, y: FloatArray, *, own: bool = False) -> FloatArray:
        """(M, n) reduced costs at these multipliers; `own` leaves out the tilt."""
        floors, budget, loads, shares = self.split(y)
        reduced: FloatArray = np.multiply(block.paid, self.cost_weight + budget)
        if block.floor is not None:
            reduced -= (self.quality_weight + floors)[block.floor] * block.quality
        elif self.quality_weight or len(floors):
            reduced -= block.quality * (self.quality_weight + (floors[0] if len(floors) else 0.0))
        constant = -shares
        for weights, price in zip(block.weights, loads, strict=True):
            if weights is None:
                constant = constant + price
            elif price.any():
                reduced += weights * price[:, None]
        if constant.any():
            reduced += constant[:, None]
        if block.tilt is not None and not own:
            reduced += np.multiply.outer(self.slopes, block.tilt)
        if block.closed is not None:
            reduced[block.closed] = np.inf
        return reduced

    def usage(self, block: Block, choice: IntArray) -> FloatArray:
        """(D,) what these choices use of each row."""
        at = np.arange(block.size)
        quality = block.quality[choice, at]
        if block.floor is None:
            floors = [-quality.sum()] if len(self.floors) else []
        else:
            floors = list(-np.bincount(block.floor, weights=quality, minlength=len(self.floors)))
        budget = [block.paid[choice, at].sum()] if self.budgeted else []
        counts = np.bincount(choice, minlength=self.problem.m)
        parts = [np.array(floors + budget)]
        for (_, binding, _, units), weights in zip(self.columns, block.weights, strict=True):
            if weights is None:
                used = counts
            else:
                used = np.bincount(choice, weights=weights[choice, at], minlength=self.problem.m)
            parts.append(used[binding] / units)
        parts.append(-counts[self.shares])
        return np.concatenate(parts)

    def value(self, block: Block, choice: IntArray) -> float:
        """Objective of these choices, untilted."""
        at = np.arange(block.size)
        value = self.cost_weight * block.paid[choice, at].sum() if self.cost_weight else 0.0
        return float(value - (self.quality_weight * block.quality[choice, at].sum() if self.quality_weight else 0.0))

    def uses(self, block: Block) -> list[tuple[IntArray, FloatArray]]:
        """Per model the rows beside the floors that it touches (K,), and what each query uses of them there (K, n)."""
        g = len(self.floors)
        touched: list[list[tuple[int, FloatArray]]] = [[] for _ in range(self.problem.m)]
        ones = np.ones(block.size)
        at = g
        if self.budgeted:
            for j, entries in enumerate(touched):
                entries.append((at, block.paid[j]))
            at += 1
        for (_, binding, _, units), weights in zip(self.columns, block.weights, strict=True):
            for j, unit in zip(binding, units, strict=True):
                touched[j].append((at, ones if weights is None else weights[j] / unit))
                at += 1
        for j in self.shares:
            touched[j].append((at, -ones))
            at += 1
        return [
            (np.array([row for row, _ in entries], dtype=np.int64), np.array([use for _, use in entries]))
            if entries
            else (np.zeros(0, dtype=np.int64), np.zeros((0, block.size)))
            for entries in touched
        ]

    def coefficients(self, block: Block) -> FloatArray:
        """(D, M, n) what each pair uses of each row; for few queries only."""
        out = np.zeros((len(self.bounds), *block.paid.shape))
        for g in range(len(self.floors)):
            inside = np.True_ if block.floor is None else np.equal(block.floor, g)
            out[g] = np.where(inside, -block.quality, 0.0)
        for j, (rows, uses) in enumerate(self.uses(block)):
            out[rows, j] = uses
        return out

    def is_feasible(self, choice: NDArray[np.int16]) -> bool:
        """Whether an assignment keeps all the rows that count here."""
        slack = self.problem.slack(choice)
        free = () if self.with_floors else tuple(self.problem.floors)
        free += () if self.with_budget else ("max_mean_cost_usd",)
        free += () if self.with_shares else ("min_share",)
        return all(np.min(value) >= 0 for name, value in slack.items() if name not in free)

    # -- passes

    def scan(self, y: FloatArray) -> Scan:
        """One pass: the exact bound (of the tilted costs), the choices and their margins."""
        n = self.problem.n
        choice, margin = np.empty(n, dtype=np.int16), np.empty(n, dtype=np.float32)
        beyond = np.empty(n, dtype=np.float32) if self.tilt else margin
        used, value, bound = np.zeros(len(y)), 0.0, 0.0
        for chunk in self.chunks():
            block = self.block(chunk)
            reduced = self.reduced(block, y)
            best, second, chosen = two_least(reduced)
            if self.tilt:
                reduced -= best
                beyond[chunk] = np.where(reduced > TIED * self.tilt, reduced, np.inf).min(axis=0)
            choice[chunk], margin[chunk] = chosen, second - best
            used += self.usage(block, chosen)
            value += self.value(block, chosen)
            bound += float(best.sum())
        return Scan(y, bound - float(y @ self.bounds), choice, margin, beyond, used, value)

    def bound(self, y: FloatArray) -> float:
        """The exact dual value of the untilted costs."""
        total = sum(float(self.reduced(self.block(chunk), y, own=True).min(axis=0).sum()) for chunk in self.chunks())
        return total - float(y @ self.bounds)

    def ceiling(self) -> float:
        """The objective of no assignment is above this."""
        total, nothing = 0.0, np.zeros(len(self.bounds))
        for chunk in self.chunks():
            reduced = self.reduced(self.block(chunk), nothing, own=True)
            total += float(np.where(np.isfinite(reduced), reduced, -np.inf).max(axis=0).sum())
        return total

    def total(self, choice: NDArray[np.int16]) -> float:
        """Objective of an assignment."""
        return sum(self.value(self.block(chunk), choice[chunk].astype(np.int64)) for chunk in self.chunks())
