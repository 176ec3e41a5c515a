"""Which queries find a place at all, where loads and forbidden pairs leave too little room for everyone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from eccos_integrations.assignment.problem import AssignmentProblem, IntArray
from eccos_integrations.assignment.rows import Rows
from eccos_integrations.assignment.search import Search


def hopeless(problem: AssignmentProblem) -> bool:
    """Whether a glance shows that some query has no place."""
    if problem.forbidden is not None and problem.forbidden.all(axis=1).any():
        return True
    return problem.capacity is not None and float(problem.capacity.sum()) < problem.n


def placeable(problem: AssignmentProblem, search: Callable[[Rows, float], Search]) -> IntArray:
    """Models (N,) that keep the loads, -1 for queries left out: as many placed as the search finds.

    Leaving out is one more model that takes everything at a price above any detour.
    """
    n, m = problem.n, problem.m
    loads = {
        name: (np.column_stack([weights, np.zeros(n)]), np.append(limits, np.inf))
        for name, (weights, limits) in problem.loads.items()
    }
    cost = np.column_stack([problem.cost_usd / max(float(problem.cost_usd.max()), 1e-300), np.full(n, 2.0 * m)])
    wider = AssignmentProblem(
        cost,
        np.zeros((n, m + 1)),
        capacity=None if problem.capacity is None else np.append(problem.capacity, np.inf),
        loads=loads,
        forbidden=None if problem.forbidden is None else np.column_stack([problem.forbidden, np.zeros(n, dtype=bool)]),
    )
    found = search(Rows.of(wider, 1.0), 1e-7).run()
    found = found.finish() if found.stuck else found
    choice = np.full(n, m) if found.choice is None else found.choice.astype(np.int64)
    choice[choice == m] = -1
    return filled(problem, choice)


def filled(problem: AssignmentProblem, choice: IntArray) -> IntArray:
    """The same with every query placed that still fits somewhere, cheapest model first."""
    slack = {name: np.array(left) for name, left in replace(problem, min_share=None).slack(choice).items()}
    limits = problem.column_limits
    for i in np.flatnonzero(choice < 0):
        for j in np.argsort(problem.cost_usd[i], kind="stable"):
            if problem.forbidden is not None and problem.forbidden[i, j]:
                continue
            if all(weights[i, j] <= slack[name][j] for name, (weights, _) in limits.items()):
                choice[i] = j
                for name, (weights, _) in limits.items():
                    slack[name][j] -= weights[i, j]
                break
    return choice


def subset(problem: AssignmentProblem, queries: IntArray) -> AssignmentProblem:
    """The problem for some of its queries; the least shares stay counts."""
    share = None
    if problem.min_share is not None:
        share = np.minimum(problem.least_counts / len(queries), 1.0)
    return replace(
        problem,
        cost_usd=problem.cost_usd[queries],
        quality=problem.quality[queries],
        switch_cost_usd=None if problem.switch_cost_usd is None else problem.switch_cost_usd[queries],
        forbidden=None if problem.forbidden is None else problem.forbidden[queries],
        loads={name: (weights[queries], limits) for name, (weights, limits) in problem.loads.items()},
        min_share=share,
        groups=None if problem.groups is None else [problem.groups[i] for i in queries],
    )
