"""One query's way through the dispatcher: it waits for a ticket, is called for, and where that fails, waits again."""

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

from eccos_integrations.errors import ConfigError
from eccos_integrations.router import Router
from eccos_integrations.serving.health import fault
from eccos_integrations.serving.journal import Journal
from eccos_integrations.serving.metrics import Metrics, Outcome
from eccos_integrations.serving.rounds import Rounds, running_loop
from eccos_integrations.serving.window import Options, Request, Ticket, Usage


class Attempts:
    """Requests on their way from one attempt to the next.

    Args:
        router: Its policy is the default.
        rounds: Hand out the tickets.
        journal: Of decisions and usage.
        metrics: Of attempts.
        clock: The dispatcher's.
        most: Calls made for one query.
        deadline_s: Default of the calls; None: no end.
    """

    def __init__(
        self,
        router: Router,
        rounds: Rounds,
        journal: Journal,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        most: int,
        deadline_s: float | None,
    ) -> None:
        self._router, self._rounds, self._journal, self._metrics = router, rounds, journal, metrics
        self._clock, self._most, self._deadline_s = clock, most, deadline_s

    def first(self, query: str, options: Options) -> Request:
        """The request of a new query.

        Raises:
            ConfigError: An argument cannot be used.
        """
        if not isinstance(query, str):
            raise ConfigError(f"query: got a {type(query).__name__}; give its text")
        for name in ("input_tokens", "max_output_tokens"):
            if (tokens := options.get(name)) is not None and not (isinstance(tokens, int) and tokens >= 1):
                raise ConfigError(f"{name}={tokens!r}: give a whole number of at least 1")
        candidates = options.get("candidates")
        if candidates is not None and (unknown := [name for name in candidates if name not in self._router.pool]):
            raise ConfigError(f"candidates: {unknown} not among the router's models {self._router.models}")
        forecast, now = options.get("forecast"), self._clock()
        return Request(
            query=query,
            policy=options.get("policy") or self._router.policy,
            since_s=now,
            expires_s=now + (options.get("deadline_s") or self._deadline_s or math.inf),
            conversation=options.get("conversation"),
            pinned=options.get("pinned", False),
            candidates=candidates,
            decision=options.get("decision"),
            input_tokens=options.get("input_tokens"),
            max_output_tokens=options.get("max_output_tokens"),
            budgets=options.get("budgets"),
            forecast=forecast if forecast is None or "worth" in options else forecast.check(1),
            worth=options.get("worth"),
        )

    def wait(self, request: Request) -> Ticket:
        """Wait for a ticket. In a running event loop, whose own calls could never end meanwhile, only where none is."""
        if (loop := running_loop()) is not None:
            request.at_once, request.patient = True, not self._rounds.books.holds(loop)
        self._rounds.join(request)
        try:
            ticket: Ticket = request.future.result()
        except BaseException:
            self._leave(request)
            raise
        return ticket

    async def await_(self, request: Request) -> Ticket:
        """Wait for a ticket while the event loop goes on."""
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
    def calling(self, request: Request, ticket: Ticket) -> Iterator[None]:
        """End the ticket with the block, whatever happens in it. Never waits: event loops pass here."""
        health, model, generation = self._rounds.health, ticket.model, ticket.generation
        try:
            self._journal.decided(request, ticket)
            yield
        except BaseException as error:
            problem = fault(error)
            if problem is None:
                health.abandoned(model, generation)
            elif (rest_s := health.failed(model, generation, problem)) > 0:
                self._metrics.cooled(model, rest_s)
            refused = problem is not None and not problem.billed
            self._rounds.end(ticket, Usage(0, 0, cost_usd=0.0) if refused else None)
            self._journal.used(ticket, type(error).__name__ if isinstance(error, Exception) else "cancelled")
            otherwise: Outcome = "error" if isinstance(error, Exception) else "cancelled"
            outcome = otherwise if problem is None else problem.kind
            self._metrics.attempted(model, outcome, self._clock() - ticket.begun_s)
            raise
        health.succeeded(model, generation)
        self._rounds.end(ticket, ticket.usage, conversation=request.conversation)
        self._journal.used(ticket, "ok")
        self._metrics.attempted(model, "ok", self._clock() - ticket.begun_s)
        self._count(request, ticket)

    def following(self, request: Request, ticket: Ticket, error: Exception) -> Request | None:
        """The next attempt after an error, None where there is none."""
        problem, tried, barred = fault(error), request.tried, request.barred
        if problem is None or request.attempts >= self._most:
            return None
        if problem.kind == "too_long":
            window = ticket.entry.context_window
            shorter = {m.name for m in self._router.pool if window and m.context_window and m.context_window <= window}
            barred = barred | {ticket.model} | shorter
            if barred.issuperset(self._router.models):
                return None
        else:
            rest_s = self._rounds.health.backoff(request.attempts)
            tried = tried | {ticket.model: self._clock() + rest_s}
        now = self._clock()
        return replace(request, since_s=now, error=error, tried=tried, barred=barred, future=Future(), waiter=None)

    def _count(self, request: Request, ticket: Ticket) -> None:
        """What the call used, against what was forecast."""
        if ticket.usage is None or request.worth is None:
            return
        forecast, row = request.worth.forecast, request.worth.row
        column = forecast.models.index(ticket.model)
        self._metrics.used(
            ticket.model,
            forecast_cost_usd=float(forecast.cost_usd[row, column]),
            cost_usd=ticket.usage.usd(ticket.entry),
            forecast_tokens=float(forecast.output_tokens[row, column]),
            tokens=ticket.usage.output_tokens,
        )
