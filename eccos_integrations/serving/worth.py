"""What the queries of a window are worth to every model: forecasts, the policies' prices, and what to reserve."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError, EccosError, NoCapacityError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors import Forecast
from eccos_integrations.ranking import Ranking
from eccos_integrations.router import Router
from eccos_integrations.serving.counters import Limits
from eccos_integrations.serving.window import Request, Worth


@dataclass(frozen=True, eq=False)
class Bounds:
    """What each model of a pool could ever take; (M,) each.

    Args:
        pool: The models.
        caps: Most output tokens, inf where none is known.
        windows: Context windows, inf likewise.
        tokens: The most that can be reserved, inf likewise; NaN: nothing, the limits are of another pool.
        counted: Whether the tokens of a call matter: they or the money they cost are limited.
    """

    pool: ModelPool
    caps: FloatArray
    windows: FloatArray
    tokens: FloatArray
    counted: NDArray[np.bool_]

    @classmethod
    def of(cls, pool: ModelPool, limits: Limits) -> "Bounds":
        """Of a pool, as far as a ledger goes."""
        most = {name: [limit.most for limit in own if limit.kind == "tokens"] for name, own in limits.models.items()}
        tokens = np.array([min(most[name], default=math.inf) if name in most else math.nan for name in pool.names])
        return cls(
            pool,
            np.array([model.max_output_tokens or math.inf for model in pool]),
            np.array([model.context_window or math.inf for model in pool]),
            tokens,
            np.isfinite(tokens) | bool(limits.budgets),
        )


def appraise(requests: Sequence[Request], router: Router, bounds: Bounds, *, strict: bool) -> list[Worth | EccosError]:
    """What the queries of a window are worth to every model: one forecast and one ranking for all of one policy.

    Args:
        requests: Of one window.
        router: Forecasts and prices.
        bounds: Of the router's pool.
        strict: Reserve the cap on output tokens; else what nine in ten answers keep to.

    Returns:
        One each; an error for those that no model can ever take.

    Raises:
        ConfigError: A policy or a forecast cannot be used: one of them spoils the window.
    """
    found: dict[int, Worth | EccosError] = {}
    policies = {id(request.policy): request.policy for request in requests}  # most often one object
    named = {key: policy.model_dump_json() for key, policy in policies.items()}
    order = sorted(range(len(requests)), key=lambda k: named[id(requests[k].policy)])
    for _, positions in groupby(order, key=lambda k: named[id(requests[k].policy)]):
        group = list(positions)
        found |= zip(group, _of_one_policy([requests[k] for k in group], router, bounds, strict=strict), strict=True)
    return [found[k] for k in range(len(requests))]


def _of_one_policy(
    requests: list[Request], router: Router, bounds: Bounds, *, strict: bool
) -> Sequence[Worth | EccosError]:
    pool, policy = bounds.pool, requests[0].policy
    given = np.array([[math.nan if request.input_tokens is None else request.input_tokens] for request in requests])
    own = _forecast(requests, router)
    sent = np.fmax(given, own.input_tokens)  # a rough count of the query alone is not better than what was learnt
    more = np.fmax(sent - own.input_tokens, 0.0)  # none where it is not known of how many the forecast was
    forecast = _of_whole_calls(own, more, pool, policy)
    asked = np.array([[request.max_output_tokens or math.inf] for request in requests])
    caps = np.minimum(asked, bounds.caps)
    likely = np.where(np.isnan(forecast.output_tokens_p90), forecast.output_tokens, forecast.output_tokens_p90)
    output = np.where(np.isfinite(caps), caps, likely) if strict else np.fmin(caps, likely)
    tokens = np.ceil(np.fmax(sent, 0.0) + np.where(np.isfinite(output), output, 0.0))
    priced = pool.cost_usd(sent, output)
    cost_usd = np.where(np.isfinite(priced), priced, forecast.cost_usd)
    unsized = np.isnan(sent) & bounds.counted
    uncapped = np.isinf(caps) & bounds.counted if strict else np.isnan(likely) & np.isinf(caps) & bounds.counted

    expected = np.fmin(caps, forecast.output_tokens)
    barred = {
        "it is not among the candidates": _not_candidates(requests, pool),
        "the limits are of another pool": np.isnan(bounds.tokens)[None],
        "its context window is too short": sent + np.where(np.isfinite(expected), expected, 0.0) > bounds.windows,
        "its tokens_per_minute are fewer": tokens > bounds.tokens,
    }
    shut: NDArray[np.bool_] = functools.reduce(np.logical_or, barred.values())
    ranking = router.rank(forecast, policy, more.max(axis=1))
    ranking.adjusted[shut] = np.inf
    for k, request in enumerate(requests):
        if request.candidates is not None and len(request.candidates) == 1:
            ranking.reasons[k] = "the only candidate"
    worths: list[Worth | EccosError] = []
    for k in range(len(requests)):
        if shut[k].all():
            why = [next(why for why, rule in barred.items() if rule[k if len(rule) > 1 else 0, j])
                   for j in range(len(pool))]  # fmt: skip
            worths.append(NoCapacityError(
                f"no model can ever take this query of {sent[k].max():.0f} input tokens: "
                + ", ".join(f"{name} ({reason})" for name, reason in zip(pool.names, why, strict=True))
            ))  # fmt: skip
        elif (unsized[k] & ~shut[k]).any():
            worths.append(ConfigError("input_tokens: the forecast does not say, and tokens or a budget are limited; "
                                      "give them to the call"))  # fmt: skip
        elif (uncapped[k] & ~shut[k]).any():
            name = pool.names[int((uncapped[k] & ~shut[k]).argmax())]
            worths.append(ConfigError(f"max_output_tokens: none is known for {name!r}, whose tokens or whose budget "
                                      "are limited; give it in the pool or to the call"))  # fmt: skip
        else:
            worths.append(Worth(pool, forecast, k, ranking, tokens[k], cost_usd[k], caps[k]))
    return worths


def _forecast(requests: list[Request], router: Router) -> Forecast:
    """The callers' own forecasts, and the router's of all others in one go."""
    unknown = [k for k, request in enumerate(requests) if request.forecast is None]
    if len(unknown) == len(requests):
        return router.forecast([request.query for request in requests], requests[0].policy)
    if len(requests) == 1 and requests[0].forecast is not None:
        return requests[0].forecast.select(router.models)
    known = [k for k, request in enumerate(requests) if request.forecast is not None]
    parts = [part.select(router.models) for request in requests if (part := request.forecast) is not None]
    if unknown:
        parts.insert(0, router.forecast([requests[k].query for k in unknown], requests[0].policy))
    ends = np.cumsum([0, *(len(part) for part in parts)])
    order = np.array(unknown + known, dtype=np.int64)
    return Forecast.concatenate(parts, [order[start:end] for start, end in pairwise(ends)])


def _of_whole_calls(forecast: Forecast, more: FloatArray, pool: ModelPool, policy: Policy) -> Forecast:
    """With what calls cost that send (N, M) more tokens than their queries; a certificate is on queries alone."""
    if policy.confidence is not None or not more.any():
        return forecast
    added = pool.cost_usd(more, np.zeros_like(more))
    return replace(forecast, cost_usd=forecast.cost_usd + np.where(np.isfinite(added), added, 0.0))


def _not_candidates(requests: list[Request], pool: ModelPool) -> NDArray[np.bool_]:
    asked = [request.candidates for request in requests]
    if not any(candidates is not None for candidates in asked):
        return np.zeros((1, len(pool)), dtype=bool)
    return np.array([[names is not None and name not in names for name in pool.names] for names in asked])


def remember(router: Router, request: Request, column: int) -> Decision:
    """A decision that the router takes feedback for: the one made already, where the query goes there."""
    worth, planned = request.worth, request.decision
    assert worth is not None
    if planned is not None and planned.model == worth.pool.names[column]:
        return planned
    ranking = worth.ranking
    # A certificate is about the model that its price wants, no other; a floor is about free choice.
    pinned = request.candidates is not None and len(request.candidates) == 1
    if pinned or (request.policy.confidence is not None and column != worth.adjusted.argmin()):
        ranking = Ranking(ranking.adjusted, ranking.reasons, floor_met=False)
    return router.decide(request.query, worth.forecast, worth.row, ranking, column)
