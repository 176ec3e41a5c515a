"""Batches of `RunnableRouter`: the caller's cap is kept and used, nobody starves, no loop is blocked."""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig, RunnableLambda

from eccos_integrations import ConfigError
from langchain_eccos import RunnableRouter
from langchain_eccos.batching import Lines
from tests.langchain_router import MODELS, QUERIES, InFlight, at_once, free, holding, members, router_of, until


@pytest.fixture
def router():
    return router_of()


def routed(flight, router):
    return RunnableRouter(flight.members(), router, dispatcher=at_once(router))


# -- the cap


@pytest.mark.parametrize("cap", [1, 2, 5])
async def test_max_concurrency_is_the_cap_on_all_members_together(router, cap):
    flight = InFlight()
    runnable = routed(flight, router)
    assert runnable.batch(QUERIES, {"max_concurrency": cap}) == QUERIES
    assert flight.most <= cap
    assert await runnable.abatch(QUERIES, {"max_concurrency": cap}) == QUERIES
    assert flight.most == cap


def test_the_cap_is_used(router):
    barrier = threading.Barrier(4)

    def member(value: str) -> str:
        barrier.wait(timeout=20)  # four are in flight together, or this breaks
        return value

    runnable = RunnableRouter(dict.fromkeys(MODELS, member), router, dispatcher=at_once(router))
    assert len(runnable.batch(QUERIES[:28], {"max_concurrency": 4})) == 28


async def test_without_a_cap_an_async_batch_is_in_flight_at_once(router):
    flight = InFlight(seconds=0.2)
    await routed(flight, router).abatch(QUERIES)
    assert flight.most == len(QUERIES)


async def test_nested_batches_share_the_cap(router):
    flight = InFlight()
    inner = RunnableLambda(flight.call, flight.acall)

    def batch(value: str) -> list[str]:
        return inner.batch([f"{value} {i}" for i in range(6)])

    async def abatch(value: str) -> list[str]:
        return await inner.abatch([f"{value} {i}" for i in range(6)])

    runnable = RunnableRouter(
        {name: RunnableLambda(batch, abatch) for name in MODELS}, router, dispatcher=at_once(router)
    )
    runnable.batch(QUERIES[:9], {"max_concurrency": 3})
    runnable.batch(QUERIES[:2], {"max_concurrency": 4})
    await runnable.abatch(QUERIES[:9], {"max_concurrency": 4})
    assert flight.most <= 4


def test_a_cap_of_none_at_all_is_refused(router):
    with pytest.raises(ConfigError, match="max_concurrency=0: give at least 1"):
        RunnableRouter(members(), router).batch(QUERIES, {"max_concurrency": 0})


@pytest.mark.parametrize("cap", [1, 2, 5])
async def test_a_full_model_does_not_keep_the_others_from_the_cap(cap):
    router = router_of(max_concurrency={"large": 1})
    dispatcher = at_once(router)
    configs = [{"max_concurrency": cap, "configurable": {"eccos_model": "small" if i % 3 else "large"}}
               for i in range(30)]  # fmt: skip
    for call in (
        lambda runnable: runnable.batch(QUERIES, configs),
        lambda runnable: asyncio.run(runnable.abatch(QUERIES, configs)),
    ):
        answered, all_small = [], threading.Event()

        def member(value: str, config: RunnableConfig, answered=answered, all_small=all_small) -> str:
            answered.append(config["metadata"]["eccos_model"])
            if answered.count("small") == 20:
                all_small.set()
            return value

        runnable = RunnableRouter(dict.fromkeys(MODELS, member), router, dispatcher=dispatcher)
        with holding(dispatcher, "large", all_small) as held:
            assert await asyncio.to_thread(call, runnable) == QUERIES
        assert held == [True]  # every small one had its answer while the large model was full


@given(
    models=st.lists(st.sampled_from(MODELS), max_size=30),
    most=st.none() | st.integers(1, 5),
    seed=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=100)
def test_each_line_keeps_its_order_and_all_get_their_turn(models, most, seed):
    lines = Lines(models, most)
    asking, calling, order = lines.due(), [], []
    order += asking
    while asking or calling:
        if asking and (most is None or len(calling) < most) and seed.random() < 0.6:
            calling.append(asking.pop(seed.randrange(len(asking))))
            lines.calls(calling[-1])
        elif calling:
            i = calling.pop(seed.randrange(len(calling)))
            lines.asks(i)
            lines.leaves(i)
        came = lines.due()
        asking, order = asking + came, order + came
        waiting = set(range(len(models))) - set(order)
        for model in {models[i] for i in waiting}:
            assert any(models[i] == model for i in asking)  # whose line is not empty, asks
        assert most is None or len(asking) <= most + len(MODELS)
    assert sorted(order) == list(range(len(models)))
    for model in MODELS:
        line = [i for i in order if models[i] == model]
        assert line == sorted(line)


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


class Hears(BaseCallbackHandler):
    def __init__(self):
        self.inputs = []

    def on_chain_start(self, serialized, inputs, **_):
        self.inputs.append(inputs)


