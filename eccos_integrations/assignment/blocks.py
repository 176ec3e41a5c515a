"""What passes over the queries work on and give: a block of queries, and one scan of them all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.assignment.problem import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Scan:
    """One pass over all queries at given multipliers.

    Args:
        y: (D,) the multipliers.
        bound: Exact value of the dual: no assignment that keeps the rows has a smaller objective.
        choice: (N,) model of least reduced cost.
        margin: (N,) float32 distance to the second best.
        beyond: (N,) float32 distance to the best that is no tie, where costs are tilted; else the margin.
        used: (D,) what the choices use of each row.
        value: Objective of the choices.
    """

    y: FloatArray
    bound: float
    choice: NDArray[np.int16]
    margin: NDArray[np.float32]
    beyond: NDArray[np.float32]
    used: FloatArray
    value: float


@dataclass(frozen=True, eq=False)
class Block:
    """Some queries, transposed: what the smoothed dual and the core work on.

    Args:
        paid: (M, n) cost in units of the scale.
        quality: (M, n).
        floor: (n,) which floor each query counts for.
        weights: Per load (M, n), None for a load of one per query.
        closed: (M, n) bool, forbidden pairs, or None.
        tilt: (n,) 0..1, see `Rows.tilt`, or None.
    """

    paid: FloatArray
    quality: FloatArray
    floor: IntArray | None
    weights: list[FloatArray | None]
    closed: NDArray[np.bool_] | None
    tilt: FloatArray | None

    @property
    def size(self) -> int:
        """Number of queries."""
        return int(self.paid.shape[1])


def two_least(reduced: FloatArray) -> tuple[FloatArray, FloatArray, IntArray]:
    """Least, second least and the position of the least in each column; a loop over few models beats argmin."""
    best = reduced[0].copy()
    second = np.full(best.shape, np.inf)
    chosen = np.zeros(best.shape, dtype=np.int64)
    for j in range(1, len(reduced)):
        row = reduced[j]
        np.copyto(chosen, j, where=row < best)
        np.minimum(second, np.maximum(row, best), out=second)
        np.minimum(best, row, out=best)
    return best, second, chosen
