"""A policy over a forecast, as an assignment problem."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.assignment import AssignmentProblem
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors import Forecast

Loads = dict[str, tuple[FloatArray, FloatArray]]


def assignment_problem(
    forecast: Forecast,
    policy: Policy,
    pool: ModelPool,
    best: str,
    groups: Sequence[str] | None = None,
    forbidden: NDArray[np.bool_] | None = None,
) -> AssignmentProblem:
    """The policy's rows.

    Args:
        forecast: Columns in the order of the pool.
        policy: What must hold.
        pool: The models; their limits count where the policy sets a deadline, their context windows always.
        best: The best single model, which a relative floor refers to.
        groups: A label per query, where floors are per group.
        forbidden: (N, M) pairs that may not be, beside those that the pool and the policy rule out.

    Raises:
        ConfigError: Floors are per group and a label is missing, a deadline needs a latency that is unknown, or
            `forbidden` has another shape.
    """
    best_quality = forecast.quality[:, pool.names.index(best)]
    reached: dict[str | None, float] = {None: float(best_quality.mean()) if len(best_quality) else 0.0}
    labels = None if groups is None else [str(label) for label in groups]
    if labels is not None:
        if len(labels) != len(forecast):
            raise ConfigError(f"groups: {len(labels)} labels for {len(forecast)} queries; give one per query")
        for label in dict.fromkeys(labels):
            reached[label] = float(best_quality[np.array(labels) == label].mean())
    floors = policy.floors(reached)
    if isinstance(floors, dict) and labels is None:
        raise ConfigError("min_quality: floors are per group; call plan(queries, groups=[...]) with a label per query")
    capacity, loads, barred = _carried(forecast, policy, pool)
    if forbidden is not None:
        if np.shape(forbidden) != barred.shape:
            raise ConfigError(f"forbidden: its shape is {np.shape(forbidden)}; give (queries, models) = {barred.shape}")
        barred = barred | np.asarray(forbidden, dtype=bool)
    return AssignmentProblem(
        forecast.cost_usd,
        forecast.quality,
        min_quality=floors,
        max_mean_cost_usd=policy.max_mean_cost_usd,
        capacity=capacity if np.isfinite(capacity).any() else None,
        loads=loads,
        forbidden=barred if barred.any() else None,
        groups=labels if isinstance(floors, dict) else None,
    )


def too_long(forecast: Forecast, pool: ModelPool) -> NDArray[np.bool_]:
    """(N, M) whether a query and its expected answer do not fit into a model's context window."""
    window = _limits(pool, "context_window")
    tokens: FloatArray = forecast.input_tokens + np.nan_to_num(forecast.output_tokens)
    return np.greater(tokens, window)


def _carried(forecast: Forecast, policy: Policy, pool: ModelPool) -> tuple[FloatArray, Loads, NDArray[np.bool_]]:
    """Capacity (M,), loads, and barred pairs: the policy's own, and what its deadline makes of the pool's limits.

    Until the deadline a model works on `max_concurrency` queries at a time, takes `requests_per_minute` and
    `tokens_per_minute`; a query that takes longer than the deadline is not for that model.
    """
    given = policy.capacity or {}
    capacity = np.array([given.get(name, np.inf) for name in pool.names], dtype=np.float64)
    barred = too_long(forecast, pool)
    deadline_s = policy.deadline_s
    if deadline_s is None:
        return capacity, {}, barred
    loads: Loads = {}
    busy_s = _limits(pool, "max_concurrency") * deadline_s
    if np.isfinite(busy_s).any():
        unknown = np.isfinite(busy_s) & np.isnan(forecast.latency_s).any(axis=0)
        if unknown.any():
            raise ConfigError(
                f"deadline_s: the latency of {pool.names[int(np.argmax(unknown))]!r} is unknown; add latency to the "
                "outcome table, or base_latency_s and output_tokens_per_s to the pool"
            )
        loads["busy_s"] = (np.nan_to_num(forecast.latency_s), busy_s)
    tokens = _limits(pool, "tokens_per_minute") * deadline_s / 60
    if np.isfinite(tokens).any():
        loads["tokens"] = (forecast.input_tokens + np.nan_to_num(forecast.output_tokens), tokens)
    requests = _limits(pool, "requests_per_minute") * deadline_s / 60
    return np.minimum(capacity, requests), loads, barred | (forecast.latency_s > deadline_s)


def _limits(pool: ModelPool, name: str) -> FloatArray:
    """(M,) a limit of every model, inf where it has none."""
    limits = [getattr(model, name) for model in pool]
    return np.array([np.inf if limit is None else limit for limit in limits], dtype=np.float64)
