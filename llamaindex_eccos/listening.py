"""What LlamaIndex's instrumentation tells who listens: the question behind a call, what the calls below have used."""

import inspect
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index.core.instrumentation.span import BaseSpan, active_span_id
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent

from eccos_integrations.serving.dispatch import Usage
from llamaindex_eccos.messages import last_user_text

T = TypeVar("T")

_LISTENING = threading.Lock()


class Asked(BaseSpan):
    """A span in which a question is being answered."""

    question: str = Field(repr=False)


class Questions(BaseSpanHandler[Asked]):
    """Remembers, for every open span, the question that it is about: the nearest one of the spans around it."""

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "EccosQuestions"

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Asked | None:
        """The question that the span brings, or else that of its parent."""
        found = _question_in(bound_args.arguments) or self.question(parent_span_id)
        return Asked(id_=id_, parent_id=parent_span_id, question=found) if found else None

    def prepare_to_exit_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> Asked | None:
        """Forget it."""
        return self.open_spans.get(id_)

    def prepare_to_drop_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> Asked | None:
        """Forget it."""
        return self.open_spans.get(id_)

    def question(self, span_id: str | None) -> str | None:
        """Of an open span."""
        span = None if span_id is None else self.open_spans.get(span_id)
        return None if span is None else span.question


def _question_in(arguments: Mapping[str, Any]) -> str | None:
    """Of a query engine, a retriever, a synthesizer; of a prompt that is filled in; of an agent's step."""
    found = arguments.get("str_or_query_bundle", arguments.get("query"))
    prompt, said = arguments.get("prompt"), getattr(arguments.get("ev"), "input", None)
    if isinstance(prompt, BasePromptTemplate):
        found = {**prompt.kwargs, **arguments.get("prompt_args", {})}.get("query_str")
    elif isinstance(said, list) and all(isinstance(message, ChatMessage) for message in said):
        found = last_user_text(said)
    found = getattr(found, "query_str", found)
    return found if isinstance(found, str) else None


class Meter:
    """What the calls of LLMs have used while it was listening."""

    def __init__(self) -> None:
        self._uses: dict[int, tuple[Any, Usage | None]] = {}

    def hear(self, answer: ChatResponse | CompletionResponse) -> None:
        """Count an answer. One that a model has made of another of its own has the same `raw`, and counts once."""
        told = answer if answer.raw is None else answer.raw
        self._uses[id(told)] = (told, usage_of(answer))

    @property
    def usage(self) -> Usage | None:
        """Of all calls together; None: there were none, or one of them does not say."""
        return Usage.total([usage for _, usage in self._uses.values()])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In the block, and what it begins."""
        token = _METER.set(self)
        try:
            yield
        finally:
            _METER.reset(token)

    def over(self, pieces: Iterator[T]) -> Iterator[T]:
        """The pieces; listens while they are made, not between them: others speak then."""
        while True:
            with self.listening():
                try:
                    piece = next(pieces)
                except StopIteration:
                    return
            yield piece

    async def aover(self, pieces: AsyncIterator[T]) -> AsyncIterator[T]:
        """As `over`."""
        while True:
            with self.listening():
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    return
            yield piece


_METER: ContextVar[Meter | None] = ContextVar("eccos_meter", default=None)


class Meters(BaseEventHandler):
    """Lets the meter of a call hear of the answers below it."""

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "EccosMeters"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Pass an answer on."""
        meter = _METER.get()
        if meter is not None and isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent) and event.response:
            meter.hear(event.response)


def usage_of(answer: Any) -> Usage | None:
    """What an answer says its call used; None where it does not say."""
    if not isinstance(answer, ChatResponse | CompletionResponse):
        return None
    try:
        tokens = get_tokens_from_response(answer)
    except (TypeError, ValueError, AttributeError):  # `raw` may be anything
        return None
    if tokens == (0, 0) or not all(isinstance(count, int) and count >= 0 for count in tokens):
        return None
    details = getattr(getattr(answer.raw, "usage", None), "prompt_tokens_details", None)
    return Usage(*tokens, cached_tokens=getattr(details, "cached_tokens", None) or 0)


def listen() -> None:
    """Listen, once per process."""
    root = get_dispatcher()
    with _LISTENING:
        if not any(isinstance(handler, Questions) for handler in root.span_handlers):
            root.add_span_handler(Questions())
        if not any(isinstance(handler, Meters) for handler in root.event_handlers):
            root.add_event_handler(Meters())


def question() -> str | None:
    """What is being asked where this is called; None: nobody knows."""
    for handler in get_dispatcher().span_handlers:
        if isinstance(handler, Questions):
            return handler.question(active_span_id.get())
    return None
