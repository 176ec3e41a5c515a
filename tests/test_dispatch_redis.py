"""Dispatchers of several processes on one Redis: limits, conversations, a store or a process that is killed."""

import asyncio
import multiprocessing
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from eccos_integrations import Policy
from eccos_integrations.serving.dispatch import Dispatcher, Usage
from eccos_integrations.serving.limits import Budget, StoreError, open_ledger
from eccos_integrations.serving.window import BackpressureError
from tests.redis_server import needs_redis
from tests.test_dispatch import LONG, USAGE, ApiError, answer, failing, router_of, until

pytestmark = needs_redis
FORK = multiprocessing.get_context("fork")
quiet_fork = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def opened(server, router, budgets=(), **settings):
    return Dispatcher(
        router, open_ledger(server.uri, router.pool, budgets, **settings), window_s=0.002, deadline_s=LONG
    )


def test_two_dispatchers_share_the_limits(own_server):
    router = router_of(max_concurrency=1)
    with opened(own_server, router) as one, opened(own_server, router) as other:
        with one.ticket("hello") as first, other.ticket("hello") as second:
            assert (first.model, second.model) == ("tiny", "small")
        until(lambda: other.call("hello", answer).answer == "tiny")


def test_a_window_is_a_few_round_trips_however_many_are_in_it(own_server):
    router = router_of(max_concurrency=100)

    async def function(ticket):
        await asyncio.sleep(0.05)
        return ticket.model, USAGE

    async def main():
        ledger = open_ledger(own_server.uri, router.pool)
        async with Dispatcher(router, ledger, window_s=0.2) as dispatcher:
            await dispatcher.acall("hello", function)
            own_server.client.config_resetstat()
            await asyncio.gather(*(dispatcher.acall("hello", function) for _ in range(60)))

    asyncio.run(main())
    until(lambda: own_server.client.hlen(next(own_server.client.scan_iter("*:leases"), "none")) == 0)
    assert own_server.client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 30  # one by one, it would be over 120


def test_a_conversation_keeps_its_model_from_process_to_process_and_its_id_is_no_secret_told(own_server):
    router = router_of()
    with opened(own_server, router) as one, opened(own_server, router) as other:
        assert (
            one.call("hello", failing(ApiError(500))[0], conversation="bob@example.org", pinned=True).answer == "small"
        )
        until(lambda: other.ledger.homes(["bob@example.org"]) != [None])
        assert other.call("hello", answer, conversation="bob@example.org", pinned=True).answer == "small"
        assert other.call("hello", answer, conversation="eve", pinned=True).answer == "tiny"
        assert not [key for key in own_server.client.scan_iter("*") if "bob" in key]


# -- a store that is killed


def test_while_the_store_is_away_callers_are_told_and_it_recovers_by_itself(lasting_server):
    router = router_of(max_concurrency=2)
    with opened(lasting_server, router) as dispatcher:
        assert dispatcher.call("hello", answer, conversation="c").answer == "tiny"
        with dispatcher.ticket("hello"):  # under way when it dies: books nothing, and breaks nothing
            lasting_server.kill()
        with pytest.raises(StoreError, match="is away"):
            dispatcher.call("hello", answer, conversation="c")
        lasting_server.start()

        def back():
            try:
                return dispatcher.call("hello", answer, conversation="c").answer
            except StoreError:
                return None

        until(back)


def test_while_the_store_is_away_a_share_of_the_limits_goes_on(lasting_server, caplog):
    router = router_of(max_concurrency=10)
    own = {"on_store_failure": "local", "local_share": 0.2, "processes": 1}
    with opened(lasting_server, router, **own) as dispatcher, ThreadPoolExecutor(12) as threads:
        assert dispatcher.call("hello", answer).answer == "tiny"
        lasting_server.kill()
        go = threading.Event()

        def held(_):
            return dispatcher.call("hello", lambda t: (go.wait(20), (t.model, USAGE))[1], candidates=["tiny"])

        calls = [threads.submit(held, k) for k in range(4)]
        until(lambda: len(dispatcher._rounds.books._leases) == 2)  # a fifth of ten
        time.sleep(0.1)
        assert len(dispatcher._rounds.books._leases) == 2
        go.set()
        assert [call.result(20).answer for call in calls] == ["tiny"] * 4
        lasting_server.start()
        until(lambda: dispatcher.call("hello", answer).answer and "is back" in caplog.text)
    assert "is away" in caplog.text


