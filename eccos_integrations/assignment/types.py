"""Queries that are alike in every number are one type with a count: what is left to decide is how many go where."""

from dataclasses import dataclass

import numpy as np

from eccos_integrations.assignment.problem import AssignmentProblem, FloatArray, IntArray

LOOKED_AT = 256  # queries in which at least half must have a twin before all are compared


@dataclass(frozen=True, eq=False)
class Types:
    """The distinct queries of a problem.

    Args:
        first: (T,) a query of each type.
        of: (N,) type of each query.
        count: (T,) queries of each type.
    """

    first: IntArray
    of: IntArray
    count: IntArray

    @classmethod
    def in_problem(cls, problem: AssignmentProblem) -> "Types":
        """The types; every query is one of its own where few have a twin."""
        every = np.arange(problem.n)
        some = every[:: max(1, problem.n // LOOKED_AT)]
        if 2 * len(np.unique(_numbers(problem, some), axis=0)) > len(some):
            return cls(every, every, np.ones(problem.n, dtype=np.int64))
        numbers = np.ascontiguousarray(_numbers(problem, every))
        rows = numbers.view(np.dtype((np.void, numbers.strides[0])))[:, 0]
        _, first, of, count = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
        return cls(first, of, count)

    def __len__(self) -> int:
        return len(self.first)

    def spread(self, kind: IntArray, model: IntArray, number: IntArray) -> IntArray:
        """(N,) model of each query, -1 where none, from how many of each type each model gets.

        Args:
            kind: (K,) types.
            model: (K,) models.
            number: (K,) how many queries of the type the model gets.
        """
        rest = self.count - np.bincount(kind, weights=number, minlength=len(self)).astype(np.int64)
        kinds = np.concatenate([kind, np.arange(len(self))])
        models = np.concatenate([model, np.full(len(self), -1)])
        numbers = np.concatenate([number, rest])
        order = np.argsort(kinds, kind="stable")
        assignment = np.empty(len(self.of), dtype=np.int64)
        assignment[np.argsort(self.of, kind="stable")] = np.repeat(models[order], numbers[order])
        return assignment


def _numbers(problem: AssignmentProblem, queries: IntArray) -> FloatArray:
    """All numbers of these queries, one row each."""
    parts = [problem.cost_usd[queries], problem.quality[queries]]
    if problem.switch_cost_usd is not None:
        parts.append(problem.switch_cost_usd[queries])
    if problem.forbidden is not None:
        parts.append(problem.forbidden[queries].astype(np.float64))
    parts += [weights[queries] for weights, _ in problem.loads.values()]
    if problem.groups is not None:
        parts.append(problem.floor_index[queries, None].astype(np.float64))
    return np.hstack(parts)
