"""What a ledger is: leases asked for, granted or refused, and ended; what is free; where conversations are at home."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from eccos_integrations.errors import EccosError
from eccos_integrations.outcomes import FloatArray
from eccos_integrations.serving.conversations import Home
from eccos_integrations.serving.counters import NANO, Kind, Limits

# What the provider's time and ours may be apart: a request is on its way, a clock was set by less than is noticed.
LAG_S = 1.0


class StoreError(EccosError, ConnectionError):
    """The store of a ledger cannot be reached or cannot be used. Nothing was reserved."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A reservation: the right to make one call, for `lease_s` seconds from now or from its last renewal.

    Attributes:
        id: Its own.
        model: The model to call.
        tokens: Most tokens the call may use, input and output.
        cost_usd: What it is expected to cost.
        lease_s: Renew it before this time is over, or its slot goes to another.
    """

    id: str
    model: str
    tokens: int
    cost_usd: float
    lease_s: float


class Ask(NamedTuple):
    """A reservation that is asked for: the arguments of `Ledger.try_reserve`."""

    model: str
    tokens: int
    cost_usd: float
    budgets: Collection[str] | None = None


class End(NamedTuple):
    """How a lease ended.

    Attributes:
        lease: Which.
        tokens: Really used; None: not known, so all that was reserved may have been.
        cost_usd: Likewise.
        sent: False: the provider never saw the request.
    """

    lease: Lease
    tokens: int | None = None
    cost_usd: float | None = None
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """No reservation.

    Attributes:
        model: The model asked for.
        limit: What is full: `"max_concurrency"`, `"requests_per_minute"`, `"tokens_per_minute"`, `"budget NAME"`, or
            `"store"`: the store has lost its records, and what went out before is not known until this time is over.
        retry_s: When to try again. Exact where it waits for a window to move on; a guess where it waits for other
            calls to end; infinite where the limit is smaller than this one call.
    """

    model: str
    limit: str
    retry_s: float


@dataclass(frozen=True)
class Free:
    """What the limits leave at this moment, infinite where there is none: capacities for an assignment problem.

    Attributes:
        models: Names, in the order of the pool.
        concurrency: (M,) calls.
        requests: (M,) requests.
        tokens: (M,) tokens.
        budgets_usd: USD left, by budget.
        overrun_tokens: (M,) tokens that calls used above their reservation, ever; later reservations wait for them.
        overrun_usd: USD likewise, by budget.
    """

    models: list[str]
    concurrency: FloatArray
    requests: FloatArray
    tokens: FloatArray
    budgets_usd: dict[str, float]
    overrun_tokens: FloatArray
    overrun_usd: dict[str, float]

    @classmethod
    def of(cls, limits: Limits, state: Mapping[str, tuple[int, int]]) -> "Free":
        """From what is used and what was overrun of each limit, by key."""
        left: dict[Kind, list[float]] = {kind: [math.inf] * len(limits.models) for kind in get_args(Kind)}
        overrun_tokens = np.zeros(len(limits.models))
        for j, own in enumerate(limits.models.values()):
            for limit in own:
                used, overrun = state[limit.key]
                left[limit.kind][j] = max(0, limit.most - used)
                overrun_tokens[j] += overrun
        budgets = limits.budgets.items()
        return cls(
            list(limits.models),
            np.array(left["calls"], dtype=np.float64),
            np.array(left["requests"], dtype=np.float64),
            np.array(left["tokens"], dtype=np.float64),
            {b: max(0, limit.most - state[limit.key][0]) / NANO for b, limit in budgets},
            overrun_tokens,
            {b: state[limit.key][1] / NANO for b, limit in budgets},
        )

    def __add__(self, other: "Free") -> "Free":
        """What two ledgers of the same models leave together."""
        return Free(
            self.models,
            self.concurrency + other.concurrency,
            self.requests + other.requests,
            self.tokens + other.tokens,
            {name: usd + other.budgets_usd[name] for name, usd in self.budgets_usd.items()},
            self.overrun_tokens + other.overrun_tokens,
            {name: usd + other.overrun_usd[name] for name, usd in self.overrun_usd.items()},
        )


class Ledger(ABC):
    """Who may call which model now, and where conversations are at home. Safe to share between threads and event loops.

    In any 60 seconds a provider sees no more requests and tokens than its model's limits, and at no time more calls,
    however late it counts within a call: tokens and money count from the reservation until a window after the call has
    ended, a request from its reservation, which it may follow by `LAG_S`.

    After a call, `reconcile` says what it really used (nothing, where a provider refused it). Where that is not known
    (cancelled, timed out) `release` gives back the slot alone: all that was reserved may have been used.
    `release(sent=False)` gives back everything. A lease that is neither renewed nor ended expires like a release.
    Ending a lease twice, or after it expired, changes nothing.
    """

    def __init__(self, limits: Limits, lease_s: float) -> None:
        self.limits = limits
        self.lease_s = lease_s

    @abstractmethod
    def try_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """Reserve one call, or nothing at all.

        Args:
            model: The model to call.
            tokens: Input tokens and the cap on output tokens together.
            cost_usd: What the call is expected to cost.
            budgets: Names of the budgets that pay; None: every one of the ledger.

        Raises:
            ConfigError: The model or a budget is unknown, or an amount is not a finite number of at least 0.
            StoreError: The store is away, under `on_store_failure="reject"`.
        """

    @abstractmethod
    def reconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """End a lease with what the call really used.

        Returns:
            Whether it was booked. Not where the lease has ended before, nor where the store is away: there it expires.
        """

    @abstractmethod
    def release(self, lease: Lease, *, sent: bool = True) -> bool:
        """End a lease whose usage is not known. `sent=False`: the provider never saw the request. As `reconcile`."""

    @abstractmethod
    def renew(self, lease: Lease) -> bool:
        """Let a lease last `lease_s` from now. False: it has ended, or the store is away."""

    def reserve_all(self, asks: Sequence[Ask]) -> list[Lease | Refused]:
        """`try_reserve` for many, one after another; of many processes, in one round trip."""
        return [self.try_reserve(*ask) for ask in asks]

    def end_all(self, ends: Sequence[End]) -> list[bool]:
        """`reconcile` where the usage is known, else `release`, for many."""
        return [
            self.release(end.lease, sent=end.sent)
            if end.tokens is None or end.cost_usd is None
            else self.reconcile(end.lease, end.tokens, end.cost_usd)
            for end in ends
        ]

    def renew_all(self, leases: Sequence[Lease]) -> list[bool]:
        """`renew` for many."""
        return [self.renew(lease) for lease in leases]

    @abstractmethod
    def homes(self, conversations: Sequence[str]) -> list[Home | None]:
        """Where each conversation was answered last, None where that is not known."""

    @abstractmethod
    def keep(self, homes: Mapping[str, Home]) -> None:
        """Note where conversations were answered."""

    @abstractmethod
    def free(self) -> Free:
        """What is free now. Raises StoreError as `try_reserve` does."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections. May be called twice."""

    async def atry_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """As `try_reserve`. Cancelled, it reserves nothing."""
        return self.try_reserve(model, tokens, cost_usd, budgets)

    async def areconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """As `reconcile`."""
        return self.reconcile(lease, tokens, cost_usd)

    async def arelease(self, lease: Lease, *, sent: bool = True) -> bool:
        """As `release`."""
        return self.release(lease, sent=sent)

    async def arenew(self, lease: Lease) -> bool:
        """As `renew`."""
        return self.renew(lease)

    async def afree(self) -> Free:
        """As `free`."""
        return self.free()

    async def aclose(self) -> None:
        """As `close`, for the connections of this event loop."""
        self.close()
