"""What a routed run shows and counts: run tree, usage, decision, streams, graph, schemas, other members' errors."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableGenerator, RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.graph import START, MessagesState, StateGraph

from eccos_integrations import ConfigError
from langchain_eccos import RunnableRouter
from tests.langchain_router import MODELS, QUERIES, Books, ChatModel, at_once, chat_models, members, router_of

USED = 3, 4, 2  # tokens of one call of the fakes: of the input, of the answer, cached

SMALL = {"configurable": {"eccos_model": "small"}}


class ApiError(Exception):
    status_code = 500


@pytest.fixture
def router():
    return router_of()


@pytest.fixture
def dispatcher(router):
    return at_once(router)


def runs_of(call: Any) -> list[Any]:
    collector = RunCollectorCallbackHandler()
    call({"callbacks": [collector]})
    return collector.traced_runs


async def drained(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


# One input in every way, each a function of the runnable and its config.
WAYS = {
    "invoke": lambda r, config: [r.invoke(QUERIES[0], config)],
    "ainvoke": lambda r, config: [asyncio.run(r.ainvoke(QUERIES[0], config))],
    "batch": lambda r, config: r.batch([QUERIES[0]], config),
    "abatch": lambda r, config: asyncio.run(r.abatch([QUERIES[0]], config)),
    "batch_as_completed": lambda r, config: [each[1] for each in r.batch_as_completed([QUERIES[0]], config)],
    "stream": lambda r, config: list(r.stream(QUERIES[0], config)),
    "astream": lambda r, config: asyncio.run(drained(r.astream(QUERIES[0], config))),
}


# -- the run tree


@pytest.mark.parametrize("way", WAYS)
def test_the_run_tree_is_one_chain_run_with_the_members_run_below(router, dispatcher, way):
    runnable = RunnableRouter(chat_models(), router, dispatcher=dispatcher)
    (run,) = runs_of(lambda config: WAYS[way](runnable, config))
    assert (run.name, run.run_type) == ("RunnableRouter", "chain")
    (child,) = run.child_runs
    assert (child.run_type, child.parent_run_id) == ("llm", run.id)
    assert child.name == child.metadata["eccos_model"]  # the fakes are named as the models are
    assert f"eccos:{child.metadata['eccos_model']}" in child.tags
    assert "eccos_model" not in run.metadata


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_attempt_is_a_child_of_the_same_run(router, dispatcher, way):
    models = chat_models()
    first = router.plan([QUERIES[0]]).models[0]
    models[first].failures.append(ApiError("overloaded"))
    (run,) = runs_of(lambda config: WAYS[way](RunnableRouter(models, router, dispatcher=dispatcher), config))
    failed, answered = run.child_runs
    assert "overloaded" in failed.error
    assert (failed.metadata["eccos_model"], failed.metadata["eccos_attempt"]) == (first, 1)
    assert answered.metadata["eccos_attempt"] == 2
    assert answered.metadata["eccos_model"] != first
    assert run.error is answered.error is None


def test_each_input_of_a_batch_has_a_run_of_its_own(router, dispatcher):
    runnable = RunnableRouter(chat_models(), router, dispatcher=dispatcher)
    runs = runs_of(lambda config: runnable.batch(QUERIES, {**config, "run_name": "mine"}))
    assert sorted(run.inputs["input"] for run in runs) == sorted(QUERIES)
    assert {(run.name, len(run.child_runs)) for run in runs} == {("mine", 1)}
    assert all(run.inputs["input"] in str(run.child_runs[0].inputs) for run in runs)


def test_nested_runs_stand_below_their_own_run(router, dispatcher):
    inner = RunnableLambda(lambda value: value)
    member = RunnableLambda(lambda value: inner.invoke(value))  # noqa: PLW0108  # the config comes from the context
    runnable = RunnableRouter(dict.fromkeys(MODELS, member), router, dispatcher=dispatcher)
    runs = runs_of(lambda config: runnable.batch(QUERIES, {**config, "max_concurrency": 3}))
    assert len(runs) == len(QUERIES)
    for run in runs:
        (child,) = run.child_runs
        (nested,) = child.child_runs
        assert nested.inputs["input"] == run.inputs["input"]


class Ends(BaseCallbackHandler):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def on_chain_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(type(error).__name__)


def test_a_refused_input_ends_its_run_with_its_error(router):
    ends, runnable = Ends(), RunnableRouter(members=members(), router=router)
    with pytest.raises(ConfigError):
        runnable.invoke(17, {"callbacks": [ends]})
    runnable.batch([17, QUERIES[0]], {"callbacks": [ends]}, return_exceptions=True)
    assert ends.errors == ["ConfigError"] * 2


# -- usage


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["model", "chain", "lambda"])
def test_usage_is_counted_once_and_reaches_the_books(router, way, kind):
    prompt = ChatPromptTemplate.from_template("{question}")
    wrapped = {
        "model": lambda model: model,
        "chain": lambda model: (lambda text: {"question": text}) | prompt | model | StrOutputParser(),
        "lambda": lambda model: RunnableLambda(lambda text: [model.invoke(text).text][0]),
    }[kind]
    counter = UsageMetadataCallbackHandler()
    models = {name: wrapped(model) for name, model in chat_models().items()}
    with Books() as books:
        runnable = RunnableRouter(models, router, dispatcher=at_once(router, log=books))
        WAYS[way](runnable, {"callbacks": [counter]})
    assert books.tokens == [USED]
    if "stream" not in way:
        assert sum(each["total_tokens"] for each in counter.usage_metadata.values()) == 7


def booked_by(member, router, asked=QUERIES[0]):
    with Books() as books:
        runnable = RunnableRouter(dict.fromkeys(MODELS, member), router, dispatcher=at_once(router, log=books))
        runnable.invoke(asked)
        list(runnable.stream(asked))
    return books.tokens


def test_the_calls_of_a_chain_are_summed(router):
    first, second = ChatModel(), ChatModel()
    chain = first | StrOutputParser() | {"a": second, "b": second}
    assert booked_by(chain, router) == [(9, 12, 6)] * 2


def test_usage_that_one_of_its_models_does_not_tell_is_not_known(router):
    assert booked_by(ChatModel() | StrOutputParser() | ChatModel(usage=None), router) == [None] * 2


def test_a_member_without_a_model_tells_by_its_answer(router):
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    tells = RunnableLambda(lambda _: AIMessage("hi", usage_metadata=usage))
    assert booked_by(tells, router) == [(3, 4, 0)] * 2
    assert booked_by(RunnableLambda(lambda _: "hi"), router) == [None] * 2


async def test_agents_as_members_are_decided_jointly_and_their_calls_summed(router):
    agents = {name: create_agent(model, tools=[]) for name, model in chat_models().items()}
    dispatcher, asked = at_once(router), [{"messages": [("human", query)]} for query in QUERIES]
    runnable = RunnableRouter(agents, router, dispatcher=dispatcher)
    for answers in (runnable.batch(asked), await runnable.abatch(asked)):
        assert [answer["messages"][-1].text.split(":")[1] for answer in answers] == QUERIES
    assert router.planned == [len(QUERIES)] * 2
    assert booked_by(agents["small"], router, asked[0]) == [USED] * 2


# -- the decision


@pytest.mark.parametrize("way", WAYS)
def test_the_decision_stands_on_one_message_and_in_one_event(router, dispatcher, way):
    events = []

    class Hears(BaseCallbackHandler):
        def on_custom_event(self, name, data, **_):
            events.append((name, data))

    messages = WAYS[way](RunnableRouter(chat_models(), router, dispatcher=dispatcher), {"callbacks": [Hears()]})
    (told,) = [message.response_metadata["eccos"] for message in messages if "eccos" in message.response_metadata]
    assert events == [("eccos_decision", told)]
    assert told["model"] == messages[0].text.split(":")[0]
    router.feedback(told["decision_id"], quality=1.0)


async def test_the_events_of_a_chain_show_the_decision_and_the_chunks(router, dispatcher):
    chain = RunnableLambda(str.strip) | RunnableRouter(chat_models(), router, dispatcher=dispatcher)
    events = [event async for event in chain.astream_events(" add one two ", version="v2")]
    (told,) = [event["data"] for event in events if event["name"] == "eccos_decision"]
    models = [event for event in events if event["event"] == "on_chat_model_stream"]
    assert {event["metadata"]["eccos_model"] for event in models} == {told["model"]}
    (whole,) = [event["data"]["output"] for event in events
                if event["event"] == "on_chain_end" and event["name"] == "RunnableRouter"]  # fmt: skip
    assert whole.text == f"{told['model']}:addonetwo"


def test_the_members_own_message_is_left_alone(router, dispatcher):
    own = AIMessage("hi")
    runnable = RunnableRouter(dict.fromkeys(MODELS, lambda _: own), router, dispatcher=dispatcher)
    assert runnable.invoke("add").response_metadata["eccos"]["model"] in MODELS
    assert own.response_metadata == {}


# -- streams


def test_a_stream_has_the_chunks_of_the_bare_member(router, dispatcher):
    bare = list(ChatModel(name="small").stream("add one two"))
    pinned = RunnableRouter(chat_models(), router, dispatcher=dispatcher).with_config(SMALL)
    for chunks in (list(pinned.stream("add one two")), asyncio.run(drained(pinned.astream("add one two")))):
        assert [chunk.content for chunk in chunks] == [chunk.content for chunk in bare]
        merged = sum(chunks[1:], chunks[0])
        assert merged.response_metadata["eccos"]["model"] == "small"
        assert merged.usage_metadata == bare[-1].usage_metadata


async def test_a_graphs_stream_of_messages_has_as_many_chunks_as_the_bare_members(router, dispatcher):
    def chunks_of(model):
        graph = StateGraph(MessagesState)
        graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.add_edge(START, "model")
        asked = {"messages": [("human", "add one two three")]}
        return [chunk.content for chunk, _ in graph.compile().stream(asked, stream_mode="messages")]

    pinned = RunnableRouter(chat_models(), router, dispatcher=dispatcher).with_config(SMALL)
    assert chunks_of(pinned) == chunks_of(ChatModel(name="small"))


def breaking(before: int, error: Exception):
    """A member whose first stream breaks after so many chunks."""
    errors = [error]

    def chunks(value):
        text = "".join(value)
        for i, word in enumerate(text.split()):
            if i == before and errors:
                raise errors.pop()
            yield word

    async def achunks(value):
        for chunk in chunks([piece async for piece in value]):
            yield chunk

    return RunnableGenerator(chunks, achunks)


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_stream_goes_elsewhere_before_its_first_chunk_only(router, dispatcher, way):
    early = RunnableRouter(dict.fromkeys(MODELS, breaking(0, ApiError("no"))), router, dispatcher=dispatcher)
    assert WAYS[way](early, {}) == QUERIES[0].split()
    late = RunnableRouter(dict.fromkeys(MODELS, breaking(2, ApiError("no"))), router, dispatcher=dispatcher)
    with pytest.raises(ApiError):
        WAYS[way](late, {})


async def test_a_stream_that_is_left_early_gives_its_place_back():
    router = router_of(max_concurrency=dict.fromkeys(MODELS, 1))
    runnable = RunnableRouter(chat_models(), router, dispatcher=at_once(router, deadline_s=20))
    pinned = runnable.with_config(SMALL)
    for _ in range(3):
        stream = runnable.stream("add one two", SMALL)
        next(stream)
        stream.close()
        astream = runnable.astream("add one two", SMALL)
        await anext(astream)
        await astream.aclose()
    assert pinned.invoke("add").text == "small:add"


# -- errors of members


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [ApiError("no"), ValueError("malformed")])
def test_the_members_own_error_reaches_the_caller(router, way, error):
    def broken(value):
        raise error

    runnable = RunnableRouter(dict.fromkeys(MODELS, broken), router, dispatcher=at_once(router, max_attempts=2))
    with pytest.raises(type(error)) as raised:
        WAYS[way](runnable, {})
    assert raised.value is error


# -- how it is drawn, and its schemas


def test_the_graph_has_a_branch_for_each_member(router):
    prompt = ChatPromptTemplate.from_template("{question}")
    kinds = {"small": prompt | ChatModel(), "medium": prompt | ChatModel() | StrOutputParser(), "large": ChatModel()}
    graph = RunnableRouter(kinds, router).get_graph()
    fork = next(node for node in graph.nodes.values() if node.name == "Router")  # as LangChain shortens it
    branches = [edge for edge in graph.edges if edge.source == fork.id]
    assert [edge.data for edge in branches] == MODELS
    assert all(edge.conditional for edge in branches)
    firsts = [graph.nodes[edge.target].name for edge in branches]
    assert firsts == ["ChatPromptTemplate", "ChatPromptTemplate", "chat"]
    last = graph.last_node()
    assert last is not None
    assert sum(edge.target == last.id for edge in graph.edges) == 3
    drawing = graph.draw_mermaid()
    assert all(f"&nbsp;{name}&nbsp;" in drawing for name in MODELS)


def test_graphs_as_members_are_drawn_whole(router):
    def agent():
        graph = StateGraph(MessagesState)
        graph.add_node("think", lambda state: state)
        graph.add_edge(START, "think")
        return graph.compile()

    graph = RunnableRouter({name: agent() for name in MODELS}, router).get_graph()
    assert {node for node in graph.nodes if node.endswith(":think")} == {f"{name}:think" for name in MODELS}


def test_types_and_schemas_are_the_members(router):
    prompt = ChatPromptTemplate.from_template("{question}")
    alike = RunnableRouter({name: prompt | ChatModel() | StrOutputParser() for name in MODELS}, router)
    assert alike.OutputType is str
    assert "question" in alike.get_input_jsonschema()["properties"]
    assert alike.get_output_jsonschema()["type"] == "string"
    unlike = RunnableRouter({"small": prompt, "medium": ChatModel(), "large": str.upper}, router)
    assert unlike.InputType is unlike.OutputType is Any
    assert "question" not in str(unlike.get_input_jsonschema())


def test_the_settings_of_a_call_are_listed_with_the_members(router):
    model = ChatModel().configurable_fields(name=ConfigurableField(id="model_name"))
    runnable = RunnableRouter(dict.fromkeys(MODELS, model), router)
    listed = {spec.id for spec in (ChatPromptTemplate.from_template("{q}") | runnable).config_specs}
    assert listed == {"eccos_model", "eccos_min_quality", "eccos_max_cost_usd", "model_name"}
    assert "eccos_model" in str(runnable.get_config_jsonschema())
    assert runnable.invoke("add", {"configurable": {"model_name": "other"}}).text == "other:add"
    assert isinstance(next(iter(runnable.stream("add"))), AIMessageChunk)