# -- a process that is killed


def hold_all(uri, told):
    router = router_of(max_concurrency=2)
    dispatcher = Dispatcher(router, open_ledger(uri, router.pool, lease_s=1.0), window_s=0)
    with ThreadPoolExecutor(8) as threads:

        def hold(_):
            with dispatcher.ticket("hello"):
                told.send(True)
                time.sleep(60)

        list(threads.map(hold, range(8)))


@quiet_fork
def test_a_process_killed_with_calls_under_way_gives_them_back_within_the_lease_time(own_server):
    router = router_of(max_concurrency=2)
    mine, theirs = FORK.Pipe()
    process = FORK.Process(target=hold_all, args=(own_server.uri, theirs))
    process.start()
    assert all(mine.recv() for _ in range(8))
    with opened(own_server, router, lease_s=1.0) as dispatcher:
        with pytest.raises(BackpressureError):
            dispatcher.call("hello", answer, deadline_s=1.5)  # longer than a lease: those who live renew
        process.kill()
        process.join()
        since = time.monotonic()
        with dispatcher.ticket("hello"):
            assert time.monotonic() - since < 1.0 + 1.0


# -- four processes


def serve(uri, seed, log, n):
    """Calls with faults, some of them cancelled; the log is what a provider sees: t begins at tiny, T ends there."""
    router = router_of(Policy(min_quality=0.9, relative_to="best"), max_concurrency=3, requests_per_minute=400,
                       max_output_tokens=100)  # fmt: skip
    ledger = open_ledger(uri, router.pool, [Budget(name="team", usd=1000, window_s=60)])
    marks = dict(zip(router.models, "tsml", strict=True))

    async def function(ticket):
        os.write(log, marks[ticket.model].encode())
        try:
            await asyncio.sleep(0.003)
            if ticket.decision.id[0] in "01":  # one in eight
                raise ApiError(503)
        finally:
            os.write(log, marks[ticket.model].upper().encode())
        return ticket.model, Usage(20, 30, cost_usd=1e-4)

    async def main():
        async with Dispatcher(router, ledger, window_s=0.005, deadline_s=LONG, seed=seed) as dispatcher:

            async def one(k):
                call = asyncio.ensure_future(dispatcher.acall(f"hello {k}", function))
                if k % 10 == 0:
                    await asyncio.sleep(0.001 * (k % 7))
                    call.cancel()
                try:
                    await call
                except (ApiError, asyncio.CancelledError):
                    os.write(log, b"!")
                else:
                    os.write(log, b".")

            await asyncio.gather(*(one(k) for k in range(n)))

    asyncio.run(main())
    os._exit(0)


@quiet_fork
def test_four_processes_break_no_limit_and_lose_nothing(own_server):
    n = 120
    log, end = os.pipe()
    processes = [FORK.Process(target=serve, args=(own_server.uri, seed, end, n)) for seed in range(4)]
    for process in processes:
        process.start()
    os.close(end)
    events = b""
    while piece := os.read(log, 65536):
        events += piece
    for process in processes:
        process.join()
    assert Counter(process.exitcode for process in processes) == {0: 4}
    assert events.count(b".") + events.count(b"!") == 4 * n
    for mark in "tsml":
        calls = 0
        for event in events.decode():
            calls += (event == mark) - (event == mark.upper())
            assert calls <= 3
        assert calls == 0
        assert events.count(mark.encode()) <= 400
