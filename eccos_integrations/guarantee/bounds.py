"""Is a mean above zero? One test by betting, one by Student's t, and the rule for testing one after another.

Every test takes `gains`, (n, K): independent draws of K quantities, NaN where a row says nothing about one of them.
None is below `-worst`, which is known beforehand. A test answers for each quantity whether its population mean is above
zero, and where the mean is below zero says so with probability at most `level`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.guarantee.evidence import WORST_ROWS
from eccos_integrations.outcomes import FloatArray

Flags = NDArray[np.bool_]

BELIEVED_ROWS = 30  # that the spread known beforehand counts as; more would pay dearly where it is wrong
# Of sqrt(2 log(what is missing) / rows to come) / spread. The strategy that reaches a goal by a deadline with the
# highest probability, found by dynamic programming, bets 0.75 to 0.9 of it: with more, what is won beyond the goal is
# wasted.
CAUTION = 0.85
# Student's t is trusted from here on: on so many rows, and where the skewness g of the gains (with one row of the worst
# kind added, in case none was drawn by luck) has n > 25 g^2; Cochran, "Sampling Techniques", 1977, section 2.15.
LEAST_ROWS = 30
ROWS_PER_SKEWNESS = 25


def betting(gains: FloatArray, worst: FloatArray, level: float, spread: FloatArray) -> Flags:
    """Test by betting: right for every distribution and every number of rows.

    The goal must be reached with the rows forwards and backwards. Either alone would do, but would hang more on the
    luck of one order; together they err about half as often as they may, for a few per cent of what is saved.

    Args:
        gains: (n, K), their rows in an order that does not depend on their values.
        worst: (K,) most that one row can lose.
        level: Probability of a wrong yes.
        spread: (K,) standard deviation expected beforehand, from other data; a bad one costs power, never validity.
    """
    both = np.hstack([gains, gains[::-1]])
    reached = capital(both, np.tile(worst, 2), 1 / level, np.tile(spread, 2)) >= 1 / level
    forwards, backwards = np.split(reached, 2)
    return forwards & backwards


def capital(gains: FloatArray, worst: FloatArray, goal: float, spread: FloatArray) -> FloatArray:
    """Capital of a gambler who starts with 1, bets that each gain is above zero, and stops at the goal.

    Where the mean is not above zero no strategy wins on average, so the goal is reached with probability at most
    1 / goal: Ville's inequality, as in Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting"
    (2023). Each bet looks at what is still missing and how many rows are still to come, as in Voráček & Orabona,
    "STaR-Bets" (2025): capital far behind bets more, and once there it bets nothing. That comes close to the power of
    the normal approximation, without approximating.

    Args:
        gains: (n, K).
        worst: (K,) most that one row can lose.
        goal: Above 1.
        spread: (K,) standard deviation expected beforehand.

    Returns:
        (K,) capital at the end; infinite where nothing can be lost.
    """
    seen = ~np.isnan(gains)
    gains = np.where(seen, gains, 0.0)
    to_come = np.maximum(seen[::-1].cumsum(axis=0)[::-1], 1)
    # What is known of the spread before each row, as if some losses had been seen: nobody bets all on none to come
    # because none has come yet.
    believed = BELIEVED_ROWS + WORST_ROWS
    rows = believed + np.vstack([np.zeros_like(worst), seen.cumsum(axis=0)])
    means = np.vstack([np.zeros_like(worst), gains.cumsum(axis=0)])[:-1] / rows[:-1]
    squares = np.where(seen, gains - means, 0.0) ** 2
    squares = np.vstack([BELIEVED_ROWS * spread**2 + WORST_ROWS * worst**2, squares]).cumsum(axis=0)
    share = np.full(gains.shape[1], 1 / goal)  # of the goal: between 0 and 1, so the product needs no logarithm
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        eager = CAUTION * np.sqrt(2 / to_come / (squares[:-1] / rows[:-1]))
        most = 1 / worst
        for gain, each in zip(gains, eager, strict=True):
            bet = np.minimum(each * np.sqrt(-np.log(np.minimum(share, 1.0))), most)  # 0 from the goal on
            share = share * np.maximum(1 + bet * gain, 0.0)
    return np.where(worst > 0, share * goal, np.inf)


def student(gains: FloatArray, worst: FloatArray, level: float, spread: FloatArray) -> Flags:
    """Test by Student's t, an approximation; where the rows are too few or too skewed for it, by betting.

    Args:
        gains: (n, K).
        worst: (K,) most that one row can lose.
        level: Probability of a wrong yes, approximately.
        spread: (K,) see `betting`.
    """
    from scipy.special import stdtrit

    seen = ~np.isnan(gains)
    n = seen.sum(axis=0)
    rows = np.maximum(n, 2)
    mean = np.where(seen, gains, 0.0).sum(axis=0) / rows
    variance = (np.where(seen, gains - mean, 0.0) ** 2).sum(axis=0) / (rows - 1)
    passed: Flags = mean > stdtrit(rows - 1, 1 - level) * np.sqrt(variance / rows)

    with_worst = np.vstack([gains, -worst])
    centred = with_worst - np.nanmean(with_worst, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = np.nanmean(centred**3, axis=0) / np.nanmean(centred**2, axis=0) ** 1.5
        doubtful = ~((n >= LEAST_ROWS) & (n > ROWS_PER_SKEWNESS * skewness**2))
    if doubtful.any():
        passed[doubtful] = betting(gains[:, doubtful], worst[doubtful], level, spread[doubtful])
    return passed


def last_pass(passed: Flags) -> int:
    """Position of the last test passed before the first failure, -1 if the first fails.

    Where the order was fixed beforehand, testing each at the full level and stopping at the first failure is wrong
    anywhere with no more than that level: the first false one must be passed for any error to happen.
    """
    return len(passed) - 1 if passed.all() else int(np.argmin(passed)) - 1


# By name: how it tests, and whether the fit part's own out-of-fold rows count as evidence too.
BOUNDS: dict[str, tuple[Callable[[FloatArray, FloatArray, float, FloatArray], Flags], bool]] = {
    "wsr": (betting, False),
    "clt": (student, False),
    "crossfit": (student, True),
}
