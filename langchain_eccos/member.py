"""The call of one member: its config, its cap on output tokens, what it used, and the decision on its answer."""

import threading
from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from typing_extensions import override

from eccos_integrations.serving.dispatch import Ticket, Usage
from langchain_eccos.decisions import child_config, stamped, usage_of


class Meter(BaseCallbackHandler):
    """What the LLM runs below a member have used together. A chain or an agent may have any number of them."""

    run_inline = True  # it is quick, and an event loop need not leave for it
    ignore_chain = ignore_agent = ignore_retriever = ignore_retry = ignore_custom_event = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: list[Usage | None] = []

    @override
    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: without it the messages are written out for `on_llm_start`."""

    @override
    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Count what the run used."""
        generation = response.generations[0][0] if response.generations and response.generations[0] else None
        message = generation.message if isinstance(generation, ChatGeneration) else None
        with self._lock:
            self._uses.append(usage_of(message))

    def told(self, answers: list[Any]) -> Usage | None:
        """What was used, by the LLM runs, or where there were none by the answers; None where one does not say."""
        return Usage.total(self._uses or [usage for answer in answers if (usage := usage_of(answer))])


def member_config(config: RunnableConfig, ticket: Ticket, meter: Meter) -> RunnableConfig:
    """The config of the member's run: it shows the decision, and the meter hears of every LLM run below."""
    child = child_config(config, ticket)
    callbacks = child.get("callbacks")
    assert isinstance(callbacks, BaseCallbackManager)  # of the router's run
    child["callbacks"] = callbacks = callbacks.copy()
    callbacks.add_handler(meter)
    return child


def member_kwargs(member: Runnable[Any, Any], kwargs: Mapping[str, Any], ticket: Ticket) -> dict[str, Any]:
    """The caller's arguments; for a chat model with the cap that was reserved for, never above its own."""
    caps = [ticket.max_output_tokens, kwargs.get("max_tokens")]
    while isinstance(member, RunnableBindingBase):
        caps.append(member.kwargs.get("max_tokens"))
        member = member.bound
    if ticket.max_output_tokens is None or not isinstance(member, BaseChatModel):
        return dict(kwargs)
    caps.append(getattr(member, "max_tokens", None))
    return {**kwargs, "max_tokens": min(cap for cap in caps if isinstance(cap, int))}


def shown(answer: Any, ticket: Ticket) -> Any:
    """The answer with the decision on it, where it is a message."""
    return stamped(answer, ticket) if isinstance(answer, BaseMessage) else answer
