"""What every ledger must do, wherever its records are: sync and async, one suite."""

import asyncio
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Barrier

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, Model, ModelPool
from eccos_integrations.serving.conversations import Home
from eccos_integrations.serving.limits import LAG_S, Ask, Budget, End, Lease, Refused

POOL = ModelPool([
    Model(name="calls", max_concurrency=2),
    Model(name="requests", requests_per_minute=3),
    Model(name="tokens", tokens_per_minute=1000),
    Model(name="all", max_concurrency=3, requests_per_minute=6, tokens_per_minute=1000),
    Model(name="free"),
])  # fmt: skip
TEAM = Budget(name="team", usd=1.0, window_s=3600)
LIMITS = {"calls": "max_concurrency", "requests": "requests_per_minute", "tokens": "tokens_per_minute"}
METHODS = ("try_reserve", "reconcile", "release", "renew", "free", "close")


class Async:
    """The async methods of a ledger under their sync names."""

    def __init__(self, ledger, runner):
        self.ledger = ledger
        for name in METHODS:
            setattr(self, name, self._sync(getattr(ledger, f"a{name}"), runner))

    @staticmethod
    def _sync(method, runner):
        async def call(*args, **kwargs):
            return await method(*args, **kwargs)

        return lambda *args, **kwargs: runner.run(call(*args, **kwargs))


def same(one, other):
    for name, value in vars(one).items():
        np.testing.assert_equal(vars(other)[name], value)


def most_in_a_window(events, window_s):
    """Events are (moment, amount): the most in any window, by brute force."""
    return max((sum(much for at, much in events if last - window_s < at <= last) for last, _ in events), default=0)


@dataclass
class Call:
    """A call that somebody has under way: what it will have used, and when the provider counts that."""

    lease: Lease
    since: float
    used: int
    lag: float
    late: bool

    def __post_init__(self):
        self.expires = round(self.since + self.lease.lease_s, 6)


class Provider:
    """Sees the calls of one model, counts them whenever it likes within a call, and keeps a log of its own."""

    def __init__(self, calls, requests, tokens, usd):
        self.most = {"calls": calls, "requests": requests, "tokens": tokens, "usd": usd}
        self.window_s = {"requests": 60, "tokens": 60, "usd": 120}
        self.log = {name: [] for name in self.window_s}
        self.ended = {name: [] for name in self.window_s}  # as the ledger sees it
        self.calls = []

    def begin(self, call):
        self.calls.append(call)
        assert len(self.calls) <= self.most["calls"]

    def end(self, call, now, *, known=True, sent=True):
        self.calls.remove(call)
        if not sent:
            return
        tokens = call.used if known else call.lease.tokens
        counted = now if call.late else call.since
        for name, much, seen, from_now_on in (
            ("requests", 1, call.since + call.lag, call.since),
            ("tokens", tokens, counted, now),
            ("usd", tokens / 500, counted, now),
        ):
            self.log[name].append((seen, much))
            self.ended[name].append((from_now_on, much))

    def may_refuse(self, tokens, now):
        """Whether one more call could break a limit: no window of a ledger is more than three sub-counters longer."""
        held = {
            "requests": sum(call.since > now - 63 for call in self.calls),
            "tokens": sum(call.lease.tokens for call in self.calls),
            "usd": sum(call.lease.tokens / 500 for call in self.calls),
        }
        asked = {"requests": 1, "tokens": tokens, "usd": tokens / 500}
        return len(self.calls) >= self.most["calls"] or any(
            asked[name] + held[name] + sum(much for at, much in self.ended[name] if at > now - window_s * 63 / 60)
            > self.most[name] - 1e-6
            for name, window_s in self.window_s.items()
        )

    def check(self):
        for name, window_s in self.window_s.items():
            assert most_in_a_window(self.log[name], window_s) <= self.most[name] + 1e-6


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve"] * 8 + ["reconcile"] * 5 + ["release", "unsent", "renew"]),
        st.sampled_from([0, 1, 50, 200, 400, 700]),  # tokens, or which lease
        st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0]),  # the part of them really used, and how late the request arrives
        st.booleans(),  # counted at the end of the call
        # Seconds until the next step, or: as soon as the last refusal said.
        st.sampled_from([0.0] * 6 + [0.3, 0.999, 7.0, 29.5, 59.0] + ["retry"] * 3),
    ),
    min_size=10,
    max_size=80,
)
BUSY = ModelPool([Model(name="busy", max_concurrency=5, requests_per_minute=4, tokens_per_minute=1000)])
LATE = ("reserve", 1, 1.0, True, 0.0)  # arrives as late as it may
PROMPT = ("reserve", 1, 0.0, False, 0.0)
BURSTS = [("renew", 0, 0.0, False, 0.3), *[LATE] * 4, ("reserve", 1, 0.0, False, "retry"), *[PROMPT] * 4]
LONG = [("reserve", 700, 1.0, True, 29.5), ("renew", 0, 0.0, False, 29.5), ("reconcile", 0, 0.0, False, 0.999),
        ("reserve", 700, 1.0, False, "retry"), ("reserve", 700, 1.0, False, 0.0)]  # fmt: skip
