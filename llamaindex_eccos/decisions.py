"""A decision on its way through LlamaIndex: planned from outside, told in plain values on answers and in events."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from eccos_integrations.plan import Decision
from eccos_integrations.predictors import Forecast


class Planned(NamedTuple):
    """What a plan says of one query.

    Attributes:
        decision: With the model.
        forecast: (1, M), of the router's models.
    """

    decision: Decision
    forecast: Forecast


PLANNED: ContextVar[Planned | None] = ContextVar("eccos_planned", default=None)


@contextmanager
def planned(decision: Decision, forecast: Forecast) -> Iterator[None]:
    """Within the block, and in the tasks begun there, every call of an `EccosLLM` goes as a plan has decided.

    An engine makes its calls deep inside: so they learn of the plan for its query.

    Args:
        decision: Of the query.
        forecast: (1, M), of the query.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from eccos_integrations import Router, load_sample
        >>> from llamaindex_eccos import EccosLLM
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> llm = EccosLLM(members={name: MockLLM() for name in router.models}, router=router)
        >>> plan = router.plan(["What is 2 + 2?"])
        >>> with planned(plan.decisions[0], plan.forecast):
        ...     answer = llm.complete("Context: ... Question: What is 2 + 2?")
        >>> answer.additional_kwargs["eccos"]["decision_id"] == plan.decisions[0].id
        True
    """
    token = PLANNED.set(Planned(decision, forecast))
    try:
        yield
    finally:
        PLANNED.reset(token)


_HEARD: ContextVar[list[dict[str, Any]] | None] = ContextVar("eccos_heard", default=None)


@contextmanager
def heard() -> Iterator[list[dict[str, Any]]]:
    """The decisions made within the block, and in the tasks begun there, as `record` gives them.

    For who asks an engine, whose answer does not say which model gave it.
    """
    decisions: list[dict[str, Any]] = []
    token = _HEARD.set(decisions)
    try:
        yield decisions
    finally:
        _HEARD.reset(token)


def tell(told: dict[str, Any]) -> None:
    """Let whoever listens around this hear of a decision."""
    listening = _HEARD.get()
    if listening is not None:
        listening.append(told)


def record(decision: Decision, attempt: int = 1) -> dict[str, Any]:
    """The decision in plain values, for answers and events. No text of the query is in it."""
    return {
        "model": decision.model,
        "decision_id": decision.id,
        "quality": decision.quality,
        "cost_usd": decision.cost_usd,
        "floor_met": decision.floor_met,
        "reason": decision.reason,
        "attempt": attempt,
    }
