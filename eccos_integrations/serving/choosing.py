"""What a waiting query would pay for each model now: with its plan, its conversation, and the models that failed it."""

import math
from collections.abc import Sequence

import numpy as np

from eccos_integrations.outcomes import FloatArray
from eccos_integrations.ranking import FIRST
from eccos_integrations.serving.health import Health
from eccos_integrations.serving.window import Request


def cost_now(request: Request, models: Sequence[str], health: Health, now: float) -> FloatArray:
    """(M,) USD by which a query chooses; inf where it may not go.

    Args:
        request: That has been looked at.
        models: The router's.
        health: Says which of them rest.
        now: By the dispatcher's clock.
    """
    worth = request.worth
    assert worth is not None
    cost, home, planned = worth.adjusted, request.home, request.decision
    if planned is not None and planned.model is not None:
        if not health.rest_s(planned.model):
            cost = _staying(request, cost, models, planned.model, math.inf)
    elif home is not None and home.model in models:
        leaving_usd = math.inf if request.pinned else home.leaving_usd(worth.pool[home.model])
        cost = _staying(request, cost, models, home.model, leaving_usd)
    if request.tried or request.barred:
        cost = cost.copy()
        for j, name in enumerate(models):
            if name in request.barred or now < request.tried.get(name, -math.inf):
                cost[j] = np.inf
            elif name in request.tried:
                cost[j] += FIRST
    return cost


def _staying(request: Request, cost: FloatArray, models: Sequence[str], name: str, leaving_usd: float) -> FloatArray:
    """With what it costs to leave a model; it has to be left where it failed, or cannot be had."""
    if name not in models or not np.isfinite(cost[models.index(name)]):
        return cost
    if math.isinf(leaving_usd) and (name in request.tried or name in request.barred):
        return cost
    return cost + np.where([name == other for other in models], 0.0, leaving_usd)