PROPERTY = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class LedgerContract:
    """`world.open(pool, budgets, **settings)` opens a ledger with no records; `world.advance(s)` lets time pass."""

    @pytest.fixture(params=["sync", "async"])
    def world(self, request, make_world):
        world = make_world
        if request.param == "sync":
            yield world
            return
        with asyncio.Runner() as runner:
            opened, plain = [], world.open

            def open_async(*args, **kwargs):
                opened.append(Async(plain(*args, **kwargs), runner))
                return opened[-1]

            world.open = open_async
            yield world
            for ledger in opened:
                ledger.close()

    @pytest.fixture
    def ledger(self, world):
        return world.open(POOL, [TEAM])

    def test_a_lease_says_what_was_reserved(self, ledger):
        lease = ledger.try_reserve("all", 300, 0.25)
        assert isinstance(lease, Lease)
        assert (lease.model, lease.tokens, lease.cost_usd, lease.lease_s) == ("all", 300, 0.25, 60.0)

    def test_no_two_leases_are_the_same(self, ledger):
        assert len({ledger.try_reserve("free", 1, 0).id for _ in range(100)}) == 100

    @pytest.mark.parametrize(("model", "calls", "tokens"), [("calls", 2, 1), ("requests", 3, 1), ("tokens", 2, 500)])
    def test_one_call_too_many_is_refused_by_the_limit_it_would_break(self, ledger, model, calls, tokens):
        assert all(isinstance(ledger.try_reserve(model, tokens, 0), Lease) for _ in range(calls))
        refused = ledger.try_reserve(model, tokens, 0)
        assert (refused.model, refused.limit) == (model, LIMITS[model])
        assert 0 < refused.retry_s < 70

    def test_a_budget_refuses_by_its_name(self, ledger):
        assert isinstance(ledger.try_reserve("free", 1, 0.7), Lease)
        assert ledger.try_reserve("free", 1, 0.7).limit == "budget team"
        assert isinstance(ledger.try_reserve("free", 1, 0.3), Lease)

    def test_a_model_without_limits_is_never_refused(self, ledger):
        assert all(isinstance(ledger.try_reserve("free", 10**9, 0), Lease) for _ in range(50))

    def test_models_do_not_share_limits(self, ledger):
        while isinstance(ledger.try_reserve("calls", 1, 0), Lease):
            pass
        assert isinstance(ledger.try_reserve("all", 1, 0), Lease)

    def test_a_refusal_reserves_nothing(self, ledger):
        ledger.try_reserve("all", 900, 0.5)
        before = ledger.free()
        assert ledger.try_reserve("all", 200, 0.1).limit == "tokens_per_minute"
        assert ledger.try_reserve("all", 10, 0.6).limit == "budget team"
        same(ledger.free(), before)

    @pytest.mark.parametrize("model", ["requests", "tokens"])
    def test_the_seconds_to_wait_are_exact_where_a_window_has_to_move_on(self, world, ledger, model):
        world.advance(0.437)
        for wait in (0.0, 20.3, 0.25):
            world.advance(wait)
            ledger.reconcile(ledger.try_reserve(model, 300, 0), 300, 0)
        refused = ledger.try_reserve(model, 400, 0)
        world.advance(refused.retry_s - 1e-3)
        assert isinstance(ledger.try_reserve(model, 400, 0), Refused)
        world.advance(1e-3)
        assert isinstance(ledger.try_reserve(model, 400, 0), Lease)

    def test_what_no_limit_will_ever_hold_never_comes_back(self, ledger):
        assert ledger.try_reserve("tokens", 1001, 0).retry_s == math.inf
        assert ledger.try_reserve("free", 1, 1.01).retry_s == math.inf

    def test_what_was_reserved_and_not_used_is_free_at_once(self, ledger):
        lease = ledger.try_reserve("tokens", 1000, 1.0)
        assert ledger.reconcile(lease, 100, 0.25)
        assert ledger.free().tokens[2] == 900
        assert ledger.free().budgets_usd == {"team": 0.75}

    def test_tokens_and_money_count_for_a_window_after_the_call_and_requests_from_its_start(self, world, ledger):
        lease = ledger.try_reserve("all", 1000, 1.0)
        world.advance(50)
        ledger.renew(lease)
        ledger.reconcile(lease, 1000, 1.0)
        world.advance(59.9)
        free = ledger.free()
        assert (free.tokens[3], free.requests[3], free.budgets_usd["team"]) == (0, 6, 0)
        world.advance(3)
        free = ledger.free()
        assert (free.tokens[3], free.budgets_usd["team"]) == (1000, 0)
        world.advance(3600 * 61 / 60)
        assert ledger.free().budgets_usd["team"] == 1

    def test_two_bursts_never_meet_in_one_window(self, world):
        ledger = world.open(ModelPool([Model(name="burst", requests_per_minute=100)]))
        times = []
        for _ in range(400):
            while isinstance(ledger.try_reserve("burst", 1, 0), Lease):
                times.append(world.now)
            world.advance(0.37)
        assert most_in_a_window([(at, 1) for at in times], 60) == 100
        assert len(times) == 300  # three bursts in 148 seconds

    def test_a_call_whose_usage_is_unknown_gives_back_its_slot_alone(self, ledger):
        lease = ledger.try_reserve("all", 400, 0.5)
        assert ledger.release(lease)
        free = ledger.free()
        assert (free.concurrency[3], free.requests[3], free.tokens[3], free.budgets_usd["team"]) == (3, 5, 600, 0.5)

    def test_a_call_never_sent_gives_back_everything(self, world, ledger):
        before = ledger.free()
        lease = ledger.try_reserve("all", 400, 0.5)
        world.advance(7)
        assert ledger.release(lease, sent=False)
        same(ledger.free(), before)

    def test_giving_back_a_request_that_no_longer_counts_changes_nothing(self, world, ledger):
        lease = ledger.try_reserve("requests", 1, 0)
        world.advance(55)
        ledger.renew(lease)
        ledger.try_reserve("requests", 1, 0)
        world.advance(20)
        ledger.release(lease, sent=False)
        assert ledger.free().requests[1] == 2

    @pytest.mark.parametrize("end", ["reconcile", "release", "unsent", "expiry"])
    def test_a_lease_that_has_ended_can_not_end_again(self, world, ledger, end):
        lease = ledger.try_reserve("all", 400, 0.5)
        match end:
            case "reconcile":
                assert ledger.reconcile(lease, 100, 0.1)
            case "release":
                assert ledger.release(lease)
            case "unsent":
                assert ledger.release(lease, sent=False)
            case "expiry":
                world.advance(60)
        after = ledger.free()
        assert not ledger.reconcile(lease, 300, 0.3)
        assert not ledger.release(lease)
        assert not ledger.release(lease, sent=False)
        assert not ledger.renew(lease)
        same(ledger.free(), after)

    def test_a_lease_that_is_not_renewed_ends_as_if_all_of_it_had_been_used_then(self, world, ledger):
        ledger.try_reserve("all", 1000, 0)
        world.advance(59.999)
        assert ledger.free().concurrency[3] == 2
        world.advance(0.001)
        free = ledger.free()
        assert (free.concurrency[3], free.tokens[3]) == (3, 0)
        world.advance(59.9)
        assert ledger.free().tokens[3] == 0
        world.advance(2.1)
        assert ledger.free().tokens[3] == 1000

    def test_leases_that_expired_long_ago_hold_nothing(self, world, ledger):
        ledger.try_reserve("all", 1000, 0)
        world.advance(1000)
        assert isinstance(ledger.try_reserve("all", 1000, 0), Lease)

    def test_a_renewed_lease_lasts(self, world, ledger):
        lease = ledger.try_reserve("calls", 1, 0)
        other = ledger.try_reserve("calls", 1, 0)
        for _ in range(5):
            world.advance(50)
            assert ledger.renew(lease)
        assert not ledger.renew(other)
        assert ledger.free().concurrency[0] == 1
        assert ledger.reconcile(lease, 1, 0)

    def test_an_overrun_is_counted_and_later_reservations_pay_for_it(self, world, ledger):
        ledger.reconcile(ledger.try_reserve("tokens", 100, 0.1), 1500, 1.2)
        free = ledger.free()
        assert (free.tokens[2], free.overrun_tokens[2], free.budgets_usd["team"]) == (0, 1400, 0)
        assert free.overrun_usd["team"] == pytest.approx(1.1)
        refused = ledger.try_reserve("tokens", 1, 0)
        assert refused.limit == "tokens_per_minute"
        world.advance(refused.retry_s)
        assert isinstance(ledger.try_reserve("tokens", 1000, 0), Lease)
        assert ledger.free().overrun_tokens[2] == 1400

    def test_only_the_budgets_that_are_named_pay(self, world):
        ledger = world.open(POOL, [TEAM, Budget(name="other", usd=2, window_s=60)])
        ledger.reconcile(ledger.try_reserve("free", 1, 0.5, budgets=["other"]), 1, 0.5)
        assert ledger.free().budgets_usd == {"team": 1, "other": 1.5}
        ledger.try_reserve("free", 1, 0.25)
        assert ledger.free().budgets_usd == {"team": 0.75, "other": 1.25}
        ledger.try_reserve("free", 1, 0.5, budgets=[])
        assert ledger.free().budgets_usd == {"team": 0.75, "other": 1.25}

    def test_what_is_free_comes_as_arrays_in_the_order_of_the_pool(self, ledger):
        free = ledger.free()
        inf = math.inf
        assert free.models == POOL.names
        np.testing.assert_array_equal(free.concurrency, [2, inf, inf, 3, inf])
        np.testing.assert_array_equal(free.requests, [inf, 3, inf, 6, inf])
        np.testing.assert_array_equal(free.tokens, [inf, inf, 1000, 1000, inf])
        assert free.budgets_usd == {"team": 1.0}

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"model": "nobody"}, "nobody"),
            ({"budgets": ["nobody"]}, "nobody"),
            ({"tokens": -1}, "tokens=-1"),
            ({"tokens": math.nan}, "tokens=nan"),
            ({"cost_usd": math.nan}, "cost_usd=nan"),
            ({"cost_usd": math.inf}, "cost_usd=inf"),
        ],
    )
    def test_wrong_arguments_are_named_and_reserve_nothing(self, ledger, wrong, words):
        before = ledger.free()
        with pytest.raises(ConfigError, match=words):
            ledger.try_reserve(**{"model": "all", "tokens": 1, "cost_usd": 0.0} | wrong)
        same(ledger.free(), before)

    def test_wrong_usage_is_named_and_the_lease_stays(self, ledger):
        lease = ledger.try_reserve("all", 10, 0.1)
        with pytest.raises(ConfigError, match="cost_usd=nan"):
            ledger.reconcile(lease, 10, math.nan)
        assert ledger.reconcile(lease, 10, 0.1)

    def test_many_in_one_go_are_as_many_one_after_another(self, world):
        one = world.open(POOL, [TEAM])
        ledger = getattr(one, "ledger", one)
        asks = [Ask("calls", 10, 0.1), Ask("requests", 1, 0.2), Ask("calls", 10, 0.3), Ask("calls", 10, 0.1, [])]
        asks += [Ask("tokens", 900, 0.1), Ask("tokens", 200, 0.1), Ask("free", 1, 0.4), Ask("free", 1, 0.0, [])]
        leases = ledger.reserve_all(asks)
        full = ["max_concurrency", "tokens_per_minute", "budget team"]
        assert [answer.limit for answer in leases if isinstance(answer, Refused)] == full
        granted = [answer for answer in leases if isinstance(answer, Lease)]
        assert len({lease.id for lease in granted}) == 5
        assert ledger.renew_all(granted) == [True] * 5
        ends = [End(granted[0], 5, 0.05), End(granted[1]), End(granted[2], sent=False), End(granted[3], 950, 0.1)]
        assert ledger.end_all([*ends, ends[0]]) == [True, True, True, True, False]
        free = one.free()
        assert free.concurrency[0] == 2
        assert free.tokens[2] == 50
        assert free.overrun_tokens[2] == 50
        assert free.budgets_usd["team"] == pytest.approx(1 - 0.05 - 0.2 - 0.1)
        assert ledger.reserve_all([]) == ledger.end_all([]) == ledger.renew_all([]) == []

    def test_what_is_wrong_with_one_of_many_reserves_none(self, ledger):
        ledger = getattr(ledger, "ledger", ledger)
        with pytest.raises(ConfigError, match="nano"):
            ledger.reserve_all([Ask("nano", 1, 0), Ask("calls", 1, 0)])
        assert ledger.free().concurrency[0] == 2

    def test_conversations_are_remembered_with_their_latest_home(self, ledger):
        ledger = getattr(ledger, "ledger", ledger)
        assert ledger.homes(["a", "b"]) == [None, None]
        ledger.keep({"a": Home("calls", 10), "b": Home("a model: 7 of 9", 20)})
        ledger.keep({"a": Home("tokens", 30)})
        assert ledger.homes(["b", "a", "c"]) == [Home("a model: 7 of 9", 20), Home("tokens", 30), None]

    def test_a_ledger_can_be_closed_twice(self, ledger):
        ledger.try_reserve("all", 1, 0)
        ledger.close()
        ledger.close()

    def test_small_sums_do_not_drift(self, world):
        ledger = world.open(POOL, [Budget(name="team", usd=0.03, window_s=60)])
        for _ in range(300):
            ledger.reconcile(ledger.try_reserve("free", 1, 0.0001), 1, 0.0001)
        assert ledger.free().budgets_usd == {"team": 0}
        assert ledger.try_reserve("free", 1, 1e-9).limit == "budget team"

    @PROPERTY
    @given(steps=STEPS)
    @example(steps=BURSTS)
    @example(steps=LONG)
    def test_no_provider_ever_sees_more_than_the_limits_whenever_it_counts(self, world, steps):
        ledger = world.open(BUSY, [Budget(name="team", usd=2.0, window_s=120)])
        provider = Provider(calls=5, requests=4, tokens=1000, usd=2.0)
        retry_s = 0.0
        for kind, number, part, late, wait in steps:
            for call in [call for call in provider.calls if call.expires <= world.now]:
                provider.end(call, call.expires, known=False)
            call = provider.calls[number % len(provider.calls)] if provider.calls else None
            if kind == "reserve":
                answer = ledger.try_reserve("busy", number, number / 500)
                if isinstance(answer, Lease):
                    provider.begin(Call(answer, world.now, math.floor(number * part), LAG_S * part, late))
                else:
                    assert provider.may_refuse(number, world.now)
                    retry_s = min(answer.retry_s, 200.0)
            elif call is not None:
                match kind:
                    case "reconcile":
                        assert ledger.reconcile(call.lease, call.used, call.used / 500)
                        provider.end(call, world.now)
                    case "release":
                        assert ledger.release(call.lease)
                        assert not ledger.reconcile(call.lease, 0, 0)
                        provider.end(call, world.now, known=False)
                    case "unsent":
                        assert ledger.release(call.lease, sent=False)
                        provider.end(call, world.now, sent=False)
                    case "renew":
                        assert ledger.renew(call.lease)
                        call.expires = round(world.now + 60, 6)
            world.advance(retry_s if wait == "retry" else wait)
        while provider.calls:
            provider.end(provider.calls[0], world.now, known=False)
        provider.check()

    def test_eight_threads_get_exactly_what_there_is(self, make_world):
        pool = ModelPool([Model(name="m", max_concurrency=5, requests_per_minute=90, tokens_per_minute=10**6)])
        ledger = make_world.open(pool)
        start, in_flight, seen = Barrier(8), [], []

        def hammer(_):
            start.wait()
            granted = 0
            for _ in range(40):
                answer = ledger.try_reserve("m", 100, 0)
                if isinstance(answer, Lease):
                    in_flight.append(None)
                    seen.append(len(in_flight))
                    granted += 1
                    in_flight.pop()
                    assert ledger.reconcile(answer, 60, 0)
            return granted

        with ThreadPoolExecutor(8) as threads:
            granted = sum(threads.map(hammer, range(8)))
        free = ledger.free()
        assert granted + free.requests[0] == 90
        assert granted > 0
        assert max(seen) <= 5
        assert (free.concurrency[0], free.tokens[0]) == (5, 10**6 - 60 * granted)

    def test_a_copy_through_pickle_has_the_same_limits(self, make_world):
        ledger = make_world.open(POOL, [TEAM])
        copy = pickle.loads(pickle.dumps(ledger))
        assert copy.limits == ledger.limits
        assert isinstance(copy.try_reserve("all", 1, 0), Lease)

    def test_time_that_stands_still_or_jumps_back_lets_nothing_through(self, world):
        ledger = world.open(ModelPool([Model(name="m", requests_per_minute=3)]))
        granted = []
        for step in (0, -3600, 0, -1, 30, 0):
            world.jump(step)
            granted += [isinstance(ledger.try_reserve("m", 1, 0), Lease) for _ in range(2)]
        assert granted == [True, True, True] + [False] * 9
        assert all(a >= b for a, b in pairwise(granted))
