"""Every caller gets one answer: limits hold, failures go elsewhere, whoever fits nowhere waits, nothing is kept."""

import asyncio
import gc
import logging
import math
import multiprocessing
import pickle
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eccos_integrations import ConfigError, Forecast, Model, ModelPool, NoCapacityError, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher, Usage
from eccos_integrations.serving.feedback import FeedbackLog
from eccos_integrations.serving.limits import Budget, StoreError, open_ledger
from eccos_integrations.serving.memory import MemoryLedger
from eccos_integrations.serving.window import BackpressureError
from tests.conftest import PRICES, make_table

CHEAPEST = Policy()  # neither floor nor budget: tiny, small, medium, large in this order
LONG = 30.0  # a deadline that no test reaches
USAGE = Usage(20, 30)


class ApiError(Exception):
    def __init__(self, status, retry_after=None, code=None):
        super().__init__(f"status {status}")
        self.status_code, self.retry_after, self.code = status, retry_after, code


def router_of(policy=CHEAPEST, **limits):
    """A router of the four models; limits by name, for each model or as a mapping from names."""
    models = []
    for name, (input_usd, output_usd) in PRICES.items():
        own = {field: value.get(name) if isinstance(value, dict) else value for field, value in limits.items()}
        models.append(Model(name=name, input_usd_per_million_tokens=input_usd,
                            output_usd_per_million_tokens=output_usd, **own))  # fmt: skip
    return Router.fit(make_table(seed=0, per_task=20), pool=ModelPool(models), policy=policy, predictor="prior")


@pytest.fixture(scope="module")
def router():
    return router_of()


@pytest.fixture
def dispatcher(router):
    with Dispatcher(router, window_s=0.0, deadline_s=LONG) as dispatcher:
        yield dispatcher


def answer(ticket):
    return ticket.model, USAGE


def failing(*errors):
    """A function that fails with these first, and what it was asked of whom."""
    left, asked = list(errors), []

    def function(ticket):
        asked.append(ticket.model)
        if left:
            raise left.pop(0)
        return ticket.model, USAGE

    return function, asked


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def settled(dispatcher, ledger=None):
    """Wait until nothing is reserved; a ledger that is limited says so."""
    until(lambda: not dispatcher._rounds.books._leases and not dispatcher._rounds.books._ended)
    if ledger is not None:
        until(lambda: not ledger._leases)


# -- one caller


def test_a_caller_gets_the_decision_and_its_answer(dispatcher, router):
    served = dispatcher.call("hello", answer)
    assert served.answer == served.decision.model == "tiny"
    assert served.attempts == 1
    assert served.usage == USAGE
    router.feedback(served.decision.id, quality=1.0)


async def test_so_does_one_from_an_event_loop(dispatcher):
    async def function(ticket):
        return ticket.model, USAGE

    assert (await dispatcher.acall("hello", function)).answer == "tiny"


def test_a_block_with_a_ticket_is_one_attempt(dispatcher):
    with dispatcher.ticket("hello") as ticket:
        ticket.usage = USAGE
    assert ticket.model == "tiny"
    with pytest.raises(ApiError), dispatcher.ticket("hello"):
        raise ApiError(500)
    settled(dispatcher, dispatcher.ledger)


async def test_a_block_with_a_ticket_in_an_event_loop_is_one_attempt(dispatcher):
    async with dispatcher.aticket("hello") as ticket:
        ticket.usage = USAGE
    assert ticket.model == "tiny"


def test_the_decision_is_that_of_route_where_there_is_room_for_all(router, dispatcher):
    policy = Policy(min_quality=0.9, relative_to="best")
    for query in make_table(seed=1, per_task=5).queries:
        assert dispatcher.call(query, answer, policy=policy).answer == router.route(query, policy).model


def test_a_forecast_that_is_given_is_used(dispatcher, router):
    quality, cost = np.full((1, 4), 0.5), np.array([[4.0, 3.0, 2.0, 1.0]])
    assert dispatcher.call("hello", answer, forecast=Forecast(router.models, quality, cost)).answer == "large"


