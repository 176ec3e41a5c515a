import asyncio
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time

import pytest

from eccos_integrations import ConfigError, Model, ModelPool
from eccos_integrations.serving import store
from eccos_integrations.serving.limits import Ask, Budget, Lease, Refused, StoreError, open_ledger
from tests.contracts.ledgers import POOL, TEAM, LedgerContract, same
from tests.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

SERVER_TIME = "redis.call('TIME')"
TOLD_TIME = """(function()
  local told = tonumber(redis.call('GET', 'told-time'))
  return { math.floor(told / 1000000), told % 1000000 }
end)()"""


class RedisWorld:
    """Redis and its clients live in a time that we tell them."""

    def __init__(self, server):
        self.server = server
        self.now = 1000.0
        self._jumped = 0.0
        self._tell()

    def open(self, pool, budgets=(), **settings):
        self.server.client.flushall()
        self._tell()
        return self.join(pool, budgets, **settings)

    def join(self, pool, budgets=(), **settings):
        """Another program opens what is there."""
        return open_ledger(self.server.uri, pool, budgets, clock=self.clock, **settings)

    def clock(self):
        return self.now

    def advance(self, seconds):
        self.now = round(self.now + seconds, 6)
        self._tell()

    def jump(self, seconds):
        """Somebody sets the server's clock; no time passes."""
        self._jumped += seconds
        self._tell()

    def restart(self, seconds=0):
        """Dies and comes back some time later."""
        self.server.kill()
        self.now += seconds
        self.server.start()
        self._tell()

    def _tell(self):
        self.server.client.set("told-time", round((self.now + self._jumped) * 1e6))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def told_time(monkeypatch):
    plain = store.script
    assert SERVER_TIME in plain("reserve")
    monkeypatch.setattr(store, "script", lambda name: plain(name).replace(SERVER_TIME, TOLD_TIME))


@pytest.fixture
def make_world(server, told_time):
    return RedisWorld(server)


@pytest.fixture
def shared(server):
    """The module's server, empty, in its own time."""
    server.client.flushall()
    return server


ONE = ModelPool([Model(name="m", max_concurrency=1)])
MINUTE = ModelPool([Model(name="m", max_concurrency=4, requests_per_minute=100, tokens_per_minute=10_000)])


class TestRedisLedger(LedgerContract):
    @pytest.fixture
    def make_world(self, server, told_time):
        return RedisWorld(server)

    def test_a_copy_through_pickle_has_the_same_limits(self, shared):
        ledger = open_ledger(shared.uri, POOL, [TEAM])
        lease = ledger.try_reserve("all", 1, 0.5)
        copy = pickle.loads(pickle.dumps(ledger))
        same(copy.free(), ledger.free())
        assert copy.release(lease)


# Sharing: who counts together, under which keys.


def test_programs_with_the_same_models_share_their_limits_also_while_a_limit_is_changed(shared):
    one = open_ledger(shared.uri, ModelPool([Model(name="m", max_concurrency=2)]))
    other = open_ledger(shared.uri, ModelPool([Model(name="m", max_concurrency=3, description="the same")]))
    assert isinstance(one.try_reserve("m", 1, 0), Lease)
    assert other.free().concurrency[0] == 2
    assert other.release(one.try_reserve("m", 1, 0))


def test_programs_with_other_models_do_not(shared):
    one = open_ledger(shared.uri, ONE)
    other = open_ledger(shared.uri, ModelPool([Model(name="m", max_concurrency=1), Model(name="n")]))
    one.try_reserve("m", 1, 0)
    assert isinstance(other.try_reserve("m", 1, 0), Lease)


def test_keys_lie_in_one_slot_tell_no_model_and_are_not_kept_for_ever(shared):
    ledger = open_ledger(shared.uri, ModelPool([Model(name="secret-model", max_concurrency=1)]), [TEAM])
    ledger.try_reserve("secret-model", 1, 0.1)
    keys = shared.client.keys()
    assert len(keys) == 3
    assert len({key[: key.index("}")] for key in keys}) == 1
    assert all(key.startswith("eccos:{") and "secret" not in key for key in keys)
    assert all(3600 < shared.client.ttl(key) <= 3 * 24 * 3600 for key in keys)


