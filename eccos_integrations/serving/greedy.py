"""A window's assignment: every query asks its cheapest model, and those it has no room for move on. No gap promised."""

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.outcomes import FloatArray

IntArray = NDArray[np.int64]

ROUNDS = 4  # times M: then who is still without a place takes what is left


def place(cost: FloatArray, tokens: FloatArray, slots: FloatArray, tokens_free: FloatArray) -> IntArray:
    """Place queries on models that have room for them.

    Each query asks the model of least cost. A model with too little room keeps those to whom their next best costs most
    in comparison; the others ask on. Nobody is left out who fits into what is left in the end: where every query takes
    one slot and no tokens, at least half as many are placed as can be.

    Args:
        cost: (N, M) USD with every price in it, the longest waiting first: where slots are few, they come first. inf:
            may not go there.
        tokens: (N, M) each would take.
        slots: (M,) calls that each model may begin now; inf: any number.
        tokens_free: (M,) tokens likewise.

    Returns:
        (N,) column of each query's model, -1 where it fits nowhere.

    Example:
        >>> cost = np.array([[1.0, 5.0], [1.0, 2.0], [1.0, np.inf]])
        >>> place(cost, np.zeros((3, 2)), slots=np.array([1.0, 9.0]), tokens_free=np.array([np.inf, np.inf]))
        array([1, 1, 0])
    """
    n = len(cost)
    chosen = np.full(n, -1, dtype=np.int64)
    if n == 0:
        return chosen
    fits = np.isfinite(cost) & (tokens <= tokens_free) & (slots >= 1)
    if n == 1:  # nobody to compete with
        return np.where(fits.any(axis=1), np.where(fits, cost, np.inf).argmin(axis=1), -1)
    first = int(min(n, np.floor(slots[fits.any(axis=0)]).sum()))  # the most that can be placed at all
    if first:
        _contest(chosen[:first], np.where(fits[:first], cost[:first], np.inf), tokens[:first], slots, tokens_free)
    _fill(chosen, np.where(fits, cost, np.inf), tokens, slots, tokens_free)
    return chosen


def _contest(
    chosen: IntArray, cost: FloatArray, tokens: FloatArray, slots: FloatArray, tokens_free: FloatArray
) -> None:
    """Deferred acceptance, in place: a model refuses for good whom it has no room for, also if it had at first."""
    n, m = cost.shape
    rows = np.arange(n)
    for _ in range(ROUNDS * m):
        wanted = cost.argmin(axis=1)
        least = cost[rows, wanted]
        cost[rows, wanted] = np.inf
        asks = np.isfinite(least)
        regret = np.subtract(cost.min(axis=1), least, out=np.full(n, -np.inf), where=asks)
        cost[rows, wanted] = least
        chosen[:] = np.where(asks, wanted, -1)
        order = np.argsort(-regret, kind="stable")
        refused = False
        for j in range(m):
            asking = order[chosen[order] == j]
            keeps = _kept(tokens[asking, j], slots[j], tokens_free[j])
            if not keeps.all():
                refused = True
                cost[asking[~keeps], j] = np.inf
                chosen[asking[~keeps]] = -1
        if not refused:
            return


def _kept(tokens: FloatArray, slots: float, tokens_free: float) -> NDArray[np.bool_]:
    """Whom of those asking, most regret first, a model has room for."""
    if len(tokens) <= slots and tokens.sum() <= tokens_free:
        return np.ones(len(tokens), dtype=bool)
    keeps = np.zeros(len(tokens), dtype=bool)
    for k, much in enumerate(tokens.tolist()):
        if slots < 1:
            break
        if much <= tokens_free:
            keeps[k] = True
            slots, tokens_free = slots - 1, tokens_free - much
    return keeps


def _fill(chosen: IntArray, cost: FloatArray, tokens: FloatArray, slots: FloatArray, tokens_free: FloatArray) -> None:
    """Give what is left to those without a place, the longest waiting first; in place."""
    placed = chosen >= 0
    m = cost.shape[1]
    slots = slots - np.bincount(chosen[placed], minlength=m)
    tokens_free = tokens_free - np.bincount(chosen[placed], tokens[placed, chosen[placed]], minlength=m)
    fits = np.isfinite(cost) & (tokens <= tokens_free) & (slots >= 1)
    for i in np.flatnonzero(~placed & fits.any(axis=1)):
        room = np.where((slots >= 1) & (tokens[i] <= tokens_free), cost[i], np.inf)
        j = int(room.argmin())
        if np.isfinite(room[j]):
            chosen[i] = j
            slots[j] -= 1
            tokens_free[j] -= tokens[i, j]
            if not (slots >= 1).any():
                return
