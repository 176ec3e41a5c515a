"""The assignment problem: its rows, and whether an assignment keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Sums of floats miss a bound they meet on paper by about this much, relatively. Every row is relaxed by it once, here,
# and bounds and feasibility tests use the relaxed row alike.
ROUNDING = 1e-12
RESERVED = ("capacity", "min_quality", "max_mean_cost_usd", "min_share", "forbidden")


@dataclass(frozen=True, eq=False, repr=False)
class AssignmentProblem:
    """Assign each of N queries to one of M models at least cost.

        minimise    sum_ij (c_ij + switch_ij) x_ij
        subject to  sum_j x_ij = 1                                      one model per query
                    sum_ij a_ij x_ij >= min_quality * N                 mean quality, or one such row per group
                    sum_ij (c_ij + switch_ij) x_ij <= max_mean_cost * N
                    sum_i x_ij <= capacity_j
                    sum_i w_rij x_ij <= b_rj                            each load r
                    sum_i x_ij >= min_share_j * N
                    x_ij in {0, 1}, 0 where forbidden

    With a budget and no floor, quality is maximised instead. Where not all queries can be placed, the means are over
    those that are.

    Source: arXiv 2502.20576, section 3 (objective, quality and capacity rows); the other rows are ours.

    Arrays are copied unless they are read-only (`array.flags.writeable = False`), which spares the memory of a second
    copy where they are large.

    Args:
        cost_usd: (N, M) c, USD.
        quality: (N, M) a, expected score in 0..1.
        min_quality: Floor on the mean quality; a mapping from group label to floor where `groups` is given.
        max_mean_cost_usd: Most USD per query on average.
        capacity: (M,) most queries per model; inf for no limit.
        loads: Per name, weights (N, M) not negative and limits (M,).
        min_share: (M,) least share of the queries per model.
        forbidden: (N, M) bool.
        switch_cost_usd: (N, M) USD paid on top where a query changes model.
        groups: N labels; needs `min_quality` by label.

    Raises:
        ConfigError: A shape or a value is wrong; names the field.

    Example:
        >>> problem = AssignmentProblem(cost_usd=[[1, 3], [1, 3]], quality=[[0.5, 1], [0.75, 1]], min_quality=0.85)
        >>> problem.mean_quality([1, 0])
        0.875
    """

    cost_usd: FloatArray
    quality: FloatArray
    min_quality: float | Mapping[str, float] | None = None
    max_mean_cost_usd: float | None = None
    capacity: FloatArray | None = None
    loads: Mapping[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    min_share: FloatArray | None = None
    forbidden: NDArray[np.bool_] | None = None
    switch_cost_usd: FloatArray | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        shape = _numbers("cost_usd", self.cost_usd, "(queries, models)").shape
        if len(shape) != 2 or shape[1] == 0:
            raise ConfigError(f"cost_usd: shape {shape}, expected (queries, models) with at least one model")
        n, m = shape
        self._set("cost_usd", _checked("cost_usd", self.cost_usd, (n, m)))
        self._set("quality", _checked("quality", self.quality, (n, m), most=1.0))
        for name, shape, infinite, most in (
            ("switch_cost_usd", (n, m), False, np.inf),
            ("capacity", (m,), True, np.inf),
            ("min_share", (m,), False, 1.0),
        ):
            given = getattr(self, name)
            if given is not None:
                self._set(name, _checked(name, given, shape, infinite=infinite, most=most))
        if self.capacity is not None:
            self._set("capacity", np.floor(self.capacity))
        if not isinstance(self.loads, Mapping):
            raise ConfigError("loads: give a mapping from name to (weights, limits)")
        loads = {}
        for name, pair in self.loads.items():
            if name in RESERVED:
                raise ConfigError(f"loads: {name!r} is a row of its own; give another name")
            if len(pair) != 2:
                raise ConfigError(f"loads[{name!r}]: {len(pair)} entries; give the pair (weights, limits)")
            weights, limits = pair
            loads[name] = (
                _checked(f"loads[{name!r}] weights", weights, (n, m)),
                _checked(f"loads[{name!r}] limits", limits, (m,), infinite=True),
            )
        self._set("loads", loads)
        if self.forbidden is not None:
            forbidden = _owned(self.forbidden, np.asarray(self.forbidden))
            if forbidden.shape != (n, m) or forbidden.dtype != np.bool_:
                raise ConfigError(f"forbidden: {forbidden.dtype} of shape {forbidden.shape}, expected bool {(n, m)}")
            self._set("forbidden", forbidden)
        if self.max_mean_cost_usd is not None:
            _checked("max_mean_cost_usd", self.max_mean_cost_usd, ())
        self._check_floors(n)

    def _check_floors(self, n: int) -> None:
        if (self.groups is None) == isinstance(self.min_quality, Mapping):
            raise ConfigError("min_quality: give a mapping from group label to floor exactly where groups are given")
        if self.min_quality is not None and not isinstance(self.min_quality, Mapping):
            _checked("min_quality", self.min_quality, (), most=1.0)
        if isinstance(self.min_quality, Mapping):
            assert self.groups is not None
            self._set("groups", [str(label) for label in self.groups])
            if len(self.groups) != n:
                raise ConfigError(f"groups: {len(self.groups)} labels for {n} queries; give one per query")
            self._set("min_quality", dict(self.min_quality))
            if missing := sorted(set(self.groups) - set(self.min_quality)):
                raise ConfigError(f"min_quality: no floor for the groups {missing}; give one for each, 0 for none")
        for label, floor in self.floors.items():
            _checked(label, floor, (), most=1.0)

    @cached_property
    def floor_index(self) -> IntArray:
        """(N,) which of `floors` each query counts for."""
        if self.groups is None:
            return np.zeros(self.n, dtype=np.int64)
        assert isinstance(self.min_quality, Mapping)
        at = {label: index for index, label in enumerate(self.min_quality)}
        return np.fromiter((at[label] for label in self.groups), dtype=np.int64, count=self.n)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"AssignmentProblem({self.n} queries x {self.m} models, rows: {', '.join(self.row_names) or 'none'})"

    @property
    def n(self) -> int:
        """Number of queries."""
        return len(self.cost_usd)

    @property
    def m(self) -> int:
        """Number of models."""
        return int(self.cost_usd.shape[1])

    @property
    def row_names(self) -> list[str]:
        """Names of the rows that may bind, as in `Solution.slack`."""
        names = list(self.floors)
        names += ["max_mean_cost_usd"] if self.max_mean_cost_usd is not None else []
        return names + list(self.column_limits) + (["min_share"] if self.min_share is not None else [])

    @property
    def maximises_quality(self) -> bool:
        """Whether a budget stands alone, so that quality is the objective."""
        return self.max_mean_cost_usd is not None and not self.floors

    @property
    def paid_usd(self) -> FloatArray:
        """(N, M) what a query costs on a model, switch included."""
        return self.cost_usd if self.switch_cost_usd is None else self.cost_usd + self.switch_cost_usd

    @cached_property
    def budget_binds(self) -> bool:
        """Whether there is a budget that some assignment exceeds."""
        if self.max_mean_cost_usd is None:
            return False
        dearest = self.cost_usd.max(initial=0.0)
        if self.switch_cost_usd is not None:
            dearest += self.switch_cost_usd.max(initial=0.0)
        return bool(self.max_mean_cost_usd < dearest)

    @property
    def floors(self) -> dict[str, float]:
        """Quality floors by row name: `min_quality`, or `min_quality[label]` for each group."""
        if self.min_quality is None:
            return {}
        if isinstance(self.min_quality, Mapping):
            return {f"min_quality[{label}]": floor for label, floor in self.min_quality.items()}
        return {"min_quality": float(self.min_quality)}

    def members(self, floor: str) -> NDArray[np.bool_]:
        """(N,) which queries a floor is about."""
        return np.equal(self.floor_index, list(self.floors).index(floor))

    @property
    def column_limits(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Rows that limit one model each: per name, weights (N, M) and limits (M,), relaxed by rounding."""
        rows = {} if self.capacity is None else {"capacity": (np.broadcast_to(1.0, (self.n, self.m)), self.capacity)}
        return rows | {name: (w, limits * (1 + ROUNDING)) for name, (w, limits) in self.loads.items()}

    def mean_quality(self, assignment: Sequence[int] | NDArray[np.integer[Any]]) -> float:
        """Mean quality of the placed queries; NaN if there are none."""
        return _mean(_taken(self.quality, assignment))

    def mean_cost_usd(self, assignment: Sequence[int] | NDArray[np.integer[Any]]) -> float:
        """Mean USD of the placed queries, switch included; NaN if there are none."""
        return _mean(self.paid_by(assignment))

    def paid_by(self, assignment: Sequence[int] | NDArray[np.integer[Any]]) -> FloatArray:
        """USD of each placed query, switch included."""
        paid = _taken(self.cost_usd, assignment)
        return paid if self.switch_cost_usd is None else paid + _taken(self.switch_cost_usd, assignment)

    def slack(self, assignment: NDArray[np.integer[Any]]) -> dict[str, float | FloatArray]:
        """How far each row is from its bound, in the row's own unit; negative is what is missing.

        Args:
            assignment: (N,) model of each query, -1 = not placed.

        Returns:
            Per row name a number, or (M,) for rows with one bound per model.
        """
        placed = assignment >= 0
        slack: dict[str, float | FloatArray] = {}
        for name, floor in self.floors.items():
            inside = placed & self.members(name)
            missing = (self.quality[inside, assignment[inside]] - floor).sum() + ROUNDING * inside.sum()
            slack[name] = float(missing / max(inside.sum(), 1))
        if self.max_mean_cost_usd is not None:
            left = (self.max_mean_cost_usd * (1 + ROUNDING) - self.paid_by(assignment)).sum()
            slack["max_mean_cost_usd"] = float(left / max(placed.sum(), 1))
        for name, (weights, limits) in self.column_limits.items():
            used = np.bincount(assignment[placed], weights=_taken(weights, assignment), minlength=self.m)
            slack[name] = limits - used
        if self.min_share is not None:
            slack["min_share"] = np.bincount(assignment[placed], minlength=self.m) - self.least_counts
        return slack

    @property
    def least_counts(self) -> FloatArray:
        """(M,) least number of queries per model, from `min_share`."""
        share = np.zeros(self.m) if self.min_share is None else self.min_share
        return np.ceil(share * self.n - ROUNDING * self.n)

    def is_feasible(self, assignment: NDArray[np.integer[Any]]) -> bool:
        """Whether every query is placed where it may go and every row holds."""
        if (assignment < 0).any() or (self.forbidden is not None and _taken(self.forbidden, assignment).any()):
            return False
        return all(np.min(slack) >= 0 for slack in self.slack(assignment).values())


