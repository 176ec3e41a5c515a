"""`EccosLLM` over OpenAI's own client and a provider on loopback: its limits hold, and no fault costs an answer."""

import asyncio
import math
from collections import Counter

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from eccos_integrations import Model, ModelPool, Policy, Router
from eccos_integrations.replay import Faults, ReplayProvider, ReplayServer, load_sample_references
from eccos_integrations.serving.books import Books
from eccos_integrations.serving.dispatch import Dispatcher, Usage
from llamaindex_eccos import EccosLLM

openai_like = pytest.importorskip(
    "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is not installed"
)


class City(BaseModel):
    """A city."""

    name: str
    people: int


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def table(sample):
    return sample.select(models=sample.models[:3]).take(range(60))


@pytest.fixture
def over(table):
    """An LLM over a provider that may know of limits that the pool does not, and its log."""
    servers = []

    def begin(faults=None, speed=math.inf, limits=None, unknown=None, timeout=30.0):
        prices = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 2.0}
        pool = ModelPool([Model(name=name, **prices, **(limits or {})) for name in table.models])
        theirs = ModelPool([Model(name=name, **(unknown or {}).get(name, limits or {})) for name in table.models])
        provider = ReplayProvider(table, theirs, load_sample_references(), faults, speed=speed)
        servers.append(ReplayServer(provider).__enter__())
        router = Router.fit(table, pool, policy=Policy(min_quality=0.9, relative_to="best"), predictor="prior")
        members = {
            name: openai_like.OpenAILike(
                model=name,
                api_base=servers[-1].url,
                api_key="sk-planted",
                is_chat_model=True,
                is_function_calling_model=True,
                context_window=128_000,
                max_retries=0,
                timeout=timeout,
                additional_kwargs={"stream_options": {"include_usage": True}},
            )
            for name in table.models
        }
        dispatcher = Dispatcher(router, max_attempts=10)
        return EccosLLM(members=members, router=router, dispatcher=dispatcher), provider

    yield begin
    for server in servers:
        server.__exit__(None, None, None)


def model_of(response):
    return response.additional_kwargs["eccos"]["model"]


def user(text):
    return [ChatMessage(text, role="user")]


async def all_of(llm, table):
    """Every question at once, half of them streamed."""

    async def streamed(question):
        return [chunk async for chunk in await llm.astream_chat(user(question))][-1]

    async with asyncio.timeout(60):
        return await asyncio.gather(
            *(llm.achat(user(question)) if i % 2 else streamed(question) for i, question in enumerate(table.queries))
        )


def recorded(provider, table, responses):
    return [
        provider.recorded(model_of(response), question).text
        for question, response in zip(table.queries, responses, strict=True)
    ]


async def test_limits_are_never_exceeded_and_every_question_is_answered(over, table):
    limits = {
        "max_concurrency": 3,
        "requests_per_minute": 21,
        "tokens_per_minute": 1_000_000,
        "max_output_tokens": 4000,
    }
    llm, provider = over(speed=500, limits=limits)
    responses = await all_of(llm, table)
    assert [response.message.content for response in responses] == recorded(provider, table, responses)
    assert provider.violations() == {}
    assert max(Counter(entry.model for entry in provider.log).values()) <= 21
    assert len(provider.log) == len(table.queries)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(error_rate=0.25),
        Faults(malformed_rate=0.25),
        Faults(hang_rate=0.1, hang_s=20),
        Faults(error_rate=0.1, malformed_rate=0.1, slow_rate=0.1, slow_factor=3, seed=1),
    ],
    ids=["error", "malformed", "hang", "all-together"],
)
async def test_no_fault_loses_an_answer_or_breaks_a_limit(over, table, faults):
    limits = {"max_concurrency": 4, "requests_per_minute": 60}
    llm, provider = over(faults, speed=2000, limits=limits, timeout=0.5)
    responses = await all_of(llm, table)
    assert [response.message.content for response in responses] == recorded(provider, table, responses)
    assert provider.violations() == {}
    assert len(provider.log) > len(table.queries)


