"""The assignment problem, its solution, and the arithmetic both solvers and tests share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Status = Literal["optimal", "feasible", "infeasible", "time_limit"]

# Sums of floats miss a bound they meet on paper by about this much, relatively. Every row is relaxed by it once, here,
# and bounds and feasibility tests use the relaxed row alike.
ROUNDING = 1e-12


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
        cost = np.asarray(self.cost_usd, dtype=np.float64)
        if cost.ndim != 2 or cost.shape[1] == 0:
            raise ConfigError(f"cost_usd: shape {cost.shape}, expected (queries, models) with at least one model")
        n, m = cost.shape
        self._set("cost_usd", _checked("cost_usd", cost, (n, m)))
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
        loads = {}
        for name, (weights, limits) in self.loads.items():
            if name == "capacity":
                raise ConfigError("loads: 'capacity' is a row of its own; give another name")
            loads[name] = (
                _checked(f"loads[{name!r}] weights", weights, (n, m)),
                _checked(f"loads[{name!r}] limits", limits, (m,), infinite=True),
            )
        self._set("loads", loads)
        if self.forbidden is not None:
            forbidden = np.asarray(self.forbidden)
            if forbidden.shape != (n, m) or forbidden.dtype != np.bool_:
                raise ConfigError(f"forbidden: {forbidden.dtype} of shape {forbidden.shape}, expected bool {(n, m)}")
            self._set("forbidden", forbidden)
        if self.max_mean_cost_usd is not None:
            _checked("max_mean_cost_usd", self.max_mean_cost_usd, ())
        self._check_floors(n)

    def _check_floors(self, n: int) -> None:
        if (self.groups is None) == isinstance(self.min_quality, Mapping):
            raise ConfigError("min_quality: give a mapping from group label to floor exactly where groups are given")
        if isinstance(self.min_quality, Mapping):
            assert self.groups is not None
            self._set("groups", [str(label) for label in self.groups])
            if len(self.groups) != n:
                raise ConfigError(f"groups: {len(self.groups)} labels for {n} queries; give one per query")
            if missing := sorted(set(self.groups) - set(self.min_quality)):
                raise ConfigError(f"min_quality: no floor for the groups {missing}; give one for each, 0 for none")
        for label, floor in self.floors.items():
            _checked(label, floor, (), most=1.0)

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
        if self.groups is None:
            return np.ones(self.n, dtype=np.bool_)
        return np.array([f"min_quality[{label}]" == floor for label in self.groups], dtype=np.bool_)

    @property
    def column_limits(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Rows that limit one model each: per name, weights (N, M) and limits (M,), relaxed by rounding."""
        rows = {} if self.capacity is None else {"capacity": (np.ones((self.n, self.m)), self.capacity)}
        return rows | {name: (w, limits * (1 + ROUNDING)) for name, (w, limits) in self.loads.items()}

    def mean_quality(self, assignment: Sequence[int] | IntArray) -> float:
        """Mean quality of the placed queries; NaN if there are none."""
        return _mean(_taken(self.quality, assignment))

    def mean_cost_usd(self, assignment: Sequence[int] | IntArray) -> float:
        """Mean USD of the placed queries, switch included; NaN if there are none."""
        return _mean(_taken(self.paid_usd, assignment))

    def slack(self, assignment: IntArray) -> dict[str, float | FloatArray]:
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
            left = (self.max_mean_cost_usd * (1 + ROUNDING) - _taken(self.paid_usd, assignment)).sum()
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

    def is_feasible(self, assignment: IntArray) -> bool:
        """Whether every query is placed where it may go and every row holds."""
        if (assignment < 0).any() or (self.forbidden is not None and _taken(self.forbidden, assignment).any()):
            return False
        return all(np.min(slack) >= 0 for slack in self.slack(assignment).values())