def test_a_lease_that_has_ended_leaves_nothing_behind(shared):
    ledger = open_ledger(shared.uri, POOL)
    ledger.release(ledger.try_reserve("all", 1, 0))
    assert [key.split(":")[-1] for key in shared.client.scan_iter()] == ["counts"]


def test_a_node_of_a_cluster_takes_the_scripts(tmp_path):
    server = RedisServer(tmp_path, "--cluster-enabled", "yes")
    try:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until = time.monotonic() + 20
        while "cluster_state:ok" not in str(server.client.execute_command("CLUSTER", "INFO")).replace("': '", ":"):
            assert time.monotonic() < until
            time.sleep(0.01)
        ledger = open_ledger(server.uri, POOL, [TEAM])
        lease = ledger.try_reserve("all", 100, 0.1)
        assert ledger.renew(lease)
        assert ledger.reconcile(lease, 100, 0.1)
        assert ledger.free().tokens[3] == 900
    finally:
        server.kill()


def test_a_step_is_one_round_trip_and_scripts_are_loaded_again_when_they_are_lost(shared):
    ledger = open_ledger(shared.uri, POOL, [TEAM])
    ledger.release(ledger.try_reserve("all", 1, 0))
    shared.client.config_resetstat()
    ledger.try_reserve("all", 1, 0)
    stats = shared.client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_script|load" not in stats
    shared.client.script_flush()
    assert isinstance(ledger.try_reserve("all", 1, 0), Lease)


def test_an_answer_lost_on_the_way_does_not_reserve_twice(shared):
    ledger = open_ledger(shared.uri, POOL)
    lease, arguments = ledger._drafts([Ask("all", 10, 0)])
    asked = [Ask("all", 10, 0)]
    assert [ledger._answers(asked, lease, ledger._store.ask("reserve", arguments)) for _ in range(2)] == [lease, lease]
    assert ledger.free().concurrency[3] == 2


# Credentials.


@pytest.fixture
def locked_server(tmp_path):
    server = RedisServer(tmp_path, "--requirepass", "hunter2")
    yield server
    server.kill()


def test_a_password_opens_and_is_never_shown(locked_server):
    ledger = open_ledger(f"redis://:hunter2@127.0.0.1:{locked_server.port}/0", ONE)
    assert isinstance(ledger.try_reserve("m", 1, 0), Lease)
    assert "hunter2" not in repr(ledger)
    assert str(locked_server.port) in repr(ledger)


def test_a_wrong_password_is_an_error_that_does_not_show_it(locked_server, caplog):
    ledger = open_ledger(f"redis://someone:hunter3@127.0.0.1:{locked_server.port}/0", ONE)
    with pytest.raises(StoreError, match=f"127.0.0.1:{locked_server.port}/0 is away") as caught:
        ledger.try_reserve("m", 1, 0)
    assert "AuthenticationError" in str(caught.value)
    for words in (str(caught.value), caplog.text):
        assert "hunter3" not in words
        assert "someone" not in words
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "uri", ["redis://someone:hunter%34@127.0.0.1/0", "redis://h?username=someone&password=hunter4"]
)
def test_words_of_the_driver_that_hold_a_password_are_masked(uri):
    ledger = open_ledger(uri, ONE)
    assert "hunter" not in repr(ledger)
    error = ledger._store._lost(OSError("no such person: someone with hunter4"))
    assert "*** with ***" in str(error)


@pytest.mark.parametrize(
    "uri",
    [
        "redis://u:hun:ter2/x@host:6379/0",
        "redis://:12/hunter2@host/0",
        "redis://host:hunter2",
        "rediss://u:hunter2@[::1",
    ],
)
def test_a_uri_that_cannot_be_read_is_not_shown(uri):
    with pytest.raises(ConfigError, match="uri") as caught:
        open_ledger(uri, ONE)
    assert "ter2" not in str(caught.value)
    assert caught.value.__suppress_context__


# A store that goes away. "reject": StoreError, and nothing else.


def test_a_store_that_never_was_is_an_error_that_says_where(own_server):
    own_server.kill()
    ledger = open_ledger(own_server.uri, ONE)
    with pytest.raises(StoreError, match=str(own_server.port)):
        ledger.try_reserve("m", 1, 0)
    with pytest.raises(StoreError, match="asked again in"):
        ledger.free()
    own_server.start()


