"""What is behind an `EccosLLM`: named members, what a call needs of them, and the dispatcher that picks one for it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.bridge.pydantic import (
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM

from eccos_integrations.errors import ConfigError
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher, Options, Ticket, Usage
from eccos_integrations.serving.per_call import SETTINGS, per_call
from llamaindex_eccos.abilities import TOOLS, candidates, has, media, room, rough_tokens
from llamaindex_eccos.decisions import PLANNED, record
from llamaindex_eccos.events import announce
from llamaindex_eccos.listening import Meter, listen, question, usage_of
from llamaindex_eccos.tool_loops import ToolLoops, is_result, new_conversation

MOST_TWINS = 64  # callers may give any cap

T = TypeVar("T")
Arguments = dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Call:
    """One call on its way to a member.

    Args:
        text: By which it is decided.
        options: For the dispatcher.
        arguments: Of the caller, for the member.
    """

    text: str
    options: Options
    arguments: Arguments

    def given(self, ticket: Ticket) -> Arguments:
        """The member's own copy of the arguments; a cap of the caller's never above the one that was reserved for."""
        if ticket.max_output_tokens is None or self.options.get("max_output_tokens") is None:
            return dict(self.arguments)
        return {**self.arguments, "max_tokens": ticket.max_output_tokens}


class RoutedLLM(FunctionCallingLLM):
    """Members behind one LLM. See `EccosLLM`, which says how each kind of call is put to a member."""

    members: dict[str, LLM] = Field(exclude=True, repr=False)
    router: Router = Field(exclude=True, repr=False)
    policy: Policy | None = None
    dispatcher: Dispatcher | None = Field(default=None, exclude=True, repr=False)
    # The manager each member was last given, to tell it from one of the member's own.
    _lent: dict[str, CallbackManager] = PrivateAttr(default_factory=dict)
    # Twins of members, by name and cap; kept for the clients that they make.
    _capped: dict[tuple[str, int], LLM] = PrivateAttr(default_factory=dict)
    _loops: ToolLoops = PrivateAttr(default_factory=ToolLoops)

    def __init__(
        self,
        members: Mapping[str, LLM],
        router: Router,
        policy: Policy | None = None,
        dispatcher: Dispatcher | None = None,
        **settings: Any,
    ) -> None:
        router.check_members(members)
        _check_kinds(members)
        if dispatcher is not None and dispatcher.router is not router:
            raise ConfigError("dispatcher: it is another router's; give Dispatcher(router) of the same router")
        members = {name: members[name] for name in router.models}
        super().__init__(members=members, router=router, policy=policy, dispatcher=dispatcher, **settings)
        if self.policy is not None:
            self.policy.check_models(router.models)
        listen()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.router)] = self.router
        memo[id(self.dispatcher)] = self.dispatcher
        return super().__deepcopy__(memo)

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, _info: SerializationInfo) -> dict[str, Any]:
        """The fields, and the members and the router in words."""
        return {
            **handler(self),
            "members": {
                name: {"class_name": member.class_name(), "model_name": member.metadata.model_name}
                for name, member in self.members.items()
            },
            "router": repr(self.router),
            "class_name": self.class_name(),
        }

    @property
    def metadata(self) -> LLMMetadata:
        """The tightest member's window, so that a prompt packed for it fits whoever is chosen."""
        each = [member.metadata for member in self.members.values()]
        return min(each, key=room).model_copy(
            update={
                "is_chat_model": any(metadata.is_chat_model for metadata in each),
                "is_function_calling_model": any(
                    has(TOOLS, model, self.members[model.name])
                    for model in self.router.pool
                    if model.name in self.members
                ),
                "model_name": f"eccos[{','.join(self.members)}]",
            }
        )

    # -- what a call is

    def _call_of(
        self,
        arguments: Arguments,
        text: str,
        whole: str,
        needs: set[str],
        messages: Sequence[ChatMessage] = (),
        max_output_tokens: object = None,
    ) -> Call:
        """A call for the dispatcher; takes what is for the router out of `arguments`.

        Raises:
            ConfigError: A setting cannot be used, or no member can take the call.
        """
        settings = {**_ASKED.get(), **_settings_in(arguments)}
        options = per_call(self.router, self.policy, settings)
        text, tokens = question() or text, rough_tokens(whole)
        options["candidates"] = candidates(
            self.router.pool, self.members, needs | media(messages), tokens, options.get("candidates")
        )
        if text != whole:
            options["input_tokens"] = tokens
        if isinstance(max_output_tokens, int) and max_output_tokens >= 1:
            options["max_output_tokens"] = max_output_tokens
        conversation = self._loops.of(messages) or (new_conversation() if TOOLS in needs else None)
        if conversation is not None:
            options |= Options(conversation=conversation, pinned=is_result(messages))
        planned = PLANNED.get()
        if planned is not None and list(planned.forecast.models) == self.router.models:
            options |= Options(decision=planned.decision, forecast=planned.forecast)
        return Call(text, options, arguments)

    # -- one attempt after the other

    def _answer(self, call: Call, ask: Callable[[FunctionCallingLLM, Arguments], T]) -> T:
        """Have a member answer; `ask` puts the call to it."""
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()

        def attempt(ticket: Ticket) -> tuple[T, Usage | None]:
            meter = Meter()
            with meter.listening():
                answer = ask(self._chosen(ticket), call.given(ticket))
            return self._stamped(answer, ticket, call), usage_of(answer) or meter.usage

        return self._dispatcher.call(call.text, attempt, **call.options).answer

    async def _aanswer(self, call: Call, ask: Callable[[FunctionCallingLLM, Arguments], Awaitable[T]]) -> T:
        """As `_answer`."""
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()

        async def attempt(ticket: Ticket) -> tuple[T, Usage | None]:
            meter = Meter()
            with meter.listening():
                answer = await ask(self._chosen(ticket), call.given(ticket))
            return self._stamped(answer, ticket, call), usage_of(answer) or meter.usage

        return (await self._dispatcher.acall(call.text, attempt, **call.options)).answer

    def _pieces(
        self, call: Call, ask: Callable[[FunctionCallingLLM, Arguments], Generator[T, None, None]]
    ) -> Generator[T, None, None]:
        """Have a member answer in pieces; it is asked when the first is."""
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()

        def attempt(ticket: Ticket) -> Generator[T, None, None]:
            meter, usage = Meter(), None
            with meter.listening():
                pieces = ask(self._chosen(ticket), call.given(ticket))
            with closing(pieces):
                for piece in meter.over(pieces):
                    usage = usage_of(piece) or usage
                    ticket.usage = usage
                    yield self._stamped(piece, ticket, call)
            ticket.usage = usage or meter.usage

        return cast("Generator[T, None, None]", self._dispatcher.stream(call.text, attempt, **call.options))

    async def _apieces(
        self, call: Call, ask: Callable[[FunctionCallingLLM, Arguments], Awaitable[AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[T, None]:
        """As `_pieces`."""
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()

        async def attempt(ticket: Ticket) -> AsyncGenerator[T, None]:
            meter, usage = Meter(), None
            with meter.listening():
                pieces = await ask(self._chosen(ticket), call.given(ticket))
            async with aclosing(pieces):
                async for piece in meter.aover(pieces):
                    usage = usage_of(piece) or usage
                    ticket.usage = usage
                    yield self._stamped(piece, ticket, call)
            ticket.usage = usage or meter.usage

        return cast("AsyncGenerator[T, None]", self._dispatcher.astream(call.text, attempt, **call.options))

    @property
    def _dispatcher(self) -> Dispatcher:
        return self.dispatcher or Dispatcher.shared(self.router)

    def _chosen(self, ticket: Ticket) -> FunctionCallingLLM:
        """The member of a ticket, ready to be called; says what was decided. Who is asked for tools, calls them."""
        announce(ticket.decision, ticket.attempt)
        member = self.members[ticket.model]
        theirs = member.callback_manager
        if not theirs.handlers or any(theirs is lent for lent in self._lent.values()):
            member.callback_manager = self._lent[ticket.model] = self.callback_manager
        return cast("FunctionCallingLLM", self._within(ticket.max_output_tokens, ticket.model, member))

    def _within(self, cap: int | None, name: str, member: LLM) -> LLM:
        """The member, or its twin that answers with at most so many tokens: not every call takes a cap of its own."""
        own = getattr(member, "max_tokens", None)
        if cap is None or "max_tokens" not in type(member).model_fields or (isinstance(own, int) and own <= cap):
            return member
        if len(self._capped) >= MOST_TWINS:
            self._capped.clear()
        twin = self._capped.setdefault((name, cap), member.model_copy())
        twin.__dict__.update(member.__dict__, max_tokens=cap)
        return twin

    def _stamped(self, answer: Any, ticket: Ticket, call: Call) -> Any:
        """A copy that says what was decided. On the response: what is on a message is sent to providers as history."""
        if not isinstance(answer, ChatResponse | CompletionResponse):
            return answer  # words or an object have no place for it
        conversation = call.options.get("conversation")
        if conversation is not None and isinstance(answer, ChatResponse):
            self._loops.keep(answer.message, conversation)
        told = {**answer.additional_kwargs, "eccos": record(ticket.decision, ticket.attempt)}
        return answer.model_copy(update={"additional_kwargs": told})


@contextmanager
def asked_for(arguments: Arguments) -> Iterator[None]:
    """Takes what is for the router out of `arguments`, for the calls in the block: LlamaIndex would not pass it on."""
    token = _ASKED.set(_settings_in(arguments))
    try:
        yield
    finally:
        _ASKED.reset(token)


_ASKED: ContextVar[Arguments] = ContextVar("eccos_asked", default={})  # noqa: B039  # nobody writes into it


def _settings_in(arguments: Arguments) -> Arguments:
    return {name: arguments.pop(name) for name in SETTINGS if name in arguments}


def _check_kinds(members: Mapping[str, object]) -> None:
    for name, member in members.items():
        if not isinstance(member, LLM):  # its value may hold a key: never shown
            raise ConfigError(f"members: {name!r} is a {type(member).__name__}; give a llama_index.core.llms.LLM")
