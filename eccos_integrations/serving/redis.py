"""The ledger of many processes and machines, in Redis: one round trip for each step, in Redis's own time."""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any
from uuid import uuid4

from eccos_integrations.serving.conversations import Conversations, Home
from eccos_integrations.serving.counters import GUESS_US, MICRO, Limits, amounts
from eccos_integrations.serving.ledger import LAG_S, Ask, End, Free, Lease, Ledger, Refused, StoreError
from eccos_integrations.serving.memory import MemoryLedger
from eccos_integrations.serving.store import Store

KEEP_S = 24 * 3600  # that records are kept after the last reservation, beside the longest budget


class RedisLedger(Ledger):
    """A ledger in Redis.

    Time is Redis's, and holds where Redis's clock is put back or forward. A Redis that lost its records (restarted
    without them, or from an older snapshot) refuses for a lease and a minute, until all that went out before is over;
    only budgets start anew, so let it persist (`appendonly yes`) where they matter. A pickled copy takes the URI along.

    Args:
        uri: `redis://[[user]:password@]host[:port][/db]`, or `rediss://` for TLS.
        name: Ledgers of one name share their records.
        limits: What the store hands out.
        lease_s: A lease that is not renewed for this long expires.
        clock: Seconds that only move forward.
        local: Hands out limits of its own when the store has nothing to give or is away; None: StoreError.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        limits: Limits,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
        local: MemoryLedger | None = None,
    ) -> None:
        super().__init__(limits, lease_s)
        self._arguments = (uri, name, limits, lease_s, clock, local)
        self._local = local
        self._store = Store(uri, name, 60 + 2 * LAG_S + lease_s, clock)
        self._lease_us = round(lease_s * MICRO)
        longest_us = max((limit.part_us * limit.parts for limit in limits.budgets.values()), default=0)
        self._keep_s = KEEP_S + longest_us // MICRO
        self._conversations = Conversations()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store.place!r}, models={list(self.limits.models)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return RedisLedger, self._arguments

    def try_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """See `Ledger.try_reserve`."""
        return self.reserve_all([Ask(model, tokens, cost_usd, budgets)])[0]

    def reserve_all(self, asks: Sequence[Ask]) -> list[Lease | Refused]:
        """See `Ledger.reserve_all`."""
        leases, arguments = self._drafts(asks)
        return self._answers(asks, leases, self._store.ask("reserve", arguments))

    async def atry_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """See `Ledger.atry_reserve`."""
        asks = [Ask(model, tokens, cost_usd, budgets)]
        leases, arguments = self._drafts(asks)
        asked = self._task(self._store.aask("reserve", arguments))
        try:
            reply = await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._task(self._undo(asked, leases[0]))
            raise
        return self._answers(asks, leases, reply)[0]

    def reconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """See `Ledger.reconcile`."""
        return self.end_all([End(lease, tokens, cost_usd)])[0]

    async def areconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """See `Ledger.reconcile`."""
        return await self._aend(End(lease, tokens, cost_usd))

    def release(self, lease: Lease, *, sent: bool = True) -> bool:
        """See `Ledger.release`."""
        return self.end_all([End(lease, sent=sent)])[0]

    async def arelease(self, lease: Lease, *, sent: bool = True) -> bool:
        """See `Ledger.release`."""
        return await self._aend(End(lease, sent=sent))

    def end_all(self, ends: Sequence[End]) -> list[bool]:
        """See `Ledger.end_all`."""
        arguments = [_ended(end) for end in ends]  # what is wrong with them is found before anything is booked
        mine = self._local.end_all(ends) if self._local is not None else [False] * len(ends)
        rest = [field for row, done in zip(arguments, mine, strict=True) if not done for field in row]
        return _either(mine, self._store.ask("finish", rest) if rest else [])

    def renew(self, lease: Lease) -> bool:
        """See `Ledger.renew`."""
        return self.renew_all([lease])[0]

    def renew_all(self, leases: Sequence[Lease]) -> list[bool]:
        """See `Ledger.renew_all`."""
        mine = self._local.renew_all(leases) if self._local is not None else [False] * len(leases)
        rest = [lease.id for lease, done in zip(leases, mine, strict=True) if not done]
        return _either(mine, self._store.ask("renew", [self._lease_us, *rest]) if rest else [])

    async def arenew(self, lease: Lease) -> bool:
        """See `Ledger.renew`."""
        mine = self._local is not None and self._local.renew(lease)
        return mine or _either([False], await self._shielded("renew", [self._lease_us, lease.id]))[0]

    def homes(self, conversations: Sequence[str]) -> list[Home | None]:
        """See `Ledger.homes`. While the store is away, what this process knows."""
        found = self._store.recall(conversations)
        if isinstance(found, StoreError):
            return self._conversations.homes(conversations)
        return [None if text is None else _home(text) for text in found]

    def keep(self, homes: Mapping[str, Home]) -> None:
        """See `Ledger.keep`."""
        self._conversations.keep(homes)
        self._store.note({conversation: f"{home.tokens} {home.model}" for conversation, home in homes.items()}, KEEP_S)

    def free(self) -> Free:
        """See `Ledger.free`."""
        return self._left(self._store.ask("free", self._every()))

    async def afree(self) -> Free:
        """See `Ledger.free`."""
        return self._left(await self._shielded("free", self._every()))

    def close(self) -> None:
        """See `Ledger.close`."""
        self._store.close()

    async def aclose(self) -> None:
        """See `Ledger.aclose`. Steps whose callers were cancelled are waited for."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(task for task in list(self._tasks) if task.get_loop() is loop), return_exceptions=True)
        await self._store.aclose()

    def _drafts(self, asks: Sequence[Ask]) -> tuple[list[Lease], list[Any]]:
        """Leases to be, and what the script has to know of them and of the limits they draw on."""
        leases, rows = [], []
        limits: dict[str, tuple[int, list[Any]]] = {}
        for ask in asks:
            amount = amounts(ask.tokens, ask.cost_usd)
            drawn_on = self.limits.drawn_on(ask.model, ask.budgets)
            lease = Lease(uuid4().hex, ask.model, amount["tokens"], ask.cost_usd, self.lease_s)
            leases.append(lease)
            rows += [lease.id, len(drawn_on)]
            for r in drawn_on:
                fields = [r.key, r.kind, r.name, r.most, r.part_us, r.parts]
                rows += [limits.setdefault(r.key, (len(limits) + 1, fields))[0], amount[r.kind]]
        defined = [field for _, fields in limits.values() for field in fields]
        return leases, [self._lease_us, GUESS_US, self._keep_s, len(limits), *defined, *rows]

    def _answers(
        self, asks: Sequence[Ask], leases: list[Lease], reply: list[Any] | StoreError
    ) -> list[Lease | Refused]:
        if isinstance(reply, StoreError):
            if self._local is None:
                raise reply
            return self._local.reserve_all(asks)
        return [
            self._answer(ask, lease, full, wait_us)
            for ask, lease, full, wait_us in zip(asks, leases, reply[::2], reply[1::2], strict=True)
        ]

    def _answer(self, ask: Ask, lease: Lease, full: str, wait_us: int) -> Lease | Refused:
        if not full:
            return lease
        refused = Refused(lease.model, full, wait_us / MICRO if wait_us >= 0 else math.inf)
        if self._local is None:
            return refused
        answer = self._local.try_reserve(*ask)
        return answer if isinstance(answer, Lease) or answer.retry_s < refused.retry_s else refused

    async def _aend(self, end: End) -> bool:
        arguments = _ended(end)
        mine = self._local is not None and self._local.end_all([end])[0]
        return mine or _either([False], await self._shielded("finish", arguments))[0]

    def _left(self, reply: list[Any] | StoreError) -> Free:
        if isinstance(reply, StoreError):
            if self._local is None:
                raise reply
            return self._local.free()
        keys = [limit.key for limit in self.limits.every]
        free = Free.of(self.limits, dict(zip(keys, zip(reply[::2], reply[1::2], strict=True), strict=True)))
        return free if self._local is None else free + self._local.free()

    def _every(self) -> list[Any]:
        return [field for limit in self.limits.every for field in (limit.key, limit.part_us, limit.parts)]

    async def _shielded(self, script: str, arguments: list[Any]) -> list[Any] | StoreError:
        """A step that goes on to its end when its caller is cancelled."""
        return await asyncio.shield(self._task(self._store.aask(script, arguments)))

    def _task(self, step: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(step)
        self._tasks.add(task)  # a loop holds its tasks but weakly
        task.add_done_callback(self._tasks.discard)
        return task

    async def _undo(self, asked: asyncio.Task[Any], lease: Lease) -> None:
        await asked
        await self._store.aask("finish", _ended(End(lease, sent=False)))


def _ended(end: End) -> list[Any]:
    """What the script has to know of one that ended."""
    if end.tokens is None or end.cost_usd is None:
        return [end.lease.id, "sent" if end.sent else "unsent", 0, 0]
    amount = amounts(end.tokens, end.cost_usd)
    return [end.lease.id, "used", amount["tokens"], amount["usd"]]


def _either(mine: list[bool], reply: list[Any] | StoreError) -> list[bool]:
    """What was done here; in the places of what was not, the store's answers."""
    if isinstance(reply, StoreError):
        return mine
    others = iter(reply)
    return [done or bool(next(others)) for done in mine]


def _home(text: str) -> Home | None:
    tokens, _, model = text.partition(" ")
    return Home(model, int(tokens)) if tokens.isdecimal() else None
