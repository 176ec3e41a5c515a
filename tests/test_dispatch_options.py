"""What a call may bring: candidates, a decision made already, settings of its own; and who shares a dispatcher."""

import asyncio
import copy
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eccos_integrations import ConfigError, Forecast, NoCapacityError, Policy, Router, load_sample
from eccos_integrations.serving.dispatch import BackpressureError, Dispatcher
from eccos_integrations.serving.metrics import PrometheusMetrics
from eccos_integrations.serving.per_call import per_call
from tests.conftest import make_table
from tests.test_dispatch import LONG, USAGE, ApiError, answer, failing, router_of, until


@pytest.fixture(scope="module")
def router():
    return router_of()


@pytest.fixture
def dispatcher(router):
    with Dispatcher(router, window_s=0.0, deadline_s=LONG) as dispatcher:
        yield dispatcher


# -- candidates


def test_a_query_goes_to_none_but_its_candidates(dispatcher):
    function, asked = failing(ApiError(500), ApiError(500))
    with pytest.raises(BackpressureError) as late:
        dispatcher.call("hello", function, candidates=["large", "medium"], deadline_s=0.2)
    assert isinstance(late.value.__cause__, ApiError)
    served = dispatcher.call("hello", answer, candidates={"medium", "small"})
    assert asked == ["medium", "large"]
    assert served.answer == "small"
    assert served.decision.ranking == ("small", "medium")


def test_the_only_candidate_is_pinned_and_no_floor_is_claimed_for_it(dispatcher, router):
    decision = dispatcher.call("hello", answer, candidates=["large"]).decision
    assert (decision.model, decision.reason, decision.floor_met) == ("large", "the only candidate", False)
    router.feedback(decision.id, quality=1.0)


def test_candidates_that_are_none_are_named(dispatcher):
    with pytest.raises(ConfigError, match=r"candidates: \['nano'\] not among the router's models"):
        dispatcher.call("hello", answer, candidates=["nano", "tiny"])


def test_where_no_candidate_is_left_each_model_has_its_reason():
    windows = {"tiny": 100, "small": 100_000}
    with (
        Dispatcher(router_of(context_window=windows), window_s=0) as dispatcher,
        pytest.raises(NoCapacityError, match=r"tiny \(its context window is too short\), small \(it is not among"),
    ):
        dispatcher.call("hello", answer, candidates=["tiny"], input_tokens=5000)


# -- plans


def test_a_plan_is_carried_out_as_it_was_made():
    router = router_of(Policy(min_quality=0.9, relative_to="best"), max_concurrency=3)
    queries = make_table(seed=1, per_task=10).queries
    plan = router.plan(queries)
    with Dispatcher(router, window_s=0.002) as dispatcher, ThreadPoolExecutor(20) as threads:

        def ask(k):
            own = plan.forecast.take(np.array([k]))
            return dispatcher.call(queries[k], answer, decision=plan.decisions[k], forecast=own)

        served = list(threads.map(ask, range(len(queries))))
    assert [one.answer for one in served] == plan.models
    assert [one.decision for one in served] == list(plan.decisions)


def test_a_planned_query_waits_for_its_model_and_leaves_it_where_it_fails():
    router = router_of(max_concurrency=1)
    decision = router.plan(["hello"]).decisions[0]
    with Dispatcher(router, window_s=0) as dispatcher:
        with dispatcher.ticket("hello") as other:
            assert other.model == decision.model == "tiny"
            with pytest.raises(BackpressureError):
                dispatcher.call("hello", answer, decision=decision, deadline_s=0.01)
        served = dispatcher.call("hello", failing(ApiError(500))[0], decision=decision, deadline_s=LONG)
    assert served.answer == "small"
    assert served.decision.id != decision.id


def test_a_planned_query_does_not_wait_for_a_model_that_rests(dispatcher, router):
    decision = router.plan(["hello"]).decisions[0]
    dispatcher.call("hello", failing(ApiError(429, retry_after=60))[0])
    assert dispatcher.call("hello", answer, decision=decision).answer == "small"


# -- settings of a call


def test_settings_of_a_call_are_those_of_the_policy_with_a_change(router):
    policy = Policy(min_quality=0.8, relative_to="best")
    assert per_call(router, policy, {}) == {"policy": policy}
    assert per_call(router, policy, {"eccos_min_quality": 0.5, "thread_id": "7"})["policy"].relative_to == "best"
    assert per_call(router, None, {"eccos_max_cost_usd": 1e-4})["policy"] == Policy(max_mean_cost_usd=1e-4)
    assert per_call(router, policy, {"eccos_model": None}) == {"policy": policy}
    with pytest.raises(ConfigError, match="eccos_model: 'nano' is not a model of the router"):
        per_call(router, policy, {"eccos_model": "nano"})
    with pytest.raises(ConfigError, match="min_quality"):
        per_call(router, policy, {"eccos_min_quality": 2})


def test_calls_of_equal_policies_are_ranked_together(router):
    sizes = []

    class Counting:
        def __getattr__(self, name):
            return getattr(router, name)

        def rank(self, forecast, *more):
            sizes.append(len(forecast))
            return router.rank(forecast, *more)

    async def function(ticket):
        return ticket.model, USAGE

    async def main():
        async with Dispatcher(Counting(), window_s=0.5) as dispatcher:
            settings = ({"eccos_min_quality": 0.5}, {"eccos_min_quality": 0.9})
            await asyncio.gather(*(
                dispatcher.acall("hello", function, **per_call(router, None, settings[k % 2])) for k in range(20)
            ))  # fmt: skip

    asyncio.run(main())
    assert sum(sizes) == 20
    assert len(sizes) <= 8  # two, or a few more where a busy machine is slow to bring the callers in


