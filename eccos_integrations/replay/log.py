"""The provider's own books: when each call began and ended, what it used, and which limits were broken."""

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eccos_integrations.pool import Model, ModelPool

WINDOW_S = 60.0
REFUSED = 429
ABANDONED = 499  # the caller left before the answer was whole


@dataclass(slots=True)
class Entry:
    """One request, as the provider saw it.

    Attributes:
        model: Who was asked.
        began: When, by the provider's clock.
        input_tokens: Of the call, or what it would have used where it was refused.
        output_tokens: Likewise. Both count from the moment the call began, whatever became of it.
        request_id: The caller's name for what it asked.
        status: 200, 429 (refused), 499 (abandoned by the caller), 500, 504; 0 while the call runs.
        fault: What was injected; "" if nothing.
        ended: When; NaN while the call runs.
        followers: How many requests of any model had begun when this one ended: orders what happened at one time.
    """

    model: str
    began: float
    input_tokens: int
    output_tokens: int
    request_id: str | None = None
    status: int = 0
    fault: str = ""
    ended: float = math.nan
    followers: float = math.inf

    @property
    def is_answered(self) -> bool:
        """Whether the caller got a whole, sound answer."""
        return self.status == 200 and self.fault in {"", "slow"}


class Log:
    """Admits or refuses calls by the limits of a pool, and writes down every one. Safe to share between threads.

    A request counts from when it began until 60 seconds later; so do its tokens. Refused requests count for nothing.
    """

    def __init__(self, pool: ModelPool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._gates = {model.name: _Gate(model) for model in pool}

    def begin(
        self, model: str, input_tokens: int, output_tokens: int, request_id: str | None, patience_s: float
    ) -> tuple[Entry, float | None]:
        """A request comes in.

        Args:
            model: Who is asked.
            input_tokens: Of the call.
            output_tokens: Likewise.
            request_id: The caller's name for it.
            patience_s: When to come back if other calls must end first.

        Returns:
            Its entry, and the seconds after which to come back; None: it was admitted.
        """
        gate, tokens = self._gates[model], input_tokens + output_tokens
        with self._lock:
            now = self._clock()
            entry = Entry(model, now, input_tokens, output_tokens, request_id)
            self._entries.append(entry)
            wait_s = gate.wait_s(now, tokens, patience_s)
            if wait_s is None:
                gate.admit(now, tokens)
            else:
                entry.status, entry.ended, entry.followers = REFUSED, now, len(self._entries)
        return entry, wait_s

    def end(self, entry: Entry, status: int) -> None:
        """A call has ended; only the first end counts."""
        with self._lock:
            if entry.status:
                return
            entry.status, entry.ended, entry.followers = status, self._clock(), len(self._entries)
            self._gates[entry.model].calls -= 1

    @property
    def entries(self) -> list[Entry]:
        """Every request so far, in the order in which they began."""
        with self._lock:
            return list(self._entries)

    def answered(self) -> Counter[str]:
        """How often each request id got a whole, sound answer."""
        return Counter(e.request_id for e in self.entries if e.request_id is not None and e.is_answered)

    def violations(self) -> dict[str, dict[str, int]]:
        """How many requests came above a limit, by model and limit; what never happened is left out."""
        return violations([gate.model for gate in self._gates.values()], self.entries)


class _Gate:
    """One model's calls in flight, and what began in the last 60 seconds."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._recent_tokens = 0

    def wait_s(self, now: float, tokens: int, patience_s: float) -> float | None:
        """Seconds until one more call could begin; None: it can now."""
        while self._recent and self._recent[0][0] + WINDOW_S <= now:
            self._recent_tokens -= self._recent.popleft()[1]
        waits_s = []
        if (most := self.model.max_concurrency) is not None and self.calls >= most:
            waits_s.append(patience_s)
        if (most := self.model.requests_per_minute) is not None and len(self._recent) >= most:
            waits_s.append(self._recent[len(self._recent) - most][0] + WINDOW_S - now)
        if (most := self.model.tokens_per_minute) is not None and self._recent_tokens + tokens > most:
            waits_s.append(self._wait_for_tokens_s(now, self._recent_tokens + tokens - most))
        return max(waits_s, default=None)

    def _wait_for_tokens_s(self, now: float, excess: int) -> float:
        for began, tokens in self._recent:
            excess -= tokens
            if excess <= 0:
                return began + WINDOW_S - now
        return WINDOW_S  # more than fits into any minute

    def admit(self, now: float, tokens: int) -> None:
        self.calls += 1
        if self.model.requests_per_minute is not None or self.model.tokens_per_minute is not None:
            self._recent.append((now, tokens))
            self._recent_tokens += tokens


def violations(models: Sequence[Model], entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """How many requests came above a limit of their model, from the entries alone.

    Args:
        models: With their limits.
        entries: In the order in which they began.

    Returns:
        Counts by model and limit; what never happened is left out.
    """
    rows = defaultdict(list)
    for row, entry in enumerate(entries):
        rows[entry.model].append(row)
    found = {model.name: _violations(model, entries, rows[model.name]) for model in models if rows[model.name]}
    return {name: counts for name, counts in found.items() if counts}


def _violations(model: Model, entries: Sequence[Entry], rows: Sequence[int]) -> dict[str, int]:
    mine = [entries[row] for row in rows]
    began = np.array([entry.began for entry in mine])
    admitted = np.array([entry.status != REFUSED for entry in mine])
    tokens = np.array([entry.input_tokens + entry.output_tokens for entry in mine])
    window_begins = np.searchsorted(began + WINDOW_S, began, side="right")

    def with_the_minute_before(weights: np.ndarray) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(weights * admitted)])
        used: np.ndarray = before[:-1] - before[window_begins] + weights
        return used

    ends = np.sort([entry.followers for entry in mine if entry.status != REFUSED])
    in_flight = np.cumsum(admitted) - admitted - np.searchsorted(ends, rows, side="right") + 1
    seen = {
        "max_concurrency": (in_flight, model.max_concurrency),
        "requests_per_minute": (with_the_minute_before(np.ones_like(tokens)), model.requests_per_minute),
        "tokens_per_minute": (with_the_minute_before(tokens), model.tokens_per_minute),
    }
    counts = {limit: int((used > most).sum()) for limit, (used, most) in seen.items() if most is not None}
    return {limit: count for limit, count in counts.items() if count}
