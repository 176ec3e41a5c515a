"""What the queries of a window are worth to every model: forecasts, the policies' prices, and what to reserve."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np

from eccos_integrations.assignment.solution import quality_price
from eccos_integrations.certified import certified_choice, holds
from eccos_integrations.errors import ConfigError, EccosError, NoCapacityError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.predictors import Forecast
from eccos_integrations.router import Router
from eccos_integrations.serving.counters import Limits
from eccos_integrations.serving.window import Request, Worth

FIRST = 1e9  # USD: more than any price, so that a model is first (or last) in the ranking


def appraise(requests: Sequence[Request], router: Router, limits: Limits, *, strict: bool) -> list[Worth | EccosError]:
    """What the queries of a window are worth to every model: one forecast for all, at their policies' warm prices.

    Args:
        requests: Of one window.
        router: Forecasts and prices.
        limits: What could ever be reserved.
        strict: Reserve the cap on output tokens; else what nine in ten answers keep to.

    Returns:
        One each; an error for those that no model can ever take.
    """
    pool, n = router.pool, len(requests)
    unknown = [k for k, request in enumerate(requests) if request.forecast is None]
    parts = [request.forecast.select(pool.names) for request in requests if request.forecast is not None]
    order = unknown + [k for k, request in enumerate(requests) if request.forecast is not None]
    if unknown:
        parts.insert(0, router.forecast([requests[k].query for k in unknown]))
    sizes = np.cumsum([0, *(len(part) for part in parts)])
    rows = [np.array(order[start:end], dtype=np.int64) for start, end in pairwise(sizes)]
    forecast = parts[0] if len(parts) == 1 else Forecast.concatenate(parts, rows)

    given = [math.nan if request.input_tokens is None else request.input_tokens for request in requests]
    sent = np.where(np.isnan(given), forecast.input_tokens.T, given).T
    own = np.array([request.max_output_tokens or math.inf for request in requests])
    caps = np.minimum(own[:, None], [model.max_output_tokens or math.inf for model in pool])
    likely = np.where(np.isnan(forecast.output_tokens_p90), forecast.output_tokens, forecast.output_tokens_p90)
    output = np.where(np.isfinite(caps), caps, likely) if strict else np.fmin(caps, likely)
    tokens = np.ceil(np.nan_to_num(sent) + np.nan_to_num(output, posinf=0.0))
    priced = pool.cost_usd(sent, output)
    cost_usd = np.where(np.isfinite(priced), priced, forecast.cost_usd)
    expected = sent + np.nan_to_num(np.fmin(caps, forecast.output_tokens), posinf=0.0)
    windows = [model.context_window or math.inf for model in pool]
    barred = (expected > windows) | (tokens > [_most(limits, name, "tokens") for name in pool.names])
    barred[:, [j for j, name in enumerate(pool.names) if name not in limits.models]] = True
    counted = np.array([math.isfinite(_most(limits, name, "tokens")) for name in pool.names]) | bool(limits.budgets)
    unsized = np.isnan(sent) & counted
    uncapped = np.isinf(caps) & counted if strict else np.isnan(likely) & np.isinf(caps) & counted

    found: dict[int, Worth | EccosError] = {}
    by_policy = sorted(range(n), key=lambda k: id(requests[k].policy))
    for _, group in groupby(by_policy, key=lambda k: id(requests[k].policy)):
        members = list(group)
        try:
            adjusted, reasons, met = _adjusted(router, forecast.take(np.array(members)), requests[members[0]].policy)
        except EccosError as error:
            found |= dict.fromkeys(members, error)
            continue
        adjusted[barred[members]] = np.inf
        for k, row, reason in zip(members, adjusted, reasons, strict=True):
            if (unsized[k] & ~barred[k]).any():
                found[k] = ConfigError("input_tokens: the forecast does not say, and tokens or a budget are limited; "
                                       "give them to the call")  # fmt: skip
            elif (uncapped[k] & ~barred[k]).any():
                name = pool.names[int((uncapped[k] & ~barred[k]).argmax())]
                found[k] = ConfigError(f"max_output_tokens: none is known for {name!r}, whose tokens or whose budget "
                                       "are limited; give it in the pool or to the call")  # fmt: skip
            elif barred[k].all():
                found[k] = NoCapacityError(
                    f"no model can ever take this query: {sent[k].min():.0f} input tokens and the answer are above "
                    "every context window or tokens_per_minute"
                )
            else:
                found[k] = Worth(pool, forecast, k, row, tokens[k], cost_usd[k], caps[k], reason, met)
    return [found[k] for k in range(n)]


def _most(limits: Limits, model: str, kind: str) -> float:
    """The limit of a kind, inf where there is none."""
    return min((limit.most for limit in limits.models.get(model, ()) if limit.kind == kind), default=math.inf)


def _adjusted(router: Router, forecast: Forecast, policy: Policy) -> tuple[FloatArray, list[str], bool]:
    """(N, M) by which models are ranked, why for each query, and whether the floor holds: `Router.route` for many."""
    policy = router._checked(policy)  # noqa: SLF001
    learnt, guarantee = router._basis(policy)  # noqa: SLF001
    if guarantee is not None and learnt is router._certificates.fitted:  # noqa: SLF001
        choices = [certified_choice(forecast.take(np.array([k])), guarantee, learnt) for k in range(len(forecast))]
        adjusted, met = np.array([choice for choice, _ in choices]), holds(guarantee)
        # Where the wanted model is full, the others follow in their order: least stays least, and finite.
        adjusted = np.where(np.isneginf(adjusted), -FIRST, adjusted)
        reasons = [reason for _, reason in choices]
    else:
        prices, met = router._prices.of(policy, learnt)  # noqa: SLF001
        adjusted = (1 + prices.budget) * forecast.cost_usd - quality_price(prices, "min_quality") * forecast.quality
        reasons = ["decided at the current prices, with what its window left free"] * len(forecast)
    for k in range(len(forecast)):
        with router._lock:  # noqa: SLF001
            explored = router._exploration.turn()  # noqa: SLF001
        if explored is not None and explored in forecast.models:
            adjusted[k, forecast.models.index(explored)] = -FIRST
            reasons[k] = f"explores {explored}, of which little is known"
    return adjusted, reasons, met


def remember(router: Router, request: Request, column: int) -> Decision:
    """A decision that the router takes feedback for."""
    worth = request.worth
    assert worth is not None
    # A certificate is about the model that its price wants, no other.
    met = worth.floor_met and (request.policy.confidence is None or column == worth.adjusted.argmin())
    return router._recent.decide(  # noqa: SLF001
        request.query, column, worth.forecast, worth.row, worth.adjusted, worth.reason, floor_met=met
    )
