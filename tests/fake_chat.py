"""A chat model that calls tools, fills schemas, streams and says what it used, without a network."""

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolCall, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr


class FakeChat(BaseChatModel):
    """Answers "NAME: QUESTION"; with tools bound and no result of one yet, calls the first of them.

    Arguments are made from the tool's schema: numbers and quoted words from the question, else a word.

    Args:
        model_name: What it calls itself.
        fail: Errors to raise, one per call, before it answers; or one for every call.
        fail_at: The piece of a stream before which `fail` is raised; 0: before the first.
        latency: Seconds of a call.
        max_tokens: Its own cap.
        api_key: To be kept secret by whoever holds it.
    """

    model_name: str = "fake"
    fail: list[Exception] | Exception | None = None
    fail_at: int = 0
    latency: float = 0.0
    max_tokens: int | None = None
    api_key: str = ""
    asked: list[dict[str, Any]] = Field(default_factory=list)
    """Arguments of every call, with its `messages`."""
    now: int = 0
    """Calls under way."""
    most_at_once: int = 0
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "__pydantic_private__": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "FakeChat":
        return self.model_copy()

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        made = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=made, tool_choice=tool_choice, **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._begin(messages, stop, kwargs)
        try:
            time.sleep(self.latency)
            self._maybe_fail(0)
            return ChatResult(generations=[ChatGeneration(message=self._answer(messages, stop, kwargs))])
        finally:
            self._end()

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._begin(messages, stop, kwargs)
        try:
            await asyncio.sleep(self.latency)
            self._maybe_fail(0)
            return ChatResult(generations=[ChatGeneration(message=self._answer(messages, stop, kwargs))])
        finally:
            self._end()

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._begin(messages, stop, kwargs)
        try:
            time.sleep(self.latency)
            for at, chunk in enumerate(_chunks(self._answer(messages, stop, kwargs))):
                self._maybe_fail(at)
                yield ChatGenerationChunk(message=chunk)
        finally:
            self._end()

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._begin(messages, stop, kwargs)
        try:
            await asyncio.sleep(self.latency)
            for at, chunk in enumerate(_chunks(self._answer(messages, stop, kwargs))):
                self._maybe_fail(at)
                yield ChatGenerationChunk(message=chunk)
        finally:
            self._end()

    def _begin(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> None:
        with self._lock:
            self.asked.append({"messages": messages, **({} if stop is None else {"stop": stop}), **kwargs})
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)

    def _end(self) -> None:
        with self._lock:
            self.now -= 1

    def _maybe_fail(self, at: int) -> None:
        if at != self.fail_at or self.fail is None:
            return
        if isinstance(self.fail, Exception):
            raise self.fail
        with self._lock:
            error = self.fail.pop(0) if self.fail else None
        if error is not None:
            raise error

    def _answer(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> AIMessage:
        words = sum(len(message.text.split()) for message in messages)
        said = {"model_name": kwargs.get("model", self.model_name)}
        question = next((m.text for m in reversed(messages) if m.type == "human"), "")
        tools = kwargs.get("tools") or []
        if tools and messages[-1].type != "tool":
            function = tools[0]["function"]
            call = ToolCall(name=function["name"], args=_arguments(function.get("parameters", {}), question),
                            id=f"call_{next(_IDS)}", type="tool_call")  # fmt: skip
            return AIMessage("", tool_calls=[call], response_metadata=said, usage_metadata=_usage(words, 5))
        text = f"{self.model_name}: {messages[-1].text or 'hello'}"
        if (form := kwargs.get("response_format")) is not None:
            text = json.dumps(_arguments(form["json_schema"]["schema"], question))
        for end in stop or []:
            text = text.split(end, maxsplit=1)[0]
        return AIMessage(text, response_metadata=said, usage_metadata=_usage(words, len(text.split())))


_IDS = itertools.count()


def _usage(input_tokens: int, output_tokens: int) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
    )


def _chunks(answer: AIMessage) -> Iterator[AIMessageChunk]:
    """A word each, then what was used, in the last."""
    for word in re.findall(r"\S+\s*", answer.text):
        yield AIMessageChunk(word)
    for call in answer.tool_calls:
        piece = {"name": call["name"], "args": json.dumps(call["args"], ensure_ascii=False), "id": call["id"],
                 "index": 0, "type": "tool_call_chunk"}  # fmt: skip
        yield AIMessageChunk("", tool_call_chunks=[piece])  # type: ignore[list-item]
    yield AIMessageChunk(
        "", response_metadata=answer.response_metadata, usage_metadata=answer.usage_metadata, chunk_position="last"
    )


def _arguments(schema: dict[str, Any], question: str) -> dict[str, Any]:
    numbers = iter(re.findall(r"-?\d+", question))
    quoted = iter(re.findall(r"'([^']+)'|\"([^\"]+)\"", question))
    made: dict[str, Any] = {}
    for name, spec in schema.get("properties", {}).items():
        kind = spec.get("type") or next((one.get("type") for one in spec.get("anyOf", [])), "string")
        if kind in {"integer", "number"}:
            made[name] = int(next(numbers, "1"))
        elif kind == "boolean":
            made[name] = True
        elif kind == "array":
            made[name] = []
        elif kind == "object":
            made[name] = _arguments(spec, question)
        else:
            made[name] = spec.get("enum", ["".join(next(quoted, ("word", "")))])[0]
    return made
