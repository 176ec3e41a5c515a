"""Batches: many queries, chats or prompts, decided in one joint solve and answered in order."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.schema import QueryType
from llama_index.core.tools import BaseTool
from llama_index.core.utils import get_tqdm_iterable

from eccos_integrations.errors import ConfigError, EccosError, NoCapacityError
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher, Options
from eccos_integrations.serving.jointly import Asked, decided
from llamaindex_eccos.decisions import Planned, heard, planned
from llamaindex_eccos.llm import EccosLLM
from llamaindex_eccos.routed import Call
from llamaindex_eccos.selector import EccosSelector

T = TypeVar("T")

Decider = EccosLLM | EccosSelector


async def aquery_batch(
    engine: BaseQueryEngine,
    queries: Sequence[QueryType],
    *,
    llm: Decider | None = None,
    num_workers: int | None = None,
    show_progress: bool = False,
    return_exceptions: bool = False,
) -> list[Any]:
    """Query an engine many times, with one joint solve for all the queries.

    All that the engine asks its `EccosLLM` for one query goes to the model that the plan gave that query, and an
    `EccosSelector` in it selects that model's tool.

    Args:
        engine: Any that has an `EccosLLM` or an `EccosSelector` inside.
        queries: Texts or bundles.
        llm: The one that decides, where it cannot be found in the engine.
        num_workers: Most queries under way. Default all: the dispatcher keeps the models' limits. A number also spares
            what else the engine asks, such as an embedding service.
        show_progress: With a bar.
        return_exceptions: An error takes the place of its answer. Else the first ends the batch, and is raised.

    Returns:
        The answers, in the order of the queries; `metadata["eccos"]` of each says who gave it, and the decision's id.

    Raises:
        ConfigError: Nothing that decides is found in the engine, or there are several that differ.
        NoCapacityError: The policy's capacity leaves no place for a query.
    """
    texts = [query if isinstance(query, str) else query.query_str for query in queries]
    decider = _decider(engine) if llm is None else _checked(llm, Decider)
    asked = [(text, Options(policy=decider.policy)) for text in texts]

    async def answered(i: int) -> Any:
        with heard() as decisions:
            response = await engine.aquery(queries[i])
        if decisions and hasattr(response, "metadata"):
            response.metadata = {**(response.metadata or {}), "eccos": decisions[-1]}
        return response

    return await _answers(
        decider.router, asked, answered,
        num_workers=num_workers, show_progress=show_progress, return_exceptions=return_exceptions,
    )  # fmt: skip


async def achat_batch(
    llm: EccosLLM,
    messages: Sequence[Sequence[ChatMessage]],
    *,
    num_workers: int | None = None,
    show_progress: bool = False,
    return_exceptions: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """Chat many times, with one joint solve for all.

    Args:
        llm: That decides.
        messages: Of each chat.
        num_workers: Most chats under way. Default all: the dispatcher keeps the models' limits.
        show_progress: With a bar.
        return_exceptions: An error takes the place of its answer. Else the first ends the batch, and is raised.
        **kwargs: Of every chat, as for `EccosLLM.achat`.

    Returns:
        A `ChatResponse` each, in order.

    Raises:
        NoCapacityError: The policy's capacity leaves no place for a chat.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from eccos_integrations import Router, load_sample
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> llm = EccosLLM(members={name: MockLLM() for name in router.models}, router=router)
        >>> chats = [[ChatMessage("What is 2 + 2?")], [ChatMessage("What is 3 + 3?")]]
        >>> answers = asyncio.run(achat_batch(llm, chats))
        >>> answers[1].additional_kwargs["eccos"]["reason"]
        'planned jointly, 2 queries in one solve'
    """
    call_of = _checked(llm, EccosLLM)._chat_call  # noqa: SLF001  # one package
    asked = [_asked(call_of, each, kwargs) for each in messages]
    return await _answers(
        llm.router, asked, lambda i: llm.achat(messages[i], **kwargs),
        num_workers=num_workers, show_progress=show_progress, return_exceptions=return_exceptions,
    )  # fmt: skip


async def acomplete_batch(
    llm: EccosLLM,
    prompts: Sequence[str],
    *,
    num_workers: int | None = None,
    show_progress: bool = False,
    return_exceptions: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """Complete many prompts, with one joint solve for all.

    Args:
        llm: That decides.
        prompts: Their texts.
        num_workers: Most prompts under way. Default all: the dispatcher keeps the models' limits.
        show_progress: With a bar.
        return_exceptions: An error takes the place of its answer. Else the first ends the batch, and is raised.
        **kwargs: Of every completion, as for `EccosLLM.acomplete`.

    Returns:
        A `CompletionResponse` each, in order.

    Raises:
        NoCapacityError: The policy's capacity leaves no place for a prompt.
    """
    call_of = _checked(llm, EccosLLM)._completion_call  # noqa: SLF001  # one package
    asked = [_asked(call_of, each, kwargs) for each in prompts]
    return await _answers(
        llm.router, asked, lambda i: llm.acomplete(prompts[i], **kwargs),
        num_workers=num_workers, show_progress=show_progress, return_exceptions=return_exceptions,
    )  # fmt: skip


def query_batch(
    engine: BaseQueryEngine, queries: Sequence[QueryType], *, llm: Decider | None = None, **options: Any
) -> list[Any]:
    """As `aquery_batch`, waiting for it; see `complete_batch`."""
    decider = _decider(engine) if llm is None else llm
    return _run(decider, partial(aquery_batch, engine, queries, llm=decider, **options))


def chat_batch(llm: EccosLLM, messages: Sequence[Sequence[ChatMessage]], **options: Any) -> list[Any]:
    """As `achat_batch`, waiting for it; see `complete_batch`."""
    return _run(llm, partial(achat_batch, llm, messages, **options))


def complete_batch(llm: EccosLLM, prompts: Sequence[str], **options: Any) -> list[Any]:
    """As `acomplete_batch`, waiting for it.

    Inside a running event loop, as in a notebook, it works in a thread of its own while that loop stands still.

    Raises:
        ConfigError: The running loop has calls under way, which could not end meanwhile; or as `acomplete_batch`.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from eccos_integrations import Router, load_sample
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> llm = EccosLLM(members={name: MockLLM() for name in router.models}, router=router)
        >>> [answer.text for answer in complete_batch(llm, ["What is 2 + 2?", "What is 3 + 3?"])]
        ['What is 2 + 2?', 'What is 3 + 3?']
    """
    return _run(llm, partial(acomplete_batch, llm, prompts, **options))


async def _answers(
    router: Router,
    asked: Sequence[Asked | EccosError],
    call: Callable[[int], Awaitable[T]],
    *,
    num_workers: int | None,
    show_progress: bool,
    return_exceptions: bool,
) -> list[T | Exception]:
    """Answers in order: decided jointly, called one by one."""
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers={num_workers}: give a number of at least 1, or None for all at once")
    if not asked:
        return []
    plans = await asyncio.to_thread(_plans, router, asked)
    if not return_exceptions and (errors := [each for each in plans if isinstance(each, EccosError)]):
        raise errors[0]  # before any call is paid for
    gate = asyncio.Semaphore(num_workers or len(plans))

    async def answer(i: int, plan: Planned | EccosError) -> T | Exception:
        if isinstance(plan, EccosError):
            return plan
        try:
            async with gate:
                with planned(*plan):
                    return await call(i)
        except Exception as error:
            if not return_exceptions:
                raise
            return error

    tasks = [asyncio.create_task(answer(i, plan)) for i, plan in enumerate(plans)]
    try:
        come = asyncio.as_completed(tasks)
        for each in get_tqdm_iterable(come, show_progress, "Answering the batch", total=len(tasks)):
            await each
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


def _asked(
    call_of: Callable[[Any, dict[str, Any]], Call], given: object, kwargs: Mapping[str, Any]
) -> Asked | EccosError:
    """What the LLM would decide one call by; an error where no member can take it."""
    try:
        call = call_of(given, dict(kwargs))
    except ConfigError as error:
        return error
    return call.text, call.options


def _plans(router: Router, asked: Sequence[Asked | EccosError]) -> list[Planned | EccosError]:
    """What one joint solve says of each; an error for those that have no place in it."""
    known = [each for each in asked if not isinstance(each, EccosError)]
    if not known:
        return [each for each in asked if isinstance(each, EccosError)]
    found = decided(known, router)
    left_out = NoCapacityError(
        f"{found.count(None)} of {len(found)} have no place: the policy's capacity is used up, or no context "
        "window is long enough; raise the capacity, or send a smaller batch"
    )
    said = (_planned(options) if options is not None else left_out for options in found)
    return [each if isinstance(each, EccosError) else next(said) for each in asked]


def _planned(options: Options) -> Planned:
    decision, forecast = options["decision"], options["forecast"]
    assert decision is not None
    assert forecast is not None
    return Planned(decision, forecast)


def _decider(engine: object) -> Decider:
    """What decides in an engine.

    Raises:
        ConfigError: There is none, or there are several that differ.
    """
    found = list(_deciders(engine, set()))
    if not found:
        raise ConfigError(f"engine: no EccosLLM and no EccosSelector found in the {type(engine).__name__}; make it "
                          "with one, or give llm=")  # fmt: skip
    if any(each.router is not found[0].router or each.policy != found[0].policy for each in found):
        raise ConfigError(f"engine: the {type(engine).__name__} has several EccosLLMs or EccosSelectors that decide "
                          "differently; give llm=, the one to plan by")  # fmt: skip
    return found[0]


def _deciders(part: object, seen: set[int]) -> Iterator[Decider]:
    """Those in an engine's parts: what has prompts (engines, synthesizers, retrievers, selectors), tools, and LLMs."""
    if id(part) in seen:
        return
    seen.add(id(part))
    inner: Iterable[object] = ()
    if isinstance(part, EccosLLM | EccosSelector):
        yield part
    elif isinstance(part, PromptMixin | BaseTool | BaseLLM):
        inner = vars(part).values()
    elif isinstance(part, list | tuple):
        inner = part
    elif isinstance(part, dict):
        inner = part.values()
    for each in inner:
        yield from _deciders(each, seen)


def _checked(llm: T, kinds: Any) -> T:
    if not isinstance(llm, kinds):
        raise ConfigError(f"llm: got a {type(llm).__name__}; give the EccosLLM that decides")
    return llm


def _run(llm: Decider, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As LlamaIndex's `asyncio_run`, which would replace a RuntimeError of the work by one of its own."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    decider = _checked(llm, Decider)
    dispatcher = decider.dispatcher or Dispatcher.shared(decider.router)
    if dispatcher.holds(loop):  # what they take up would be waited for, for ever
        raise ConfigError("this event loop has calls under way, which cannot end while it waits for a batch; await the "
                          "asynchronous function: aquery_batch, achat_batch, acomplete_batch")  # fmt: skip
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(copy_context().run, asyncio.run, work()).result()
