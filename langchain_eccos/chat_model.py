"""`ChatEccos`: named chat models behind one that is a chat model itself; the router chooses who answers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, closing, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_model_stream import AsyncChatModelStream, ChatModelStream
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list, merge_configs
from langchain_core.runnables.schema import StreamEvent
from langchain_core.tools import BaseTool
from pydantic import BaseModel
from typing_extensions import override

from eccos_integrations.errors import ConfigError, EccosError
from eccos_integrations.serving.dispatch import Ticket, Usage
from langchain_eccos.abilities import candidates
from langchain_eccos.batching import AsyncTurn, Turn, in_tasks, in_threads
from langchain_eccos.bindings import KEY, SchemaBinding, ToolBinding
from langchain_eccos.chat_members import ChatMembers
from langchain_eccos.chats import Ask, Chat, appraised, decided, models_of
from langchain_eccos.event_streams import pulled, pumped
from langchain_eccos.joint import Configs, JointBatches

NONE: Mapping[str, Any] = MappingProxyType({})


class ChatEccos(JointBatches[LanguageModelInput, AIMessage], ChatMembers):
    """Routes each chat to one of several chat models, and is a chat model itself: tools, schemas, streams, usage.

    `invoke` and `stream` go through the dispatcher, which decides at the router's current prices, keeps the pool's
    limits and falls back to another member before the first piece of an answer. A batch is decided in one joint solve,
    also as a step of a chain. The router opens a chain run; the chosen member owns the run below it, so tokens are
    counted once. Members that lack what a chat needs (tools, schemas, images, a long enough context window) are passed
    over. Within a tool loop the model that called the tool goes on.

    `model="name"` in a call, or `eccos_model` in `config["configurable"]`, pins the member. The decision stands in
    `response_metadata["eccos"]`, in the metadata and tags of the member's run, and in the event `eccos_decision`.

    Example:
        >>> from eccos_integrations import Policy, Router, load_sample
        >>> from langchain_core.language_models import FakeListChatModel
        >>> router = Router.fit(load_sample().take(range(60)), policy=Policy(min_quality=0.5), predictor="prior")
        >>> chat = ChatEccos({name: FakeListChatModel(responses=["4"]) for name in router.models}, router)
        >>> answer = chat.invoke("What is 2 + 2?")
        >>> answer.text, answer.response_metadata["eccos"]["model"] in router.models
        ('4', True)
    """

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools, to whichever member a call goes to.

        Args:
            tools: In any form the members take.
            tool_choice: Which to call, as the members understand it.
            **kwargs: For the members' own `bind_tools`.

        Raises:
            ConfigError: No member calls tools.
        """
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        binding = ToolBinding(list(tools), {**choice, **kwargs})
        candidates(self.router.pool, self.members, [binding.needs])
        return self.bind(**{KEY: binding})

    @override
    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Have answers as objects of a schema, made in the chosen member's own way.

        Args:
            schema: In any form the members take.
            include_raw: Give a dict with the message, the object, and the error of reading it.
            **kwargs: For the members' own `with_structured_output`: `method`, `strict`.

        Raises:
            ConfigError: No member can be held to a schema.
        """
        binding = SchemaBinding(schema, {"include_raw": include_raw, **kwargs})
        candidates(self.router.pool, self.members, [binding.needs])
        made = schema if isinstance(schema, type) and not include_raw else dict[str, Any]
        return cast("Runnable[Any, Any]", self.bind(**{KEY: binding}).with_types(output_type=made))

    @override
    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        return self._call_with_config(self._invoke, input, self._own(config), kwargs={"stop": stop, **kwargs})

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        return await self._acall_with_config(self._ainvoke, input, self._own(config), kwargs={"stop": stop, **kwargs})

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        answer = partial(self._pieces, kwargs={"stop": stop, **kwargs})
        pieces: Any = self._transform_stream_with_config(iter([input]), answer, self._own(config))
        yield from pieces

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        answer = partial(self._apieces, kwargs={"stop": stop, **kwargs})
        pieces: Any = self._atransform_stream_with_config(_one(input), answer, self._own(config))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    @override
    def stream_events(  # type: ignore[override]  # one signature says what the overloads say
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        version: Literal["v1", "v2", "v3"] = "v2",
        **kwargs: Any,
    ) -> Iterator[StreamEvent] | ChatModelStream:
        if version != "v3":
            return super().stream_events(input, config, version=version, **kwargs)
        answer = partial(self._pieces, kwargs=kwargs, events=True)
        return pumped(self._transform_stream_with_config(iter([input]), answer, self._own(config)))

    @override
    def astream_events(  # type: ignore[override]  # as above
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        version: Literal["v1", "v2", "v3"] = "v2",
        **kwargs: Any,
    ) -> AsyncIterator[StreamEvent] | Awaitable[AsyncChatModelStream]:
        if version != "v3":
            return super().astream_events(input, config, version=version, **kwargs)
        answer = partial(self._apieces, kwargs=kwargs, events=True)
        events: Any = self._atransform_stream_with_config(_one(input), answer, self._own(config))
        return pulled(events)

    # `config` is the child config, with the callbacks of the router's own chain run. What LangChain calls is one and
    # the same for every input: of anything new it reads the signature, which takes its time.

    def _invoke(
        self,
        input: Any,
        config: Any,
        *,
        kwargs: Mapping[str, Any] = NONE,
        planned: Chat | Exception | None = None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> AIMessage:
        chat = self._chat(input, config, kwargs) if planned is None else _sound(planned)

        def ask(ticket: Ticket) -> tuple[AIMessage, Usage | None]:
            with turn():
                return Ask(chat, self.members, config, ticket).invoke()

        return self._dispatcher.call(chat.text, ask, **chat.options).answer

    async def _ainvoke(
        self,
        input: Any,
        config: Any,
        *,
        kwargs: Mapping[str, Any] = NONE,
        planned: Chat | Exception | None = None,
        turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> AIMessage:
        chat = self._chat(input, config, kwargs) if planned is None else _sound(planned)

        async def ask(ticket: Ticket) -> tuple[AIMessage, Usage | None]:
            async with turn():
                return await Ask(chat, self.members, config, ticket).ainvoke()

        return (await self._dispatcher.acall(chat.text, ask, **chat.options)).answer

    def _answers(
        self, inputs: Sequence[Any], config: Configs, kwargs: Mapping[str, Any], *, go_on: bool
    ) -> Iterator[tuple[int, AIMessage | Exception]]:
        """Positions and answers as they come; all is decided before the first call."""
        if not inputs:
            return
        configs = self._configs(config, len(inputs))
        chats = self._planned(inputs, configs, kwargs, go_on=go_on)

        def answer(i: int, turn: Turn) -> AIMessage:
            own: dict[str, Any] = {"kwargs": kwargs, "planned": chats[i], "turn": partial(turn, i)}
            return self._call_with_config(self._invoke, inputs[i], configs[i], **own)

        with closing(in_threads(models_of(chats), configs[0].get("max_concurrency"), answer)) as come:
            for i, result in come:
                if isinstance(result, Exception) and not go_on:
                    raise result
                yield i, result

    async def _aanswers(
        self, inputs: Sequence[Any], config: Configs, kwargs: Mapping[str, Any], *, go_on: bool
    ) -> AsyncGenerator[tuple[int, AIMessage | Exception], None]:
        """As `_answers`."""
        if not inputs:
            return
        configs = self._configs(config, len(inputs))
        chats = await asyncio.to_thread(self._planned, inputs, configs, kwargs, go_on=go_on)

        async def answer(i: int, turn: AsyncTurn) -> AIMessage:
            own: dict[str, Any] = {"kwargs": kwargs, "planned": chats[i], "turn": partial(turn, i)}
            return await self._acall_with_config(self._ainvoke, inputs[i], configs[i], **own)

        async with aclosing(in_tasks(models_of(chats), configs[0].get("max_concurrency"), answer)) as come:
            async for i, result in come:
                if isinstance(result, Exception) and not go_on:
                    raise result
                yield i, result

    def _pieces(
        self,
        input: Iterator[Any],
        config: RunnableConfig,
        *,
        kwargs: Mapping[str, Any],
        events: bool = False,
    ) -> Iterator[Any]:
        chat = self._chat(next(input), config, kwargs)

        def ask(ticket: Ticket) -> Iterator[Any]:
            attempt = Ask(chat, self.members, config, ticket)
            return attempt.events() if events else attempt.stream()

        yield from self._dispatcher.stream(chat.text, ask, **chat.options)

    async def _apieces(
        self,
        input: AsyncIterator[Any],
        config: RunnableConfig,
        *,
        kwargs: Mapping[str, Any],
        events: bool = False,
    ) -> AsyncIterator[Any]:
        chat = self._chat(await anext(input), config, kwargs)

        def ask(ticket: Ticket) -> AsyncGenerator[Any, None]:
            attempt = Ask(chat, self.members, config, ticket)
            return attempt.aevents() if events else attempt.astream()

        async with aclosing(cast("Any", self._dispatcher.astream(chat.text, ask, **chat.options))) as pieces:
            async for piece in pieces:
                yield piece

    def _chat(self, input: Any, config: RunnableConfig, kwargs: Mapping[str, Any]) -> Chat:
        messages = self._convert_input(input).to_messages()
        return Chat.of(messages, kwargs, config, self.router, self.policy, self.members)

    def _planned(
        self, inputs: Sequence[Any], configs: Sequence[RunnableConfig], kwargs: Mapping[str, Any], *, go_on: bool
    ) -> list[Chat | Exception]:
        """What each input of a batch asks, decided jointly. An input that cannot be asked has its error."""
        chats: list[Chat | Exception] = []
        for value, config in zip(inputs, configs, strict=True):
            try:
                chats.append(self._chat(value, config, kwargs))
            except (EccosError, ValueError) as error:  # the second is LangChain's, of an input that is no chat
                chats.append(error)
        chats = appraised(decided(chats, self.router), self._dispatcher)
        if not go_on and (failed := next((chat for chat in chats if isinstance(chat, Exception)), None)):
            raise failed  # before anything is paid for
        return chats

    def _own(self, config: RunnableConfig | None) -> RunnableConfig | None:
        """The config of the router's run: with the tags, metadata and callbacks that it was made with."""
        metadata = {key: value for key, value in (self.metadata or {}).items() if key != "lc_versions"}
        if not (self.tags or metadata or self.callbacks):
            return config
        own = RunnableConfig(tags=self.tags or [], metadata=metadata, callbacks=self.callbacks)
        return merge_configs(own, ensure_config(config))

    def _configs(self, config: Configs, n: int) -> list[RunnableConfig]:
        given = config if config is None or isinstance(config, dict) else list(config)
        configs = [self._own(each) or each for each in get_config_list(given, n)]
        if (most := configs[0].get("max_concurrency")) is not None and most < 1:
            raise ConfigError(f"max_concurrency={most}: give at least 1")
        return configs


async def _one(value: Any) -> AsyncIterator[Any]:
    yield value


def _sound(chat: Chat | Exception) -> Chat:
    if isinstance(chat, Exception):
        raise chat
    return chat
