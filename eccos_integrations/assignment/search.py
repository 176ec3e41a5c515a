"""The assignment by its Lagrangian dual: fast, certified, and exact in the few queries that are close.

The problem has one multiplier per coupling row, so its dual has a few dozen variables whatever the number of queries.

1. The dual of a sample, smoothed at falling temperatures, is raised by Newton steps.
2. One pass over all queries gives an exact bound and each query's margin between its two best models.
3. The queries of smallest margin, all others fixed, improve the multipliers; kept only where the exact bound rose.
4. The closest of them are solved exactly and rounded; their multipliers give the best bound.

Source: arXiv 2502.20576, section 3, for the Lagrangian of the objective, quality and capacity rows.
"""

import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.assignment.blocks import Scan
from eccos_integrations.assignment.core import Core
from eccos_integrations.assignment.newton import climb
from eccos_integrations.assignment.problem import FloatArray, IntArray
from eccos_integrations.assignment.rows import Rows

CORE = 12  # queries per row in the first core
SAMPLE = 2_000  # queries at least, 1 % at most
PER_ROOT = 30
COOLING = (1.0, 0.3, 0.1, 0.03, 0.01)
ACTIVE = 0.05  # share of the queries that step 3 works on
LARGEST_CORE = 25_000  # pairs: what a linear program solves in about a second
PATIENT = 6  # times larger while there is no answer at all
POLISHES = 5
CORRECTIONS = 3
WINDOWS = 12
MOVES_PER_USE = 4.0  # a query that moves changes what it uses of a row by about a quarter
TILT = 0.1  # share of the gap given to telling equal queries apart


