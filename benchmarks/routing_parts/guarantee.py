"""Whether certificates keep their word, counted where the truth is known.

Each fit learns from half of a table; the rows it has not seen are the population, known in full. A certificate is made
twice, and often:

- on a fifth of the table, drawn from the population with replacement, as the claim supposes. It is *violated* if
  something is certified and the population's mean quality at that price is below the floor.
- on a fifth set apart from the population at random. The floor is *missed* if it is not kept on the rows left over, 30
  % of the table: those are a sample themselves, so this happens more often than the claim alone would allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import product

import numpy as np

from benchmarks.routing_parts.measures import Figures, standard_error
from eccos_integrations import OutcomeTable, Policy
from eccos_integrations.certified import guarantee_of, preferred
from eccos_integrations.evaluation.curve import ROUNDING
from eccos_integrations.guarantee import Evidence
from eccos_integrations.guarantee.bounds import BOUNDS
from eccos_integrations.learnt import Learnt, learn

FIT, CALIBRATION = 0.5, 0.2  # shares of the table
DRAWS = 10  # of calibration rows for each fit
CONFIDENCE = 0.95
POLICIES = [
    Policy(min_quality=floor, relative_to="best", confidence=CONFIDENCE, bound=bound)
    for floor, bound in product((0.90, 0.95, 0.98), BOUNDS)
]
# Most of the best single model's cost that a certificate at 0.95 may leave.
AFFORDABLE = {("zeroeval", "wsr"): 0.60, ("zeroeval", "crossfit"): 0.40}


def certificates(name: str, table: OutcomeTable, seeds: Sequence[int]) -> Iterator[Figures]:
    """Per floor and bound: shares of the splits, and the mean cost on the population as a share of the best single's.

    Args:
        name: Of the table.
        table: Complete outcomes.
        seeds: One fit each, `DRAWS` splits of each.
    """
    by_fit = [list(on_fit(table, seed)) for seed in seeds]
    for i, policy in enumerate(POLICIES):
        splits = [split for found in by_fit for split in found[i]]
        cost = np.array([np.mean([split["cost_share"] for split in found[i]]) for found in by_fit])
        row: Figures = {"table": name, "floor": policy.min_quality, "bound": policy.bound, "splits": len(splits)}
        for what in ("certified", "violated", "missed"):
            share = float(np.mean([split[what] for split in splits]))
            row |= {what: share, f"{what}_error": float(np.sqrt(share * (1 - share) / len(splits)))}
        # The draws of one fit have much in common: the error is that over fits.
        yield row | {"cost_share": float(cost.mean()), "cost_share_error": standard_error(cost)}


def on_fit(table: OutcomeTable, seed: int) -> Iterator[list[Figures]]:
    """What came of every draw, for each policy."""
    past, unseen = table.split(FIT, seed)
    learnt = learn(past, None, None, "hybrid", "lexical", seed, unseen, store_text=False)
    population = learnt.held_out
    assert population is not None
    n, size = len(population), round(CALIBRATION * len(table))
    rng = np.random.default_rng(seed)
    draws = [(rng.integers(n, size=size), rng.permutation(n)) for _ in range(DRAWS)]
    for policy in POLICIES:
        splits = []
        for drawn, order in draws:
            split = kept(learnt, policy, rows_of(population, drawn), population)
            apart = kept(learnt, policy, rows_of(population, order[:size]), rows_of(population, order[size:]))
            splits.append(split | {"violated": split["below"], "missed": apart["below"]})
        yield splits


def kept(learnt: Learnt, policy: Policy, calibration: Evidence, unseen: Evidence) -> Figures:
    """Certify on some queries, route others at that price, and look whether the floor is kept."""
    guarantee = guarantee_of(replace(learnt, held_out=calibration), policy)
    best = learnt.pool.names.index(learnt.best)
    rows = np.arange(len(unseen)), preferred(unseen.quality, unseen.cost_usd, guarantee, best)
    floor = guarantee.floor * unseen.outcome[:, best].mean()
    return {
        "certified": guarantee.certified,
        "below": guarantee.certified and bool(unseen.outcome[rows].mean() < floor - ROUNDING),
        "cost_share": float(unseen.outcome_cost_usd[rows].mean() / unseen.outcome_cost_usd[:, best].mean()),
    }


def rows_of(evidence: Evidence, rows: np.ndarray) -> Evidence:
    """Some rows."""
    return Evidence(*(getattr(evidence, column.name)[rows] for column in fields(evidence)))


def promises(found: Sequence[Figures]) -> Iterator[tuple[str, str, float, float]]:
    """What must hold of the figures: table, what, the worst figure reached, the most it may be."""
    for table in dict.fromkeys(row["table"] for row in found):
        rows = [row | {"not certified": 1 - row["certified"]} for row in found if row["table"] == table]
        least = [row for row in rows if row["floor"] == POLICIES[0].min_quality]
        for what, among, most in (("violated", rows, 1 - CONFIDENCE), ("missed", rows, 0.10),
                                  ("not certified", least, 0.20)):  # fmt: skip
            worst = max(among, key=lambda row: row[what])
            yield table, f"guarantee {what}, most by {worst['bound']} at {worst['floor']}", worst[what], most
        for row in rows:
            affordable = AFFORDABLE.get((table, row["bound"]))
            if row["floor"] == 0.95 and affordable is not None:
                yield table, f"certified cost at 0.95 by {row['bound']}", row["cost_share"], affordable
