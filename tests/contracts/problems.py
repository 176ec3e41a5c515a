"""Small assignment problems with any mix of rows, and all their assignments judged by brute force."""

import dataclasses
from functools import cached_property
from itertools import product

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eccos_integrations import AssignmentProblem

ROWS = ("floor", "groups", "budget", "capacity", "loads", "min_share", "forbidden", "switch")
# On the small grids below a sum either meets its bound or misses it by far more than this.
TOLERANCE = 1e-9


@st.composite
def problems(draw, rows=ROWS, always=()):
    """Up to 5 queries and 3 models on small grids, so that ties and exactly met bounds are common."""
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    chosen = draw(st.sets(st.sampled_from(rows))) | set(always)

    def grid(shape, largest, step):
        return draw(arrays(np.int64, shape, elements=st.integers(0, largest))) * step

    cost, quality = grid((n, m), 12, 0.25), grid((n, m), 20, 1) / 20
    some = np.arange(n), grid((n,), m - 1, 1)  # an assignment, whose means are bounds that can just be met
    given = {}
    if "switch" in chosen:
        given["switch_cost_usd"] = grid((n, m), 4, 0.25)
    if "groups" in chosen:
        labels = [draw(st.sampled_from("ab")) for _ in range(n)]
        given |= {"groups": labels, "min_quality": {label: draw(st.integers(0, 20)) / 20 for label in "ab"}}
    elif "floor" in chosen:
        floors = [draw(st.integers(0, 20)) / 20, float(quality[some].mean()), float(quality.max(axis=1).mean())]
        given["min_quality"] = draw(st.sampled_from(floors))
    if "budget" in chosen:
        paid = cost + given.get("switch_cost_usd", 0)
        given["max_mean_cost_usd"] = draw(st.sampled_from([draw(st.integers(0, 12)) / 4, float(paid[some].mean())]))
    if "capacity" in chosen:
        given["capacity"] = np.array([draw(st.sampled_from([0, 1, 2, n, np.inf])) for _ in range(m)])
    if "loads" in chosen:
        limits = np.array([draw(st.sampled_from([0, 0.3, 1.2, 2.1, 4.5, np.inf])) for _ in range(m)])
        given["loads"] = {"tokens": (grid((n, m), 5, 0.3), limits)}
    if "min_share" in chosen:
        given["min_share"] = grid((m,), 3, 0.2)
    if "forbidden" in chosen:
        given["forbidden"] = draw(arrays(np.bool_, (n, m)))
    return AssignmentProblem(cost, quality, **given)


def permuted(problem, rows, columns):
    """The same problem with queries and models in another order."""

    def pick(array, *axes):
        return None if array is None else array[np.ix_(*axes)]

    return dataclasses.replace(
        problem,
        cost_usd=pick(problem.cost_usd, rows, columns),
        quality=pick(problem.quality, rows, columns),
        switch_cost_usd=pick(problem.switch_cost_usd, rows, columns),
        forbidden=pick(problem.forbidden, rows, columns),
        capacity=pick(problem.capacity, columns),
        min_share=pick(problem.min_share, columns),
        loads={name: (w[np.ix_(rows, columns)], limits[columns]) for name, (w, limits) in problem.loads.items()},
        groups=None if problem.groups is None else [problem.groups[i] for i in rows],
    )


def in_other_money(problem, factor):
    """The same problem counted in another currency."""
    names = ("cost_usd", "switch_cost_usd", "max_mean_cost_usd")
    given = {name: getattr(problem, name) for name in names}
    return dataclasses.replace(problem, **{k: None if value is None else value * factor for k, value in given.items()})


class BruteForce:
    """Every assignment of a small problem, queries left out included, judged from the raw arrays alone."""

    def __init__(self, problem):
        self.problem = problem
        self.n, self.m = problem.cost_usd.shape
        self.assignments = np.array(list(product(range(-1, self.m), repeat=self.n)))
        self.placed = self.assignments >= 0
        self.count = self.placed.sum(axis=1)
        switch = 0.0 if problem.switch_cost_usd is None else problem.switch_cost_usd
        self.cost = self._total(problem.cost_usd + switch)
        self.quality = self._total(problem.quality)

    def row_of(self, assignment):
        """Position of an assignment among all."""
        return int(np.flatnonzero((self.assignments == assignment).all(axis=1))[0])

    @cached_property
    def loads_kept(self):
        """Which assignments keep the rows that never give way: capacity, loads, forbidden pairs."""
        used = self.assignments[:, :, None] == np.arange(self.m)  # (assignment, query, model)
        kept = np.ones(len(self.assignments), dtype=bool)
        if self.problem.forbidden is not None:
            kept &= ~(used & self.problem.forbidden).any(axis=(1, 2))
        if self.problem.capacity is not None:
            kept &= (used.sum(axis=1) <= self.problem.capacity).all(axis=1)
        for weights, limits in self.problem.loads.values():
            kept &= ((used * weights).sum(axis=1) <= limits * (1 + TOLERANCE)).all(axis=1)
        return kept

    @cached_property
    def shares_kept(self):
        """Which assignments give each model its least share."""
        counts = (self.assignments[:, :, None] == np.arange(self.m)).sum(axis=1)
        share = np.zeros(self.m) if self.problem.min_share is None else self.problem.min_share
        return (counts >= share * self.n - TOLERANCE).all(axis=1)

    @cached_property
    def budget_kept(self):
        """Which assignments cost no more on average than the budget."""
        budget = self.problem.max_mean_cost_usd
        if budget is None:
            return np.ones(len(self.assignments), dtype=bool)
        return self.cost <= budget * self.count + TOLERANCE * max(budget, self.problem.cost_usd.max())

    @cached_property
    def floors_kept(self):
        """Which assignments reach the quality floor, or every group's."""
        groups, floors = self.problem.groups, self.problem.min_quality
        if floors is None:
            return np.ones(len(self.assignments), dtype=bool)
        floor = np.array([floors[label] for label in groups] if groups else [floors] * self.n)
        kept = np.ones(len(self.assignments), dtype=bool)
        for label in set(groups or [None]):
            inside = np.array([label is None or group == label for group in groups or [None] * self.n])
            kept &= self._total((self.problem.quality - floor[:, None]) * inside[:, None]) >= -TOLERANCE
        return kept

    @property
    def feasible(self):
        """Which assignments place every query and keep every row."""
        return (self.count == self.n) & self.loads_kept & self.shares_kept & self.budget_kept & self.floors_kept

    @property
    def nearest(self):
        """Which assignments keep the loads and place as many queries as can be placed."""
        return self.loads_kept & (self.count == self.count[self.loads_kept].max())

    @property
    def objective(self):
        """What is minimised: cost, or with a budget alone minus quality."""
        alone = self.problem.max_mean_cost_usd is not None and self.problem.min_quality is None
        return -self.quality if alone else self.cost

    def _total(self, array):
        return np.where(self.placed, array[np.arange(self.n), self.assignments], 0).sum(axis=1)