@dataclass(frozen=True)
class Prices:
    """Lagrange multipliers: what one more unit of each row would save.

    Rule: query i goes to the model with the least
    `(1 + budget) * (c_ij + switch_ij) - quality * a_ij + sum_r loads[r][j] * w_rij - min_share[j]`.

    Args:
        quality: USD per unit of one query's quality; by group label where floors are per group.
        budget: USD saved per USD more to spend.
        loads: Per load (and `"capacity"`), (M,) USD per unit of load.
        min_share: (M,) USD per query more the model must get.
    """

    quality: float | Mapping[str, float] = 0.0
    budget: float = 0.0
    loads: Mapping[str, FloatArray] = field(default_factory=dict)
    min_share: FloatArray | float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """An assignment and the proof of how good it is.

    Args:
        assignment: (N,) model of each query, -1 = not placed.
        status: `"optimal"`: feasible and proven within the asked gap. `"feasible"`: feasible, gap larger than asked.
            `"infeasible"`: no assignment meets every row; this is the nearest. `"time_limit"`: stopped early.
        message: The status in words; which row cannot be met, and what could be reached.
        mean_quality: Of the placed queries.
        mean_cost_usd: Of the placed queries, switch included.
        total_cost_usd: Switch included.
        lower_bound: No assignment that meets every row costs less in total (USD). -inf where quality is maximised, inf
            where no assignment meets every row.
        gap: Relative distance of the objective from its bound; NaN where infeasible.
        prices: The multipliers.
        slack: See `AssignmentProblem.slack`.
    """

    assignment: IntArray
    status: Status
    message: str
    mean_quality: float
    mean_cost_usd: float
    total_cost_usd: float
    lower_bound: float
    gap: float
    prices: Prices
    slack: dict[str, float | FloatArray]

    def __repr__(self) -> str:
        return (
            f"Solution({self.status}, {len(self.assignment)} queries, mean_quality={self.mean_quality:.4f}, "
            f"total_cost_usd={self.total_cost_usd:.6g}, gap={self.gap:.1e})"
        )


def adjusted_cost(problem: AssignmentProblem, prices: Prices) -> FloatArray:
    """(N, M) USD: cost with every row priced in; each query's least is where the prices send it. inf = forbidden."""
    adjusted = (1 + prices.budget) * problem.paid_usd - prices.min_share
    if problem.maximises_quality:
        adjusted -= quality_price(prices, "min_quality") * problem.quality
    for name in problem.floors:
        inside = problem.members(name)
        adjusted[inside] -= quality_price(prices, name) * problem.quality[inside]
    for name, (weights, _) in problem.column_limits.items():
        adjusted += weights * prices.loads.get(name, 0.0)
    if problem.forbidden is not None:
        adjusted[problem.forbidden] = np.inf
    return adjusted


def lagrangian_bound(problem: AssignmentProblem, prices: Prices) -> float:
    """A lower bound on the total cost (USD) of any feasible assignment, from prices alone.

    Weak duality: arXiv 2502.20576, section 3 (dual function g), with every row of the problem. -inf where quality is
    maximised: prices then bound the quality.
    """
    if problem.maximises_quality:
        return -np.inf
    constant = 0.0
    for name, floor in problem.floors.items():
        constant += quality_price(prices, name) * (floor - ROUNDING) * problem.members(name).sum()
    if problem.max_mean_cost_usd is not None:
        constant -= prices.budget * problem.max_mean_cost_usd * (1 + ROUNDING) * problem.n
    for name, (_, limits) in problem.column_limits.items():
        price = np.broadcast_to(prices.loads.get(name, 0.0), limits.shape)
        constant -= float(price[price > 0] @ limits[price > 0])
    constant += float(np.sum(prices.min_share * problem.least_counts))
    return float(adjusted_cost(problem, prices).min(axis=1).sum()) + constant


def quality_price(prices: Prices, floor: str) -> float:
    """The price of a floor by its row name."""
    if isinstance(prices.quality, Mapping):
        return prices.quality.get(floor.removeprefix("min_quality[").removesuffix("]"), 0.0)
    return prices.quality


def _taken(array: NDArray[Any], assignment: Sequence[int] | IntArray) -> NDArray[Any]:
    """The entries of the placed queries."""
    assignment = np.asarray(assignment, dtype=np.int64)
    placed = np.flatnonzero(assignment >= 0)
    taken: NDArray[Any] = array[placed, assignment[placed]]
    return taken


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _checked(
    name: str, given: object, shape: tuple[int, ...], *, infinite: bool = False, most: float = np.inf
) -> FloatArray:
    """The value as a float array of this shape, not negative, at most `most`; inf only where it means no limit."""
    try:
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: not numbers; give an array of shape {shape}") from None
    if array.shape != shape:
        raise ConfigError(f"{name}: shape {array.shape}, expected {shape}")
    right = (array >= 0) & (array <= most) & (infinite | np.isfinite(array))
    if not right.all():
        wrong = array[~right].flat[0] if array.ndim else array
        raise ConfigError(f"{name}: {float(wrong):g} is out of range; it must be at least 0" + (
            f" and at most {most:g}" if np.isfinite(most) else "" if infinite else " and finite"))  # fmt: skip
    return array
