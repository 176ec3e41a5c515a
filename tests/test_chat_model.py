"""`ChatEccos`: a chat model like any other, whose members answer, and whose batch is one joint solve."""

import asyncio
import copy
import pickle

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.graph import START, MessagesState, StateGraph

from eccos_integrations import ConfigError, InfeasibleError, NoCapacityError, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos.chat_model import ChatEccos
from tests.conftest import PRICES, make_table
from tests.fake_chat import FakeChat

NAMES = list(PRICES)
QUERIES = [f"{i}: {'okapi' if i % 2 else 'zephyr and obsidian ' * 4}" for i in range(30)]


class SpyRouter(Router):
    """A router that keeps how many queries each plan was about."""

    seen: list[int]

    def plan(self, queries, policy=None, groups=None, *, forbidden=None):
        self.seen.append(len(queries))
        return super().plan(queries, policy, groups, forbidden=forbidden)


@pytest.fixture(scope="module")
def fitted():
    policy = Policy(min_quality=0.9, relative_to="best")
    return SpyRouter.fit(make_table(seed=0, per_task=20), policy=policy, predictor="retrieval")


@pytest.fixture
def router(fitted):
    fitted.seen = []
    return fitted


@pytest.fixture
def chat(router):
    return chat_of(router)


def chat_of(router, policy=None, **kwargs):
    members = {name: FakeChat(model_name=name) for name in router.models}
    return ChatEccos(members, router, policy, Dispatcher(router, window_s=0), **kwargs)


def model_of(answer):
    """The decided model, which is the one that answered."""
    assert answer.text.split(":")[0] == answer.response_metadata["eccos"]["model"]
    return answer.response_metadata["eccos"]["model"]


# -- one chat


async def test_every_way_of_asking_goes_to_the_same_member(chat, router):
    for query in QUERIES[:6]:
        expected = router.route(query).model
        assert model_of(chat.invoke(query)) == expected
        assert model_of(await chat.ainvoke([HumanMessage(query)])) == expected
        assert model_of(added(chat.stream(query))) == expected
        assert model_of(added([chunk async for chunk in chat.astream(query)])) == expected
        assert model_of(chat.generate([[HumanMessage(query)]]).generations[0][0].message) in NAMES


