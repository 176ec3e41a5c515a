"""Windows: callers that wait, collected for a moment to be decided together; what they bring and what they get."""

import asyncio
import math
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypedDict, TypeVar

from eccos_integrations.errors import NoCapacityError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.predictors import Forecast
from eccos_integrations.ranking import Ranking
from eccos_integrations.serving.conversations import Home
from eccos_integrations.serving.limits import Lease

T = TypeVar("T")

MOST = 500  # callers in one window
QUIET = 0.2  # of the window without anybody new: nothing else is coming


class BackpressureError(NoCapacityError):
    """A query was not placed: too many wait, or it has waited too long.

    Attributes:
        retry_s: When it is worth trying again.
    """

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(f"{message}; try again in {retry_s:.3g} s")
        self.retry_s = retry_s

    def __reduce__(self) -> tuple[Any, ...]:
        return NoCapacityError.__new__, (type(self), *self.args), {"retry_s": self.retry_s}


class Arrivals(Generic[T]):
    """A queue that is emptied by windows. Never waits for a fixed count.

    A window closes `window_s` after its first arrival; sooner where for a fifth of it nobody else has come, where it is
    full, or where somebody has come who cannot wait. 0: as soon as there is somebody.

    Args:
        window_s: Seconds.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._changed = threading.Condition()
        self._items: list[T] = []
        self._first_s = self._last_s = 0.0
        self._poked = self._due = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, at_once: bool = False) -> None:
        """Join the window; `at_once`, and it closes."""
        with self._changed:
            self._last_s = time.monotonic()
            if not self._items:
                self._first_s = self._last_s
            self._items.append(item)
            self._due = self._due or at_once
            if at_once or len(self._items) in {1, MOST}:
                self._changed.notify()

    def poke(self) -> None:
        """End the current or the next `take`: something else has changed."""
        with self._changed:
            if not self._poked:
                self._poked = True
                self._changed.notify()

    def take(self, timeout_s: float) -> list[T]:
        """Wait until a window closes, and empty it; or for a poke, or for `timeout_s`: then nobody may be in it."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                now = time.monotonic()
                closes_s = self.closes_s(self._first_s, self._last_s, len(self._items))
                if now >= closes_s:
                    items, self._items = self._items[:MOST], self._items[MOST:]
                    self._poked, self._due = False, bool(self._due and self._items)
                    return items
                if self._poked or now >= end_s:
                    self._poked = False
                    return []
                self._changed.wait(min(closes_s, end_s) - now)

    def closes_s(self, first_s: float, last_s: float, count: int) -> float:
        """When a window closes whose first and last of so many came at these times."""
        if count == 0:
            return math.inf
        if count >= MOST or self._due:
            return last_s
        return min(first_s + self._window_s, last_s + QUIET * self._window_s)


@dataclass(frozen=True, eq=False)
class Worth:
    """What one query is worth to every model.

    Args:
        pool: The models.
        forecast: (N, M) of its window.
        row: Its own in it.
        ranking: (N, M) of its window; inf where it may not go.
        tokens: (M,) to reserve.
        cost_usd: (M,) to reserve.
        caps: (M,) most output tokens of the call, inf where none is known.
    """

    pool: ModelPool
    forecast: Forecast
    row: int
    ranking: Ranking
    tokens: FloatArray
    cost_usd: FloatArray
    caps: FloatArray

    @property
    def adjusted(self) -> FloatArray:
        """(M,) USD with every price in it, by which models are ranked."""
        row: FloatArray = self.ranking.adjusted[self.row]
        return row


@dataclass(eq=False, slots=True)
class Request:
    """A query that waits for one attempt.

    Args:
        query: Its text.
        policy: That it is decided under.
        since_s: When it came, by the dispatcher's clock.
        expires_s: When waiting ends.
        conversation: That it belongs to.
        pinned: Whether the conversation keeps its model.
        candidates: Models it may go to; None: all.
        decision: Made already.
        input_tokens: Of the whole call, where the caller knows them.
        max_output_tokens: The caller's cap.
        budgets: That pay; None: all of the ledger.
        forecast: (1, M), where the caller has one.
        at_once: Whether its window closes with it.
        patient: Whether it waits where it fits nowhere now.
        home: Where the conversation was answered last.
        worth: Once it has been looked at.
        tried: Models that failed it, and when they may be tried again.
        barred: Models that cannot answer it.
        attempts: Calls made.
        error: Of the last of them.
        future: What it waits for: a `Ticket`.
        waiter: Of its event loop, set when the future is; None in a thread.
    """

    query: str
    policy: Policy
    since_s: float
    expires_s: float
    conversation: str | None = None
    pinned: bool = False
    candidates: Collection[str] | None = None
    decision: Decision | None = None
    input_tokens: int | None = None
    max_output_tokens: int | None = None
    budgets: Collection[str] | None = None
    forecast: Forecast | None = None
    at_once: bool = False
    patient: bool = True
    home: Home | None = None
    worth: Worth | None = None
    tried: dict[str, float] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)
    attempts: int = 0
    error: Exception | None = None
    future: Future[Any] = field(default_factory=Future)
    waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"Request({self.attempts} attempts)"  # never the text


