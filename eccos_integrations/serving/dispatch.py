"""The dispatcher: waiting callers are decided together, each makes its own call, failures go to another model."""

import asyncio
import math
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Literal, Self, TypeVar, Unpack

from eccos_integrations.errors import ConfigError
from eccos_integrations.router import Router
from eccos_integrations.serving.attempts import Attempts
from eccos_integrations.serving.feedback import FeedbackLog
from eccos_integrations.serving.journal import Journal
from eccos_integrations.serving.limits import Ledger, open_ledger
from eccos_integrations.serving.metrics import Metrics, default_metrics
from eccos_integrations.serving.rounds import Rounds
from eccos_integrations.serving.window import BackpressureError, Options, Served, Ticket, Usage

__all__ = ["BackpressureError", "Dispatcher", "Options", "Served", "Ticket", "Usage"]

T = TypeVar("T")

_SHARING = threading.Lock()


class Dispatcher:
    """Gives every waiting caller a model that has room for its query now, and falls back where a call fails.

    Callers from threads and event loops wait together for a moment; one thread decides them against what is free, and
    keeps the books. It starts with the first caller and ends when there is none. Each caller makes its own call. A
    query that fits nowhere now waits. Failing models are left alone for a while: see `Health`. An error that every
    model would repeat, and the last of `max_attempts`, is raised as it is.

    A pickled copy, and the one in a forked child, starts empty.

    Args:
        router: Forecasts and prices.
        ledger: Keeps the limits; default one in memory, of the router's pool.
        window_s: How long to wait for others to decide with. 0: not at all.
        max_waiting: Callers; more get a `BackpressureError`.
        max_attempts: Calls made for one query.
        deadline_s: Most seconds in which a query must have got its (last) model. None: no end.
        reserve: `"strict"` reserves the cap on output tokens, which the call must keep to; `"relaxed"` reserves what
            nine in ten answers keep to, and the ledger reports overruns.
        log: Decisions and usage are logged there, without waiting for the disk.
        metrics: Default OpenTelemetry's, where its API is installed.
        seed: Of the jitter.
        clock: Seconds that only move forward.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> from eccos_integrations import Router, load_sample
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> with Dispatcher(router) as dispatcher:
        ...     served = dispatcher.call("What is 2 + 2?", lambda ticket: (f"4, says {ticket.model}", Usage(9, 12)))
        >>> served.answer == f"4, says {served.decision.model}"
        True
    """

    def __init__(
        self,
        router: Router,
        ledger: Ledger | None = None,
        *,
        window_s: float = 0.010,
        max_waiting: int = 10_000,
        max_attempts: int = 3,
        deadline_s: float | None = None,
        reserve: Literal["strict", "relaxed"] = "strict",
        log: FeedbackLog | None = None,
        metrics: Metrics | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value, least in (("window_s", window_s, 0), ("max_waiting", max_waiting, 1),
                                   ("max_attempts", max_attempts, 1), ("deadline_s", deadline_s or 0, 0)):  # fmt: skip
            if not least <= value < math.inf:
                raise ConfigError(f"{name}={value}: give a finite number of at least {least}")
        if reserve not in {"strict", "relaxed"}:
            raise ConfigError(f"reserve={reserve!r}: give 'strict' or 'relaxed'")
        self._settings: dict[str, Any] = {
            "window_s": window_s, "max_waiting": max_waiting, "max_attempts": max_attempts, "deadline_s": deadline_s,
            "reserve": reserve, "log": log, "metrics": default_metrics() if metrics is None else metrics, "seed": seed,
            "clock": clock,
        }  # fmt: skip
        self.router = router
        self.ledger = open_ledger("memory://", router.pool) if ledger is None else ledger
        self._clear()
        if hasattr(os, "register_at_fork"):
            _survive_forks(weakref.ref(self))

    def _clear(self) -> None:
        own = self._settings
        self._rounds = Rounds(
            self.router, self.ledger, own["clock"], metrics=own["metrics"], window_s=own["window_s"],
            max_waiting=own["max_waiting"], strict=own["reserve"] == "strict", seed=own["seed"],
        )  # fmt: skip
        self._attempts = Attempts(
            self.router, self._rounds, Journal(own["log"], own["clock"]), own["metrics"], own["clock"],
            most=own["max_attempts"], deadline_s=own["deadline_s"],
        )  # fmt: skip

    @classmethod
    def shared(cls, router: Router) -> "Dispatcher":
        """The one with the defaults that all who bring none of their own share: so a router's limits hold for them all.

        Example:
            >>> from eccos_integrations import Router, load_sample
            >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
            >>> Dispatcher.shared(router) is Dispatcher.shared(router)
            True
        """
        with _SHARING:
            found = router.attached.get("dispatcher")
            if not isinstance(found, Dispatcher):
                found = router.attached["dispatcher"] = cls(router)
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {"router": self.router, "ledger": self.ledger, **self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy starts afresh

    def __repr__(self) -> str:
        return f"Dispatcher({len(self.router.models)} models, {self.waiting} waiting)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    @property
    def waiting(self) -> int:
        """Callers without a model yet."""
        return self._rounds.waiting

    def call(
        self, query: str, function: Callable[[Ticket], tuple[T, Usage | None]], **options: Unpack[Options]
    ) -> Served[T]:
        """Have a query answered.

        Args:
            query: The text, by which it is decided.
            function: Calls `ticket.model` with at most `ticket.max_output_tokens`; gives the answer and what it used.
            **options: See `Options`.

        Raises:
            BackpressureError: Too many wait, or the deadline has passed; says when to try again.
            NoCapacityError: No model can ever take it.
            ConfigError: An argument cannot be used, or the dispatcher is closed.
            Exception: Of the function, where no other model would do better or no attempt is left.
        """
        request = self._attempts.first(query, options)
        while True:
            ticket = self._attempts.wait(request)
            try:
                with self._attempts.calling(request, ticket):
                    answer, ticket.usage = function(ticket)
            except Exception as error:
                following = self._attempts.following(request, ticket, error)
                if following is None:
                    raise
                request = following
            else:
                return Served(answer, ticket.decision, ticket.usage, request.attempts)

    async def acall(
        self, query: str, function: Callable[[Ticket], Awaitable[tuple[T, Usage | None]]], **options: Unpack[Options]
    ) -> Served[T]:
        """As `call`, from an event loop. Cancelled, everything is given back."""
        request = self._attempts.first(query, options)
        while True:
            ticket = await self._attempts.await_(request)
            try:
                with self._attempts.calling(request, ticket):
                    answer, ticket.usage = await function(ticket)
            except Exception as error:
                following = self._attempts.following(request, ticket, error)
                if following is None:
                    raise
                request = following
            else:
                return Served(answer, ticket.decision, ticket.usage, request.attempts)

    def appraised(self, calls: Sequence[tuple[str, Options]]) -> list[tuple[str, Options]]:
        """Queries and options of calls to come, looked at together: for a batch whose calls come one by one.

        Args:
            calls: Queries and their options.

        Raises:
            ConfigError: An argument cannot be used.
        """
        worths = self._rounds.worths([self._attempts.first(query, options) for query, options in calls])
        return [
            (query, options if isinstance(worth, Exception) else Options(**{**options, "worth": worth}))
            for (query, options), worth in zip(calls, worths, strict=True)
        ]

    @contextmanager
    def ticket(self, query: str, **options: Unpack[Options]) -> Iterator[Ticket]:
        """One attempt as a `with` block, for streams; no fallback. Raises as `call`."""
        request = self._attempts.first(query, options)
        ticket = self._attempts.wait(request)
        with self._attempts.calling(request, ticket):
            yield ticket

    @asynccontextmanager
    async def aticket(self, query: str, **options: Unpack[Options]) -> AsyncIterator[Ticket]:
        """As `ticket`, from an event loop."""
        request = self._attempts.first(query, options)
        ticket = await self._attempts.await_(request)
        with self._attempts.calling(request, ticket):
            yield ticket

    def stream(self, query: str, function: Callable[[Ticket], Iterator[T]], **options: Unpack[Options]) -> Iterator[T]:
        """Have a query answered piece by piece. Another model takes over only before the first piece.

        Args:
            query: The text, by which it is decided.
            function: Calls `ticket.model`, gives the pieces, and sets `ticket.usage` before it ends.
            **options: See `Options`.

        Raises:
            Exception: As `call`.
        """
        request = self._attempts.first(query, options)
        while True:
            ticket, begun = self._attempts.wait(request), False
            try:
                with self._attempts.calling(request, ticket):
                    for piece in function(ticket):
                        begun = True
                        yield piece
            except Exception as error:
                following = None if begun else self._attempts.following(request, ticket, error)
                if following is None:
                    raise
                request = following
            else:
                return

    async def astream(
        self, query: str, function: Callable[[Ticket], AsyncGenerator[T, None]], **options: Unpack[Options]
    ) -> AsyncIterator[T]:
        """As `stream`, from an event loop. Whoever stops early closes it, as any asynchronous generator."""
        request = self._attempts.first(query, options)
        while True:
            ticket, begun = await self._attempts.await_(request), False
            try:
                with self._attempts.calling(request, ticket):
                    async with aclosing(function(ticket)) as pieces:
                        async for piece in pieces:
                            begun = True
                            yield piece
            except Exception as error:
                following = None if begun else self._attempts.following(request, ticket, error)
                if following is None:
                    raise
                request = following
            else:
                return

    def holds(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether calls that are awaited in this event loop are under way: while it stands still they cannot end."""
        return self._rounds.books.holds(loop)

    def close(self) -> None:
        """Turn away who waits; calls under way may end. Again is fine."""
        self._rounds.close()

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.to_thread(self.close)


def _survive_forks(me: "weakref.ref[Dispatcher]") -> None:
    """Fork between two turns of the thread, which is not there in the child, where a lock it holds is held for ever."""
    turns: list[Any] = []

    def before() -> None:
        if (dispatcher := me()) is not None:
            turns.append(dispatcher._rounds.turn)  # noqa: SLF001
            turns[-1].acquire()

    def after() -> None:
        while turns:
            turns.pop().release()

    def in_child() -> None:
        turns.clear()
        if (dispatcher := me()) is not None:
            dispatcher._clear()  # noqa: SLF001

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)
