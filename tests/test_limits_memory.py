import asyncio
import math
import os
import pickle
import time

import pytest

from eccos_integrations import ConfigError, EccosError, Model, ModelPool
from eccos_integrations.serving.limits import Budget, Lease, StoreError, open_ledger
from tests.contracts.ledgers import POOL, TEAM, LedgerContract, same


class MemoryWorld:
    def __init__(self):
        self.now = 1000.0
        self._behind = 0.0

    def open(self, pool, budgets=(), **settings):
        return open_ledger("memory://", pool, budgets, clock=self.clock, **settings)

    def clock(self):
        return self.now + self._behind

    def advance(self, seconds):
        self.now = round(self.now + seconds, 6)

    def jump(self, seconds):
        self._behind += seconds


class TestMemoryLedger(LedgerContract):
    @pytest.fixture
    def make_world(self):
        return MemoryWorld()

    # pickling needs a clock that can be found again
    def test_a_copy_through_pickle_has_the_same_limits(self):
        ledger = open_ledger("memory://", POOL, [TEAM])
        full = ledger.free()
        ledger.try_reserve("all", 1, 0.5)
        copy = pickle.loads(pickle.dumps(ledger))
        assert copy.limits == ledger.limits
        same(copy.free(), full)


def test_time_is_monotonic_unless_another_clock_is_given():
    ledger = open_ledger("memory://", ModelPool([Model(name="m", max_concurrency=1)]), lease_s=0.05)
    assert isinstance(ledger.try_reserve("m", 1, 0), Lease)
    until = time.monotonic() + 5
    while not isinstance(ledger.try_reserve("m", 1, 0), Lease):
        assert time.monotonic() < until


def test_a_forked_child_has_an_empty_ledger_even_if_the_lock_was_held():
    ledger = open_ledger("memory://", ModelPool([Model(name="m", max_concurrency=1)]))
    ledger.try_reserve("m", 1, 0)
    with ledger._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if isinstance(ledger.try_reserve("m", 1, 0), Lease) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.free().concurrency[0] == 0


def test_event_loops_and_plain_threads_share_one_ledger():
    ledger = open_ledger("memory://", ModelPool([Model(name="m", max_concurrency=2)]))

    async def reserve():
        return await ledger.atry_reserve("m", 1, 0)

    leases = [asyncio.run(reserve()), asyncio.run(reserve())]
    assert ledger.try_reserve("m", 1, 0).limit == "max_concurrency"
    assert all(ledger.release(lease) for lease in leases)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"uri": "postgres://me:hunter2@host"}, "'postgres'"),
        ({"uri": "hunter2"}, "scheme is ''"),
        ({"lease_s": 0}, "lease_s=0"),
        ({"lease_s": math.inf}, "lease_s=inf"),
        ({"on_store_failure": "ignore"}, "'ignore'"),
        ({"budgets": [TEAM, TEAM]}, "stands twice"),
    ],
)
def test_wrong_settings_are_named_and_no_credentials_are(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        open_ledger(**{"uri": "memory://", "pool": POOL} | arguments)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"usd": 0}, {"window_s": 0}, {"name": ""}, {"usd": math.inf}])
def test_a_budget_of_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Budget(**{"name": "team", "usd": 1, "window_s": 60} | wrong)


def test_a_store_that_is_away_is_an_error_of_ours():
    assert issubclass(StoreError, EccosError)
    assert issubclass(StoreError, ConnectionError)


@pytest.mark.benchmark(group="ledger")
def test_reserve_and_reconcile_in_memory(benchmark):
    big = 10**12
    pool = ModelPool([Model(name="m", max_concurrency=big, requests_per_minute=big, tokens_per_minute=big)])
    ledger = open_ledger("memory://", pool, [Budget(name="team", usd=1e6, window_s=3600)])
    assert benchmark(lambda: ledger.reconcile(ledger.try_reserve("m", 1000, 0.001), 500, 0.0005))
