"""Do outcomes still come out as forecast? A test that may be looked at after every one of them."""

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from eccos_integrations.errors import ConfigError

# Shares of the largest bet that cannot lose everything. A drift of d beyond the margin is found fastest by a bet of
# about d / variance: these suit drifts from 0.01 up.
BETS = np.geomspace(0.05, 0.9, 8)


class DriftTest:
    """Tells when the mean residual (outcome minus forecast) of served decisions has left its place.

    Gamblers bet that the next residual is above the usual range of its mean, others that it is below. As long as the
    mean (given all before) stays within `bias` plus or minus `margin` none of them can win on average, so the chance
    that their joint capital ever comes to 1 / alpha is at most alpha, however often one looks: Ville's inequality. Not
    all of them start at once, so that a drift after many good days meets gamblers who have not lost their stake yet.

    For threads: one caller at a time.

    Args:
        bias: Mean residual where nothing has drifted, -1..1.
        margin: How far from it the mean may be, 0..1.
        alpha: Most probability of a false alarm, ever.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> test = DriftTest(bias=0.0, margin=0.02)
        >>> [test.update(residual) for residual in [0.1, -0.1] * 50][-1]
        False
        >>> [test.update(-0.5) for _ in range(50)][-1], test.drifted
        (True, True)
    """

    def __init__(self, bias: float, margin: float, alpha: float = 0.01) -> None:
        for name, value, least in (("bias", bias, -1), ("margin", margin, 0)):
            if not least <= value <= 1:
                raise ConfigError(f"{name}: {value}; give a number from {least} to 1")
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha: {alpha}; give a number between 0 and 1, such as 0.01")
        self.bias, self.margin, self.alpha = bias, margin, alpha
        self.n = 0
        self.drifted = False
        self.evidence = 1.0
        self._bets = np.outer([1.0, -1.0], BETS / (1 + abs(bias) + margin))
        self._toll = 1 - margin * np.abs(self._bets)
        self._capital = np.zeros_like(self._bets)
        self._waiting = 1.0

    def __repr__(self) -> str:
        state = "drifted" if self.drifted else "no drift"
        return f"DriftTest({state}, {self.n} residuals, evidence={self.evidence:.3g} of {1 / self.alpha:g})"

    @classmethod
    def from_residuals(cls, residuals: ArrayLike, alpha: float = 0.01) -> Self:
        """The test around the mean of these residuals, with two standard errors of it as margin.

        Args:
            residuals: Outcome minus forecast of the chosen, on rows the predictor has not seen; NaN counts nothing.
            alpha: Most probability of a false alarm as long as the mean was within that margin.

        Raises:
            ConfigError: A residual is not within -1..1.
        """
        seen = np.asarray(residuals, dtype=np.float64).ravel()
        seen = seen[~np.isnan(seen)]
        if (wrong := seen[np.abs(seen) > 1]).size:
            raise ConfigError(f"residuals: {wrong[0]:g}; give outcome minus forecast, from -1 to 1")
        n = len(seen)
        bias = float(seen.sum()) / max(n, 1)
        squares = (
            float(((seen - bias) ** 2).sum()) + 2
        )  # one right and one wrong against all odds: few rows may all agree
        return cls(bias, min(2 * math.sqrt(squares / (n + 2) / max(n, 1)), 1.0), alpha)

    def update(self, residual: float) -> bool:
        """Take in one decision's outcome minus its forecast; True from the moment of drift on.

        Raises:
            ConfigError: The residual is not within -1..1. Nothing has changed then.
        """
        if not -1 <= residual <= 1:
            raise ConfigError(f"residual: {residual}; give outcome minus forecast, from -1 to 1")
        self.n += 1
        if not self.drifted:
            # Who waits joins one by one, slower and slower: after t residuals a share of t^-1/4 still waits.
            waiting = (1 + self.n) ** -0.25
            self._capital += (self._waiting - waiting) / self._capital.size
            self._waiting = waiting
            self._capital *= self._toll + self._bets * (residual - self.bias)
            self.evidence = float(self._capital.sum()) + waiting
            self.drifted = self.evidence >= 1 / self.alpha
        return self.drifted

    def state(self) -> dict[str, Any]:
        """Plain JSON that `restore` makes the same test from."""
        return {
            "bias": self.bias,
            "margin": self.margin,
            "alpha": self.alpha,
            "n": self.n,
            "drifted": self.drifted,
            "evidence": self.evidence,
            "capital": self._capital.ravel().tolist(),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """The test that `state` was taken from."""
        test = cls(state["bias"], state["margin"], state["alpha"])
        test.n, test.drifted, test.evidence = state["n"], state["drifted"], state["evidence"]
        test._capital = np.array(state["capital"], dtype=np.float64).reshape(test._bets.shape)
        test._waiting = (1 + test.n) ** -0.25
        return test
