"""How queries rank the models at a policy's prices: what single queries and windows are decided by."""

from dataclasses import dataclass

from eccos_integrations.outcomes import FloatArray

FIRST = 1e9  # USD: more than any price, so that what is lowered by it comes first


@dataclass(frozen=True, eq=False)
class Ranking:
    """How each query of a forecast ranks the models under a policy.

    Attributes:
        adjusted: (N, M) USD with the prices of quality and of a budget in it, least first; limits do not count.
        reasons: Why the first is the first, for each query, in words.
        floor_met: Whether the policy's floor holds where each query goes to its first.
    """

    adjusted: FloatArray
    reasons: list[str]
    floor_met: bool