def test_the_cap_of_the_call_is_the_least_of_the_callers_and_the_models():
    caps = []
    with Dispatcher(router_of(max_output_tokens=100), window_s=0) as dispatcher:
        for most in (None, 50, 200):
            dispatcher.call("hello", lambda t: (caps.append(t.max_output_tokens), USAGE), max_output_tokens=most)
    assert caps == [100, 50, 100]


def test_a_certified_policy_is_decided_at_its_price():
    policy = Policy(min_quality=0.5, confidence=0.9, bound="crossfit")
    router = router_of(policy)
    with Dispatcher(router, window_s=0) as dispatcher:
        decision = dispatcher.call("hello", answer).decision
    assert (decision.model, decision.reason) == (router.route("hello").model, router.route("hello").reason)


# -- what a call reserves and uses


def test_strict_reserves_input_and_cap_and_books_what_was_used():
    router = router_of(tokens_per_minute={"tiny": 1000})
    with Dispatcher(router, window_s=0) as dispatcher:
        free = dispatcher.ledger.free
        with dispatcher.ticket("hello", input_tokens=100, max_output_tokens=300) as ticket:
            assert free().tokens[0] == 600
            ticket.usage = USAGE
        settled(dispatcher)
        assert free().tokens[0] == 950


def test_strict_without_a_cap_is_an_error_that_says_so():
    with (
        Dispatcher(router_of(tokens_per_minute={"tiny": 1000}), window_s=0) as dispatcher,
        pytest.raises(ConfigError, match="max_output_tokens: none is known for 'tiny'"),
    ):
        dispatcher.call("hello", answer)


def test_tokens_that_nobody_knows_are_not_taken_for_zero():
    router = router_of(tokens_per_minute={"tiny": 1000}, max_output_tokens=100)
    bare = Forecast(router.models, np.ones((1, 4)), np.ones((1, 4)))
    with Dispatcher(router, window_s=0) as dispatcher:
        with pytest.raises(ConfigError, match="input_tokens: the forecast does not say"):
            dispatcher.call("hello", answer, forecast=bare)
        assert dispatcher.call("hello", answer, forecast=bare, input_tokens=9).answer == "tiny"


def test_relaxed_reserves_what_nine_in_ten_answers_keep_to():
    router = router_of(tokens_per_minute={"tiny": 1000})
    p90 = router.forecast(["hello"]).output_tokens_p90[0, 0]
    with Dispatcher(router, window_s=0, reserve="relaxed") as dispatcher:
        with dispatcher.ticket("hello", input_tokens=100) as ticket:
            assert dispatcher.ledger.free().tokens[0] == 1000 - math.ceil(100 + p90)
            assert ticket.max_output_tokens is None
            ticket.usage = Usage(100, 800)
        settled(dispatcher)
        assert dispatcher.ledger.free().overrun_tokens[0] == 900 - math.ceil(100 + p90)


def test_a_budget_pays_the_real_cost(router):
    ledger = open_ledger("memory://", router.pool, [Budget(name="team", usd=1, window_s=60)])
    with Dispatcher(router, ledger, window_s=0) as dispatcher:
        dispatcher.call("hello", lambda t: ("", Usage(1, 1, cost_usd=0.25)), max_output_tokens=10, budgets=["team"])
        settled(dispatcher, ledger)
    assert ledger.free().budgets_usd == {"team": 0.75}


def test_what_a_provider_refused_used_nothing_and_what_was_cut_off_counts_whole():
    router = router_of(tokens_per_minute={"tiny": 1000}, max_output_tokens=100)
    with Dispatcher(router, window_s=0, max_attempts=1) as dispatcher:
        for error, free in ((ApiError(429, 0.0), 1000), (TimeoutError(), 700)):
            with pytest.raises(type(error)):
                dispatcher.call("hello", failing(error)[0], input_tokens=200)
            settled(dispatcher)
            assert dispatcher.ledger.free().tokens[0] == free


def test_cost_counts_cached_tokens_at_their_price():
    model = Model(name="a", input_usd_per_million_tokens=10, output_usd_per_million_tokens=20,
                  cached_input_usd_per_million_tokens=1)  # fmt: skip
    assert Usage(300, 50, cached_tokens=100).usd(model) == pytest.approx((200 * 10 + 100 * 1 + 50 * 20) / 1e6)
    assert Usage(300, 50).usd(Model(name="b")) is None