async def test_each_call_is_in_the_callers_context_and_in_no_other_calls(router):
    seen, hears = [], Hears()

    def member(value: str) -> str:
        seen.append((value, WHO.get()))
        WHO.set("another")
        return value

    async def amember(value: str) -> str:
        return member(value)

    runnable = RunnableRouter({name: RunnableLambda(member, amember) for name in MODELS}, router)
    configs = [{"max_concurrency": 1, "callbacks": [hears] if i == 0 else None} for i in range(9)]
    WHO.set("me")
    runnable.batch(QUERIES[:9], configs)
    await runnable.abatch(QUERIES[:9], configs)
    assert sorted(seen) == sorted([(query, "me") for query in QUERIES[:9]] * 2)
    assert hears.inputs == [QUERIES[0]] * 4  # the router's run and the member's, of both batches


# -- as they come


async def test_answers_come_as_they_are_done(router):
    first = threading.Event()

    def member(value: str) -> str:
        assert value == QUERIES[0] or first.wait(20)
        return value

    runnable = RunnableRouter(dict.fromkeys(MODELS, member), router, dispatcher=at_once(router))
    come = runnable.batch_as_completed(QUERIES[:4], {"max_concurrency": 4})
    assert next(come) == (0, QUERIES[0])
    first.set()
    assert sorted(come) == [(i, QUERIES[i]) for i in (1, 2, 3)]
    first.clear()
    acome = runnable.abatch_as_completed(QUERIES[:4])
    assert await anext(acome) == (0, QUERIES[0])
    first.set()
    assert sorted([each async for each in acome]) == [(i, QUERIES[i]) for i in (1, 2, 3)]


async def test_whoever_has_heard_enough_may_stop():
    flight = InFlight()
    runnable = routed(flight, router_of(max_concurrency=dict.fromkeys(MODELS, 50)))
    come = runnable.batch_as_completed(QUERIES * 10, {"max_concurrency": 2})
    next(come)
    come.close()
    assert flight.now == 0
    assert len(flight.by_input) < len(QUERIES)
    acome = runnable.abatch_as_completed(QUERIES * 10, {"max_concurrency": 2})
    await anext(acome)
    await acome.aclose()
    until(lambda: all(free(runnable.dispatcher, name) == 50 for name in MODELS))


# -- many at once


async def test_a_batch_does_not_block_the_event_loop(router):
    entered, release = threading.Event(), threading.Event()
    original = router.plan

    def slow_plan(*args, **kwargs):
        entered.set()
        assert release.wait(timeout=10)
        return original(*args, **kwargs)

    router.plan = slow_plan
    batch = asyncio.ensure_future(RunnableRouter(members=members(), router=router).abatch(QUERIES))
    assert await asyncio.to_thread(entered.wait, 10)
    release.set()  # reached only because the loop runs while the plan is made
    assert len(await batch) == len(QUERIES)


def test_a_batch_inside_a_running_event_loop_comes_to_an_end():
    router = router_of(max_concurrency=dict.fromkeys(MODELS, 1))
    runnable = routed(InFlight(), router)

    async def main():
        return runnable.batch(QUERIES)

    assert asyncio.run(main()) == QUERIES


async def test_a_thousand_inputs_are_one_plan(router):
    many = [f"{query} of {k}" for k in range(34) for query in QUERIES][:1000]
    runnable = RunnableRouter(members=members(), router=router, dispatcher=at_once(router))
    answers = runnable.batch(many)
    assert [answer.split(":")[1] for answer in answers] == many
    assert await runnable.abatch(many) == answers
    assert router.planned == [1000, 1000]


def test_500_concurrent_calls_from_threads_and_loops_do_not_mix():
    router = router_of(max_concurrency={"small": 7, "medium": 5, "large": 3})
    now, most, lock = Counter(), Counter(), threading.Lock()

    def member(name):
        def begin():
            with lock:
                now[name] += 1
                most[name] = max(most[name], now[name])

        def end():
            with lock:
                now[name] -= 1

        def call(value: str) -> str:
            begin()
            time.sleep(0.001)
            end()
            return value

        async def acall(value: str) -> str:
            begin()
            await asyncio.sleep(0.001)
            end()
            return value

        return RunnableLambda(call, acall)

    runnable = RunnableRouter({name: member(name) for name in MODELS}, router)
    texts = [f"{query} of {k}" for k in range(17) for query in QUERIES][:500]

    def loop(part):
        async def main():
            return await asyncio.gather(*(runnable.ainvoke(text) for text in part))

        return asyncio.run(main())

    with ThreadPoolExecutor(102) as pool:  # 100 threads with two calls each, two loops with 150
        calls = [pool.submit(lambda part: [runnable.invoke(text) for text in part], texts[k : k + 2])
                 for k in range(0, 200, 2)]  # fmt: skip
        loops = [pool.submit(loop, texts[200:350]), pool.submit(loop, texts[350:])]
        assert [answer for done in calls + loops for answer in done.result(60)] == texts
    assert all(most[name] <= limit for name, limit in {"small": 7, "medium": 5, "large": 3}.items())
