"""One chat on its way to a member: what the dispatcher has to know of it, and the ways to put it to the member."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Self

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import merge_configs

from eccos_integrations.errors import ConfigError
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher, Options, Ticket, Usage
from eccos_integrations.serving.jointly import Asked, decided_in_place
from langchain_eccos.abilities import TOOLS, candidates, media, prompt_tokens
from langchain_eccos.bindings import KEY, Binding, SchemaBinding
from langchain_eccos.decisions import aannounce, announce, child_config, options_of, record, stamped, usage_of
from langchain_eccos.member import Meter, member_config
from langchain_eccos.query import query_text

LEFT_OUT = "every model it may go to is full by the policy's capacity; raise it, or send fewer"


@dataclass(frozen=True, eq=False, repr=False)
class Chat:
    """One chat, ready to be put to a member.

    Args:
        text: By which it is decided.
        messages: All of it.
        options: For the dispatcher.
        binding: Tools or a schema, if any.
        arguments: Of the caller, for the member.
    """

    text: str
    messages: list[BaseMessage]
    options: Options
    binding: Binding | None
    arguments: dict[str, Any]

    @classmethod
    def of(
        cls,
        messages: list[BaseMessage],
        kwargs: Mapping[str, Any],
        config: RunnableConfig,
        router: Router,
        policy: Policy | None,
        members: Mapping[str, BaseChatModel],
    ) -> Self:
        """Read what is asked, and by whom it can be answered.

        Args:
            messages: The chat.
            kwargs: Of the call.
            config: With the call's own settings in it.
            router: Has the pool.
            policy: Of the wrapper.
            members: By name.

        Raises:
            ConfigError: There is no message, an unknown model is pinned, or no member can take the chat.
        """
        if not messages:
            raise ConfigError("input: there is no message in it; give at least one")
        arguments = {key: value for key, value in kwargs.items() if not (key == "stop" and value is None)}
        binding, pin = arguments.pop(KEY, None), arguments.pop("model", None)
        if pin is not None:
            config = merge_configs(config, {"configurable": {"eccos_model": pin}})
        options = options_of(router, policy, config)
        needs = media(messages)
        if binding is not None:
            needs.add(binding.needs)
        elif arguments.get("tools"):
            needs.add(TOOLS)
        tokens = prompt_tokens(messages) + (binding.tokens if binding else 0)
        able = candidates(router.pool, members, needs, tokens=tokens, only=options.get("candidates"))
        caller = None if "candidates" in options else _tool_caller(messages)
        options["candidates"] = [caller] if caller in able else None if len(able) == len(router.pool) else able
        options["input_tokens"] = max(tokens, 1)
        options["max_output_tokens"] = arguments.get("max_tokens")
        return cls(query_text(messages), messages, options, binding, arguments)


class Ask:
    """One attempt: a chat, put to the member that a ticket names. Shows what was decided, and says what was used.

    Args:
        chat: What is asked.
        members: By name.
        config: The router's child config.
        ticket: The right to call.
    """

    def __init__(
        self, chat: Chat, members: Mapping[str, BaseChatModel], config: RunnableConfig, ticket: Ticket
    ) -> None:
        self._messages, self._router_config, self._ticket = chat.messages, config, ticket
        self._arguments, self._meter = dict(chat.arguments), Meter()
        self._member: Any = members[ticket.model]
        cap = ticket.max_output_tokens
        if cap is not None and "max_tokens" not in chat.arguments:  # who asks for more than the member's own, gets it
            own = getattr(self._member, "max_tokens", None)
            cap = min(cap, own) if isinstance(own, int) else cap
        if chat.binding is not None:
            self._member = chat.binding.on(self._member, cap)
        if isinstance(chat.binding, SchemaBinding):  # the message, which says what was used, may stay inside
            self._config = member_config(config, ticket, self._meter)
            return
        self._config = child_config(config, ticket)
        if cap is not None:
            self._arguments["max_tokens"] = cap

    def invoke(self) -> tuple[Any, Usage | None]:
        """The whole answer, and what it used."""
        announce(self._ticket, self._router_config)
        answer = self._member.invoke(self._messages, self._config, **self._arguments)
        return self._stamped(answer), self._meter.told([answer])

    async def ainvoke(self) -> tuple[Any, Usage | None]:
        """As `invoke`."""
        await aannounce(self._ticket, self._router_config)
        answer = await self._member.ainvoke(self._messages, self._config, **self._arguments)
        return self._stamped(answer), self._meter.told([answer])

    def stream(self) -> Iterator[Any]:
        """The answer in pieces; the first bears the decision."""
        announce(self._ticket, self._router_config)
        pieces: list[Any] = []
        for piece in self._member.stream(self._messages, self._config, **self._arguments):
            yield piece if pieces else self._stamped(piece)
            pieces.append(piece)
        self._ticket.usage = self._meter.told(pieces)

    async def astream(self) -> AsyncGenerator[Any, None]:
        """As `stream`."""
        await aannounce(self._ticket, self._router_config)
        pieces: list[Any] = []
        async with aclosing(self._member.astream(self._messages, self._config, **self._arguments)) as come:
            async for piece in come:
                yield piece if pieces else self._stamped(piece)
                pieces.append(piece)
        self._ticket.usage = self._meter.told(pieces)

    def events(self) -> Iterator[Any]:
        """The answer as protocol events (version 3); the last bears the decision."""
        announce(self._ticket, self._router_config)
        stream = self._member.stream_events(self._messages, self._config, version="v3", **self._arguments)
        for event in stream:
            yield self._finished(event)
        self._ticket.usage = usage_of(stream.output_message)

    async def aevents(self) -> AsyncGenerator[Any, None]:
        """As `events`."""
        await aannounce(self._ticket, self._router_config)
        async with await self._member.astream_events(
            self._messages, self._config, version="v3", **self._arguments
        ) as stream:
            async for event in stream:
                yield self._finished(event)
        self._ticket.usage = usage_of(stream.output_message)

    def _stamped(self, answer: Any) -> Any:
        if isinstance(answer, AIMessage):
            return stamped(answer, self._ticket)
        if isinstance(answer, dict) and isinstance(raw := answer.get("raw"), AIMessage):
            return {**answer, "raw": stamped(raw, self._ticket)}
        return answer

    def _finished(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        if event["event"] != "message-finish":
            return event
        told = record(self._ticket.decision, self._ticket.attempt)
        return {**event, "metadata": {**(event.get("metadata") or {}), "eccos": told}}


def decided(chats: Sequence[Chat | Exception], router: Router) -> list[Chat | Exception]:
    """Chats with their decisions: one joint solve for all of one policy, and most often there is one.

    Args:
        chats: Of a batch, or the errors of those that cannot be asked.
        router: Plans.
    """
    calls = [chat if isinstance(chat, Exception) else (chat.text, chat.options) for chat in chats]
    return _with_options(chats, decided_in_place(calls, router, LEFT_OUT))


def appraised(chats: Sequence[Chat | Exception], dispatcher: Dispatcher) -> list[Chat | Exception]:
    """Chats with all that the dispatcher can know of them before their calls."""
    ready = iter(dispatcher.appraised([(chat.text, chat.options) for chat in chats if isinstance(chat, Chat)]))
    return _with_options(chats, [next(ready) if isinstance(chat, Chat) else chat for chat in chats])


def _with_options(chats: Sequence[Chat | Exception], calls: Sequence[Asked | Exception]) -> list[Chat | Exception]:
    """The chats with the options of their calls, or the errors in their place."""
    found: list[Chat | Exception] = []
    for chat, call in zip(chats, calls, strict=True):
        if isinstance(chat, Exception):
            found.append(chat)
        else:
            found.append(call if isinstance(call, Exception) else replace(chat, options=call[1]))
    return found


def models_of(chats: Sequence[Chat | Exception]) -> list[str]:
    """The model of each decision; "" for an error, which asks nobody."""
    decisions = [None if isinstance(chat, Exception) else chat.options["decision"] for chat in chats]
    return ["" if decision is None else str(decision.model) for decision in decisions]


def _tool_caller(messages: Sequence[BaseMessage]) -> str | None:
    """Within a tool loop, the model that called the tool: it goes on, as another may not understand what it said."""
    if messages[-1].type != "tool":
        return None
    said = next((message for message in reversed(messages) if message.type == "ai"), None)
    told = said.response_metadata.get("eccos") if said is not None else None
    return told.get("model") if isinstance(told, dict) else None
