"""`RunnableRouter`: a runnable like any other, whose batch is one joint solve."""

import asyncio
import pickle
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from eccos_integrations import ConfigError, NoCapacityError, OutcomeTable, Policy, Router
from langchain_eccos import RunnableRouter

MODELS = ["small", "medium", "large"]


class SpyRouter(Router):
    """A router that counts how many queries each decision was about."""

    seen: list[int]

    def plan(self, queries, policy=None, groups=None):
        self.seen.append(len(queries))
        return super().plan(queries, policy, groups)

    def route(self, query, policy=None):
        self.seen.append(1)
        return super().route(query, policy)


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    easy = rng.random(90) < 0.5
    queries = [f"{'add' if e else 'prove'} item number {i}" for i, e in enumerate(easy)]
    chance = np.where(easy[:, None], [0.95, 0.97, 0.99], [0.2, 0.6, 0.95])
    quality = (rng.random((90, 3)) < chance).astype(float)
    cost = np.tile([1e-4, 5e-4, 3e-3], (90, 1))
    table = OutcomeTable([str(i) for i in range(90)], queries, MODELS, quality, cost)
    return SpyRouter.fit(table, policy=Policy(min_quality=0.95, relative_to="best"), predictor="retrieval")


@pytest.fixture
def router(fitted):
    fitted.seen = []
    return fitted


def naming(name: str) -> RunnableLambda[Any, str]:
    """A member that says who answered what."""
    return RunnableLambda(lambda value, **_: f"{name}:{value}")


def members() -> dict[str, RunnableLambda[Any, str]]:
    return {name: naming(name) for name in MODELS}


QUERIES = [f"{'add' if i % 3 else 'prove'} thing {i}" for i in range(30)]


async def test_every_way_of_calling_gives_the_same_answer(router):
    runnable = RunnableRouter(members=members(), router=router)
    expected = [f"{router.route(query).model}:{query}" for query in QUERIES]
    assert [runnable.invoke(query) for query in QUERIES] == expected
    assert [await runnable.ainvoke(query) for query in QUERIES] == expected
    assert ["".join(runnable.stream(query)) for query in QUERIES] == expected
    assert ["".join([chunk async for chunk in runnable.astream(query)]) for query in QUERIES] == expected
    planned = [f"{model}:{query}" for model, query in zip(router.plan(QUERIES).models, QUERIES, strict=True)]
    assert runnable.batch(QUERIES) == planned
    assert await runnable.abatch(QUERIES) == planned
    assert len({answer.split(":")[0] for answer in planned}) > 1


async def test_a_batch_is_one_joint_solve_in_every_composition(router):
    runnable = RunnableRouter(members=members(), router=router)
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    inputs = [{"question": query} for query in QUERIES]
    chain = prompt | runnable | StrOutputParser()
    chain.batch(inputs)
    await chain.abatch(inputs)
    runnable.with_config(tags=["x"]).batch(QUERIES)
    runnable.with_retry().batch(QUERIES)
    runnable.with_fallbacks([naming("other")]).batch(QUERIES)
    runnable.bind(some="argument").batch(QUERIES)
    runnable.map().invoke(QUERIES)
    assert router.seen == [30] * 7


def test_an_empty_batch_decides_nothing(router):
    assert RunnableRouter(members=members(), router=router).batch([]) == []
    assert router.seen == []


def test_the_policy_of_the_runnable_comes_before_the_routers(router):
    cheap = RunnableRouter(members=members(), router=router, policy=Policy())
    assert {answer.split(":")[0] for answer in cheap.batch(QUERIES)} == {"small"}
    dear = RunnableRouter(members=members(), router=router, policy=Policy(min_quality=1.0))
    assert dear.invoke(QUERIES[0]).startswith("large:")


def test_capacity_is_kept_and_what_does_not_fit_is_an_error_of_its_own(router):
    policy = Policy(capacity={"small": 5, "medium": 5, "large": 5})
    answers = RunnableRouter(members=members(), router=router, policy=policy).batch(QUERIES, return_exceptions=True)
    counts = Counter(type(a).__name__ if isinstance(a, Exception) else a.split(":")[0] for a in answers)
    assert counts == {"small": 5, "medium": 5, "large": 5, "NoCapacityError": 15}
    with pytest.raises(NoCapacityError, match="capacity"):
        RunnableRouter(members=members(), router=router, policy=policy).batch(QUERIES)


