"""Batches: which inputs may ask for their models now, in threads and in tasks, under the caller's cap."""

import asyncio
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")

# A block with an input's position: within it the call of a model is under way.
Turn = Callable[[int], AbstractContextManager[None]]
AsyncTurn = Callable[[int], AbstractAsyncContextManager[None]]


class Lines:
    """Who of a batch may ask for a model next: one line per model.

    The cap is on calls under way, not on who asks: where one model is full, its line waits and the others go on. Beyond
    the cap at most one per model asks, so that few models are held for who may not call them yet.

    Args:
        models: Of the inputs.
        most: The cap; None: no end.

    Example:
        >>> lines = Lines(["full", "full", "full", "free", "free"], most=2)
        >>> lines.due()
        [0, 3]
        >>> lines.calls(3)
        >>> lines.due()
        [4]
    """

    def __init__(self, models: Sequence[str], most: int | None) -> None:
        self._models, self._most = models, most
        self._lines: dict[str, deque[int]] = {}
        for i, model in enumerate(models):
            self._lines.setdefault(model, deque()).append(i)
        self._asking: Counter[str] = Counter()
        self._busy = 0  # who asks or calls

    def due(self) -> list[int]:
        """Positions that may ask now, and from now on do."""
        found = []
        while self._lines:
            model = min(self._lines, key=lambda name: (self._asking[name], self._lines[name][0]))
            if self._asking[model] and self._most is not None and self._busy >= self._most:
                break
            found.append(self._lines[model].popleft())
            if not self._lines[model]:
                del self._lines[model]
            self._asking[model] += 1
            self._busy += 1
        return found

    def calls(self, i: int) -> None:
        """Its call begins."""
        self._asking[self._models[i]] -= 1

    def asks(self, i: int) -> None:
        """Its call is over: it asks for another, or leaves."""
        self._asking[self._models[i]] += 1

    def leaves(self, i: int) -> None:
        """It asks no more."""
        self._asking[self._models[i]] -= 1
        self._busy -= 1


def in_threads(
    models: Sequence[str], most: int | None, answer: Callable[[int, Turn], T]
) -> Generator[tuple[int, T | Exception], None, None]:
    """Answer the inputs of a batch, each in a thread.

    Closed early, it ends after the calls under way; no other begins.

    Args:
        models: Of the inputs.
        most: Calls under way; None: as many as an executor has threads by default.
        answer: Of a position; calls a model in a turn.

    Yields:
        Positions and their answers or errors, as they come.
    """
    most = most or min(32, (os.cpu_count() or 1) + 4)
    lines, context, changed = Lines(models, most), copy_context(), threading.Condition()
    done: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()
    calling, closed = 0, False

    def go_on() -> None:
        """Let those begin who are due. Each in the batch's own context: this thread may be inside another's run."""
        if not closed:
            for i in lines.due():
                executor.submit(context.copy().run, work, i)

    @contextmanager
    def turn(i: int) -> Iterator[None]:
        nonlocal calling
        with changed:
            changed.wait_for(lambda: closed or calling < most)
            if closed:
                raise CancelledError
            calling += 1
            lines.calls(i)
        try:
            with changed:
                go_on()
            yield
        finally:
            with changed:
                calling -= 1
                lines.asks(i)
                changed.notify_all()

    def work(i: int) -> None:
        result: T | BaseException
        try:
            result = answer(i, turn)
        except BaseException as error:  # noqa: BLE001  # raised again by who waits for it
            result = error
        with changed:
            lines.leaves(i)
            go_on()
        done.put((i, result))

    executor = ThreadPoolExecutor(len(models), thread_name_prefix="eccos-batch")  # as many as `lines` lets begin
    try:
        with changed:
            go_on()
        for _ in models:
            i, result = done.get()
            yield i, _no_exit(result)
    finally:
        with changed:
            closed = True
            changed.notify_all()
            changed.wait_for(lambda: not calling)
        executor.shutdown(wait=False, cancel_futures=True)  # who still asks is turned away when it is let in


async def in_tasks(
    models: Sequence[str], most: int | None, answer: Callable[[int, AsyncTurn], Awaitable[T]]
) -> AsyncGenerator[tuple[int, T | Exception], None]:
    """As `in_threads`, each in a task; without a cap all at once. Closed early, it cancels all."""
    lines, context = Lines(models, most), copy_context()
    gate = asyncio.Semaphore(most or max(1, len(models)))
    done: asyncio.Queue[tuple[int, T | BaseException]] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []
    closed = False

    def go_on() -> None:
        if not closed:
            tasks.extend(asyncio.create_task(work(i), context=context.copy()) for i in lines.due())

    @asynccontextmanager
    async def turn(i: int) -> AsyncIterator[None]:
        async with gate:
            lines.calls(i)
            go_on()
            try:
                yield
            finally:
                lines.asks(i)

    async def work(i: int) -> None:
        result: T | BaseException
        try:
            result = await answer(i, turn)
        except BaseException as error:  # noqa: BLE001  # raised again by who waits for it
            result = error
        lines.leaves(i)
        go_on()
        done.put_nowait((i, result))

    go_on()
    try:
        for _ in models:
            i, result = await done.get()
            yield i, _no_exit(result)
    finally:
        closed = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _no_exit(result: T | BaseException) -> T | Exception:
    """What is given to the caller; an exit or a cancellation is no answer, and ends the batch."""
    if isinstance(result, BaseException) and not isinstance(result, Exception):
        raise result
    return result
