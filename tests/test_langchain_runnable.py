"""`RunnableRouter`: a runnable like any other, whose batch is one joint solve in whatever it stands."""

import asyncio
import pickle
from collections import Counter
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableBranch, RunnableConfig, RunnableLambda, RunnableParallel

from eccos_integrations import ConfigError, Model, NoCapacityError, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos import RunnableRouter
from tests.langchain_router import MODELS, QUERIES, ChatModel, at_once, chat_models, members, naming, router_of


@pytest.fixture
def router():
    return router_of()


@pytest.fixture
def runnable(router):
    return RunnableRouter(members=members(), router=router, dispatcher=at_once(router))


# -- every way in


async def test_every_way_of_calling_gives_the_same_answer(router, runnable):
    expected = [f"{router.route(query).model}:{query}" for query in QUERIES]
    assert [runnable.invoke(query) for query in QUERIES] == expected
    assert [await runnable.ainvoke(query) for query in QUERIES] == expected
    assert ["".join(runnable.stream(query)) for query in QUERIES] == expected
    assert ["".join([chunk async for chunk in runnable.astream(query)]) for query in QUERIES] == expected
    planned = [f"{model}:{query}" for model, query in zip(router.plan(QUERIES).models, QUERIES, strict=True)]
    assert len({answer.split(":")[0] for answer in planned}) > 1
    assert runnable.batch(QUERIES) == planned
    assert await runnable.abatch(QUERIES) == planned
    assert sorted(runnable.batch_as_completed(QUERIES)) == list(enumerate(planned))
    assert sorted([each async for each in runnable.abatch_as_completed(QUERIES)]) == list(enumerate(planned))


PROMPT = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
ASKED = [{"question": query} for query in QUERIES]
JOINT = {
    "chain.batch": lambda r: (PROMPT | r | StrOutputParser()).batch(ASKED),
    "chain.abatch": lambda r: asyncio.run((PROMPT | r | StrOutputParser()).abatch(ASKED)),
    "with_config": lambda r: r.with_config(tags=["x"]).batch(QUERIES),
    "bind": lambda r: r.bind(some="argument").batch(QUERIES),
    "with_retry": lambda r: r.with_retry().batch(QUERIES),
    "with_fallbacks": lambda r: r.with_fallbacks([naming("other")]).batch(QUERIES),
    "map": lambda r: r.map().invoke(QUERIES),
    "amap": lambda r: asyncio.run(r.map().ainvoke(QUERIES)),
    "configurable_alternatives": lambda r: r.configurable_alternatives(
        ConfigurableField("which"), other=naming("other")
    ).batch(QUERIES),
    "with_listeners": lambda r: r.with_listeners(on_end=lambda run: None).batch(QUERIES),
    "with_types": lambda r: r.with_types(input_type=str).batch(QUERIES),
    "batch_as_completed": lambda r: list(r.batch_as_completed(QUERIES)),
    "bound batch_as_completed": lambda r: list(r.with_config(tags=["x"]).batch_as_completed(QUERIES)),
}
ONE_BY_ONE = {
    "chain.batch_as_completed": lambda r: list((PROMPT | r).batch_as_completed(ASKED)),
    "RunnableParallel": lambda r: RunnableParallel(answer=r).batch(QUERIES),
    "RunnableBranch": lambda r: RunnableBranch((lambda _: False, naming("other")), r).batch(QUERIES),
    "RunnableLambda": lambda r: RunnableLambda(lambda value: r).batch(QUERIES),
}


@pytest.mark.parametrize("composition", JOINT)
def test_a_batch_is_one_joint_solve(router, runnable, composition):
    assert len(JOINT[composition](runnable)) == len(QUERIES)
    assert router.planned == [len(QUERIES)]
    assert router.asked == []  # nothing is forecast twice


@pytest.mark.parametrize("composition", ONE_BY_ONE)
def test_where_langchain_calls_one_by_one_each_is_decided_alone(router, runnable, composition):
    assert len(ONE_BY_ONE[composition](runnable)) == len(QUERIES)
    assert router.planned == []
    assert len(router.asked) == len(QUERIES)


def test_what_is_retried_is_decided_jointly_again(router):
    tried = Counter()

    def fragile(value: str) -> str:
        tried[value] += 1
        if value.startswith("prove") and tried[value] == 1:
            raise ValueError("try again")
        return value

    runnable = RunnableRouter(dict.fromkeys(MODELS, fragile), router, dispatcher=at_once(router))
    assert runnable.with_retry(wait_exponential_jitter=False).batch(QUERIES) == QUERIES
    assert router.planned == [30, 10]