@pytest.mark.parametrize(
    ("value", "query"),
    [
        ("add thing 1", None),
        (HumanMessage("add thing 1"), None),
        ([SystemMessage("prove"), HumanMessage("add thing 1"), AIMessage("prove")], None),
        ([("system", "prove"), ("human", "add thing 1")], None),
        ([HumanMessage([{"type": "text", "text": "add thing 1"}, {"type": "image_url", "image_url": "x"}])], None),
        (ChatPromptTemplate.from_messages([("system", "prove"), ("human", "{q}")]).invoke({"q": "add thing 1"}), None),
        ({"question": "add thing 1", "context": "prove"}, None),
        ({"messages": [HumanMessage("add thing 1")]}, None),
        ({"context": "prove", "ask": "add thing 1"}, "ask"),
        (("prove", "add thing 1"), lambda pair: pair[1]),
    ],
)
def test_the_query_is_found_in_any_input(router, value, query):
    asked = []
    original = router.route
    router.route = lambda query, policy=None: asked.append(query) or original(query, policy)
    try:
        RunnableRouter(members=members(), router=router, query=query).invoke(value)
    finally:
        del router.route
    assert asked == ["add thing 1"]


@pytest.mark.parametrize(
    ("value", "query", "words"),
    [
        ({"context": "secret"}, None, "give query=KEY"),
        ({"context": "secret"}, "question", "no key 'question'"),
        ("secret", "question", "no key 'question'"),
        (17, None, "found in a int"),
        ([1, 2], None, "found in a list"),
        ([], None, "found in a list"),
        ("secret", lambda _: None, "returned a NoneType"),
    ],
)
def test_an_input_without_a_query_is_one_clear_error(router, value, query, words):
    with pytest.raises(ConfigError, match=words) as error:
        RunnableRouter(members=members(), router=router, query=query).invoke(value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["small", "medium"], r"missing \['large'\]"),
        ([*MODELS, "huge"], r"unknown \['huge'\]"),
        ([], "missing"),
    ],
)
def test_members_are_exactly_the_routers_models(router, names, words):
    with pytest.raises(ConfigError, match=words):
        RunnableRouter(members={name: naming(name) for name in names}, router=router)


def test_a_policy_for_unknown_models_is_refused(router):
    with pytest.raises(ConfigError, match="capacity"):
        RunnableRouter(members=members(), router=router, policy=Policy(capacity={"huge": 1}))


async def test_arguments_and_config_reach_the_member(router):
    seen = []

    def member(value: str, config: RunnableConfig, **kwargs: Any) -> str:
        seen.append((kwargs, config["tags"], config["metadata"], config["configurable"]))
        return value

    runnable = RunnableRouter(members=dict.fromkeys(MODELS, member), router=router)
    config: RunnableConfig = {"tags": ["mine"], "metadata": {"who": "me"}, "configurable": {"thread": "7"}}
    runnable.invoke(QUERIES[0], config, temperature=0)
    await runnable.ainvoke(QUERIES[0], config, temperature=0)
    runnable.batch([QUERIES[0]], config, temperature=0)
    await runnable.abatch([QUERIES[0]], config, temperature=0)
    list(runnable.stream(QUERIES[0], config, temperature=0))
    async for _ in runnable.astream(QUERIES[0], config, temperature=0):
        pass
    assert len(seen) == 6
    for kwargs, tags, metadata, configurable in seen:
        assert kwargs == {"temperature": 0}
        assert "mine" in tags
        assert f"eccos:{metadata['eccos_model']}" in tags
        assert metadata["who"] == "me"
        assert metadata["eccos_model"] in MODELS
        assert configurable["thread"] == "7"


def runs_of(call: Any) -> list[Any]:
    collector = RunCollectorCallbackHandler()
    call({"callbacks": [collector]})
    return collector.traced_runs


def test_the_run_tree_is_one_chain_run_with_the_members_run_below(router):
    runnable = RunnableRouter(members=members(), router=router)
    for call in (
        lambda config: runnable.invoke(QUERIES[0], config),
        lambda config: runnable.batch([QUERIES[0]], config),
        lambda config: list(runnable.stream(QUERIES[0], config)),
    ):
        (run,) = runs_of(call)
        assert run.name == "RunnableRouter"
        assert [child.name for child in run.child_runs] == ["RunnableLambda"]