async def test_a_provider_that_says_when_to_come_back_is_left_alone_till_then(over, table):
    full = table.models[0]
    llm, provider = over(unknown={full: {"requests_per_minute": 5}}, limits={"max_concurrency": 4})
    responses = await all_of(llm, table)
    assert [response.message.content for response in responses] == recorded(provider, table, responses)
    assert provider.violations().keys() == {full}
    assert provider.violations()[full]["requests_per_minute"] <= 4  # those that were under way already


async def test_tools_are_called_and_their_results_go_back_to_the_caller(over, table):
    llm, provider = over()
    tools = [FunctionTool.from_defaults(fn=add)]
    for response in (
        llm.chat_with_tools(tools, user_msg="add 3 and 4"),
        await llm.achat_with_tools(tools, user_msg="add 3 and 4"),
        list(llm.stream_chat_with_tools(tools, user_msg="add 3 and 4"))[-1],
        [chunk async for chunk in await llm.astream_chat_with_tools(tools, user_msg="add 3 and 4")][-1],
    ):
        (call,) = llm.get_tool_calls_from_response(response)
        assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 3, "b": 4})
        result = ChatMessage("7", role="tool", additional_kwargs={"tool_call_id": call.tool_id})
        following = await llm.achat([*user("add 3 and 4"), response.message, result])
        assert model_of(following) == model_of(response)
    assert len(provider.log) == 8


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_comes_to_its_end(over, streaming):
    llm, _ = over(Faults(error_rate=0.2, seed=3))
    tools = [FunctionTool.from_defaults(fn=add, return_direct=True)]
    answer = await FunctionAgent(tools=tools, llm=llm, streaming=streaming).run(user_msg="add 3 and 4")
    assert str(answer) == "7"


async def test_objects_are_valid_whichever_way_the_member_makes_them(over):
    llm, _ = over()
    prompt = PromptTemplate("{query_str}")
    given = {"query_str": "a city of 5000"}
    assert llm.structured_predict(City, prompt, **given).people == 5000
    assert (await llm.astructured_predict(City, prompt, **given)).people == 5000
    assert list(llm.stream_structured_predict(City, prompt, **given))[-1].people == 5000
    pieces = [piece async for piece in await llm.astream_structured_predict(City, prompt, **given)]
    assert pieces[-1].people == 5000


async def test_what_the_provider_says_was_used_is_known_on_every_way(over, table, monkeypatch):
    used, end = [], Books.end

    def spy(self, ticket, usage=None, **options):
        used.append((ticket.model, usage))
        return end(self, ticket, usage, **options)

    monkeypatch.setattr(Books, "end", spy)
    llm, provider = over()
    question, prompt = table.queries[0], PromptTemplate("{query_str}")
    llm.chat(user(question))
    list(llm.stream_chat(user(question)))
    await llm.acomplete(question)
    await llm.apredict(prompt, query_str=question)
    [_ async for _ in await llm.astream(prompt, query_str=question)]
    assert len(used) == 5
    for model, usage in used:
        answer = provider.recorded(model, question)
        assert usage == Usage(answer.input_tokens, answer.output_tokens)


def test_a_cap_of_the_pool_is_kept_by_the_provider(over, table):
    llm, provider = over(limits={"max_output_tokens": 7})
    llm.predict(PromptTemplate("{query_str}"), query_str=table.queries[0])
    llm.complete(table.queries[0], max_tokens=5)
    assert [entry.output_tokens for entry in provider.log] == [7, 5]


def test_no_view_shows_a_key(over):
    llm, _ = over()
    llm.complete("hello")
    shown = [
        repr(llm),
        str(llm),
        str(llm.to_dict()),
        llm.to_json(),
        repr(llm.as_structured_llm(City)),
    ]
    assert not any("sk-planted" in view for view in shown)