# -- fallback


@pytest.mark.parametrize("error", [ApiError(500), ApiError(429), ApiError(401), TimeoutError(), ConnectionError()])
def test_a_call_that_fails_goes_to_the_next_in_the_ranking(dispatcher, error):
    function, asked = failing(error, error)
    served = dispatcher.call("hello", function)
    assert asked == ["tiny", "small", "medium"]
    assert served.decision.model == served.answer == "medium"
    assert served.attempts == 3


@pytest.mark.parametrize("error", [ApiError(400), ApiError(500, code="content_filter"), ValueError("mine")])
def test_an_error_that_every_model_would_repeat_is_passed_on(dispatcher, error):
    function, asked = failing(error)
    with pytest.raises(type(error)) as raised:
        dispatcher.call("hello", function)
    assert raised.value is error
    assert asked == ["tiny"]
    assert dispatcher._rounds.health.room("tiny") == math.inf


def test_no_more_than_max_attempts_are_made_and_the_last_error_is_raised(router):
    errors = [ApiError(500), ApiError(502), ApiError(503)]
    function, asked = failing(*errors)
    with Dispatcher(router, window_s=0, max_attempts=2) as dispatcher, pytest.raises(ApiError) as raised:
        dispatcher.call("hello", function)
    assert raised.value is errors[1]
    assert len(asked) == 2


def test_a_context_that_is_too_long_goes_to_a_model_with_a_longer_window():
    router = router_of(context_window={"tiny": 1000, "small": 1000, "medium": 900, "large": 9000})
    function, asked = failing(ApiError(400, code="context_length_exceeded"))
    with Dispatcher(router, window_s=0) as dispatcher:
        assert dispatcher.call("hello", function).answer == "large"
        assert asked == ["tiny", "large"]
        function, asked = failing(*[ApiError(400, code="context_length_exceeded")] * 3)
        with pytest.raises(ApiError):
            dispatcher.call("hello", function)
        assert asked == ["tiny", "large"]  # there is no longer window


def test_a_model_whose_retry_after_has_not_passed_is_not_asked(dispatcher):
    dispatcher.call("hello", failing(ApiError(429, retry_after=600.0))[0])
    for _ in range(3):
        assert dispatcher.call("hello", answer).answer == "small"


def test_after_its_retry_after_it_is_asked_again(router):
    now = [0.0]
    with Dispatcher(router, window_s=0, clock=lambda: now[0]) as dispatcher:
        dispatcher.call("hello", failing(ApiError(429, retry_after=600.0))[0])
        now[0] = 599.0
        assert dispatcher.call("hello", answer).answer == "small"
        now[0] = 600.0
        assert dispatcher.call("hello", answer).answer == "tiny"


def test_a_model_that_keeps_failing_is_left_alone_and_probed_once(router):
    now = [0.0]
    with Dispatcher(router, window_s=0, clock=lambda: now[0]) as dispatcher:
        for _ in range(3):
            dispatcher.call("hello", failing(ApiError(503))[0])
        assert dispatcher.call("hello", answer).answer == "small"
        now[0] = 60.0
        with dispatcher.ticket("hello") as probe:
            assert probe.model == "tiny"
            assert dispatcher.call("hello", answer).answer == "small"
        assert dispatcher.call("hello", answer).answer == "tiny"


# -- waiting


def test_a_query_that_fits_nowhere_now_waits_for_a_place():
    router = router_of(max_concurrency=1)
    with Dispatcher(router, window_s=0, deadline_s=LONG) as dispatcher, ThreadPoolExecutor(9) as threads:
        go = threading.Event()
        held = [threads.submit(dispatcher.call, "hello", lambda t: (go.wait(10) and t.model, USAGE)) for _ in range(4)]
        until(lambda: len(dispatcher._rounds.books._leases) == 4)
        late = threads.submit(dispatcher.call, "hello", answer)
        until(lambda: dispatcher._rounds._waiting)
        assert not late.done()
        go.set()
        assert sorted(future.result(10).answer for future in held) == sorted(PRICES)
        assert late.result(10).answer in PRICES