@dataclass(frozen=True)
class Usage:
    """What a call really used.

    Args:
        input_tokens: All of them, the cached too.
        output_tokens: Of the answer.
        cached_tokens: Those of the input that the provider had cached.
        cost_usd: Billed; None: by the pool's prices.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cost_usd: float | None = None

    @classmethod
    def total(cls, uses: "Sequence[Usage | None]") -> "Usage | None":
        """Of several calls together; None where there are none, or one of them does not say."""
        known = [usage for usage in uses if usage is not None]
        if not known or len(known) < len(uses):
            return None
        billed = [usage.cost_usd for usage in known if usage.cost_usd is not None]
        return cls(
            sum(usage.input_tokens for usage in known),
            sum(usage.output_tokens for usage in known),
            sum(usage.cached_tokens for usage in known),
            sum(billed) if len(billed) == len(known) else None,
        )

    def usd(self, model: Model) -> float | None:
        """Billed, or by the model's prices; None where they are not known."""
        if self.cost_usd is not None or not model.has_prices:
            return self.cost_usd
        assert model.input_usd_per_million_tokens is not None
        assert model.output_usd_per_million_tokens is not None
        paid = (self.input_tokens - self.cached_tokens) * model.input_usd_per_million_tokens
        cached = model.cached_input_usd_per_million_tokens
        paid += self.cached_tokens * (model.input_usd_per_million_tokens if cached is None else cached)
        return (paid + self.output_tokens * model.output_usd_per_million_tokens) / 1e6


@dataclass(eq=False)
class Ticket:
    """The right to make one call now.

    Attributes:
        decision: With the model to call.
        max_output_tokens: The cap to pass to the call; None: none is needed.
        attempt: 1 for the first.
        entry: The model as the pool had it when this was decided.
        lease: What is reserved for it.
        generation: Of the model's health.
        begun_s: When, by the dispatcher's clock.
        usage: To be set by who makes the call in a `with` block; None: not known, all that was reserved counts.
    """

    decision: Decision
    max_output_tokens: int | None
    attempt: int
    entry: Model
    lease: Lease
    generation: int
    begun_s: float
    usage: Usage | None = None

    @property
    def model(self) -> str:
        """The model to call."""
        return self.entry.name


@dataclass(frozen=True)
class Served(Generic[T]):
    """An answer, and how it came about.

    Attributes:
        answer: Of the function.
        decision: With the model that answered; its id is the one to give feedback by.
        usage: As the function gave it.
        attempts: Calls made.
    """

    answer: T
    decision: Decision
    usage: Usage | None
    attempts: int


class Options(TypedDict, total=False):
    """Of one call.

    Attributes:
        policy: Default the router's own.
        conversation: That the query belongs to: changing its model costs the input tokens that would have been cached.
        pinned: Keep the conversation's model, as within a tool loop, unless it fails.
        candidates: Names of the models it may go to; default all of the router.
        decision: Made already, by a plan: its model is waited for, unless that fails or rests.
        input_tokens: Of the whole call, where they are more than the query's: history, tools, system prompt.
        max_output_tokens: Default the model's own.
        budgets: Names of the budgets that pay; default all of the ledger.
        forecast: (1, M), default the router's.
        worth: From `Dispatcher.appraised`.
        deadline_s: Default the dispatcher's.
    """

    policy: Policy | None
    conversation: str | None
    pinned: bool
    candidates: Collection[str] | None
    decision: Decision | None
    input_tokens: int | None
    max_output_tokens: int | None
    budgets: Collection[str] | None
    forecast: Forecast | None
    worth: Worth
    deadline_s: float | None
