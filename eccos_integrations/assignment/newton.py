"""The smoothed dual and Newton's method on it: multipliers good enough for the exact core to finish."""

import time
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from eccos_integrations.assignment.blocks import Block
from eccos_integrations.assignment.problem import FloatArray
from eccos_integrations.assignment.rows import Rows

STEPS = 25  # per temperature; about 5 are usual
CLOSE = 1e-5  # of temperature times queries: a step that would raise the dual by less ends a temperature
LARGEST_DAMPING = 1e8
LARGEST = 1e12  # multiplier; beyond, the rows cannot hold and differences drown in rounding


def climb(
    rows: Rows, block: Block, y: FloatArray, temperatures: Sequence[float], bounds: FloatArray, weight: float,
    deadline: float, steps: int = STEPS,
) -> FloatArray:  # fmt: skip
    """Raise the dual of these queries, smoothed at falling temperatures, by damped Newton steps over y >= 0.

    Args:
        rows: The coupling rows.
        block: The queries.
        y: Where to start.
        temperatures: In units of reduced cost, falling.
        bounds: (D,) right-hand sides left for these queries.
        weight: How many queries each of these stands for.
        deadline: `time.monotonic()` at which to stop.
        steps: Most steps per temperature.

    Returns:
        The multipliers reached.
    """
    scale = 1 / max(block.size * weight, 1)
    smoothed = _Smoothed(rows, block, bounds, weight)
    for temperature in temperatures:
        damping = 1e-4
        value, slope, curvature, size = smoothed.at(y, temperature)
        for _ in range(steps):
            if time.monotonic() > deadline:
                return y
            free = (y > 0) | (slope > 0)
            if not free.any():
                break
            at = np.ix_(free, free)
            damped = curvature[at] + np.diag(damping * size[free] + 1e-12 * (scale + size.max()))
            step = np.linalg.solve(damped, slope[free])
            trial = y.copy()
            trial[free] = np.clip(y[free] + step, 0.0, LARGEST)
            promised = float(slope @ (trial - y))
            if promised <= CLOSE * temperature / scale:
                break
            reached = smoothed.at(trial, temperature)
            if reached[0] > value:
                y, (value, slope, curvature, size) = trial, reached
                damping = max(damping / 8, 1e-9)
            else:
                damping *= 16
                if damping > LARGEST_DAMPING:
                    break
    return y


class _Smoothed:
    """The dual of a block with a soft minimum, and its first two derivatives."""

    def __init__(self, rows: Rows, block: Block, bounds: FloatArray, weight: float) -> None:
        self.rows, self.block, self.bounds, self.weight = rows, block, bounds, weight
        self.floors = len(rows.floors)
        self.uses = rows.uses(block)
        self.groups = None
        if block.floor is not None:
            entries = (np.ones(block.size), (block.floor, np.arange(block.size)))
            self.groups = csr_array(entries, shape=(self.floors, block.size))

    def _by_floor(self, values: FloatArray) -> FloatArray:
        """Sums (G, K) of values (K, n) over the queries of each floor."""
        if self.groups is None:
            return np.sum(values, axis=1)[None, :]  # type: ignore[no-any-return]
        sums: FloatArray = self.groups @ values.T
        return sums

    def at(self, y: FloatArray, temperature: float) -> tuple[float, FloatArray, FloatArray, FloatArray]:
        """Value, slope (D,), curvature (D, D) and the uncentred diagonal of the curvature."""
        share = self.rows.reduced(self.block, y)
        least = share.min(axis=0)
        np.subtract(least, share, out=share)
        share /= temperature
        np.exp(share, out=share)
        total = share.sum(axis=0)
        share /= total
        value = self.weight * float((least - temperature * np.log(total)).sum()) - float(y @ self.bounds)

        g, d = self.floors, len(y)
        mean = np.zeros((d - g, self.block.size))  # expected use of the rows beside the floors
        square = np.zeros((d, d))
        if g:
            shared_quality = share * self.block.quality
            quality = shared_quality.sum(axis=0)
            spread = (shared_quality * self.block.quality).sum(axis=0) - quality**2
        for j, (rows, uses) in enumerate(self.uses):
            shared = uses * share[j]
            mean[rows - g] += shared
            square[np.ix_(rows, rows)] += shared @ uses.T
            if g:
                square[:g, rows] -= self._by_floor(uses * shared_quality[j])
        uncentred = np.diag(square).copy()
        square[g:, g:] -= mean @ mean.T
        used = np.concatenate([np.zeros(g), mean.sum(axis=1)])
        if g:
            square[:g, g:] += self._by_floor(mean * quality)
            square[g:, :g] = square[:g, g:].T
            at_floor = self._by_floor(np.stack([spread, quality, quality**2]))
            square[np.arange(g), np.arange(g)] = at_floor[:, 0]
            used[:g] = -at_floor[:, 1]
            uncentred[:g] = at_floor[:, 0] + at_floor[:, 2]
        factor = self.weight / temperature
        return value, self.weight * used - self.bounds, factor * square, factor * uncentred