def test_while_one_caller_tries_a_store_that_was_away_the_others_go_on(told_time, own_server):
    world = RedisWorld(own_server)
    ledger = world.join(ONE)
    own_server.kill()
    with pytest.raises(StoreError):
        ledger.free()
    world.now += 2
    assert ledger._store._gate() is None
    with pytest.raises(StoreError, match=r"asked again in 1\.0 s"):
        ledger.free()
    own_server.start()


def test_rejecting_a_store_that_went_away_raises_and_recovers_by_itself(told_time, lasting_server, caplog):
    world = RedisWorld(lasting_server)
    ledger = world.join(MINUTE)
    kept, lost = (ledger.try_reserve("m", 1000, 0) for _ in range(2))
    lasting_server.kill()
    for _ in range(3):
        with pytest.raises(StoreError):
            ledger.try_reserve("m", 1000, 0)
    assert not ledger.reconcile(lost, 10, 0)
    assert not ledger.renew(kept)
    assert [record.message.split(":")[0] for record in caplog.records] == ["the store of the limits is away"]
    lasting_server.start()
    world.advance(1.01)
    free = ledger.free()
    assert (free.concurrency[0], free.tokens[0]) == (2, 8000)
    assert ledger.reconcile(kept, 500, 0)
    assert "is back" in caplog.text


def test_a_store_that_lost_its_records_stays_shut_until_all_that_went_out_is_over(told_time, own_server, caplog):
    world = RedisWorld(own_server)
    ledger, other = world.join(MINUTE), world.join(MINUTE)
    lease = ledger.try_reserve("m", 10_000, 0)
    assert other.try_reserve("m", 10_000, 0).limit == "tokens_per_minute"
    world.restart(seconds=5)
    refused = other.try_reserve("m", 10_000, 0)
    assert refused.limit == "store"
    assert "lost its records" in caplog.text
    world.advance(59)
    assert not ledger.reconcile(lease, 10_000, 0)  # the provider may count it now
    assert refused.retry_s - 59 >= 60
    world.advance(60)
    assert other.try_reserve("m", 10_000, 0).limit == "store"
    world.advance(refused.retry_s - 119)
    assert isinstance(other.try_reserve("m", 10_000, 0), Lease)


def test_a_store_that_fell_back_to_an_older_state_is_noticed(told_time, own_server):
    world = RedisWorld(own_server)
    ledger = world.join(MINUTE)
    ledger.try_reserve("m", 100, 0)
    world.advance(1000)
    ledger.free()
    own_server.client.save()
    ledger.try_reserve("m", 9900, 0)
    world.restart()
    refused = ledger.try_reserve("m", 9900, 0)
    assert refused.limit == "store"
    assert refused.retry_s > 120


def test_a_new_program_finds_an_empty_store_open(shared):
    assert isinstance(open_ledger(shared.uri, ONE).try_reserve("m", 1, 0), Lease)


def test_a_program_that_was_idle_for_long_does_not_shut_a_store_that_was_emptied(make_world):
    ledger = make_world.open(MINUTE)
    ledger.try_reserve("m", 1, 0)
    make_world.advance(1000)
    make_world.server.client.flushall()
    make_world.advance(0)
    assert isinstance(ledger.try_reserve("m", 1, 0), Lease)


# "local": each process keeps its portion in memory.

LOCAL = {"on_store_failure": "local", "local_share": 0.4, "processes": 2}


def drained(ledgers, model="m", tokens=10):
    leases = []
    for ledger in ledgers:
        while isinstance(lease := ledger.try_reserve(model, tokens, 0), Lease):
            leases.append((ledger, lease))
    return leases


def test_what_processes_keep_for_themselves_is_not_in_the_store(make_world):
    pool = ModelPool([Model(name="m", max_concurrency=10)])
    one = make_world.open(pool, **LOCAL)
    other = make_world.join(pool, **LOCAL)
    assert one.free().concurrency[0] == 8
    assert len(drained([one])) == 8
    assert len(drained([other])) == 2
    assert one.try_reserve("m", 1, 0).limit == "max_concurrency"


