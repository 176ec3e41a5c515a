"""The stream form of the assignment: one query at a time, at prices that move so that the means hold."""

import math
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eccos_integrations.assignment.milp import relaxed_prices
from eccos_integrations.assignment.problem import AssignmentProblem, FloatArray
from eccos_integrations.assignment.solution import Prices, adjusted_cost
from eccos_integrations.errors import ConfigError

Row = Sequence[float] | FloatArray

# A quality price stays within this factor of the batch's mean cost, up and down: beyond it, only quality counts, or
# only cost. The batch solvers stop there too.
RANGE = 1e4
# At four fifths of its limit a model costs about its usual margin more; at half, a hundredth of it.
STEEPNESS = 8
MOST_ROWS = 4096  # of a batch that the scales are taken from


class Pacer:
    """Decides single queries at the prices of the last batch, and moves the prices as the stream goes.

    What is still missing from the floor is owed, and moves the logarithm of the price of quality; a budget alike. Under
    a floor and a budget the lower price counts, so a floor gives way to a budget. A query easier than the batch's (by
    its best model's quality) puts its lead aside for harder ones, so that a stream sorted by difficulty does not spend
    in easy times what it needs later; one that stays easier keeps above its floor for a horizon, or until `resolve`.
    The rule at given prices is that of arXiv 2502.20576, section 3.

    Same calls, same decisions. Safe to share between threads. Keeps numbers, never a text.

    Args:
        problem: The last batch: its floor, budget and capacity hold on, and its rows say how the stream will be.
        prices: Its multipliers, `solution.prices`.
        horizon: Decisions over which the means have to hold. Longer: steadier prices, later to follow a change.
        window: Most recent rows kept for `resolve`.

    Raises:
        ConfigError: The problem has no rows or a floor per group, a price is not a finite number of at least 0, or
            `horizon` or `window` is below 1.

    Example:
        >>> problem = AssignmentProblem(cost_usd=[[1, 3], [1, 3]], quality=[[0.5, 0.9], [0.8, 0.9]], min_quality=0.85)
        >>> pacer = Pacer(problem, Prices(quality=10.0))
        >>> pacer.decide([0.5, 0.9], [1.0, 3.0]), pacer.decide([0.8, 0.9], [1.0, 3.0], load=[0.5, 0.0])
        (1, 0)
        >>> pacer.decide([0.5, 0.9], [1.0, 3.0], load=[0.5, 1.0])
        0
    """

    def __init__(
        self, problem: AssignmentProblem, prices: Prices, *, horizon: int = 50_000, window: int = 1000
    ) -> None:
        for name, value in (("horizon", horizon), ("window", window)):
            if value < 1:
                raise ConfigError(f"{name}: {value} decisions; give at least 1")
        if problem.groups is not None:
            raise ConfigError("problem: its floor is per group; make one Pacer per group, of that group's rows")
        if problem.n == 0:
            raise ConfigError("problem: it has no queries, so nothing tells the scale of costs; give the last batch")
        self._horizon = horizon
        self._floor = problem.floors.get("min_quality")
        self._budget = problem.max_mean_cost_usd
        self._capacity_share = None if problem.capacity is None else problem.capacity / problem.n
        self._min_share = problem.min_share
        self._idle = [0.0] * problem.m
        self._rows: deque[tuple[list[float], list[float]]] = deque(maxlen=window)
        self._count = 0
        self._quality = self._cost = 0.0
        self._lock = threading.Lock()
        self._start(problem, prices, owed=(0.0, 0.0))

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
            return state | {"_rows": self._rows.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return (
            f"Pacer({len(self._idle)} models, {self.placed} placed, mean_quality={self.mean_quality:.4f}, "
            f"mean_cost_usd={self.mean_cost_usd:.6g})"
        )

    @property
    def placed(self) -> int:
        """Queries that got a model."""
        return self._count

    @property
    def mean_quality(self) -> float:
        """Mean forecast quality of the placed queries; NaN if there are none."""
        return self._quality / self._count if self._count else math.nan

    @property
    def mean_cost_usd(self) -> float:
        """Mean forecast USD of the placed queries; NaN if there are none."""
        return self._cost / self._count if self._count else math.nan

    @property
    def prices(self) -> Prices:
        """Prices of the next decision; a binding budget is in the lower price of quality, and `budget` is 0."""
        return replace(self._batch_prices, quality=self._price)

    def decide(self, quality_row: Row, cost_row: Row, load: Row | None = None) -> int:
        """Choose the model of one query, and move the prices.

        Args:
            quality_row: (M,) forecast quality, 0..1. Lists are fastest up to about 30 models.
            cost_row: (M,) forecast USD, switch included.
            load: (M,) share of each model's limit in use right now, before this query; the largest share where a model
                has several limits. 0 = idle or no limit. From 1 on the model is full and never chosen; so is one that
                must not get this query. None = all idle.

        Returns:
            Index of the model, -1 where all are full. A query that got -1 leaves means and prices as they are.

        Raises:
            ConfigError: A row has the wrong length, or a value that is NaN or out of range. Nothing has changed then.
        """
        try:
            quality = quality_row.tolist() if isinstance(quality_row, np.ndarray) else [*quality_row]
            cost = cost_row.tolist() if isinstance(cost_row, np.ndarray) else [*cost_row]
            shares = self._idle if load is None else load.tolist() if isinstance(load, np.ndarray) else load
            sound = (
                len(quality) == len(cost) == len(shares) == len(self._idle)
                and min(quality) >= 0
                and max(quality) <= 1
                and min(cost) >= 0
                and sum(quality) + sum(cost) < math.inf  # not so with a NaN, which min and max pass over
                and (load is None or (min(shares) >= 0 and sum(shares) >= 0))
            )
        except TypeError:
            raise ConfigError("quality_row, cost_row, load: not rows of numbers; give one number per model") from None
        if not sound:
            raise ConfigError(self._complaint(quality, cost, shares))
        with self._lock:
            price = self._price
            chosen, least = -1, math.inf
            for j, (a, c, share, bonus) in enumerate(zip(quality, cost, shares, self._bonus, strict=True)):
                if share < 1:
                    value = c - price * a - bonus
                    if share > 0:
                        value += self._margin[j] * share**STEEPNESS / (1 - share)
                    if value < least:
                        chosen, least = j, value
            if chosen >= 0:
                self._rows.append((quality, cost))
                self._settle(quality[chosen], cost[chosen], max(quality))
        return chosen

    def resolve(self) -> Prices:
        """Solve the last `window` rows as a batch and restart from its prices; what is owed stays owed.

        Its time is a batch solve's, during which other threads can decide. The stream is then expected to go on like
        those rows, so a window much shorter than the stream's moods gives up what is put aside for harder queries.
        Loads other than capacity have no weights in a stream, and from here on count by `load` alone.

        Returns:
            The prices it restarted from: as they were, if nothing has been placed yet.
        """
        with self._lock:
            rows = list(self._rows)
        if not rows:
            return self.prices
        problem = AssignmentProblem(
            quality=np.array([quality for quality, _ in rows]),
            cost_usd=np.array([cost for _, cost in rows]),
            min_quality=self._floor,
            max_mean_cost_usd=self._budget,
            capacity=None if self._capacity_share is None else np.ceil(self._capacity_share * len(rows)),
            min_share=self._min_share,
        )
        prices = relaxed_prices(problem)
        with self._lock:
            self._start(problem, prices, owed=(self._for_floor.owed, self._for_budget.owed))
            return self.prices

    def _start(self, problem: AssignmentProblem, prices: Prices, owed: tuple[float, float]) -> None:
        """Prices and scales from a batch."""
        weigh = 1 / (1 + prices.budget)  # the rule in USD of cost, not of priced cost
        loads = {name: weigh * np.asarray(price, dtype=np.float64) for name, price in prices.loads.items()}
        bonus = np.broadcast_to(weigh * np.asarray(prices.min_share, dtype=np.float64), problem.m)
        usd = weigh * prices.quality if isinstance(prices.quality, (int, float)) else math.nan
        if not (math.isfinite(usd) and usd >= 0 and all(np.isfinite(p).all() for p in (*loads.values(), bonus))):
            raise ConfigError(f"prices: {prices} are not finite numbers of at least 0; give `solution.prices`")
        self._batch_prices = Prices(usd, 0.0, loads, bonus)
        self._bonus = bonus.tolist()

        some = slice(None, None, -(-problem.n // MOST_ROWS))
        tops = problem.quality[some].max(axis=1)
        # Known from some rows only: a lead within one standard error is no lead. One perfect and one hopeless query on
        # top keep a tiny batch from being sure of itself.
        error = float(np.std([*tops, 0.0, 1.0]) / math.sqrt(len(tops)))
        self._usual, self._lead = float(tops.mean()) + error, 0.0

        scale = float(problem.cost_usd[some].mean()) or 1.0
        self._unit = self._budget or scale
        self._for_floor = _Price(usd, scale, self._horizon, owed[0])
        self._for_budget = _Price(usd, scale, self._horizon, owed[1])
        self._price = self._least_price()

        # What sending a query elsewhere costs: the usual distance of second best from best, and the batch's own price.
        best = np.sort(adjusted_cost(problem, prices, some), axis=1)
        gaps = weigh * (best[:, 1] - best[:, 0]) if problem.m > 1 else np.zeros(0)
        usual = float(np.mean(gaps[np.isfinite(gaps)])) if np.isfinite(gaps).any() else 0.0
        batch = np.full(problem.m, usual or scale)
        for name, (weights, _) in problem.column_limits.items():
            batch += weights[some].mean(axis=0) * loads.get(name, 0.0)
        self._margin = batch.tolist()

    def _settle(self, quality: float, cost: float, top: float) -> None:
        """Count a decision and move the prices."""
        self._count += 1
        self._quality += quality
        self._cost += cost
        if self._floor is not None:
            self._lead += top - self._usual - self._lead / self._horizon
            self._for_floor.move(self._floor - quality, max(self._lead, 0.0))
        if self._budget is not None:
            self._for_budget.move((self._budget - cost) / self._unit, 0.0)
        self._price = self._least_price()

    def _least_price(self) -> float:
        """The lower of the floor's and the budget's price of quality; 0 where neither is asked for."""
        floor = self._for_floor.usd if self._floor is not None else math.inf
        budget = self._for_budget.usd if self._budget is not None else math.inf
        least = min(floor, budget)
        return least if least < math.inf else 0.0

    def _complaint(self, quality: Sequence[float], cost: Sequence[float], load: Sequence[float]) -> str:
        rows = (
            ("quality_row", quality, 1.0, "at least 0 and at most 1"),
            ("cost_row", cost, sys.float_info.max, "at least 0 and finite"),
            ("load", load, math.inf, "at least 0, and 1 or more only for a full model"),
        )
        for name, row, most, right in rows:
            if len(row) != len(self._idle):
                return f"{name}: {len(row)} values for {len(self._idle)} models; give one per model"
            for j, value in enumerate(row):
                if not 0 <= value <= most:
                    return f"{name}: {value} for model {j} is out of range; it must be {right}"
        return "cost_row: its sum is not finite; give costs in USD"


class _Price:
    """One price of quality: its logarithm follows what is owed, and where it settles becomes its base.

    Chance alone makes a sum over the horizon stray by about the root of the horizon. So that much, and no more, may be
    owed, and it moves the price across its whole range: no wind-up, and no step to tune. The base follows ten roots
    behind, slow enough not to swing where a price ten times higher buys 0.05 of quality.
    """

    __slots__ = ("base", "gain", "high", "low", "most", "owed", "pull", "usd")

    def __init__(self, usd: float, scale: float, horizon: int, owed: float) -> None:
        self.low, self.high = math.log(scale) - math.log(RANGE), math.log(scale) + math.log(RANGE)
        self.most = math.sqrt(horizon)
        self.gain = (self.high - self.low) / self.most
        self.pull = 1 / (10 * self.most)
        start = min(max(math.log(usd), self.low), self.high) if usd > 0 else self.low
        self.usd = math.exp(start)
        self.owed = min(max(owed, -self.most), self.most)
        self.base = start - self.owed * self.gain

    def move(self, missing: float, aside: float) -> None:
        """Owe what is missing from one decision; what is put aside for later is not spent now."""
        due = min(max(self.owed + missing + aside, -self.most), self.most)
        self.owed = due - aside
        price = self.base + due * self.gain
        if price < self.low:
            price = self.low
        elif price > self.high:
            price = self.high
        else:
            self.base += (price - self.base) * self.pull
        self.usd = math.exp(price)