def test_who_waits_too_long_is_told_when_to_try_again():
    with Dispatcher(router_of(max_concurrency=1), window_s=0) as dispatcher:
        tickets = [dispatcher.ticket("hello") for _ in range(4)]
        for ticket in tickets:
            ticket.__enter__()
        with pytest.raises(BackpressureError, match="deadline_s: no model had room in time") as raised:
            dispatcher.call("hello", answer, deadline_s=0.01)
        assert 0 < raised.value.retry_s < 60
        for ticket in tickets:
            ticket.__exit__(None, None, None)
        assert dispatcher.call("hello", answer, deadline_s=LONG).answer == "tiny"


def test_a_fallback_that_finds_no_place_says_what_failed_first():
    router = router_of()
    with Dispatcher(router, window_s=0, max_attempts=9) as dispatcher:
        function, asked = failing(*(ApiError(429, retry_after=600.0) for _ in range(4)))
        with pytest.raises(BackpressureError) as raised:
            dispatcher.call("hello", function, deadline_s=0.2)
    assert len(asked) == 4
    assert isinstance(raised.value.__cause__, ApiError)
    assert raised.value.retry_s > 500


def test_more_than_may_wait_are_turned_away():
    with (
        Dispatcher(router_of(max_concurrency=1), window_s=0, max_waiting=2) as dispatcher,
        ThreadPoolExecutor(9) as pool,
    ):
        go = threading.Event()
        futures = []
        for k in range(1, 5):
            futures.append(pool.submit(dispatcher.call, "hello", lambda t: (go.wait(10), USAGE)))
            until(lambda k=k: len(dispatcher._rounds.books._leases) == k and dispatcher.waiting == 0)
        futures += [pool.submit(dispatcher.call, "hello", answer) for _ in range(2)]
        until(lambda: dispatcher.waiting == 2)
        with pytest.raises(BackpressureError, match="max_waiting: 2 queries wait already"):
            dispatcher.call("hello", answer)
        go.set()
        for future in futures:
            future.result(10)


@pytest.mark.parametrize("limit", ["context_window", "tokens_per_minute"])
def test_a_query_that_no_model_can_ever_take_is_told_so_at_once(limit):
    with (
        Dispatcher(router_of(**{limit: 1000}), window_s=0) as dispatcher,
        pytest.raises(
            NoCapacityError,
            match=r"no model can ever take this query of 5000 input tokens: tiny \(its .* (too short|fewer)\)",
        ),
    ):
        dispatcher.call("hello", answer, input_tokens=5000, max_output_tokens=1)


def test_one_spoilt_query_does_not_spoil_its_window(router):
    wrong = Forecast(["tiny"], np.ones((1, 1)), np.ones((1, 1)))
    with Dispatcher(router, window_s=0.2, deadline_s=LONG) as dispatcher, ThreadPoolExecutor(9) as threads:
        good = [threads.submit(dispatcher.call, "hello", answer) for _ in range(4)]
        bad = threads.submit(dispatcher.call, "hello", answer, forecast=wrong)
        assert [future.result(10).answer for future in good] == ["tiny"] * 4
        with pytest.raises(ConfigError, match="no column for"):
            bad.result(10)


def test_a_window_is_one_forecast_not_one_for_each_query(router):
    sizes = []

    class Counting:
        def __getattr__(self, name):
            return getattr(router, name)

        def forecast(self, queries, policy):
            sizes.append(len(queries))
            return router.forecast(queries, policy)

    async def function(ticket):
        return ticket.model, USAGE

    async def main():
        async with Dispatcher(Counting(), window_s=0.5) as dispatcher:
            await asyncio.gather(*(dispatcher.acall(f"hello {k}", function) for k in range(50)))

    asyncio.run(main())
    assert sum(sizes) == 50
    assert len(sizes) <= 10  # one, or a few where a busy machine is slow to bring the callers in


class BrokenLedger(MemoryLedger):
    broken = True

    def free(self):
        if self.broken:
            raise StoreError("redis: it is away")
        return super().free()


