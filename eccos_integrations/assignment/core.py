"""The exact end game: the few queries whose choice is close, solved as a linear program and made whole.

All other queries keep the model the multipliers send them to; what they use is taken off the rows.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from eccos_integrations.assignment.blocks import Scan
from eccos_integrations.assignment.problem import FloatArray, IntArray
from eccos_integrations.assignment.rows import Rows

ENUMERATED = 13  # queries of which all choices between two models are tried: 2^13, a few milliseconds
WHOLE = 1e-6  # a share this close to 1 is no split
# A pair whose regret is beyond this many times the largest margin in the core is no variable.
REACH = 2.0


def closest(scan: Scan, size: int) -> IntArray:
    """The queries of smallest margin; where costs are tilted, half of them by the distance to what is no tie."""
    if scan.beyond is scan.margin:
        return np.sort(np.argpartition(scan.margin, size)[:size])
    half = size // 2
    return np.union1d(np.argpartition(scan.margin, half)[:half], np.argpartition(scan.beyond, half)[:half])


def reach_of(scan: Scan, queries: IntArray) -> float:
    """The regret that counts as close among these queries."""
    distance = np.sort(scan.beyond[queries])
    if scan.beyond is not scan.margin:
        distance = distance[: len(distance) // 2]
    return float(distance[-1]) if len(distance) else 0.0


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A solved relaxation of the core.

    Args:
        y: (D,) its multipliers.
        value: Its objective, the fixed queries included.
        share: (M, k) of each core query on each model.
    """

    y: FloatArray
    value: float
    share: FloatArray


class Core:
    """The queries of smallest margin at a scan, all others fixed.

    Args:
        rows: The coupling rows.
        scan: Where choices and margins come from.
        size: How many queries.
    """

    def __init__(self, rows: Rows, scan: Scan, size: int) -> None:
        n = rows.problem.n
        self.scan = scan
        self.whole = size >= n
        self.queries: IntArray = np.arange(n) if self.whole else closest(scan, size)
        self._at = np.arange(len(self.queries))
        block = rows.block(self.queries)
        chosen = scan.choice[self.queries].astype(np.int64)
        self.uses = rows.coefficients(block)
        nothing = np.zeros(len(rows.bounds))
        self.cost = rows.reduced(block, nothing, own=True)
        self.tilted_cost = self.cost if block.tilt is None else rows.reduced(block, nothing)
        reduced = rows.reduced(block, scan.y)
        self.regret = reduced - reduced.min(axis=0)  # inf where forbidden
        self.fixed_value = scan.value - rows.value(block, chosen)
        self.left = rows.bounds - (scan.used - rows.usage(block, chosen))
        reach = np.inf if self.whole else REACH * reach_of(scan, self.queries)
        self.model, self.query = np.nonzero(np.isfinite(self.regret) & (self.regret <= reach))

    def value(self, models: IntArray) -> float:
        """Objective with these models for the core queries."""
        return self.fixed_value + float(self.cost[models, self._at].sum())

    def relax(self, less: FloatArray | float = 0.0) -> Relaxed | None:
        """Solve the linear relaxation with the rows tightened by `less`; None where it has no solution."""
        cell = self.model, self.query
        cost = self.tilted_cost[cell]
        result = linprog(
            cost - cost.mean(),
            A_ub=csr_array(self.uses[:, *cell]),
            b_ub=self.left - less,
            A_eq=csr_array((np.ones(len(cost)), (self.query, np.arange(len(cost))))),
            b_eq=np.ones(len(self.queries)),
            bounds=(0, None),
            method="highs-ds",
        )
        if result.status != 0:
            return None
        share = np.zeros(self.regret.shape)
        share[cell] = result.x
        value = self.fixed_value + float(self.cost[cell] @ result.x)
        return Relaxed(np.maximum(-result.ineqlin.marginals, 0.0), value, share)

    def rounded(self, share: FloatArray, window: int = 0) -> IntArray | None:
        """Models (k,) near these shares that keep every row, the best of all choices for the closest queries.

        Args:
            share: (M, k) what to start from.
            window: Which of the closest: the first 13, the next 13 ...; what is split comes first in each.
        """
        first, second, order = self._options(share)
        split = int((share[first, self._at][order] < 1 - WHOLE).sum())
        start = split + window * max(ENUMERATED - split, 1) if window else split
        order = np.append(order[:split], order[start:])[:ENUMERATED]
        ways = ((np.arange(2 ** len(order))[:, None] >> np.arange(len(order))) & 1).astype(np.float64)
        here, there = (first[order], order), (second[order], order)
        more_used = self.uses[:, *there] - self.uses[:, *here]
        room = self.left - self.uses[:, first, self._at].sum(axis=1)
        kept = np.flatnonzero((ways @ more_used.T <= room).all(axis=1))
        if not len(kept):
            return None
        best = kept[np.argmin(ways[kept] @ (self.cost[there] - self.cost[here]))]
        return np.where(np.isin(self._at, order[ways[best] > 0]), second, first)

    def missed(self, share: FloatArray) -> FloatArray:
        """(D,) by how much each row is missed where every query goes to its largest share."""
        missed: FloatArray = np.maximum(self.uses[:, share.argmax(axis=0), self._at].sum(axis=1) - self.left, 0.0)
        return missed

    def _options(self, share: FloatArray) -> tuple[IntArray, IntArray, IntArray]:
        """First and second choice of each core query, and the queries from the most to the least open."""
        first = share.argmax(axis=0)
        largest = share[first, self._at]
        split = largest < 1 - WHOLE
        other = share.copy()
        other[first, self._at] = -1.0
        by_regret = self.regret.copy()
        by_regret[first, self._at] = np.inf
        second = np.where(split, other.argmax(axis=0), by_regret.argmin(axis=0))
        distance = by_regret.min(axis=0) - self.regret[first, self._at]
        order = np.lexsort((np.where(split, largest, distance), ~split))
        return first, second, order[np.isfinite(self.regret[second, self._at])[order]]

    def exact(self, share: FloatArray, size: int, *, allowed: float, seconds: float) -> IntArray | None:
        """The best models for the most open queries, the others at their largest share, by branch and bound."""
        first, _, order = self._options(share)
        inside = np.zeros(len(self.queries), dtype=bool)
        inside[order[:size]] = True
        kept = inside[self.query]
        model, query = self.model[kept], self.query[kept]
        if not len(query):
            return None
        outside = np.flatnonzero(~inside)
        room = self.left - self.uses[:, first[outside], outside].sum(axis=1)
        cost = self.cost[model, query]
        unit = max(float(np.abs(cost).max()), 1e-300)
        matrix = self.uses[:, model, query]
        one_each = csr_array((np.ones(len(query)), (np.cumsum(inside)[query] - 1, np.arange(len(query)))))
        result = milp(
            cost / unit,
            integrality=np.ones(len(query)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(csr_array(matrix), -np.inf, room)],
            options={
                "mip_rel_gap": min(allowed / max(abs(float(cost @ share[model, query])), 1e-300), 1.0),
                "time_limit": max(seconds, 0.05),
                "presolve": False,  # as fast here, and HiGHS then has few solutions to transform back: it prints of it
            },
        )
        if result.x is None:
            return None
        models = first.copy()
        chosen = result.x > 0.5
        models[query[chosen]] = model[chosen]
        return models
