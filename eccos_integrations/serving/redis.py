"""The ledger of many processes and machines, in Redis: one round trip for each step, in Redis's own time."""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any
from uuid import uuid4

from eccos_integrations.serving.counters import GUESS_US, MICRO, Limits, amounts
from eccos_integrations.serving.limits import LAG_S, MINUTE_S, Free, Lease, Ledger, Refused, StoreError
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
        self._store = Store(uri, name, MINUTE_S + 2 * LAG_S + lease_s, clock)
        self._lease_us = round(lease_s * MICRO)
        longest_us = max((limit.part_us * limit.parts for limit in limits.budgets.values()), default=0)
        self._keep_s = KEEP_S + longest_us // MICRO
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store.place!r}, models={list(self.limits.models)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return RedisLedger, self._arguments

    def try_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """See `Ledger.try_reserve`."""
        lease, arguments = self._draft(model, tokens, cost_usd, budgets)
        return self._answer(lease, budgets, self._store.ask("reserve", arguments))

    async def atry_reserve(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None = None
    ) -> Lease | Refused:
        """See `Ledger.atry_reserve`."""
        lease, arguments = self._draft(model, tokens, cost_usd, budgets)
        asked = self._task(self._store.aask("reserve", arguments))
        try:
            reply = await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._task(self._undo(asked, lease))
            raise
        return self._answer(lease, budgets, reply)

    def reconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """See `Ledger.reconcile`."""
        mine = self._local is not None and self._local.reconcile(lease, tokens, cost_usd)
        return mine or _done(self._store.ask("finish", _spent(lease, tokens, cost_usd)))

    async def areconcile(self, lease: Lease, tokens: int, cost_usd: float) -> bool:
        """See `Ledger.reconcile`."""
        mine = self._local is not None and self._local.reconcile(lease, tokens, cost_usd)
        return mine or _done(await self._shielded("finish", _spent(lease, tokens, cost_usd)))

    def release(self, lease: Lease, *, sent: bool = True) -> bool:
        """See `Ledger.release`."""
        mine = self._local is not None and self._local.release(lease, sent=sent)
        return mine or _done(self._store.ask("finish", _unknown(lease, sent=sent)))

    async def arelease(self, lease: Lease, *, sent: bool = True) -> bool:
        """See `Ledger.release`."""
        mine = self._local is not None and self._local.release(lease, sent=sent)
        return mine or _done(await self._shielded("finish", _unknown(lease, sent=sent)))

    def renew(self, lease: Lease) -> bool:
        """See `Ledger.renew`."""
        mine = self._local is not None and self._local.renew(lease)
        return mine or _done(self._store.ask("renew", [lease.id, self._lease_us]))

    async def arenew(self, lease: Lease) -> bool:
        """See `Ledger.renew`."""
        mine = self._local is not None and self._local.renew(lease)
        return mine or _done(await self._shielded("renew", [lease.id, self._lease_us]))

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

    def _draft(
        self, model: str, tokens: int, cost_usd: float, budgets: Collection[str] | None
    ) -> tuple[Lease, list[Any]]:
        amount = amounts(tokens, cost_usd)
        limits = self.limits.drawn_on(model, budgets)
        lease = Lease(uuid4().hex, model, amount["tokens"], cost_usd, self.lease_s)
        rows = [(r.key, r.kind, r.name, r.most, r.part_us, r.parts, amount[r.kind]) for r in limits]
        return lease, [lease.id, self._lease_us, GUESS_US, self._keep_s, *(field for row in rows for field in row)]

    def _answer(self, lease: Lease, budgets: Collection[str] | None, reply: list[Any] | StoreError) -> Lease | Refused:
        if isinstance(reply, StoreError):
            if self._local is None:
                raise reply
            return self._local.try_reserve(lease.model, lease.tokens, lease.cost_usd, budgets)
        full, wait_us = reply
        if not full:
            return lease
        refused = Refused(lease.model, full, wait_us / MICRO if wait_us >= 0 else math.inf)
        if self._local is None:
            return refused
        answer = self._local.try_reserve(lease.model, lease.tokens, lease.cost_usd, budgets)
        return answer if isinstance(answer, Lease) or answer.retry_s < refused.retry_s else refused

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
        await self._store.aask("finish", _unknown(lease, sent=False))


def _spent(lease: Lease, tokens: int, cost_usd: float) -> list[Any]:
    amount = amounts(tokens, cost_usd)
    return [lease.id, "reconcile", amount["tokens"], amount["usd"]]


def _unknown(lease: Lease, *, sent: bool) -> list[Any]:
    return [lease.id, "sent" if sent else "unsent", 0, 0]


def _done(reply: list[Any] | StoreError) -> bool:
    return not isinstance(reply, StoreError) and bool(reply[0])