def added(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def test_the_last_human_message_is_what_is_routed_by(chat, router):
    history = [SystemMessage("Be brief."), HumanMessage(QUERIES[1]), AIMessage("yes"), HumanMessage(QUERIES[0])]
    assert model_of(chat.invoke(history)) == router.route(QUERIES[0]).model


def test_the_decision_can_be_given_feedback_on(chat, router):
    told = chat.invoke(QUERIES[0]).response_metadata["eccos"]
    assert told.keys() == {"model", "decision_id", "quality", "cost_usd", "floor_met", "reason", "attempt"}
    router.feedback(told["decision_id"], quality=1.0)


def test_the_member_keeps_its_own_message(router):
    said = AIMessage("cached")

    class Same(FakeChat):
        def _answer(self, messages, stop, kwargs):
            return said

    chat = ChatEccos({name: Same() for name in NAMES}, router)
    assert "eccos" in chat.invoke("hello").response_metadata
    assert said.response_metadata == {}


async def test_exactly_one_streamed_chunk_bears_the_decision(chat):
    for chunks in (list(chat.stream("hello")), [chunk async for chunk in chat.astream("hello")]):
        assert len(chunks) > 2
        assert ["eccos" in chunk.response_metadata for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        assert chunks[-1].chunk_position == "last"


async def test_a_version_3_stream_says_at_its_end_who_answered(chat):
    stream = chat.stream_events("hello there", version="v3")
    assert "".join(stream.text) == stream.output.text
    assert model_of(stream.output) in NAMES
    stream = await chat.astream_events("hello there", version="v3")
    text, whole = await asyncio.gather(collected(stream.text), stream)
    assert text == whole.text
    assert model_of(whole) in NAMES


async def collected(pieces):
    return "".join([piece async for piece in pieces])


async def test_a_version_3_stream_closed_early_ends_its_run(chat):
    collector = RunCollectorCallbackHandler()
    async with await chat.astream_events("hello there", {"callbacks": [collector]}, version="v3") as stream:
        async for _ in stream.text:
            break
        assert collector.traced_runs == []
    assert len(collector.traced_runs) == 1
    assert stream.done


@pytest.mark.parametrize("how", ["argument", "config"])
async def test_a_pin_comes_before_the_decision(chat, how):
    for name in NAMES:
        config, kwargs = ({}, {"model": name}) if how == "argument" else ({"configurable": {"eccos_model": name}}, {})
        assert model_of(chat.invoke("hello", config, **kwargs)) == name
        assert model_of(await chat.ainvoke("hello", config, **kwargs)) == name
        assert model_of(added(chat.stream("hello", config, **kwargs))) == name
        assert {model_of(answer) for answer in chat.batch(QUERIES, config, **kwargs)} == {name}
        assert "model" not in chat.members[name].asked[0]


def test_a_floor_of_one_call_comes_before_the_routers(chat):
    assert model_of(chat.invoke("hello", {"configurable": {"eccos_min_quality": 0.01}})) == "tiny"
    assert model_of(chat_of(chat.router, Policy(min_quality=1.0)).invoke("hello")) == "large"


def test_arguments_reach_the_member(chat):
    chat.bind(temperature=0.5).invoke("hello", stop=["x"], model="small")
    assert chat.members["small"].asked[0].items() >= {"temperature": 0.5, "stop": ["x"]}.items()
    chat.invoke("hello", model="small")
    assert chat.members["small"].asked[1].keys() == {"messages"}


# -- a batch


async def test_a_batch_is_one_joint_solve_in_every_composition(chat, router):
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    inputs = [{"question": query} for query in QUERIES]
    chain = prompt | chat | StrOutputParser()
    assert len(chain.batch(inputs)) == len(await chain.abatch(inputs)) == 30
    assert len(list(chat.batch_as_completed(QUERIES))) == 30
    assert len([each async for each in chat.abatch_as_completed(QUERIES)]) == 30
    chat.bind_tools([add]).batch(QUERIES)
    chat.with_config(tags=["x"]).batch(QUERIES)
    chat.with_retry().batch(QUERIES)
    chat.with_fallbacks([FakeChat()]).batch(QUERIES)
    chat.map().invoke(QUERIES)
    chat.generate([[HumanMessage(query)] for query in QUERIES])
    assert router.seen == [30] * 10


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_a_batch_goes_where_the_plan_says_in_the_order_of_its_inputs(chat, router):
    planned = router.plan(QUERIES).models
    assert len(set(planned)) > 1
    for answers in (chat.batch(QUERIES), await chat.abatch(QUERIES)):
        assert [answer.text for answer in answers] == [f"{m}: {q}" for m, q in zip(planned, QUERIES, strict=True)]


async def test_an_empty_batch_decides_nothing(chat, router):
    assert chat.batch([]) == await chat.abatch([]) == list(chat.batch_as_completed([])) == []
    assert router.seen == []


def test_pins_of_single_inputs_hold_within_the_joint_solve(chat, router):
    configs = [{"configurable": {"eccos_model": "large"}} if i < 5 else {} for i in range(30)]
    assert [model_of(answer) for answer in chat.batch(QUERIES, configs)][:5] == ["large"] * 5
    assert router.seen == [30]


async def test_what_the_capacity_leaves_over_is_an_error_of_its_own(router):
    chat = chat_of(router, Policy(capacity=dict.fromkeys(NAMES, 5)))
    for answers in (
        chat.batch(QUERIES, return_exceptions=True),
        await chat.abatch(QUERIES, return_exceptions=True),
    ):
        assert sum(isinstance(answer, NoCapacityError) for answer in answers) == 10
    with pytest.raises(NoCapacityError, match="capacity"):
        chat.batch(QUERIES)


async def test_a_plan_that_fails_is_the_error_of_each_of_its_inputs(router):
    chat = chat_of(router, Policy(min_quality=0.999, on_infeasible="raise"))
    pinned = [{"configurable": {"eccos_min_quality": 0.01}}, {}, {}]
    answers = chat.batch(["a", "b", "c"], pinned, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["AIMessage", "InfeasibleError", "InfeasibleError"]
    assert answers[1] is not answers[2]
    with pytest.raises(InfeasibleError):
        await chat.abatch(["a", "b"])


async def test_an_input_that_cannot_be_read_is_an_error_of_its_own(chat, router):
    for answers in (
        chat.batch(["a", 17, [], "b"], return_exceptions=True),
        await chat.abatch(["a", 17, [], "b"], return_exceptions=True),
    ):
        assert [type(answer).__name__ for answer in answers] == ["AIMessage", "ValueError", "ConfigError", "AIMessage"]
    assert router.seen == [2, 2]
    for config in ({}, {"max_concurrency": 1}):
        with pytest.raises(ValueError, match="int"):
            chat.batch(["a", 17], config)
        with pytest.raises(ValueError, match="int"):
            await chat.abatch(["a", 17], config)
    assert sum(len(member.asked) for member in chat.members.values()) == 4  # nothing was paid for since


# -- runs, usage, events


class Heard(BaseCallbackHandler):
    def __init__(self):
        self.starts, self.events = [], []

    def on_chat_model_start(self, serialized, messages, *, tags=None, metadata=None, **kwargs):
        self.starts.append((tags, metadata))

    def on_custom_event(self, name, data, **kwargs):
        self.events.append((name, data))


async def every_call(chat, config):
    yield chat.invoke("hello", config)
    yield await chat.ainvoke("hello", config)
    yield chat.batch(["hello"], config)[0]
    yield (await chat.abatch(["hello"], config))[0]
    yield added(chat.stream("hello", config))
    yield added([chunk async for chunk in chat.astream("hello", config)])
    stream = chat.stream_events("hello", config, version="v3")
    yield stream.output
    yield await (await chat.astream_events("hello", config, version="v3"))


async def test_the_run_tree_is_one_chain_run_with_one_llm_run_below(chat):
    collector = RunCollectorCallbackHandler()
    answers = [answer async for answer in every_call(chat, {"callbacks": [collector]})]
    assert len(collector.traced_runs) == len(answers) == 8
    for run in collector.traced_runs:
        assert (run.name, run.run_type) == ("ChatEccos", "chain")
        assert [(child.name, child.run_type) for child in run.child_runs] == [("FakeChat", "llm")]


async def test_the_decision_is_in_the_members_run_and_in_an_event(chat):
    heard = Heard()
    answers = [answer async for answer in every_call(chat, {"callbacks": [heard], "metadata": {"who": "me"}})]
    assert len(heard.starts) == len(heard.events) == len(answers)
    for answer, (tags, metadata), (name, data) in zip(answers, heard.starts, heard.events, strict=True):
        assert f"eccos:{model_of(answer)}" in tags
        assert metadata["eccos_model"] == model_of(answer)
        assert metadata["who"] == "me"
        assert (name, data) == ("eccos_decision", answer.response_metadata["eccos"])


async def test_tokens_are_counted_once_in_every_way_of_asking(chat):
    with get_usage_metadata_callback() as counted:
        answers = [answer async for answer in every_call(chat, {})]
    assert sum(used["total_tokens"] for used in counted.usage_metadata.values()) == sum(
        answer.usage_metadata["total_tokens"] for answer in answers
    )


async def test_a_graph_streams_as_many_messages_as_with_the_bare_member(chat):
    def graph(model):
        builder = StateGraph(MessagesState)
        builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
        builder.add_edge(START, "model")
        return builder.compile()

    given = {"messages": [HumanMessage("one two three")]}
    routed = [piece.text for piece, _ in graph(chat).stream(given, stream_mode="messages")]
    bare = [piece.text for piece, _ in graph(chat.members["tiny"]).stream(given, stream_mode="messages")]
    assert len(routed) == len(bare) > 3


def test_what_the_router_is_made_with_is_in_its_runs(router):
    heard = Heard()
    chat = chat_of(router, tags=["mine"], metadata={"team": "blue"}, callbacks=[heard], name="Desk")
    collector = RunCollectorCallbackHandler()
    chat.invoke("hello", {"callbacks": [collector]})
    (run,) = collector.traced_runs
    assert run.name == "Desk"
    assert "mine" in run.tags
    assert heard.starts[0][1]["team"] == "blue"
    chat_of(router, metadata={"team": "red"}).invoke("hello", {"callbacks": [heard]})
    assert heard.starts[-1][1]["team"] == "red"


# -- what a chat model is besides


def test_its_settings_of_one_call_are_declared(chat):
    specs = {spec.id for spec in chat.config_specs}
    assert specs == {"eccos_model", "eccos_min_quality", "eccos_max_cost_usd"}


def test_tokens_are_counted_without_a_vocabulary(chat):
    assert chat.get_num_tokens("x" * 40) == 10
    assert chat.get_num_tokens_from_messages([HumanMessage("x" * 40)]) > 10
    counted = chat.model_copy(update={"custom_get_token_ids": lambda text: list(range(len(text)))})
    assert counted.get_num_tokens("four") == 4


def test_a_copy_answers_as_the_original_does(fitted):
    chat = ChatEccos({name: FakeChat(model_name=name) for name in NAMES}, Router(fitted._learnt))
    expected = chat.invoke(QUERIES[0]).text
    assert pickle.loads(pickle.dumps(chat)).invoke(QUERIES[0]).text == expected
    assert copy.deepcopy(chat).invoke(QUERIES[0]).text == expected
    assert copy.deepcopy(chat_of(chat.router)).invoke(QUERIES[0]).text == expected


def test_a_policy_can_be_configured_at_run_time(chat):
    from langchain_core.runnables import ConfigurableField

    asked = chat.configurable_fields(policy=ConfigurableField(id="policy"))
    assert model_of(asked.invoke("hello", {"configurable": {"policy": Policy(min_quality=1.0)}})) == "large"


def test_nothing_is_asked_for_no_message_and_the_run_says_so(chat):
    collector = RunCollectorCallbackHandler()
    with pytest.raises(ConfigError, match="no message"):
        chat.invoke([], {"callbacks": [collector]})
    assert "no message" in collector.traced_runs[0].error