def test_living_on_its_portion_a_process_warns_once_and_recovers_by_itself(told_time, own_server, caplog):
    world = RedisWorld(own_server)
    pool = ModelPool([Model(name="m", requests_per_minute=100, tokens_per_minute=1000)])
    ledgers = [world.join(pool, [Budget(name="b", usd=1, window_s=60)], **LOCAL) for _ in range(2)]
    assert len(drained(ledgers[:1], tokens=100)) == 8  # 6 of the store, 2 of its own
    own_server.kill()
    assert len(drained(ledgers, tokens=100)) == 2  # the other's own
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("is away" in warning for warning in warnings)
    free = ledgers[0].free()
    assert (free.requests[0], free.tokens[0], free.budgets_usd["b"]) == (18, 0, pytest.approx(0.2))
    own_server.start()
    world.advance(2)
    assert drained(ledgers, tokens=100) == []  # it came back empty and knows it
    world.advance(61)  # the leases have expired, their tokens still count
    assert drained(ledgers, tokens=100) == []
    world.advance(61)
    assert len(drained(ledgers, tokens=100)) == 10


def test_leases_of_either_kind_are_ended_where_they_are(told_time, own_server):
    world = RedisWorld(own_server)
    ledger = world.join(ModelPool([Model(name="m", max_concurrency=5)]), **LOCAL)
    leases = drained([ledger])
    assert len(leases) == 4
    own_server.kill()
    assert sum(ledger.renew(lease) for _, lease in leases) == 1
    assert sum(ledger.release(lease) for _, lease in leases) == 1
    assert len(drained([ledger])) == 1
    own_server.start()


