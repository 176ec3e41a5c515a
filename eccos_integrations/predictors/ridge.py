"""Ridge regression in closed form: exact leave-one-out, exact updates, no torch."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders import EncoderLike
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors.base import Estimate, Predictor
from eccos_integrations.predictors.history import QUALITY, SPEND, Arrays, History

MOST_PENALTY, LEAST_PENALTY = 100.0, 3.0  # on quality
SPEND_PENALTIES = (3.0, 10.0, 30.0, 100.0)
BLOCK = 256  # outcomes learnt at a time by an update: bounds the (block, block) system


class RidgePredictor(Predictor):
    """Linear in what a query looks like, drawn strongly towards each model's mean.

    With P = (X'X + penalty I)^-1 over the queries that observed a model, and y their outcomes, the estimate for x is
    x'P X'y and its weight x'P X'1: together the forecast mean + x'P X'(y - mean), for whatever the mean is by then.
    Quality is penalised several times more than squared error would ask for: the assignment takes whoever is
    over-estimated, so noise costs more than bias; the more models compete, the more. The penalty on spend is the one
    with the least leave-one-out error.

    Source: Hoerl and Kennard, "Ridge Regression", Technometrics 12(1), 1970; updates after Woodbury, 1950.

    Args:
        encoder: See `eccos_integrations.encoders.make_encoder`.
        penalty: On quality. Queries have unit length, so it is how many like queries the mean is worth.
            Default: 100 among many models, less among few, 3 among two.
    """

    name = "ridge"
    # `group` says with which inverse a model's values were solved; -1: nothing observed yet.
    per_model = {"solution": 0.0, "solution_of_ones": 0.0, "group": -1.0}  # noqa: RUF012

    def __init__(self, encoder: EncoderLike = "lexical", penalty: float | None = None) -> None:
        super().__init__(encoder)
        if penalty is not None and not 0 < penalty < np.inf:
            raise ConfigError(f"ridge: penalty={penalty}; it must be positive")
        self.penalty = penalty

    def settings(self) -> dict[str, Any]:
        """The penalty."""
        return {"penalty": self.penalty}

    def learn(self, history: History, pool: ModelPool, arrays: Arrays, seed: int) -> Arrays:
        """Solutions and inverses, one system for all models that the same queries observed."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1):  # small matrices: a second thread waits more than it works
            systems = list(_systems(history))
            errors = np.zeros(len(SPEND_PENALTIES))
            mean = arrays["total"][SPEND] / np.maximum(arrays["count"][SPEND], 1)
            for system in systems:
                if len(models := system.models[SPEND]):
                    y = system.values(history, SPEND) - mean[models]
                    errors += [system.leave_one_out_error(y, penalty) for penalty in SPEND_PENALTIES]
            rivals = int((arrays["count"][QUALITY] > 0).sum())
            of_quality = _usual_penalty(rivals) if self.penalty is None else self.penalty
            return _solved(history, systems, np.array([of_quality, SPEND_PENALTIES[int(np.argmin(errors))]]))

    def estimate(self, x: FloatArray, arrays: Arrays) -> Estimate:
        """Linear in x."""
        shape = (len(x), *arrays["solution"].shape[1:])
        total = x @ arrays["solution"].reshape(x.shape[1], -1)
        weight = x @ arrays["solution_of_ones"].reshape(x.shape[1], -1)
        return Estimate(total.reshape(shape), weight.reshape(shape))

    def held_out(self, history: History, arrays: Arrays) -> Estimate:
        """Leave-one-out, exact."""
        estimate = self.estimate(history.x, arrays)
        observed = np.isfinite(history.values)
        own = np.zeros(history.values.shape)  # each outcome's share in its own estimate
        for group in np.unique(arrays["group"][arrays["group"] >= 0]):
            leverage = np.einsum("nd,nd->n", history.x @ arrays[f"inverse_{group}"], history.x)
            own += np.where(observed & (arrays["group"] == group), leverage[:, None, None], 0.0)
        values = np.where(observed, history.values, 0.0)
        return Estimate((estimate.total - own * values) / (1 - own), (estimate.weight - own) / (1 - own))

    def learn_more(self, x: FloatArray, values: FloatArray, arrays: Arrays) -> Arrays:
        """Exactly what a fit on all outcomes would have learnt."""
        more: Arrays = {name: arrays[name].copy() for name in ("solution", "solution_of_ones", "group")}
        for v, j in zip(*np.nonzero(np.isfinite(values).any(axis=0)), strict=True):
            rows = np.flatnonzero(np.isfinite(values[:, v, j]))
            group = int(more["group"][v, j])
            inverse = np.eye(x.shape[1]) / arrays["penalty"][v] if group < 0 else (more | arrays)[f"inverse_{group}"]
            for start in range(0, len(rows), BLOCK):
                block = rows[start : start + BLOCK]
                direction = inverse @ x[block].T
                gain = np.linalg.solve(np.eye(len(block)) + x[block] @ direction, direction.T).T
                inverse = inverse - gain @ direction.T
                for name, y in (("solution", values[block, v, j]), ("solution_of_ones", np.ones(len(block)))):
                    more[name][:, v, j] += gain @ (y - x[block] @ more[name][:, v, j])
            if group < 0 or (more["group"] == group).sum() > 1:  # from here on its own
                group = next(free for free in count() if free not in more["group"])
                more["group"][v, j] = group
            more[f"inverse_{group}"] = inverse
        return more


def _usual_penalty(rivals: int) -> float:
    """By how many models compete: between two there is no winner whose luck would have to be discounted."""
    return max(MOST_PENALTY * (1 - 2 / max(rivals, 2)), LEAST_PENALTY)


def _solved(history: History, systems: list["_System"], penalty: FloatArray) -> Arrays:
    """Solutions and inverses at the penalties (2,) on quality and on spend."""
    dimensions, m = history.x.shape[1], history.values.shape[2]
    learnt: Arrays = {
        "penalty": penalty,
        "solution": np.zeros((dimensions, 2, m)),
        "solution_of_ones": np.zeros((dimensions, 2, m)),
        "group": np.full((2, m), -1),
    }
    group = 0
    for system in systems:
        x = history.x[system.rows]
        for v, models in enumerate(system.models):
            if len(models):
                inverse = system.inverse(penalty[v])
                learnt[f"inverse_{group}"], learnt["group"][v, models] = inverse, group
                learnt["solution"][:, v, models] = inverse @ (x.T @ system.values(history, v))
                learnt["solution_of_ones"][:, v, models] = (inverse @ x.sum(axis=0))[:, None]
                group += 1
    return learnt


class _System:
    """The regressions of all models that the same queries observed: one matrix, decomposed once."""

    def __init__(self, history: History, rows: NDArray[np.int64], models: list[list[int]]) -> None:
        self.rows = rows
        self.models = models  # by what is forecast
        x = history.x[rows]
        self._eigenvalues, self._axes = np.linalg.eigh(x.T @ x)
        self._rotated = x @ self._axes

    def values(self, history: History, v: int) -> FloatArray:
        """(rows, models)."""
        return history.values[self.rows][:, v, self.models[v]]

    def inverse(self, penalty: float) -> FloatArray:
        """(D, D)."""
        inverse: FloatArray = (self._axes / (np.maximum(self._eigenvalues, 0) + penalty)) @ self._axes.T
        return inverse

    def leave_one_out_error(self, y: FloatArray, penalty: float) -> float:
        """Sum of squared errors, each query forecast from all others."""
        damping = 1 / (np.maximum(self._eigenvalues, 0) + penalty)
        fitted = (self._rotated * damping) @ (self._rotated.T @ y)
        leverage = self._rotated**2 @ damping
        return float(np.sum(((y - fitted) / (1 - leverage[:, None])) ** 2))


def _systems(history: History) -> Iterator[_System]:
    observed = np.isfinite(history.values)
    columns: dict[bytes, list[list[int]]] = {}
    for v in range(observed.shape[1]):
        for j in range(observed.shape[2]):
            if observed[:, v, j].any():
                columns.setdefault(np.packbits(observed[:, v, j]).tobytes(), [[], []])[v].append(j)
    for models in columns.values():
        v, j = next((v, mine[0]) for v, mine in enumerate(models) if mine)
        yield _System(history, np.flatnonzero(observed[:, v, j]), models)
