"""Calls of one of several members, each through the dispatcher: decided one by one, or a batch jointly beforehand."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher, Ticket, Usage
from eccos_integrations.serving.jointly import Asked, decided_in_place
from langchain_eccos.decisions import aannounce, announce, options_of
from langchain_eccos.member import Meter, member_config, member_kwargs, shown
from langchain_eccos.query import QuerySource, joined, prompt_tokens, query_text

Kwargs = Mapping[str, Any]
LEFT_OUT = (
    "every model it may go to is full by the policy's capacity, or too short for it; raise the capacity, or send a "
    "smaller batch"
)


@dataclass(frozen=True)
class Calls:
    """How a runnable's inputs are answered.

    The `config` of each method is that of the members: its callbacks are those of the router's own run.

    Args:
        members: By name of the model.
        router: Decides.
        policy: What must hold; None: the router's own.
        query: Finds the text of an input.
        dispatcher: Gives the tickets.
    """

    members: Mapping[str, Runnable[Any, Any]]
    router: Router
    policy: Policy | None
    query: QuerySource
    dispatcher: Dispatcher

    def asked(self, input: Any, config: RunnableConfig, kwargs: Kwargs) -> Asked:
        """What one input asks of the dispatcher.

        Raises:
            ConfigError: It has no text, or its settings cannot be used.
        """
        options = options_of(self.router, self.policy, config)
        if any(name not in self.members for name in self.router.models):  # the router has learnt of another since
            names = options.get("candidates") or self.router.models
            options["candidates"] = [name for name in names if name in self.members]
        if (tokens := prompt_tokens(input)) is not None:
            options["input_tokens"] = tokens
        if isinstance(most := kwargs.get("max_tokens"), int):
            options["max_output_tokens"] = most
        return query_text(input, self.query), options

    def plan(self, inputs: Sequence[Any], configs: Sequence[RunnableConfig], kwargs: Kwargs) -> list[Asked | Exception]:
        """What each input of a batch asks, its decision made: one joint solve for all that are under one policy.

        An input that cannot be decided has its error, and the others go on.
        """
        found: list[Asked | Exception] = []
        for each in zip(inputs, configs, strict=True):
            try:
                found.append(self.asked(*each, kwargs))
            except Exception as error:  # noqa: BLE001  # of the caller's own `query`, too
                found.append(error)
        found = decided_in_place(found, self.router, LEFT_OUT)
        ready = iter(self.dispatcher.appraised([one for one in found if isinstance(one, tuple)]))
        return [next(ready) if isinstance(one, tuple) else one for one in found]

    def invoke(
        self,
        input: Any,
        config: RunnableConfig,
        *,
        kwargs: Kwargs,
        asked: Asked | Exception | None = None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Any:
        """Answer one input.

        Args:
            input: The input.
            config: Of the members.
            kwargs: For the member.
            asked: From `plan`.
            turn: A block in which a member may be called.
        """
        text, options = _sound(asked or self.asked(input, config, kwargs))

        def call(ticket: Ticket) -> tuple[Any, Usage | None]:
            member, meter = self.members[ticket.model], Meter()
            own = member_config(config, ticket, meter)
            with turn():
                announce(ticket, config)
                answer = member.invoke(input, own, **member_kwargs(member, kwargs, ticket))
            return shown(answer, ticket), meter.told([answer])

        return self.dispatcher.call(text, call, **options).answer

    async def ainvoke(
        self,
        input: Any,
        config: RunnableConfig,
        *,
        kwargs: Kwargs,
        asked: Asked | Exception | None = None,
        turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> Any:
        """As `invoke`."""
        text, options = _sound(asked or self.asked(input, config, kwargs))

        async def call(ticket: Ticket) -> tuple[Any, Usage | None]:
            member, meter = self.members[ticket.model], Meter()
            own = member_config(config, ticket, meter)
            async with turn():
                await aannounce(ticket, config)
                answer = await member.ainvoke(input, own, **member_kwargs(member, kwargs, ticket))
            return shown(answer, ticket), meter.told([answer])

        return (await self.dispatcher.acall(text, call, **options)).answer

    def stream(self, inputs: Iterator[Any], config: RunnableConfig, *, kwargs: Kwargs) -> Iterator[Any]:
        """Answer one input that comes in pieces, in pieces; the decision stands on the first of them."""
        whole = joined(list(inputs))
        text, options = self.asked(whole, config, kwargs)

        def call(ticket: Ticket) -> Generator[Any, None, None]:
            member, meter = self.members[ticket.model], Meter()
            pieces: list[Any] = []
            announce(ticket, config)
            own = member_config(config, ticket, meter)
            for piece in member.stream(whole, own, **member_kwargs(member, kwargs, ticket)):
                yield piece if pieces else shown(piece, ticket)
                pieces.append(piece)
            ticket.usage = meter.told(pieces)

        yield from self.dispatcher.stream(text, call, **options)

    async def astream(
        self, inputs: AsyncIterator[Any], config: RunnableConfig, *, kwargs: Kwargs
    ) -> AsyncIterator[Any]:
        """As `stream`."""
        whole = joined([piece async for piece in inputs])
        text, options = self.asked(whole, config, kwargs)

        async def call(ticket: Ticket) -> AsyncGenerator[Any, None]:
            member, meter = self.members[ticket.model], Meter()
            pieces: list[Any] = []
            await aannounce(ticket, config)
            own = member_config(config, ticket, meter)
            come: Any = member.astream(whole, own, **member_kwargs(member, kwargs, ticket))
            async with aclosing(come):
                async for piece in come:
                    yield piece if pieces else shown(piece, ticket)
                    pieces.append(piece)
            ticket.usage = meter.told(pieces)

        answer: Any = self.dispatcher.astream(text, call, **options)
        async with aclosing(answer):  # closed early, the ticket goes back at once
            async for piece in answer:
                yield piece


def _sound(asked: Asked | Exception) -> Asked:
    if isinstance(asked, Exception):
        raise asked
    return asked