def test_a_store_that_is_away_is_said_to_everybody_and_it_recovers_by_itself(router):
    ledger = BrokenLedger(open_ledger("memory://", router.pool).limits, 60.0)
    with Dispatcher(router, ledger, window_s=0) as dispatcher:
        for _ in range(2):
            with pytest.raises(StoreError, match="away"):
                dispatcher.call("hello", answer)
        ledger.broken = False
        assert dispatcher.call("hello", answer).answer == "tiny"


def test_a_model_that_joins_or_leaves_the_router_does_so_for_those_who_wait_too():
    router = router_of(max_concurrency=1)
    with Dispatcher(router, window_s=0, deadline_s=LONG) as dispatcher, ThreadPoolExecutor(9) as threads:
        go = threading.Event()
        held = [threads.submit(dispatcher.call, "hello", lambda t: (go.wait(10), USAGE)) for _ in range(4)]
        until(lambda: len(dispatcher._rounds.books._leases) == 4)
        late = threads.submit(dispatcher.call, "hello", answer)
        until(lambda: dispatcher._rounds._waiting)
        router.remove_model("tiny")
        router.add_model(Model(name="new", input_usd_per_million_tokens=0, output_usd_per_million_tokens=0))
        go.set()
        assert late.result(10).answer in {"small", "medium", "large"}  # the ledger knows no limits of the new one
        assert {future.result(10).decision.model for future in held} == set(PRICES)
        settled(dispatcher, dispatcher.ledger)


def test_a_budget_that_is_spent_is_named_with_the_time_until_it_is_free(router):
    ledger = open_ledger("memory://", router.pool, [Budget(name="team", usd=0.01, window_s=3600)])
    with Dispatcher(router, ledger, window_s=0) as dispatcher:
        dispatcher.call("hello", lambda ticket: (None, Usage(10, 10, cost_usd=0.01)), max_output_tokens=100)
        with pytest.raises(BackpressureError, match=r"no model had room in time \(budget team is full\)") as refused:
            dispatcher.call("hello", answer, max_output_tokens=100, deadline_s=0.05)
        assert refused.value.retry_s > 3000


# -- conversations


def test_a_conversation_keeps_its_model_through_a_tool_loop(dispatcher):
    first = dispatcher.call("hello", failing(ApiError(500))[0], conversation="c", pinned=True)
    assert first.answer == "small"
    for _ in range(3):
        assert dispatcher.call("hello", answer, conversation="c", pinned=True).answer == "small"
    assert dispatcher.call("hello", answer, conversation="c").answer == "tiny"
    assert dispatcher.call("hello", answer, conversation="d", pinned=True).answer == "tiny"


def test_a_pinned_conversation_waits_for_its_model_and_leaves_it_only_when_it_fails():
    with Dispatcher(router_of(max_concurrency=1), window_s=0) as dispatcher:
        dispatcher.call("hello", answer, conversation="c")
        with dispatcher.ticket("hello") as other:
            assert other.model == "tiny"
            with pytest.raises(BackpressureError):
                dispatcher.call("hello", answer, conversation="c", pinned=True, deadline_s=0.01)
        function, asked = failing(ApiError(500))
        assert dispatcher.call("hello", function, conversation="c", pinned=True, deadline_s=LONG).answer == "small"
        assert asked == ["tiny", "small"]


@pytest.mark.parametrize(("tokens", "model"), [(10, "tiny"), (100_000, "small")])
def test_across_turns_a_switch_pays_the_cached_tokens_it_loses(tokens, model):
    router = router_of(cached_input_usd_per_million_tokens=0.1)
    with Dispatcher(router, window_s=0) as dispatcher:
        fails_once = iter([ApiError(500)])

        def function(ticket):
            for error in fails_once:
                raise error
            return ticket.model, Usage(tokens, 10)

        assert dispatcher.call("hello", function, conversation="c").answer == "small"
        assert dispatcher.call("hello", answer, conversation="c").answer == model


# -- giving back