# -- in an event loop, without await


async def test_a_sync_call_in_an_event_loop_is_decided_at_once(router):
    with Dispatcher(router, window_s=30.0) as dispatcher:
        assert dispatcher.call("hello", answer).answer == "tiny"


async def test_where_it_would_wait_for_calls_of_its_own_loop_it_is_refused_not_stuck():
    dispatcher = Dispatcher(router_of(max_concurrency=1), window_s=0)
    async with dispatcher, dispatcher.aticket("hello"):
        for name in ("small", "medium", "large"):
            with dispatcher.ticket("hello", candidates=[name]):
                pass
        with pytest.raises(BackpressureError, match="await the async method"):
            dispatcher.call("hello", answer, candidates=["tiny"])


async def test_where_threads_hold_what_it_waits_for_it_waits():
    dispatcher = Dispatcher(router_of(max_concurrency=1), window_s=0)
    held, go = threading.Event(), threading.Event()
    with dispatcher, ThreadPoolExecutor(1) as threads:
        other = threads.submit(
            dispatcher.call, "hello", lambda t: (held.set(), go.wait(10), USAGE)[1:], candidates=["tiny"]
        )
        held.wait(10)
        threading.Timer(0.05, go.set).start()
        assert dispatcher.call("hello", answer, candidates=["tiny"]).answer == "tiny"
        assert other.result(10).answer


# -- one for all


def test_all_who_bring_none_share_one_with_the_router(router):
    assert Dispatcher.shared(router) is Dispatcher.shared(router)
    assert Dispatcher.shared(router).router is router
    other = pickle.loads(pickle.dumps(router))
    assert Dispatcher.shared(other) is not Dispatcher.shared(router)
    assert Dispatcher.shared(copy.deepcopy(router)).router is not router


def test_eight_threads_that_are_first_at_once_share_one_too():
    router, barrier = router_of(), threading.Barrier(8)

    def share(_):
        barrier.wait()
        return Dispatcher.shared(router)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(map(id, threads.map(share, range(8))))) == 1


# -- metrics


def test_what_it_does_is_counted():
    metrics = PrometheusMetrics()
    with Dispatcher(router_of(max_concurrency=1), window_s=0, metrics=metrics) as dispatcher:
        dispatcher.call("hello", failing(ApiError(429, retry_after=60))[0])
        with dispatcher.ticket("hello", candidates=["large"]), pytest.raises(BackpressureError):
            dispatcher.call("hello", answer, candidates=["large"], deadline_s=0.01)
        until(lambda: not dispatcher._rounds.books._ended)
    text = metrics.text()
    for line in (
        'eccos_decisions_total{model="tiny"} 1.0',
        'eccos_decisions_total{model="small"} 1.0',
        'eccos_attempts_total{model="tiny",outcome="throttled"} 1.0',
        'eccos_attempts_total{model="small",outcome="ok"} 1.0',
        'eccos_cooldowns_total{model="tiny"} 1.0',
        'eccos_cooldown_time_seconds_total{model="tiny"} 60.0',
        'eccos_refusals_total{reason="deadline"} 1.0',
        'eccos_tokens_real_total{model="small"} 30.0',
        "eccos_queue_depth 0.0",
    ):
        assert line in text, line


# -- forks


class Slow:
    """Forecasts under a lock, as some do; slowly, when told to."""

    def __init__(self):
        self.lock, self.begun, self.pause_s = threading.Lock(), threading.Event(), 0.0

    def __deepcopy__(self, memo):
        return Slow()

    def fit(self, table, pool, *, seed=0):
        self.names = pool.names

    def forecast(self, queries):
        with self.lock:
            self.begun.set()
            time.sleep(self.pause_s)
            shape = len(queries), len(self.names)
            return Forecast(self.names, np.full(shape, 0.5), np.tile([1.0, 2.0, 3.0, 4.0], (shape[0], 1)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_decision_leaves_the_child_no_lock_that_is_held_for_ever():
    predictor = Slow()
    dispatcher = Dispatcher(
        Router.fit(make_table(seed=0, per_task=20), policy=Policy(), predictor=predictor), window_s=0
    )
    dispatcher.call("hello", answer)
    predictor.begun.clear()
    predictor.pause_s = 0.3
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(dispatcher.call, "hello", answer)
        assert predictor.begun.wait(10)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if dispatcher.call("hello", answer).answer == "tiny" else 1)
        assert busy.result(10).answer == "tiny"
    try:
        until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    finally:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert status == 0


def test_context_makes_all_models_dearer_and_the_floor_is_kept_all_the_same():
    past, unseen = load_sample().split(0.7, seed=0)
    router = Router.fit(past, policy=Policy(min_quality=0.97, relative_to="best"), predictor="clusters")
    queries, quality = unseen.queries[::2], []
    with Dispatcher(router) as dispatcher:
        for query in queries:
            with dispatcher.ticket(query, input_tokens=len(query) // 4 + 1000) as ticket:
                quality.append(ticket.decision.quality)
    assert np.mean(quality) >= router.plan(queries).floor - 0.005
