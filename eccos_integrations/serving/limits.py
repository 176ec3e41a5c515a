"""What a pool can carry while calls run: reserve before a call, reconcile after it, each in one atomic step."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, PositiveFloat

from eccos_integrations.errors import ConfigError
from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.serving.counters import NANO, Limit, Limits
from eccos_integrations.serving.ledger import LAG_S, Ask, End, Free, Lease, Ledger, Refused, StoreError
from eccos_integrations.settings import Settings

__all__ = ["LAG_S", "Ask", "Budget", "End", "Free", "Lease", "Ledger", "Refused", "StoreError", "open_ledger"]

MINUTE_S = 60.0


class Budget(Settings):
    """The most a policy may spend in any window of time.

    Args:
        name: The policy's name.
        usd: Most USD in any `window_s` seconds.
        window_s: Length of the window.

    Raises:
        ConfigError: A field is unknown or out of range.

    Example:
        >>> Budget(name="team", usd=5, window_s=3600).usd
        5.0
    """

    name: str = Field(min_length=1)
    usd: PositiveFloat
    window_s: PositiveFloat


def open_ledger(
    uri: str,
    pool: ModelPool,
    budgets: Sequence[Budget] = (),
    *,
    lease_s: float = 60.0,
    on_store_failure: Literal["reject", "local"] = "reject",
    local_share: float = 0.2,
    processes: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ledger:
    """Open the ledger of a pool.

    Args:
        uri: `memory://` for the threads and event loops of one process, `redis://` or `rediss://` for many.
        pool: Its models' max_concurrency, requests_per_minute and tokens_per_minute are the limits.
        budgets: Rolling budgets.
        lease_s: A lease that is not renewed for this long expires.
        on_store_failure: While Redis is away, `"reject"` raises StoreError; `"local"` lives on `local_share`.
        local_share: Part of every limit that is never in Redis: it is divided among the processes, each has its portion
            in memory and uses it when Redis has nothing to give. So the limits hold, whoever can reach Redis or not.
        processes: The most processes that open this ledger within a minute: one that starts anew has a portion anew.
            `"local"` needs it.
        clock: Seconds that only move forward.

    Raises:
        ConfigError: An argument cannot be used as given.
        MissingExtraError: redis is not installed.

    Example:
        >>> ledger = open_ledger("memory://", ModelPool([Model(name="small", max_concurrency=1)]))
        >>> lease = ledger.try_reserve("small", tokens=500, cost_usd=0.001)
        >>> ledger.try_reserve("small", tokens=500, cost_usd=0.001).limit
        'max_concurrency'
        >>> ledger.reconcile(lease, tokens=212, cost_usd=0.0004)
        True
    """
    from eccos_integrations.serving.memory import MemoryLedger

    if not 0 < lease_s < math.inf:
        raise ConfigError(f"lease_s={lease_s}: give a finite number of seconds above 0")
    if on_store_failure not in {"reject", "local"}:
        raise ConfigError(f"on_store_failure={on_store_failure!r}: give 'reject' or 'local'")
    limits = _limits(pool, budgets)
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "memory":
        return MemoryLedger(limits, lease_s, clock)
    if scheme not in {"redis", "rediss"}:  # the rest of it may be a key
        raise ConfigError(f"uri: its scheme is {scheme[:20]!r}; give memory://, redis://host:port/db or rediss://...")
    from eccos_integrations.serving.redis import RedisLedger

    if on_store_failure == "reject":
        return RedisLedger(uri, limits.fingerprint, limits, lease_s, clock)
    if not isinstance(processes, int) or processes < 1:
        raise ConfigError(f"processes={processes}: on_store_failure='local' needs the number of processes, at least 1")
    if not 0 < local_share < 1:
        raise ConfigError(f"local_share={local_share}: give a part of the limits above 0 and below 1")
    local = MemoryLedger(limits.scaled(lambda most: int(most * local_share / processes)), lease_s, clock)
    shared = limits.scaled(lambda most: most - processes * int(most * local_share / processes))
    return RedisLedger(uri, limits.fingerprint, shared, lease_s, clock, local)


def _limits(pool: ModelPool, budgets: Sequence[Budget]) -> Limits:
    paid = {budget.name: _budget_limit(budget) for budget in budgets}
    if len(paid) < len(budgets):
        raise ConfigError(f"budgets: a name stands twice in {[b.name for b in budgets]}; give each its own")
    return Limits({model.name: tuple(_model_limits(model, j)) for j, model in enumerate(pool)}, paid)


def _model_limits(model: Model, j: int) -> list[Limit]:
    limits = []
    if model.max_concurrency is not None:
        limits.append(Limit(f"calls:{j}", "max_concurrency", "calls", model.max_concurrency))
    if (most := model.requests_per_minute) is not None:
        limits.append(Limit.rolling(f"requests:{j}", "requests_per_minute", "requests", most, MINUTE_S, LAG_S))
    if (most := model.tokens_per_minute) is not None:
        limits.append(Limit.rolling(f"tokens:{j}", "tokens_per_minute", "tokens", most, MINUTE_S, LAG_S))
    return limits


def _budget_limit(budget: Budget) -> Limit:
    key = f"budget:{budget.window_s}:{budget.name}"  # another window has other sub-counters
    return Limit.rolling(key, f"budget {budget.name}", "usd", round(budget.usd * NANO), budget.window_s)
