"""What every wrapper does with a decision: the member's config, the record on its answer, the event, the usage."""

from typing import Any, TypeVar, cast

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import ConfigurableFieldSpec

from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Options, Ticket, Usage
from eccos_integrations.serving.per_call import SETTINGS, per_call

EVENT = "eccos_decision"

MessageT = TypeVar("MessageT", bound=BaseMessage)

KINDS: dict[str, Any] = {
    "eccos_model": str | None,
    "eccos_min_quality": float | None,
    "eccos_max_cost_usd": float | None,
}
SPECS = [
    ConfigurableFieldSpec(id=name, annotation=KINDS[name], description=description, default=None)
    for name, description in SETTINGS.items()
]


def options_of(router: Router, policy: Policy | None, config: RunnableConfig) -> Options:
    """What the dispatcher has to know of one call: its own settings in `config["configurable"]`.

    Raises:
        ConfigError: The model is unknown, or the policy cannot hold together with what is asked.
    """
    return per_call(router, policy, config.get("configurable") or {})


def record(decision: Decision, attempt: int = 1) -> dict[str, Any]:
    """The decision in plain values, for metadata, events and messages. No text of the query is in it."""
    return {
        "model": decision.model,
        "decision_id": decision.id,
        "quality": decision.quality,
        "cost_usd": decision.cost_usd,
        "floor_met": decision.floor_met,
        "reason": decision.reason,
        "attempt": attempt,
    }


def child_config(config: RunnableConfig, ticket: Ticket) -> RunnableConfig:
    """The member's config: what was decided, visible in its run."""
    told = {f"eccos_{name}": value for name, value in record(ticket.decision, ticket.attempt).items()}
    # LangChain's own merge of configs takes ten times as long: it looks at the run around this, too
    own = cast("RunnableConfig", {**config, "metadata": {**(config.get("metadata") or {}), **told}})
    own["tags"] = [*(config.get("tags") or []), f"eccos:{ticket.model}"]
    return own


def announce(ticket: Ticket, config: RunnableConfig) -> None:
    """Tell callbacks of the decision, as the custom event `eccos_decision` of the router's own run."""
    if _is_heard(config):
        dispatch_custom_event(EVENT, record(ticket.decision, ticket.attempt), config=config)


async def aannounce(ticket: Ticket, config: RunnableConfig) -> None:
    """As `announce`."""
    if _is_heard(config):
        await adispatch_custom_event(EVENT, record(ticket.decision, ticket.attempt), config=config)


def _is_heard(config: RunnableConfig) -> bool:
    callbacks = config.get("callbacks")
    return bool(getattr(callbacks, "handlers", callbacks))


def usage_of(message: Any) -> Usage | None:
    """What a message says its call used; None where it does not say."""
    used = getattr(message, "usage_metadata", None)
    if not used:
        return None
    if used.get("total_cost") == 0:  # LangChain's mark of an answer from its cache: nobody was asked
        return Usage(0, 0, cost_usd=0.0)
    cached = (used.get("input_token_details") or {}).get("cache_read") or 0
    return Usage(used["input_tokens"], used["output_tokens"], cached_tokens=cached)


def stamped(message: MessageT, ticket: Ticket) -> MessageT:
    """A copy of an answer with the decision in `response_metadata["eccos"]`: others may hold the message itself."""
    told = {**message.response_metadata, "eccos": record(ticket.decision, ticket.attempt)}
    return message.model_copy(update={"response_metadata": told})
