"""What an assignment realised: looked up in the outcomes, never forecast."""

from dataclasses import dataclass

import numpy as np

from eccos_integrations.assignment.problem import IntArray
from eccos_integrations.outcomes import OutcomeTable


@dataclass(frozen=True)
class Realised:
    """Outcomes of an assignment.

    Args:
        mean_quality: Over the queries whose assigned outcome was observed; NaN if there are none.
        mean_cost_usd: Likewise.
        observed: Share of the queries whose assigned quality was observed.
        shares: Share of all queries by model; models without any are left out.
    """

    mean_quality: float
    mean_cost_usd: float
    observed: float
    shares: dict[str, float]


def realise(table: OutcomeTable, assignment: IntArray) -> Realised:
    """Look an assignment up in the outcomes.

    Args:
        table: N queries x M models.
        assignment: (N,) columns of the table, -1 = not placed.
    """
    placed = np.flatnonzero(assignment >= 0)
    quality = table.quality[placed, assignment[placed]]
    cost = table.cost_usd[placed, assignment[placed]]
    counts = np.bincount(assignment[placed], minlength=len(table.models))
    most_first = np.argsort(-counts, kind="stable")
    return Realised(
        mean_quality=_mean_observed(quality),
        mean_cost_usd=_mean_observed(cost),
        observed=float(np.isfinite(quality).sum() / max(len(table), 1)),
        shares={table.models[j]: float(counts[j] / len(table)) for j in most_first if counts[j]},
    )


def _mean_observed(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    observed = values[np.isfinite(values)]
    return float(observed.mean()) if len(observed) else float("nan")
