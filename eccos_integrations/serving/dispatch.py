"""The dispatcher: waiting callers are decided together, each makes its own call, failures go to another model."""

import asyncio
import math
import os
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar, Unpack

from eccos_integrations.errors import ConfigError
from eccos_integrations.router import Router
from eccos_integrations.serving.conversations import Conversations
from eccos_integrations.serving.feedback import FeedbackLog
from eccos_integrations.serving.health import fault
from eccos_integrations.serving.journal import Journal
from eccos_integrations.serving.limits import Ledger, open_ledger
from eccos_integrations.serving.rounds import Rounds
from eccos_integrations.serving.window import BackpressureError, Options, Request, Served, Ticket, Usage

__all__ = ["BackpressureError", "Dispatcher", "Options", "Served", "Ticket", "Usage"]

T = TypeVar("T")


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
            "reserve": reserve, "log": log, "seed": seed, "clock": clock,
        }  # fmt: skip
        self.router = router
        self.ledger = open_ledger("memory://", router.pool) if ledger is None else ledger
        self._clear()
        if hasattr(os, "register_at_fork"):  # in the child there is no thread, and locks may be held for ever
            me = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _start_afresh(me()))

    def _clear(self) -> None:
        own = self._settings
        self._rounds = Rounds(
            self.router, self.ledger, own["clock"], window_s=own["window_s"], max_waiting=own["max_waiting"],
            strict=own["reserve"] == "strict", seed=own["seed"],
        )  # fmt: skip
        self._conversations = Conversations(self.router)
        self._journal = Journal(own["log"], own["clock"])

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
        request = self._request(query, options)
        while True:
            ticket = self._wait(request)
            try:
                with self._calling(request, ticket):
                    answer, ticket.usage = function(ticket)
            except Exception as error:
                following = self._following(request, ticket, error)
                if following is None:
                    raise
                request = following
            else:
                return Served(answer, ticket.decision, ticket.usage, request.attempts)

    async def acall(
        self, query: str, function: Callable[[Ticket], Awaitable[tuple[T, Usage | None]]], **options: Unpack[Options]
    ) -> Served[T]:
        """As `call`, from an event loop. Cancelled, everything is given back."""
        request = self._request(query, options)
        while True:
            ticket = await self._await(request)
            try:
                with self._calling(request, ticket):
                    answer, ticket.usage = await function(ticket)
            except Exception as error:
                following = self._following(request, ticket, error)
                if following is None:
                    raise
                request = following
            else:
                return Served(answer, ticket.decision, ticket.usage, request.attempts)

    @contextmanager
    def ticket(self, query: str, **options: Unpack[Options]) -> Iterator[Ticket]:
        """One attempt as a `with` block, for streams; no fallback. Raises as `call`."""
        request = self._request(query, options)
        ticket = self._wait(request)
        with self._calling(request, ticket):
            yield ticket

    @asynccontextmanager
    async def aticket(self, query: str, **options: Unpack[Options]) -> AsyncIterator[Ticket]:
        """As `ticket`, from an event loop."""
        request = self._request(query, options)
        ticket = await self._await(request)
        with self._calling(request, ticket):
            yield ticket

    def close(self) -> None:
        """Turn away who waits; calls under way may end. Again is fine."""
        self._rounds.close()

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.to_thread(self.close)

    def _request(self, query: str, options: Options) -> Request:
        if not isinstance(query, str):
            raise ConfigError(f"query: got a {type(query).__name__}; give its text")
        for name in ("input_tokens", "max_output_tokens"):
            if (tokens := options.get(name)) is not None and not (isinstance(tokens, int) and tokens >= 1):
                raise ConfigError(f"{name}={tokens!r}: give a whole number of at least 1")
        deadline_s = options.get("deadline_s") or self._settings["deadline_s"] or math.inf
        forecast, conversation = options.get("forecast"), options.get("conversation")
        home, leaving_usd = self._conversations.home(conversation)
        return Request(
            query=query,
            policy=options.get("policy") or self.router.policy,
            expires_s=self._settings["clock"]() + deadline_s,
            conversation=conversation,
            pinned=options.get("pinned", False),
            input_tokens=options.get("input_tokens"),
            max_output_tokens=options.get("max_output_tokens"),
            budgets=options.get("budgets"),
            forecast=None if forecast is None else forecast.check(1),
            home=home,
            leaving_usd=leaving_usd,
        )

    def _wait(self, request: Request) -> Ticket:
        self._rounds.join(request)
        try:
            ticket: Ticket = request.future.result()
        except BaseException:
            self._leave(request)
            raise
        return ticket

    async def _await(self, request: Request) -> Ticket:
        request.waiter = asyncio.get_running_loop().create_future()
        self._rounds.join(request)
        try:
            await request.waiter
            ticket: Ticket = request.future.result()
        except BaseException:
            self._leave(request)
            raise
        return ticket

    def _leave(self, request: Request) -> None:
        """Stop waiting. A ticket that is under way all the same is given back when it comes."""

        def give_back(future: Future[Ticket]) -> None:
            if not future.cancelled() and future.exception() is None:
                ticket = future.result()
                self._rounds.health.abandoned(ticket.model, ticket.generation)
                self._rounds.end(ticket, sent=False)

        request.future.cancel()
        request.future.add_done_callback(give_back)

    @contextmanager
    def _calling(self, request: Request, ticket: Ticket) -> Iterator[None]:
        """End the ticket with the block, whatever happens in it. Never waits: event loops pass here."""
        health, model, generation = self._rounds.health, ticket.model, ticket.generation
        try:
            self._journal.decided(request, ticket)
            yield
        except BaseException as error:
            problem = fault(error)
            if problem is None:
                health.abandoned(model, generation)
            else:
                health.failed(model, generation, problem)
            refused = problem is not None and not problem.billed
            self._rounds.end(ticket, Usage(0, 0, cost_usd=0.0) if refused else None)
            self._journal.used(ticket, type(error).__name__ if isinstance(error, Exception) else "cancelled")
            raise
        health.succeeded(model, generation)
        self._rounds.end(ticket, ticket.usage)
        self._journal.used(ticket, "ok")
        self._conversations.keep(request.conversation, model, ticket.usage)

    def _following(self, request: Request, ticket: Ticket, error: Exception) -> Request | None:
        """The next attempt after an error, None where there is none."""
        problem, tried, barred = fault(error), request.tried, request.barred
        if problem is None or request.attempts >= self._settings["max_attempts"]:
            return None
        if problem.kind == "too_long":
            window = ticket.entry.context_window
            shorter = {m.name for m in self.router.pool if window and m.context_window and m.context_window <= window}
            barred = barred | {ticket.model} | shorter
            if barred.issuperset(self.router.models):
                return None
        else:
            rest_s = self._rounds.health.backoff(request.attempts)
            tried = tried | {ticket.model: self._settings["clock"]() + rest_s}
        return replace(request, error=error, tried=tried, barred=barred, future=Future(), waiter=None)


def _start_afresh(dispatcher: Dispatcher | None) -> None:
    if dispatcher is not None:
        dispatcher._clear()  # noqa: SLF001