@pytest.mark.parametrize("wrong", [{"processes": None}, {"processes": 0}, {"local_share": 0}, {"local_share": 1}])
def test_portions_that_cannot_be_are_refused(server, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        open_ledger(server.uri, ONE, **LOCAL | wrong)


# The server's clock.


@pytest.mark.parametrize("step", [3600, -3600, 86400 * 365, 2, -2])
def test_setting_the_servers_clock_breaks_no_window_and_frees_no_lease(make_world, step):
    ledger = make_world.open(MINUTE, [TEAM])
    ledger.reconcile(ledger.try_reserve("m", 10_000, 0.6), 10_000, 0.6)
    lease = ledger.try_reserve("m", 0, 0)
    make_world.advance(30)
    make_world.jump(step)
    free = ledger.free()
    assert (free.tokens[0], free.concurrency[0], free.budgets_usd["team"]) == (0, 3, 0.4)
    make_world.advance(27)
    assert isinstance(ledger.try_reserve("m", 1, 0), Refused)
    make_world.advance(8)
    assert isinstance(ledger.try_reserve("m", 10_000, 0), Lease)
    assert ledger.free().concurrency[0] == 3  # the idle lease has expired, the new one is out
    assert not ledger.renew(lease)


@pytest.mark.parametrize("step", [-3600, -30])
def test_a_program_that_comes_after_the_clock_was_put_back_does_not_turn_time_back(make_world, step):
    ledger = make_world.open(MINUTE)
    make_world.advance(20)
    ledger.reconcile(ledger.try_reserve("m", 10_000, 0), 10_000, 0)
    make_world.jump(step)
    late = make_world.join(MINUTE)
    assert isinstance(late.try_reserve("m", 1, 0), Refused)
    make_world.advance(63)
    assert isinstance(late.try_reserve("m", 10_000, 0), Lease)


def test_a_program_that_looks_away_while_the_clock_is_set_does_not_stop_time_for_others(make_world):
    one = make_world.open(MINUTE)
    other = make_world.join(MINUTE)
    one.free()
    other.reconcile(other.try_reserve("m", 10_000, 0), 10_000, 0)
    for _ in range(10):
        make_world.advance(7)
        make_world.jump(100)
        other.free()
    assert isinstance(one.try_reserve("m", 10_000, 0), Lease)


# Event loops.


async def test_a_cancelled_reservation_reserves_nothing(shared):
    ledger = open_ledger(shared.uri, ModelPool([Model(name="m", max_concurrency=50)]))
    await ledger.afree()
    for turns in range(12):
        waiting = [asyncio.create_task(ledger.atry_reserve("m", 1, 0)) for _ in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        leases = [lease for lease in await asyncio.gather(*waiting, return_exceptions=True) if isinstance(lease, Lease)]
        await asyncio.gather(*(ledger.arelease(lease) for lease in leases))
    until = time.monotonic() + 10
    while (await ledger.afree()).concurrency[0] < 50:
        assert time.monotonic() < until
    await ledger.aclose()


async def test_a_cancelled_end_is_an_end(shared):
    ledger = open_ledger(shared.uri, ONE)
    lease = await ledger.atry_reserve("m", 1, 0)
    ending = asyncio.create_task(ledger.arelease(lease))
    await asyncio.sleep(0)
    ending.cancel()
    until = time.monotonic() + 10
    while (await ledger.afree()).concurrency[0] == 0:
        assert time.monotonic() < until
    await ledger.aclose()


async def test_many_coroutines_share_few_connections_and_get_exactly_what_there_is(shared):
    ledger = open_ledger(shared.uri, MINUTE)
    before = len(shared.client.client_list())

    async def call():
        answer = await ledger.atry_reserve("m", 10, 0)
        return isinstance(answer, Lease) and await ledger.arelease(answer)

    granted = sum(await asyncio.gather(*(call() for _ in range(300))))
    assert len(shared.client.client_list()) - before <= store.CONNECTIONS
    free = await ledger.afree()
    assert 4 <= granted == 100 - free.requests[0]
    await ledger.aclose()


async def test_a_store_that_hangs_does_not_hold_up_the_event_loop(own_server, monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT_S", 0.2)
    ledger = open_ledger(own_server.uri, ONE)
    await ledger.afree()
    own_server.process.send_signal(signal.SIGSTOP)
    try:
        asked = asyncio.create_task(ledger.atry_reserve("m", 1, 0))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0.001)
            turns += 1
        with pytest.raises(StoreError):
            await asked
        assert turns > 20
    finally:
        own_server.process.send_signal(signal.SIGCONT)
    await ledger.aclose()


def test_loops_one_after_another_and_threads_beside_them_share_one_ledger(shared):
    ledger = open_ledger(shared.uri, ModelPool([Model(name="m", max_concurrency=8)]))

    async def reserve():
        lease = await ledger.atry_reserve("m", 1, 0)
        await ledger.aclose()
        return lease

    leases = [asyncio.run(reserve()) for _ in range(3)]
    thread = threading.Thread(target=lambda: leases.append(asyncio.run(reserve())))
    thread.start()
    leases.append(ledger.try_reserve("m", 1, 0))
    thread.join()
    assert ledger.free().concurrency[0] == 3
    assert all(ledger.release(lease) for lease in leases)
    assert len(ledger._store._loops) == 0


def test_closing_a_ledger_disturbs_no_thread_that_is_using_it(shared):
    ledger = open_ledger(shared.uri, ModelPool([Model(name="m", max_concurrency=4)]))
    done = threading.Event()

    def close():
        while not done.is_set():
            ledger.close()

    thread = threading.Thread(target=close)
    thread.start()
    try:
        assert all(ledger.release(ledger.try_reserve("m", 1, 0)) for _ in range(200))
    finally:
        done.set()
        thread.join()


@pytest.mark.slow  # counts the server's clients, which a busy machine is late to let go of
def test_a_closed_ledger_has_no_connection_left_and_opens_one_when_it_is_used_again(shared):
    ledger = open_ledger(shared.uri, ONE)
    before = len(shared.client.client_list())

    async def use():
        await ledger.arelease(await ledger.atry_reserve("m", 1, 0))
        await ledger.aclose()

    for _ in range(2):
        ledger.free()
        asyncio.run(use())
        assert len(shared.client.client_list()) == before + 1
        ledger.close()
        assert len(shared.client.client_list()) == before


# Processes.

FORK = multiprocessing.get_context("fork")


def grab(uri, lease_s, told):
    ledger = open_ledger(uri, ONE, lease_s=lease_s)
    told.send(isinstance(ledger.try_reserve("m", 1, 0), Lease))
    time.sleep(60)


def test_a_process_that_dies_gives_its_lease_back_within_the_lease_time(shared):
    ledger = open_ledger(shared.uri, ONE)
    mine, theirs = FORK.Pipe()
    process = FORK.Process(target=grab, args=(shared.uri, 0.5, theirs))
    process.start()
    assert mine.recv()
    since = time.monotonic()
    process.kill()
    process.join()
    assert ledger.try_reserve("m", 1, 0).limit == "max_concurrency"
    while not isinstance(ledger.try_reserve("m", 1, 0), Lease):
        assert time.monotonic() < since + 5
    assert time.monotonic() - since < 0.7


def call_while_possible(uri, settings, log, seed):
    """A mark for each call that begins or ends: a pipe keeps them in order."""
    pool = ModelPool([Model(name="m", max_concurrency=20, requests_per_minute=200, tokens_per_minute=8_000)])
    ledger = open_ledger(uri, pool, lease_s=0.5, **settings)
    while True:
        try:
            answer = ledger.try_reserve("m", 40, 0)
        except StoreError:
            time.sleep(0.01)
            continue
        if isinstance(answer, Refused):
            time.sleep(0.01)
            continue
        os.write(log, b"+")
        time.sleep(0.02 * (1 + seed % 3))  # too slow to reach the limits before the store is killed
        os.write(log, b"-")
        ledger.reconcile(answer, 30 + seed % 10, 0)


class Watched:
    """Four processes that call as long as they may, and what their provider sees of it."""

    def __init__(self, uri, **settings):
        self.events = ""
        self._log, self._end = os.pipe()
        os.set_blocking(self._log, False)
        self._call = (uri, settings, self._end)
        self._processes = [self._start(seed) for seed in range(4)]

    def _start(self, seed):
        process = FORK.Process(target=call_while_possible, args=(*self._call, seed), daemon=True)
        process.start()
        return process

    def watch(self, seconds):
        """How many calls began."""
        begun = self.events.count("+")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                self.events += os.read(self._log, 65536).decode()
            except BlockingIOError:
                time.sleep(0.002)
        return self.events.count("+") - begun

    def kill_one_and_start_another(self, seed):
        victim = self._processes.pop(0)
        victim.kill()
        victim.join()
        self._processes.append(self._start(seed))

    def close(self):
        for process in self._processes:
            process.kill()
            process.join()
        self.watch(0.05)
        os.close(self._log)
        os.close(self._end)


@pytest.mark.slow  # four processes and a server killed in the middle: its timing needs a machine that is not busy
@pytest.mark.parametrize(
    ("lasts", "settings"),
    [(False, {}), (True, {}), (False, {"on_store_failure": "local", "local_share": 0.4, "processes": 8})],
    ids=["loses its records", "keeps its records", "is made up for"],
)
def test_four_processes_and_a_store_that_are_killed_break_no_limit(tmp_path, lasts, settings):
    server = RedisServer(tmp_path, "--appendonly", "yes" if lasts else "no")
    watched = Watched(server.uri, **settings)
    try:
        assert watched.watch(0.5) > 0
        for seed in range(4, 8):
            watched.kill_one_and_start_another(seed)
            watched.watch(0.1)
        server.kill()
        watched.watch(0.1)  # what was on its way
        away = watched.watch(0.4)
        server.start()
        back = watched.watch(1.8)
    finally:
        watched.close()
        server.kill()
    assert (away > 0) == bool(settings)
    if not settings:
        assert (back > 0) == lasts
    # All of this is one minute's window. Of killed processes, the last call is not seen to end.
    assert watched.events.count("+") <= 200
    in_flight = [watched.events[:i].count("+") - watched.events[:i].count("-") for i in range(len(watched.events))]
    assert max(in_flight) <= 4 + 4


@pytest.mark.benchmark(group="ledger")
def test_reserve_and_reconcile_on_redis(benchmark, shared):
    big = 10**12
    pool = ModelPool([Model(name="m", max_concurrency=big, requests_per_minute=big, tokens_per_minute=big)])
    ledger = open_ledger(shared.uri, pool, [Budget(name="team", usd=1e6, window_s=3600)])
    assert benchmark(lambda: ledger.reconcile(ledger.try_reserve("m", 1000, 0.001), 500, 0.0005))