async def test_who_is_cancelled_while_waiting_or_calling_keeps_nothing():
    router = router_of(max_concurrency=1)
    ledger = open_ledger("memory://", router.pool)
    async with Dispatcher(router, ledger, window_s=0.001) as dispatcher:

        async def hang(ticket):
            await asyncio.sleep(60)

        tasks = [asyncio.create_task(dispatcher.acall("hello", hang)) for _ in range(40)]
        await asyncio.to_thread(until, lambda: len(ledger._leases) == 4)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await asyncio.to_thread(settled, dispatcher, ledger)
        assert (ledger.free().concurrency == 1).all()
        assert dispatcher._rounds.health.room("tiny") == math.inf
        await asyncio.to_thread(until, lambda: dispatcher.waiting == 0)


async def test_a_ticket_that_comes_after_its_caller_has_gone_is_given_back():
    router = router_of(max_concurrency=1)
    ledger = open_ledger("memory://", router.pool)
    async with Dispatcher(router, ledger, window_s=0.0) as dispatcher:

        async def hang(ticket):
            await asyncio.sleep(60)

        for turns in range(30):
            tasks = [asyncio.create_task(dispatcher.acall("hello", hang)) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(settled, dispatcher, ledger)
        assert (ledger.free().concurrency == 1).all()


def test_a_probe_that_nobody_makes_makes_room_for_another(router):
    now = [0.0]
    with Dispatcher(router, window_s=0, clock=lambda: now[0]) as dispatcher:
        for _ in range(3):
            dispatcher.call("hello", failing(ApiError(503))[0])
        now[0] = 60.0
        gone = dispatcher._attempts.first("hello", {})
        dispatcher._rounds.join(gone)
        until(gone.future.done)
        assert dispatcher._rounds.health.room("tiny") == 0
        dispatcher._attempts._leave(gone)
        assert dispatcher._rounds.health.room("tiny") == 1
        settled(dispatcher, dispatcher.ledger)


def test_calls_longer_than_a_lease_keep_it(router):
    ledger = open_ledger("memory://", router.pool, lease_s=0.5)
    with Dispatcher(router, ledger, window_s=0) as dispatcher, dispatcher.ticket("hello"):
        time.sleep(1.2)
        ledger.free()
        assert len(ledger._leases) == 1


def test_nobody_is_given_two_tickets_though_callers_come_back_at_once(router):
    for _ in range(200):
        with Dispatcher(router, window_s=0, max_attempts=4) as dispatcher:
            function, asked = failing(ApiError(500), ApiError(500), ApiError(500))
            assert dispatcher.call("hello", function).attempts == len(set(asked)) == 4
            settled(dispatcher, dispatcher.ledger)


def test_closed_twice_it_turns_away_who_waits_and_lets_calls_end():
    router = router_of(max_concurrency=1)
    ledger = open_ledger("memory://", router.pool)
    dispatcher = Dispatcher(router, ledger, window_s=0)
    with ThreadPoolExecutor(9) as threads:
        go = threading.Event()
        held = [threads.submit(dispatcher.call, "hello", lambda t: (go.wait(10), USAGE)) for _ in range(4)]
        until(lambda: len(ledger._leases) == 4)
        late = threads.submit(dispatcher.call, "hello", answer)
        until(lambda: dispatcher._rounds._waiting)
        dispatcher.close()
        dispatcher.close()
        with pytest.raises(ConfigError, match="closed"):
            late.result(10)
        go.set()
        assert all(future.result(10).answer for future in held)
    until(lambda: not ledger._leases)
    with pytest.raises(ConfigError, match="closed"):
        dispatcher.call("hello", answer)


# -- where it lives


def test_no_thread_starts_before_the_first_caller_or_outlives_the_last(router, monkeypatch):
    monkeypatch.setattr("eccos_integrations.serving.rounds.IDLE_S", 0.01)
    before = set(threading.enumerate())
    dispatcher = Dispatcher(router, window_s=0)
    assert set(threading.enumerate()) == before
    for _ in range(2):
        dispatcher.call("hello", answer)
        until(lambda: dispatcher._rounds._thread is None and set(threading.enumerate()) <= before)


def test_one_that_is_forgotten_goes_away(router, monkeypatch):
    monkeypatch.setattr("eccos_integrations.serving.rounds.IDLE_S", 0.01)
    dispatcher = Dispatcher(router, window_s=0)
    dispatcher.call("hello", answer)
    rounds = dispatcher._rounds
    del dispatcher
    until(lambda: rounds._thread is None)
    gc.collect()
    assert not any(isinstance(thing, Dispatcher) and thing._rounds is rounds for thing in gc.get_objects())


def test_a_pickled_copy_starts_empty():
    dispatcher = Dispatcher(router_of(max_concurrency=1), window_s=0, deadline_s=LONG)
    with dispatcher, dispatcher.ticket("hello") as ticket, pickle.loads(pickle.dumps(dispatcher)) as copy:
        assert ticket.model == copy.call("hello", answer).answer == "tiny"
        assert copy._settings["deadline_s"] == LONG


def _call_in_child(dispatcher, results):
    results.put(dispatcher.call("hello", answer).answer)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_one_in_a_forked_child_starts_empty():
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    dispatcher = Dispatcher(router_of(max_concurrency=1), window_s=0, deadline_s=LONG)
    with dispatcher, dispatcher.ticket("hello"):
        child = context.Process(target=_call_in_child, args=(dispatcher, results))
        child.start()
        assert results.get(timeout=20) == "tiny"
        child.join(20)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("window_s", -1),
        ("window_s", math.nan),
        ("max_waiting", 0),
        ("max_attempts", 0),
        ("deadline_s", -1),
        ("reserve", "x"),
    ],
)
def test_an_argument_out_of_range_is_refused(router, name, wrong):
    with pytest.raises(ConfigError, match=name):
        Dispatcher(router, **{name: wrong})