def _taken(array: NDArray[Any], assignment: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
    """The entries of the placed queries."""
    assignment = np.asarray(assignment, dtype=np.int64)
    placed = np.flatnonzero(assignment >= 0)
    taken: NDArray[Any] = array[placed, assignment[placed]]
    return taken


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _numbers(name: str, given: object, shape: object) -> FloatArray:
    try:
        return np.asarray("" if given is None else given, dtype=np.float64)  # numpy takes None for NaN
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: not numbers; give an array of shape {shape}") from None


def _owned(given: object, array: NDArray[Any]) -> NDArray[Any]:
    """The array, read-only: as it is if nobody can write to it, else a copy."""
    if array.flags.writeable and isinstance(given, np.ndarray) and np.may_share_memory(given, array):
        array = array.copy()
    array = np.ascontiguousarray(array) if array.ndim else array
    array.flags.writeable = False
    return array


def _checked(
    name: str, given: object, shape: tuple[int, ...], *, infinite: bool = False, most: float = np.inf
) -> FloatArray:
    """The value as a float array of this shape, not negative, at most `most`; inf only where it means no limit."""
    array = _numbers(name, given, shape)
    if array.shape != shape:
        raise ConfigError(f"{name}: shape {array.shape}, expected {shape}")
    if array.size:
        lowest, highest = float(array.min()), float(array.max())  # NaN where there is any
        if not (lowest >= 0 and highest <= most and (infinite or highest < np.inf)):
            wrong = lowest if not lowest >= 0 else highest
            raise ConfigError(f"{name}: {wrong:g} is out of range; it must be at least 0" + (
                f" and at most {most:g}" if np.isfinite(most) else "" if infinite else " and finite"))  # fmt: skip
    return _owned(given, array)