def test_tokens_are_counted_once(router):
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    models = {
        name: GenericFakeChatModel(
            messages=iter(
                AIMessage("hi", usage_metadata=usage, response_metadata={"model_name": name}) for _ in range(100)
            )
        )
        for name in MODELS
    }
    counter = UsageMetadataCallbackHandler()
    RunnableRouter(members=models, router=router).batch(QUERIES, {"callbacks": [counter]})
    assert sum(each["total_tokens"] for each in counter.usage_metadata.values()) == 7 * len(QUERIES)


def test_a_stream_has_the_chunks_of_the_bare_member(router):
    models = {name: GenericFakeChatModel(messages=iter([AIMessage("one two three")] * 9)) for name in MODELS}
    chunks = list(RunnableRouter(members=models, router=router).stream("add thing"))
    bare = list(GenericFakeChatModel(messages=iter([AIMessage("one two three")])).stream("add thing"))
    assert [chunk.content for chunk in chunks] == [chunk.content for chunk in bare]


def test_one_failure_is_one_result(router):
    def fragile(value: str) -> str:
        if value.endswith("7"):
            raise RuntimeError("broken")
        return value

    runnable = RunnableRouter(members=dict.fromkeys(MODELS, fragile), router=router)
    answers = runnable.batch(QUERIES, return_exceptions=True)
    assert [isinstance(answer, RuntimeError) for answer in answers] == [query.endswith("7") for query in QUERIES]
    with pytest.raises(RuntimeError, match="broken"):
        runnable.batch(QUERIES)


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
    assert len(asked) <= 6


def test_max_concurrency_is_the_cap_on_calls_in_flight(router):
    lock, now, most = threading.Lock(), 0, 0
    barrier = threading.Barrier(2)

    def member(value: str) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        barrier.wait(timeout=10)  # two are in flight together, or this breaks
        with lock:
            now -= 1
        return value

    runnable = RunnableRouter(members=dict.fromkeys(MODELS, member), router=router)
    assert len(runnable.batch(QUERIES, {"max_concurrency": 2})) == len(QUERIES)
    assert most == 2


async def test_max_concurrency_holds_in_async_batches_too(router):
    now, most = 0, 0

    async def member(value: str) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        now -= 1
        return value

    runnable = RunnableRouter(members={name: RunnableLambda(member) for name in MODELS}, router=router)
    assert await runnable.abatch(QUERIES, {"max_concurrency": 3}) == QUERIES
    assert most == 3


async def test_a_batch_does_not_block_the_event_loop(router):
    entered, release = threading.Event(), threading.Event()
    original = router.plan

    def slow_plan(queries, policy=None, groups=None):
        entered.set()
        assert release.wait(timeout=10)
        return original(queries, policy, groups)

    router.plan = slow_plan
    try:
        batch = asyncio.ensure_future(RunnableRouter(members=members(), router=router).abatch(QUERIES))
        assert await asyncio.to_thread(entered.wait, 10)
        release.set()  # reached only because the loop runs while the plan is made
        assert len(await batch) == len(QUERIES)
    finally:
        del router.plan


class Ends(BaseCallbackHandler):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def on_chain_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(type(error).__name__)


def test_a_refused_input_ends_the_run_with_its_error(router):
    ends = Ends()
    with pytest.raises(ConfigError):
        RunnableRouter(members=members(), router=router).invoke(17, {"callbacks": [ends]})
    assert ends.errors == ["ConfigError"]


def test_concurrent_calls_from_threads_do_not_mix(router):
    runnable = RunnableRouter(members=members(), router=router)
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=query: answers.__setitem__(q, runnable.invoke(q))) for query in QUERIES * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answer.endswith(f":{query}") for query, answer in answers.items())


def shout(value: str) -> str:
    return value.upper()


def test_it_pickles_with_members_that_do(fitted):
    plain = Router(fitted._learnt)
    runnable = RunnableRouter(members=dict.fromkeys(MODELS, shout), router=plain)
    copy = pickle.loads(pickle.dumps(runnable))
    assert copy.batch(QUERIES) == runnable.batch(QUERIES)


def test_its_repr_shows_no_prompt_of_the_history(router):
    assert "item number" not in repr(RunnableRouter(members=members(), router=router))


async def test_the_first_failure_of_an_async_batch_leaves_no_call_running(router):
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

    runnable = RunnableRouter(members={name: RunnableLambda(member) for name in MODELS}, router=router)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(runnable.abatch(QUERIES, {"max_concurrency": 4}), timeout=30)
    assert began <= 5
    assert ended == began - 1