@dataclass
class Search:
    """One solve of one set of rows: the multipliers and the assignment so far, and how far apart they are.

    Args:
        rows: The coupling rows.
        gap: Relative distance from the optimum that is good enough.
        deadline: `time.monotonic()` at which to stop.
        seed: Of the sample.
    """

    rows: Rows
    gap: float
    deadline: float
    seed: int = 0
    bound: float = -np.inf
    y: FloatArray = field(init=False)
    choice: NDArray[np.int16] | None = None
    value: float = np.inf
    infeasible: bool = False
    stuck: bool = False
    scan: Scan = field(init=False)

    @property
    def reached(self) -> float:
        """The relative gap so far."""
        return (self.value - self.bound) / max(abs(self.value), 1e-300) if self.choice is not None else np.inf

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return self.reached <= self.gap or self.infeasible or time.monotonic() > self.deadline

    def run(self) -> "Search":
        """Steps 1 to 4; returns early where the rows look as if they cannot hold, see `stuck`."""
        self.y = np.zeros(len(self.rows.bounds))
        self.scan = self._pass(self._sampled())
        size = CORE * (len(self.y) + 4)
        self._correct(size)
        for settle, enough in ((self._settle, size), (self._tell_apart, size * 4)):
            if self._mendable(enough) or self.infeasible:
                break
            self.infeasible = self.bound > self.rows.ceiling()
            if not self.infeasible:
                settle(size)
        self.stuck = not self._mendable(size * 16)
        return self if self.stuck else self.finish(size)

    def finish(self, size: int = 0) -> "Search":
        """Step 4 on growing cores; with tilted costs where growing does not help."""
        n, m = self.rows.problem.n, self.rows.problem.m
        first = size = size or CORE * (len(self.y) + 4)
        while not self.over:
            core = Core(self.rows, self.scan, size)
            if self._finish(core) or (n > SAMPLE and not self._mendable(first) and self._polish(first)):
                continue
            size *= 4
            largest = LARGEST_CORE if self.choice is not None else PATIENT * LARGEST_CORE
            too_large = (n * m if size >= n else 4 * len(core.model)) > largest
            if (too_large or size > first * 4) and not core.whole and not self.rows.tilt:
                self._tell_apart(first)
                size = first
            elif core.whole or too_large:
                break
        return self

    def _correct(self, core: int) -> None:
        """Step 1 again while it helps, the sample's rows corrected by what all queries use at the multipliers so far.

        A sample may be a little harder than the whole, so that rows close to what is reachable cannot hold in it.
        """
        for _ in range(CORRECTIONS):
            if self._mendable(core) or self.rows.problem.n <= SAMPLE or time.monotonic() > self.deadline:
                break
            scan = self._pass(self._sampled(reference=self.scan))
            if scan.bound <= self.scan.bound:
                break
            self.scan = scan

    def _settle(self, core: int) -> None:
        """Step 3 until so few moves are missing that a core can make them."""
        for _ in range(POLISHES):
            if self.rows.problem.n <= SAMPLE or self._mendable(core) or not self._polish(core):
                break

    def _tell_apart(self, core: int) -> None:
        """Tilt the costs, so that queries which are nearly equal need not all go the same way; steps 1 to 3 again."""
        n = self.rows.problem.n
        tilt = TILT * max(self.gap, 1e-7) * abs(self.scan.value) / n
        if time.monotonic() > self.deadline or not tilt:
            return
        before = self.scan
        self.rows = self.rows.with_tilt(tilt)
        scans = [self._pass(before.y), self._pass(self._sampled(tilt / 30, before))]
        self.scan = max(scans, key=lambda scan: scan.bound)
        self._settle(core)

    def _mendable(self, core: int) -> bool:
        """Whether so few moves are missing that this many queries can make them."""
        scan = self.scan
        miss = np.where(scan.y > 0, np.abs(scan.used - self.rows.bounds), scan.used - self.rows.bounds)
        return bool(miss.clip(min=0).sum() * MOVES_PER_USE <= core)

    def take(self, choice: NDArray[np.int16]) -> None:
        """Start from an assignment that is known to keep every row."""
        self.choice, self.value = choice, self.rows.total(choice)

    def _sampled(self, coldest: float = np.inf, reference: Scan | None = None) -> FloatArray:
        """Multipliers of a sample, cooled down to a temperature beyond the usual where one is given.

        Args:
            coldest: The temperature.
            reference: A pass over all queries; the sample's rows are moved by how far it is from typical there.
        """
        n = self.rows.problem.n
        size = min(n, max(SAMPLE, int(PER_ROOT * n**0.5)))
        taken = np.arange(n) if size == n else np.sort(np.random.default_rng(self.seed).choice(n, size, replace=False))
        block = self.rows.block(taken)
        reduced = self.rows.reduced(block, np.zeros(len(self.y)))
        open_ = np.isfinite(reduced)
        spread = float(reduced[open_].mean() - reduced.min(axis=0).mean())
        spread = spread if spread > 1e-9 * float(np.abs(reduced[open_]).mean()) else 1.0
        temperatures = [spread * share for share in COOLING]
        while temperatures[-1] > coldest:
            temperatures.append(temperatures[-1] / 3)
        bounds = self.rows.bounds * (size / n)
        if reference is not None:
            used = self.rows.usage(block, reference.choice[taken].astype(int))
            bounds = bounds + used - reference.used * (size / n)
        return climb(self.rows, block, self.y, temperatures, bounds, 1.0, self.deadline)

    def _pass(self, y: FloatArray) -> Scan:
        """Scan all queries at these multipliers; the bound is kept where it is the best so far."""
        scan = self.rows.scan(y)
        exact = self.rows.bound(y) if self.rows.tilt else scan.bound
        if exact > self.bound:
            self.bound, self.y = exact, y
        return scan

    def _polish(self, core: int) -> bool:
        """Step 3: whether the exact bound rose."""
        n = self.rows.problem.n
        size = min(n, max(SAMPLE, int(ACTIVE * n)))
        for _ in range(3):
            margin = self.scan.margin
            active = np.arange(n) if size >= n else np.sort(np.argpartition(margin, size)[:size])
            block = self.rows.block(active)
            left = self.rows.bounds - (self.scan.used - self.rows.usage(block, self.scan.choice[active].astype(int)))
            margins = np.sort(margin[active])
            high = float(margins[len(margins) // 2]) / 2
            low = max(float(margins[min(core, len(margins) - 1)]) * 0.3, high * 1e-4)
            temperatures = (
                np.geomspace(high, low, 1 + math.ceil(math.log10(high / low) * 1.5)) if high > 0 else np.zeros(0)
            )
            scan = self._pass(
                climb(self.rows, block, self.scan.y, list(temperatures), left, 1.0, self.deadline, steps=10)
            )
            if scan.bound > self.scan.bound:
                self.scan = scan
                return True
            if size >= n or time.monotonic() > self.deadline:
                break
            size = min(n, size * 4)
        return False

    def _finish(self, core: Core) -> bool:
        """Step 4 on this core; whether the exact bound rose enough to look at a core of the same size again."""
        relaxed = core.relax()
        if relaxed is None:
            self.infeasible = core.whole
            return False
        self._offer(core, core.rounded(relaxed.share))
        if self.over:
            return True
        before, scan = self.scan.bound, self._pass(relaxed.y)
        if scan.bound > before:
            self.scan = scan
        allowed = self.gap * abs(relaxed.value)
        if relaxed.value - self.bound > allowed / 2 and not core.whole:
            return scan.bound - before > (relaxed.value - before) / 2
        if not self.over:
            tightened = core.relax(core.missed(relaxed.share))
            if tightened is not None:
                self._offer(core, core.rounded(tightened.share))
        self._vary(core, relaxed.share)
        for size in (30, 90):
            seconds = min(self.deadline - time.monotonic(), 1.0)
            if self.over:
                break
            models = core.exact(relaxed.share, size, allowed=allowed / 4, seconds=seconds)
            self._offer(core, models)
        return False

    def _vary(self, core: Core, share: FloatArray) -> None:
        """Try the choices of the next closest queries too, window by window, from the best so far."""
        for window in range(WINDOWS):
            models = None if self.over else core.rounded(share, window)
            if models is not None:
                self._offer(core, models)
                share = np.eye(len(share))[:, models]

    def _offer(self, core: Core, models: IntArray | None) -> None:
        """Keep these models for the core queries if that is the best so far and keeps every row."""
        if models is None:
            return
        value = core.value(models)
        if value >= self.value:
            return
        choice = core.scan.choice.copy()
        choice[core.queries] = models
        if self.rows.is_feasible(choice):
            self.choice, self.value = choice, value
