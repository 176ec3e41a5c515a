"""The thread that decides: who waits, what is free, who may call now; and that keeps the books of the calls."""

import asyncio
import copy
import logging
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from eccos_integrations.errors import ConfigError, EccosError, NoCapacityError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.router import Router
from eccos_integrations.serving.books import Books
from eccos_integrations.serving.choosing import cost_now
from eccos_integrations.serving.greedy import place
from eccos_integrations.serving.health import Health
from eccos_integrations.serving.ledger import Ask, Lease, Ledger, Refused
from eccos_integrations.serving.metrics import Metrics, Reason
from eccos_integrations.serving.window import Arrivals, BackpressureError, Request, Ticket, Usage, Worth
from eccos_integrations.serving.worth import Bounds, appraise, remember

logger = logging.getLogger("eccos")

POLL_S = 0.05  # how often those who wait are looked at where nothing is heard: other processes give back in silence
AT_ONCE = 256  # placed together; while there is room, the next
IDLE_S = 2.0  # without work, and the thread ends


class Rounds:
    """Decides whoever waits, a window at a time, in one thread of its own while there is work. See `Dispatcher`."""

    def __init__(
        self,
        router: Router,
        ledger: Ledger,
        clock: Callable[[], float],
        *,
        metrics: Metrics,
        window_s: float,
        max_waiting: int,
        strict: bool,
        seed: int,
    ) -> None:
        self.turn = threading.RLock()  # held while anything is decided or booked; a fork waits for it
        self.health = Health(router.models, clock, seed)
        self.books = Books(ledger, clock)
        self._router, self._ledger, self._clock, self._metrics = router, ledger, clock, metrics
        self._max_waiting, self._strict = max_waiting, strict
        self._bounds = Bounds.of(router.pool, ledger.limits)
        self._window_s = window_s
        self._arrivals: Arrivals[Request] = Arrivals(window_s)
        self._waiting: list[Request] = []
        self._models: list[str] = []  # of this round
        self._answered: list[asyncio.Future[None]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._retry_s, self._full = POLL_S, ""  # of who is full: when it is worth asking again, and its limit

    @property
    def waiting(self) -> int:
        """Callers without a model yet."""
        return len(self._arrivals) + len(self._waiting)

    def join(self, request: Request) -> None:
        """Wait for the next window. A request waits once: another attempt is another request.

        Raises:
            BackpressureError: Too many wait; never for one that has been called for already.
            ConfigError: It is closed.
        """
        with self._lock:
            if self._closed:
                raise ConfigError("dispatcher: it is closed; make another")
            if not request.attempts and self.waiting >= self._max_waiting:
                self._metrics.refused("backpressure")
                raise BackpressureError(f"max_waiting: {self.waiting} queries wait already", self._retry_s)
            here = (
                request.waiter is None
                and (self._window_s == 0 or request.at_once)
                and self.turn.acquire(blocking=False)
            )
            if not here:
                self._arrivals.put(request, at_once=request.at_once)
                self._start()
        if here:  # nobody to wait for: what takes two threads takes longer
            try:
                self._take_turn([request])
            finally:
                self.turn.release()
            with self._lock:
                self._start()
            if not request.future.done():
                self._arrivals.poke()

    def end(
        self, ticket: Ticket, usage: Usage | None = None, *, sent: bool = True, conversation: str | None = None
    ) -> None:
        """A call has ended; what it used goes to the ledger, where event loops pass in the thread. See `Books.end`."""
        with self._lock:
            self.books.end(ticket, usage, sent=sent, conversation=conversation)
            here = self._window_s == 0 and running_loop() is None and self.turn.acquire(blocking=False)
            if not here:
                self._start()
        if here:
            try:
                self.books.settle()
            finally:
                self.turn.release()
        if not here or self._waiting:
            self._arrivals.poke()

    def close(self) -> None:
        """Turn away who waits."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._arrivals.poke()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="eccos-dispatcher", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause_s, idle = 0.0, False
        while True:
            came = self._arrivals.take(pause_s)
            with self.turn:
                busy = bool(came or self.books.open)
                pause_s = self._take_turn(came)
            with self._lock:
                queued = self._waiting or self.books.unsettled or len(self._arrivals)
                if not queued and (self._closed or (idle and not busy and not self.books.open)):
                    self._thread = None
                    return
            idle = not busy

    def _take_turn(self, came: list[Request]) -> float:
        """Book what has ended, decide who waits; returns after how many seconds to look again."""
        self._waiting += came
        self.books.settle()
        self.books.renew()
        try:
            if self._closed:
                raise ConfigError("dispatcher: it is closed; make another")  # noqa: TRY301
            pause_s = self._round()
        except Exception as error:
            if not isinstance(error, EccosError):
                logger.exception("a window could not be decided")
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._refuse(request, error)
            pause_s = POLL_S
        self._metrics.queue(self.waiting)
        self._wake()
        return pause_s

    def _round(self) -> float:
        """Decide who waits, as far as there is room; returns after how many seconds to look again."""
        now, self._models = self._clock(), self._router.models
        self._appraise()
        waiting = []
        for request in self._waiting:
            if request.future.done():
                continue
            if now >= request.expires_s:
                full = f" ({self._full} is full)" if self._full else ""
                self._refuse(request, BackpressureError(f"deadline_s: no model had room in time{full}", self._retry_s))
            else:
                waiting.append(request)
        self._waiting = waiting
        if not waiting:
            return min(IDLE_S, self._ledger.lease_s / 3)
        self._retry_s, self._full = POLL_S, ""
        for start in range(0, len(waiting), AT_ONCE):
            if not self._place(waiting[start : start + AT_ONCE], now):
                break
        self._waiting = [request for request in waiting if not request.future.done()]
        if decided := len(waiting) - len(self._waiting):
            self._metrics.solved(self._clock() - now, decided)
        if hurried := [request for request in self._waiting if not request.patient]:
            for request in hurried:
                self._refuse(request, BackpressureError(
                    "no model has room now, and to wait here would keep the event loop from ending the calls that take "
                    "it up: await the async method", self._retry_s))  # fmt: skip
            self._waiting = [request for request in self._waiting if request.patient]
        if not self._waiting:
            return 0.0
        soonest = min(min(request.expires_s for request in self._waiting) - now, POLL_S, self._retry_s)
        return max(soonest, 0.001)

    def _appraise(self) -> None:
        """Look at those who are new, or whose models have changed."""
        new = [r for r in self._waiting if r.worth is None or r.worth.forecast.models != self._models]
        if not new:
            return
        self._find_homes(new)
        try:
            found = self.worths(new)
        except Exception:  # noqa: BLE001
            found = []  # one of them spoils it: each alone
            for request in new:
                try:
                    found += self.worths([request])
                except Exception as error:  # noqa: BLE001
                    found.append(error)
        for request, worth in zip(new, found, strict=True):
            if isinstance(worth, Exception):
                self._refuse(request, worth)
            else:
                request.worth = worth

    def _find_homes(self, requests: list[Request]) -> None:
        """Find the homes of conversations, in one go."""
        if talking := [request for request in requests if request.conversation is not None]:
            homes = self._ledger.homes([request.conversation or "" for request in talking])
            for request, home in zip(talking, homes, strict=True):
                request.home = home

    def worths(self, requests: list[Request]) -> list[Worth | Exception]:
        """What queries are worth to every model; an error for those that no model can ever take."""
        pool = self._router.pool
        if self._bounds.pool is not pool:  # a model has joined or left
            self._bounds = Bounds.of(pool, self._ledger.limits)
        return [*appraise(requests, self._router, self._bounds, strict=self._strict)]

    def _place(self, waiting: list[Request], now: float) -> bool:
        """Hand tickets to whom the ledger lets; says whether there is room left."""
        models, room = self._models, False
        cost = np.array([cost_now(request, models, self.health, now) for request in waiting])
        tokens = np.array([request.worth.tokens for request in waiting if request.worth is not None])
        left = np.ones(len(waiting), dtype=bool)
        for _ in range(len(models) + 1):
            free = self._ledger.free()
            at = np.array([free.models.index(name) if name in free.models else -1 for name in models])
            healthy = np.array([self.health.room(name) for name in models])
            slots = np.where(at < 0, 0.0, np.minimum(np.minimum(free.concurrency, free.requests)[at], healthy))
            rows = np.flatnonzero(left)
            chosen = place(cost[rows], tokens[rows], slots, free.tokens[at])
            asked = [(int(k), int(j)) for k, j in zip(rows, chosen, strict=True) if j >= 0]
            refused = False
            for (k, j), done in zip(asked, self._reserve([(waiting[k], j) for k, j in asked], now), strict=True):
                if done:
                    left[k] = False
                else:
                    cost[k, j] = np.inf
                    refused = True
            if not refused:
                room = bool((slots - np.bincount(chosen[chosen >= 0], minlength=len(models)) >= 1).any())
                break
        if left.any():
            first = int(left.argmax())
            self._ask_when(waiting[first], cost[first], now)
        return room

    def _ask_when(self, request: Request, cost: FloatArray, now: float) -> None:
        """Learn from who waits longest when to look again; the ledger may let it pass at once."""
        ready = [int(j) for j in np.flatnonzero(np.isfinite(cost)) if self.health.room(self._models[j]) > 0]
        if ready:
            self._reserve([(request, min(ready, key=lambda j: float(cost[j])))], now)
            return
        if self._full:  # it was refused already, which says when
            return
        assert request.worth is not None
        rests = [
            max(self.health.rest_s(name), request.tried.get(name, now) - now)
            for name, usd in zip(self._models, request.worth.adjusted, strict=True)
            if usd < np.inf and name not in request.barred
        ]
        self._retry_s = max(POLL_S, min(rests, default=POLL_S))

    def _reserve(self, asked: list[tuple[Request, int]], now: float) -> list[bool]:
        """Reserve and hand out tickets; whether each request is done with waiting."""
        asks = []
        for request, j in asked:
            worth = request.worth
            assert worth is not None
            asks.append(Ask(self._models[j], int(worth.tokens[j]), float(worth.cost_usd[j]), request.budgets))
        answers = self._ledger.reserve_all(asks) if asks else []
        return [self._answered_by(request, j, answer, now)
                for (request, j), answer in zip(asked, answers, strict=True)]  # fmt: skip

    def _answered_by(self, request: Request, j: int, answer: Lease | Refused, now: float) -> bool:
        if isinstance(answer, Refused):
            self._retry_s, self._full = min(max(answer.retry_s, 0.001), 3600.0), answer.limit
            return False
        worth, model = request.worth, self._models[j]
        assert worth is not None
        decision, entry = remember(self._router, request, j), worth.pool[model]
        if not request.future.set_running_or_notify_cancel():
            self._ledger.release(answer, sent=False)
            return True
        request.attempts += 1
        cap = None if math.isinf(worth.caps[j]) else int(worth.caps[j])
        loop = None if request.waiter is None else request.waiter.get_loop()
        self.books.begin(answer, loop)
        generation = self.health.begin(model)
        request.future.set_result(Ticket(decision, cap, request.attempts, entry, answer, generation, now))
        self._metrics.decided(model)
        self._metrics.waited(self._clock() - request.since_s)
        self._tell(request)
        return True

    def _refuse(self, request: Request, error: Exception) -> None:
        """An error for one who waits: its own copy, because every raise adds to an error's traceback."""
        if not request.future.done() and request.future.set_running_or_notify_cancel():
            own = copy.copy(error)
            own.__cause__ = request.error or error.__cause__
            self._metrics.refused(_reason(error, request))
            request.future.set_exception(own)
            self._tell(request)

    def _tell(self, request: Request) -> None:
        if request.waiter is not None:
            self._answered.append(request.waiter)

    def _wake(self) -> None:
        """Wake those in event loops: once per loop, because every wake-up is a system call."""
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
        for waiter in self._answered:
            loops[waiter.get_loop()].append(waiter)
        self._answered = []
        for loop, waiters in loops.items():
            with suppress(RuntimeError):  # it is closed, and whoever waited there is gone
                loop.call_soon_threadsafe(_set, waiters)


def _set(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _reason(error: Exception, request: Request) -> Reason:
    """Why there is no model, in the words of the metrics."""
    if isinstance(error, BackpressureError):
        return "deadline" if request.patient else "backpressure"
    return "no_capacity" if isinstance(error, NoCapacityError) else "error"


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