async def test_an_empty_batch_decides_nothing(router, runnable):
    assert runnable.batch([]) == []
    assert await runnable.abatch([]) == []
    assert list(runnable.batch_as_completed([])) == []
    assert [each async for each in runnable.abatch_as_completed([])] == []
    assert router.planned == router.asked == []


async def test_an_input_may_come_in_pieces(router, runnable):
    async def pieces():
        for piece in ("add ", "thing ", "1"):
            yield piece

    expected = f"{router.route('add thing 1').model}:add thing 1"
    assert list(runnable.transform(iter(["add ", "thing ", "1"]))) == [expected]
    assert [chunk async for chunk in runnable.atransform(pieces())] == [expected]
    (last,) = runnable.transform(iter([{"question": "prove"}, {"question": "add thing 1"}]))  # they do not add
    assert last == f"{router.route('add thing 1').model}:{{'question': 'add thing 1'}}"
    with pytest.raises(ConfigError, match="before it began"):
        list(runnable.transform(iter([])))


# -- what must hold


def test_the_policy_of_the_runnable_comes_before_the_routers(router):
    cheap = RunnableRouter(members=members(), router=router, policy=Policy())
    assert {answer.split(":")[0] for answer in cheap.batch(QUERIES)} == {"small"}
    dear = RunnableRouter(members=members(), router=router, policy=Policy(min_quality=1.0))
    assert dear.invoke(QUERIES[0]).startswith("large:")


def test_a_call_may_bring_its_own_settings(router, runnable):
    assert runnable.invoke(QUERIES[0], {"configurable": {"eccos_model": "medium"}}).startswith("medium:")
    high = {"configurable": {"eccos_min_quality": 1.0}}
    assert runnable.invoke(QUERIES[1], high).startswith("large:")
    assert {answer.split(":")[0] for answer in runnable.batch(QUERIES, high)} == {"large"}
    low = {"configurable": {"eccos_max_cost_usd": 75e-6}}
    chosen = Counter(answer.split(":")[0] for answer in runnable.batch(QUERIES, low))
    assert chosen["small"] > 25


def test_a_pin_in_a_batch_is_planned_with(router, runnable):
    configs: list[RunnableConfig] = [{"configurable": {"eccos_model": "medium"}} if i < 9 else {} for i in range(30)]
    assert [answer.split(":")[0] for answer in runnable.batch(QUERIES, configs)][:9] == ["medium"] * 9
    assert router.planned == [30]
    configs = [{"configurable": {"eccos_min_quality": 0.5 if i % 2 else 0.9}} for i in range(30)]
    runnable.batch(QUERIES, configs)
    assert router.planned == [30, 15, 15]  # a plan has one policy


def test_capacity_is_kept_and_what_does_not_fit_is_an_error_of_its_own(router):
    policy = Policy(capacity={"small": 5, "medium": 5, "large": 5})
    runnable = RunnableRouter(members=members(), router=router, policy=policy)
    answers = runnable.batch(QUERIES, return_exceptions=True)
    counts = Counter(type(a).__name__ if isinstance(a, Exception) else a.split(":")[0] for a in answers)
    assert counts == {"small": 5, "medium": 5, "large": 5, "NoCapacityError": 15}
    with pytest.raises(NoCapacityError, match="raise the capacity, or send a smaller batch"):
        runnable.batch(QUERIES)


async def test_arguments_and_config_reach_the_member(router):
    seen = []

    def member(value: str, config: RunnableConfig, **kwargs: Any) -> str:
        seen.append((kwargs, config["tags"], config["metadata"], config["configurable"]))
        return value

    runnable = RunnableRouter(members=dict.fromkeys(MODELS, member), router=router)
    config: RunnableConfig = {"tags": ["mine"], "metadata": {"who": "me"}, "configurable": {"thread": "7"}}
    kwargs = {"temperature": 0, "asked": "x", "kwargs": 1}
    runnable.invoke(QUERIES[0], config, **kwargs)
    await runnable.ainvoke(QUERIES[0], config, **kwargs)
    runnable.batch([QUERIES[0]], config, **kwargs)
    await runnable.abatch([QUERIES[0]], config, **kwargs)
    list(runnable.stream(QUERIES[0], config, **kwargs))
    assert len([chunk async for chunk in runnable.astream(QUERIES[0], config, **kwargs)]) == 1
    list(runnable.batch_as_completed([QUERIES[0]], config, **kwargs))
    assert len([each async for each in runnable.abatch_as_completed([QUERIES[0]], config, **kwargs)]) == 1
    assert len(seen) == 8
    for given, tags, metadata, configurable in seen:
        assert given == kwargs
        assert "mine" in tags
        assert f"eccos:{metadata['eccos_model']}" in tags
        assert metadata["who"] == "me"
        assert configurable["thread"] == "7"


class Brief(ChatModel):
    max_tokens: int = 40


