"""Solutions, prices, and the bound that prices alone prove."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from eccos_integrations.assignment.problem import ROUNDING, AssignmentProblem, FloatArray, IntArray

Status = Literal["optimal", "feasible", "infeasible", "time_limit"]

# Cells looked at in one go: what a core's cache holds, so that no (N, M) temporary is ever made.
CHUNK_CELLS = 80_000


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


def adjusted_cost(problem: AssignmentProblem, prices: Prices, queries: slice = slice(None)) -> FloatArray:
    """(N, M) USD: cost with every row priced in; each query's least is where the prices send it. inf = forbidden.

    Args:
        problem: Its rows; a price of a row it does not have counts nothing.
        prices: The multipliers.
        queries: Which queries, for callers that cannot hold all at once.
    """
    paid = problem.cost_usd[queries]
    if problem.switch_cost_usd is not None:
        paid = paid + problem.switch_cost_usd[queries]
    adjusted: FloatArray = paid * (1.0 if problem.max_mean_cost_usd is None else 1 + prices.budget)
    if problem.min_share is not None:
        adjusted -= prices.min_share
    if problem.maximises_quality:
        adjusted -= quality_price(prices, "min_quality") * problem.quality[queries]
    elif problem.floors:
        price = np.array([quality_price(prices, name) for name in problem.floors])
        adjusted -= price[problem.floor_index[queries], None] * problem.quality[queries]
    for name, (weights, _) in problem.column_limits.items():
        adjusted += weights[queries] * prices.loads.get(name, 0.0)
    if problem.forbidden is not None:
        adjusted[problem.forbidden[queries]] = np.inf
    return adjusted


def lagrangian_bound(problem: AssignmentProblem, prices: Prices) -> float:
    """A lower bound on the total cost (USD) of any feasible assignment, from prices alone.

    Weak duality: arXiv 2502.20576, section 3 (dual function g), with every row of the problem. -inf where quality is
    maximised: prices then bound the quality.
    """
    if problem.maximises_quality:
        return -np.inf
    constant = 0.0
    sizes = np.bincount(problem.floor_index, minlength=len(problem.floors))
    for size, (name, floor) in zip(sizes, problem.floors.items(), strict=False):
        constant += quality_price(prices, name) * (floor - ROUNDING) * size
    if problem.max_mean_cost_usd is not None:
        constant -= prices.budget * problem.max_mean_cost_usd * (1 + ROUNDING) * problem.n
    for name, (_, limits) in problem.column_limits.items():
        price = np.broadcast_to(prices.loads.get(name, 0.0), limits.shape)
        constant -= float(price[price > 0] @ limits[price > 0])
    if problem.min_share is not None:
        constant += float(np.sum(prices.min_share * problem.least_counts))
    step = max(1, CHUNK_CELLS // problem.m)
    chunks = (slice(start, start + step) for start in range(0, problem.n, step))
    return sum(float(adjusted_cost(problem, prices, chunk).min(axis=1).sum()) for chunk in chunks) + constant


def quality_price(prices: Prices, floor: str) -> float:
    """The price of a floor by its row name."""
    if isinstance(prices.quality, Mapping):
        return prices.quality.get(floor.removeprefix("min_quality[").removesuffix("]"), 0.0)
    return prices.quality