def test_arguments_of_a_call_out_of_range_are_refused(dispatcher):
    for wrong in ({"input_tokens": 0}, {"max_output_tokens": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            dispatcher.call("hello", answer, **wrong)
    with pytest.raises(ConfigError, match="query"):
        dispatcher.call(7, answer)
    with pytest.raises(ConfigError, match="per group"):
        dispatcher.call("hello", answer, policy=Policy(min_quality={"a": 0.5}))


# -- the log


def test_every_attempt_is_logged_with_its_decision_and_no_text(router, tmp_path):
    with FeedbackLog(tmp_path / "log.db") as log, Dispatcher(router, log=log, window_s=0) as dispatcher:
        served = dispatcher.call("xylophone", failing(ApiError(500))[0], conversation="c")
        until(lambda: len(rows(log, "usage", "model, outcome, output_tokens")) == 2)
        assert rows(log, "usage", "model, outcome, output_tokens") == [
            ("tiny", "ApiError", None),
            ("small", "ok", 30),
        ]
        assert [model for (model,) in rows(log, "decision", "model")] == ["tiny", "small"]
        log.graded(served.decision.id, quality=1.0)
        assert log.to_table(["xylophone"]).models == ["small"]


def test_a_log_that_is_closed_costs_no_answer(router, caplog):
    log = FeedbackLog(None)
    log.close()
    with caplog.at_level(logging.WARNING, "eccos"), Dispatcher(router, log=log, window_s=0) as dispatcher:
        assert dispatcher.call("xylophone", answer).answer == "tiny"
    assert "not logged" in caplog.text
    assert "xylophone" not in caplog.text


def rows(log, table, columns):
    with log._file.reading() as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY number").fetchall()


# -- many


class Provider:
    """Four models that count what they see, fail from a seed, and hang now and then."""

    def __init__(self, pool, seed=0):
        self.pool, self.rng, self.lock = pool, random.Random(seed), threading.Lock()
        self.running, self.most, self.asked, self.answered = Counter(), Counter(), [], Counter()

    def begin(self, model):
        with self.lock:
            self.running[model] += 1
            self.most[model] = max(self.most[model], self.running[model])
            self.asked.append((time.monotonic(), model))
            return self.rng.random()

    def end(self, model, key, dice):
        with self.lock:
            self.running[model] -= 1
            if dice < 0.03:
                raise ApiError(429, retry_after=0.01)
            if dice < 0.08:
                raise ApiError(503)
            if dice < 0.10:
                raise TimeoutError
            self.answered[key] += 1

    def call(self, ticket, key):
        dice = self.begin(ticket.model)
        time.sleep(0.002)
        self.end(ticket.model, key, dice)
        return key, Usage(5, 5)

    async def acall(self, ticket, key):
        dice = self.begin(ticket.model)
        try:
            await asyncio.sleep(5 if dice > 0.98 else 0.002)
        except asyncio.CancelledError:
            with self.lock:
                self.running[ticket.model] -= 1
            raise
        self.end(ticket.model, key, dice)
        return key, Usage(5, 5)

    def violations(self):
        found = [model.name for model in self.pool if self.most[model.name] > model.max_concurrency]
        for model in self.pool:
            times = sorted(at for at, name in self.asked if name == model.name)
            most = model.requests_per_minute or math.inf
            found += [model.name for k, at in enumerate(times) if sum(t < at + 60 for t in times[k:]) > most]
        return found


def test_threads_and_loops_together_break_no_limit_and_lose_nothing():
    pool_limits = {"tiny": 6, "small": 5, "medium": 7, "large": 4}
    router = router_of(max_concurrency=pool_limits, requests_per_minute={"tiny": 60, "small": 100})
    ledger = open_ledger("memory://", router.pool)
    provider = Provider(router.pool)
    outcomes, lock = Counter(), threading.Lock()

    def note(key, error=None):
        with lock:
            outcomes[key] += 1
        if error is not None and not isinstance(error, (ApiError, TimeoutError)):
            raise error

    with Dispatcher(router, ledger, window_s=0.002, max_attempts=5, deadline_s=LONG) as dispatcher:

        def from_thread(worker):
            for k in range(20):
                key = ("thread", worker, k)
                try:
                    assert dispatcher.call("hello", lambda t, key=key: provider.call(t, key)).answer == key
                    note(key)
                except (ApiError, TimeoutError) as error:
                    note(key, error)

        async def one(key):
            try:
                async with asyncio.timeout(1.0):  # what hangs is cut off
                    served = await dispatcher.acall("hello", lambda t: provider.acall(t, key))
                assert served.answer == key
                note(key)
            except (ApiError, TimeoutError) as error:
                note(key, error)
            except asyncio.CancelledError:
                note(key)
                raise

        async def loop(worker):
            tasks = [asyncio.create_task(one(("loop", worker, k))) for k in range(100)]
            await asyncio.sleep(0.02)
            for task in tasks[::10]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for k, task in enumerate(tasks):
                if task.cancelled() and ("loop", worker, k) not in outcomes:
                    note(("loop", worker, k))  # before it began
                assert task.cancelled() or task.exception() is None

        with ThreadPoolExecutor(12) as threads:
            jobs = [threads.submit(from_thread, k) for k in range(10)]
            jobs += [threads.submit(lambda k=k: asyncio.run(loop(k))) for k in range(2)]
            for job in jobs:
                job.result(60)
        settled(dispatcher, ledger)
    assert provider.violations() == []
    assert len(outcomes) == 400
    assert set(outcomes.values()) == {1}
    assert set(provider.answered.values()) == {1}
    assert len(provider.answered) > 300
    assert ledger.free().concurrency.tolist() == list(pool_limits.values())


def test_callers_hold_an_event_loop_for_no_more_than_ten_milliseconds(router):
    async def function(ticket):
        await asyncio.sleep(0.001)
        return ticket.model, USAGE

    async def main():
        held, done = [], False

        async def watch():
            while not done:
                start = time.thread_time()  # the loop's own work: what other programs take from it is not ours
                await asyncio.sleep(0)
                held.append(time.thread_time() - start)
                await asyncio.sleep(0.0005)

        async with Dispatcher(router) as dispatcher:
            dispatcher.call("warm", answer)
            watching = asyncio.create_task(watch())
            gate = asyncio.Semaphore(50)

            async def one(k):
                async with gate:
                    return await dispatcher.acall(f"hello {k}", function)

            served = await asyncio.gather(*(one(k) for k in range(1000)))
            done = True
            await watching
        return served, max(held)

    served, longest = asyncio.run(main())
    assert len({one.decision.id for one in served}) == 1000
    assert longest < 0.010