def test_the_cap_on_tokens_goes_to_chat_models_only():
    limited = router_of(max_output_tokens=dict.fromkeys(MODELS, 100))
    chat, given = chat_models(), []

    def chain(value: str, **kwargs: Any) -> str:
        given.append(kwargs)
        return value

    brief = Brief()
    kinds = {"small": chat["small"], "medium": chat["medium"].bind(max_tokens=30, top_p=1), "large": chain}
    for routed, names in ((kinds, MODELS), (dict.fromkeys(MODELS, brief), ["small"])):
        runnable = RunnableRouter(routed, limited, dispatcher=at_once(limited))
        for name in names:
            runnable.invoke("add", {"configurable": {"eccos_model": name}})
            runnable.invoke("add", {"configurable": {"eccos_model": name}}, max_tokens=20)
    assert [call["max_tokens"] for call in chat["small"].calls] == [100, 20]
    assert [call["max_tokens"] for call in brief.calls] == [40, 20]
    assert [call["max_tokens"] for call in chat["medium"].calls] == [30, 20]
    assert given == [{}, {"max_tokens": 20}]


def test_the_callers_own_cap_is_what_is_reserved():
    router = router_of(max_output_tokens=dict.fromkeys(MODELS, 100), tokens_per_minute=dict.fromkeys(MODELS, 60))
    runnable = RunnableRouter(chat_models(), router, dispatcher=at_once(router))
    with pytest.raises(NoCapacityError, match="tokens_per_minute"):
        runnable.invoke("add")
    assert runnable.invoke("add", max_tokens=20).text.endswith(":add")


def test_a_model_without_a_cap_is_asked_for_none(router):
    chat = chat_models()
    RunnableRouter(chat, router).batch(QUERIES)
    assert all("max_tokens" not in call for model in chat.values() for call in model.calls)


# -- finding the query


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
    RunnableRouter(members=members(), router=router, query=query).invoke(value)
    assert router.asked == ["add thing 1"]


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
    runnable = RunnableRouter(members=members(), router=router, query=query)
    with pytest.raises(ConfigError, match=words) as error:
        runnable.invoke(value)
    assert "secret" not in str(error.value)
    (answer,) = runnable.batch([value], return_exceptions=True)
    assert isinstance(answer, ConfigError)


# -- errors that say what to do


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


def test_a_dispatcher_of_another_router_is_refused(router):
    with pytest.raises(ConfigError, match="Dispatcher\\(router\\) of the same router"):
        RunnableRouter(members=members(), router=router, dispatcher=at_once(router_of()))


def test_an_unknown_model_in_the_pin_is_the_error_of_its_own_input(runnable):
    wrong: RunnableConfig = {"configurable": {"eccos_model": "huge"}}
    with pytest.raises(ConfigError, match=r"'huge' is not a model of the router; give one of \['small'"):
        runnable.invoke(QUERIES[0], wrong)
    answers = runnable.batch(QUERIES[:3], [{}, wrong, {}], return_exceptions=True)
    assert [isinstance(answer, ConfigError) for answer in answers] == [False, True, False]


def test_where_no_model_can_take_an_input_each_says_why():
    router = router_of(context_window=dict.fromkeys(MODELS, 1000))
    runnable = RunnableRouter(members(), router, dispatcher=at_once(router))
    long = [SystemMessage("word " * 2000), HumanMessage("add")]
    with pytest.raises(NoCapacityError, match=r"small \(its context window is too short\), medium \(its"):
        runnable.invoke(long)


def test_a_model_that_came_later_has_no_member_and_gets_nothing(router):
    runnable = RunnableRouter(members(), router, policy=Policy())
    router.add_model(Model(name="new", input_usd_per_million_tokens=1e-4, output_usd_per_million_tokens=1e-4))
    assert {answer.split(":")[0] for answer in runnable.batch(QUERIES)} <= set(MODELS)
    assert runnable.invoke(QUERIES[0]).split(":")[0] in MODELS
    with pytest.raises(NoCapacityError, match="not among the candidates"):
        runnable.invoke(QUERIES[0], {"configurable": {"eccos_model": "new"}})


# -- copies


def shout(value: str) -> str:
    return value.upper()


@pytest.mark.parametrize("own", [False, True])
def test_it_pickles_with_members_that_do(router, own):
    plain = Router(router._learnt)
    dispatcher = Dispatcher(plain, window_s=0) if own else None
    runnable = RunnableRouter(members=dict.fromkeys(MODELS, shout), router=plain, dispatcher=dispatcher)
    copy = pickle.loads(pickle.dumps(runnable))
    assert copy.batch(QUERIES) == runnable.batch(QUERIES)


def test_its_repr_shows_no_prompt_of_the_history(runnable):
    assert "item number" not in repr(runnable)
