"""Batches of calls, decided in a joint solve before the first of them is made."""

import copy
from collections.abc import Sequence

import numpy as np

from eccos_integrations.errors import EccosError, NoCapacityError
from eccos_integrations.router import Router
from eccos_integrations.serving.window import Options

Asked = tuple[str, Options]
"""A query, and what the dispatcher has to know of it."""


def decided(calls: Sequence[Asked], router: Router) -> list[Options | None]:
    """Options of calls under one policy, each with its decision and forecast; None where a call has no place.

    Args:
        calls: Not none, of the policy of the first; each goes to one of its candidates.
        router: Plans.

    Raises:
        EccosError: As `Router.plan`.
    """
    allowed = [options.get("candidates") for _, options in calls]
    forbidden = np.array([[names is not None and name not in names for name in router.models] for names in allowed])
    texts, policy = [text for text, _ in calls], calls[0][1].get("policy")
    plan = router.plan(texts, policy, forbidden=forbidden if forbidden.any() else None)
    return [
        None
        if decision.model is None
        else Options(**{**options, "decision": decision, "forecast": plan.forecast.take(np.array([row]))})
        for row, ((_, options), decision) in enumerate(zip(calls, plan.decisions, strict=True))
    ]


def decided_in_place(calls: Sequence[Asked | Exception], router: Router, left_out: str) -> list[Asked | Exception]:
    """Calls with their decisions: one joint solve for all of one policy, and most often there is one.

    Args:
        calls: Of a batch, or the errors of those that cannot be made, which stay.
        router: Plans. What it raises is the error of every call of that policy.
        left_out: The error of a call that has no place.
    """
    found = list(calls)
    alike: dict[str, list[tuple[int, Asked]]] = {}
    for i, call in enumerate(calls):
        if not isinstance(call, Exception):
            policy = call[1].get("policy") or router.policy
            alike.setdefault(policy.model_dump_json(), []).append((i, call))
    for group in alike.values():
        results: Sequence[Options | Exception | None]
        try:
            results = decided([call for _, call in group], router)
        except EccosError as error:
            results = [copy.copy(error) for _ in group]  # every raise adds to an error's traceback
        except Exception as error:  # noqa: BLE001  # of a predictor of the user's own
            results = [error] * len(group)
        for (i, (text, _)), result in zip(group, results, strict=True):
            if result is None:
                found[i] = NoCapacityError(left_out)
            else:
                found[i] = result if isinstance(result, Exception) else (text, result)
    return found
