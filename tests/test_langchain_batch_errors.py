"""Batches of `RunnableRouter` that fail: one input alone, or all, and then nothing is called any more."""

import asyncio
import threading
import time

import pytest
from langchain_core.runnables import RunnableLambda

from eccos_integrations import InfeasibleError, Policy
from langchain_eccos import RunnableRouter
from tests.langchain_router import MODELS, QUERIES, at_once, chat_models, free, holding, members, router_of, until


class ApiError(Exception):
    status_code = 500


@pytest.fixture
def router():
    return router_of()


async def test_one_failure_is_one_result(router):
    def fragile(value: str) -> str:
        if value.endswith("7"):
            raise RuntimeError("broken")
        return value

    runnable = RunnableRouter(members=dict.fromkeys(MODELS, fragile), router=router)
    expected = [query.endswith("7") for query in QUERIES]
    for answers in (
        runnable.batch(QUERIES, return_exceptions=True),
        await runnable.abatch(QUERIES, return_exceptions=True),
        [answer for _, answer in sorted(runnable.batch_as_completed(QUERIES, return_exceptions=True))],
    ):
        assert [isinstance(answer, RuntimeError) for answer in answers] == expected
    with pytest.raises(RuntimeError, match="broken"):
        runnable.batch(QUERIES)
    with pytest.raises(RuntimeError, match="broken"):
        await runnable.abatch(QUERIES)
    with pytest.raises(RuntimeError, match="broken"):
        list(runnable.batch_as_completed(QUERIES))


def test_an_input_without_a_query_fails_alone(router):
    answers = RunnableRouter(members(), router).batch([17, *QUERIES[:3], {}], return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["ConfigError", "str", "str", "str", "ConfigError"]
    assert router.planned == [3]


async def test_what_goes_elsewhere_is_judged_by_its_own_forecast(router):
    asked = ["prove thing 1", "add thing 2"]
    forecast = router.forecast(asked)
    for way in (RunnableRouter.batch, lambda *each: asyncio.run(RunnableRouter.abatch(*each))):
        models = chat_models()
        for name in set(router.plan(asked).models):
            models[name].failures += [ApiError()] * 2
        answers = await asyncio.to_thread(way, RunnableRouter(models, router, dispatcher=at_once(router)), asked)
        for row, answer in enumerate(answers):
            told = answer.response_metadata["eccos"]
            assert told["attempt"] > 1
            assert told["quality"] == forecast.quality[row, MODELS.index(told["model"])]


def test_a_plan_that_cannot_be_made_is_the_error_of_each(router):
    policy = Policy(min_quality=1.0, capacity={"large": 1}, on_infeasible="raise")
    answers = RunnableRouter(members(), router, policy).batch(QUERIES, return_exceptions=True)
    assert {type(answer) for answer in answers} == {InfeasibleError}
    assert len({id(answer) for answer in answers}) == len(QUERIES)


def test_a_batch_that_will_fail_stops_asking(router):
    asked = []

    def broken(value: str) -> str:
        asked.append(value)
        raise RuntimeError("broken")

    runnable = RunnableRouter(members=dict.fromkeys(MODELS, broken), router=router)
    with pytest.raises(RuntimeError, match="broken"):
        runnable.batch(QUERIES * 10, {"max_concurrency": 1})
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(runnable.abatch(QUERIES * 10, {"max_concurrency": 1}))
    assert len(asked) <= 12


def test_a_batch_that_fails_waits_for_calls_under_way_only():
    router = router_of(max_concurrency={"large": 1})
    dispatcher, over, running, called = at_once(router), threading.Event(), [], []

    def member(value: str) -> str:
        called.append(value)
        if value == "fails":
            raise RuntimeError("broken")
        running.append(value)
        time.sleep(0.05)
        running.remove(value)
        return value

    runnable = RunnableRouter(dict.fromkeys(MODELS, member), router, dispatcher=dispatcher)
    pins = [{"configurable": {"eccos_model": name}} for name in ("large", "small", "medium")]
    with holding(dispatcher, "large", over):
        with pytest.raises(RuntimeError, match="broken"):  # although one still waits for the full model
            runnable.batch(["waits", "fails", "runs"], pins)
        assert running == []
        over.set()
    until(lambda: dispatcher.waiting == 0 and free(dispatcher, "large") == 1)
    assert "waits" not in called  # it was let in, and called nobody


async def test_the_first_failure_of_an_async_batch_leaves_no_call_running():
    began, ended = 0, 0

    async def member(value: str) -> str:
        nonlocal began, ended
        began += 1
        if value == QUERIES[1]:
            raise RuntimeError("broken")
        try:
            await asyncio.Event().wait()  # until cancelled
        finally:
            ended += 1
        return value

    router = router_of(max_concurrency=dict.fromkeys(MODELS, 50))
    dispatcher = at_once(router)
    runnable = RunnableRouter({name: RunnableLambda(member) for name in MODELS}, router, dispatcher=dispatcher)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(runnable.abatch(QUERIES, {"max_concurrency": 4}), timeout=30)
    assert began <= 5
    assert ended == began - 1
    until(lambda: all(free(dispatcher, name) == 50 for name in MODELS))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_inside_a_member_ends_the_batch(router, error):
    def member(value: str) -> str:
        raise error

    with pytest.raises(error):
        RunnableRouter(dict.fromkeys(MODELS, member), router).batch(QUERIES, return_exceptions=True)
