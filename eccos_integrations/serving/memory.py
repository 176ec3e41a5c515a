"""The ledger of one process: its threads and event loops share it."""

import os
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock
from typing import Any
from uuid import uuid4

from eccos_integrations.serving.conversations import Conversations, Home
from eccos_integrations.serving.counters import MICRO, Counter, Kind, Limits, amounts
from eccos_integrations.serving.ledger import Free, Lease, Ledger, Refused


class Held:
    """A lease from inside: what it holds, since when, until when."""

    __slots__ = ("expires_us", "parts", "since_us")

    def __init__(self, parts: list[tuple[Counter, int]], since_us: int, expires_us: int) -> None:
        self.parts = parts
        self.since_us = since_us
        self.expires_us = expires_us


class MemoryLedger(Ledger):
    """A ledger in memory. A pickled copy, and the one in a forked child, has the same limits and is empty."""

    def __init__(self, limits: Limits, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(limits, lease_s)
        self._clock = clock
        self.clear()
        if hasattr(os, "register_at_fork"):  # in the child, the leases are not its own and the lock may be held
            me = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: ledger.clear() if (ledger := me()) else None)

    def clear(self) -> None:
        """Forget all that was given out."""
        self._lock = Lock()
        self._now_us = -(2**62)
        self._leases: dict[str, Held] = {}  # renewed ones move to the end, so the next to expire stands first
        self._counters = {limit.key: Counter(limit) for limit in self.limits.every}
        self._conversations = Conversations()

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryLedger, (self.limits, self.lease_s, self._clock)

    def try_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """See `Ledger.try_reserve`."""
        amount = amounts(tokens, cost_usd)
        parts = [(self._counters[limit.key], amount[limit.kind]) for limit in self.limits.drawn_on(model, budgets)]
        with self._lock:
            now = self._tick()
            wait, full = 0.0, ""
            for counter, much in parts:
                if (longer := counter.wait_us(much, now)) > wait:
                    wait, full = longer, counter.limit.name
            if wait:
                return Refused(model, full, wait / MICRO)
            for counter, much in parts:
                counter.take(much, now)
            lease = Lease(uuid4().hex, model, amount["tokens"], cost_usd, self.lease_s)
            self._leases[lease.id] = Held(parts, now, self._expiry(now))
        return lease

    def reconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """See `Ledger.reconcile`."""
        return self._end(lease, amounts(tokens, cost_usd))

    def release(self, lease: Lease, *, sent: bool = True) -> bool:
        """See `Ledger.release`."""
        return self._end(lease, amounts(lease.tokens, lease.cost_usd) if sent else None)

    def renew(self, lease: Lease) -> bool:
        """See `Ledger.renew`."""
        with self._lock:
            now = self._tick()
            if held := self._leases.pop(lease.id, None):
                held.expires_us = self._expiry(now)
                self._leases[lease.id] = held
        return held is not None

    def homes(self, conversations: Sequence[str]) -> list[Home | None]:
        """See `Ledger.homes`."""
        return self._conversations.homes(conversations)

    def keep(self, homes: Mapping[str, Home]) -> None:
        """See `Ledger.keep`."""
        self._conversations.keep(homes)

    def free(self) -> Free:
        """See `Ledger.free`."""
        with self._lock:
            now = self._tick()
            state = {key: (c.used(now), c.overrun) for key, c in self._counters.items()}
        return Free.of(self.limits, state)

    def close(self) -> None:
        """See `Ledger.close`: there are none."""

    def _tick(self) -> int:
        """The time, with every lease ended that has expired by now."""
        self._now_us = now = max(self._now_us, round(self._clock() * MICRO))
        while self._leases and (held := next(iter(self._leases.values()))).expires_us <= now:
            del self._leases[next(iter(self._leases))]
            for counter, much in held.parts:
                counter.settle(much, much, held.expires_us)
        return now

    def _expiry(self, now_us: int) -> int:
        return now_us + round(self.lease_s * MICRO)

    def _end(self, lease: Lease, used: dict[Kind, int] | None) -> bool:
        with self._lock:
            now = self._tick()
            held = self._leases.pop(lease.id, None)
            if held is None:
                return False
            for counter, much in held.parts:
                if used is None:
                    counter.give_back(much, held.since_us)
                else:
                    counter.settle(much, used[counter.limit.kind], now)
        return True
