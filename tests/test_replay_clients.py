"""Replay over HTTP, asked by the clients people use: OpenAI's own, LangChain's and LlamaIndex's."""

import asyncio
import math
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from eccos_integrations import Model, ModelPool
from eccos_integrations.replay import Faults, ReplayProvider, ReplayServer, load_sample_references, replay
from eccos_integrations.serving.health import fault

openai = pytest.importorskip("openai", reason="openai is not installed")
MODEL = "gpt-4o-mini-2024-07-18"


class City(BaseModel):
    """A city."""

    name: str
    people: int = Field(ge=1000)
    kind: Literal["large", "small"]
    twin: str | None = None


def add(a: int, b: float) -> float:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def recorded(sample):
    return replay(sample, load_sample_references())[MODEL](sample.queries[0])


@pytest.fixture(scope="module")
def question(sample):
    return sample.queries[0]


@pytest.fixture
def serve(sample):
    """Begins a server; it ends with the test."""
    servers = []

    def begin(faults=None, **limits):
        pool = ModelPool([Model(name=MODEL, **limits)])
        provider = ReplayProvider(sample, pool, load_sample_references(), faults, speed=math.inf)
        servers.append(ReplayServer(provider).__enter__())
        return servers[-1]

    yield begin
    for server in servers:
        server.__exit__(None, None, None)


def client_of(server):
    return openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)


def ask(server, question, **fields):
    messages = [{"role": "user", "content": question}]
    return client_of(server).chat.completions.create(model=MODEL, messages=messages, **fields)


def test_openais_client_understands_answers_streams_and_models(serve, question, recorded):
    server = serve()
    answer = ask(server, question)
    assert answer.choices[0].message.content == recorded.text
    assert answer.usage.total_tokens == recorded.input_tokens + recorded.output_tokens
    chunks = list(ask(server, question, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == recorded.text
    assert chunks[-1].usage == answer.usage
    assert [model.id for model in client_of(server).models.list()] == [MODEL]


def failure(server, question, *, stream):
    with pytest.raises(Exception) as failed:  # noqa: PT011  # which one is what the tests look at
        list(ask(server, question, stream=stream))
    return failed.value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["error", "hang", "malformed", "cut"])
def test_a_fault_reaches_our_health_through_openais_client_as_failing(serve, question, kind, stream):
    server = serve(Faults(**{f"{kind}_rate": 1}, hang_s=0.05))
    assert fault(failure(server, question, stream=stream)).kind == "failing"


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_reaches_our_health_through_openais_client_as_throttled(serve, question, stream):
    server = serve(requests_per_minute=1)
    ask(server, question)
    refused = failure(server, question, stream=stream)
    assert isinstance(refused, openai.RateLimitError)
    assert fault(refused).kind == "throttled"
    assert 50 < fault(refused).retry_s <= 60


@pytest.fixture
def langchain_model(serve):
    from_langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    return from_langchain.ChatOpenAI(base_url=serve().url, api_key="x", model=MODEL, stream_usage=True)


async def test_langchains_model_answers_and_streams(langchain_model, question, recorded):
    answer = langchain_model.invoke(question)
    assert answer.content == recorded.text
    assert answer.usage_metadata["output_tokens"] == recorded.output_tokens
    assert (await langchain_model.ainvoke(question)).content == recorded.text
    chunks = [chunk async for chunk in langchain_model.astream(question)]
    assert "".join(chunk.content for chunk in chunks) == recorded.text
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == (
        recorded.output_tokens
    )


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchains_structured_output_is_valid(langchain_model, method):
    city = langchain_model.with_structured_output(City, method=method).invoke("a small city of 5000")
    assert (city.people, city.kind) == (5000, "small")


def test_langchains_tools_are_called_in_one_piece_and_in_many(langchain_model):
    model = langchain_model.bind_tools([add])
    whole = None
    for chunk in model.stream("add 3 and 4.5"):
        whole = chunk if whole is None else whole + chunk
    for message in (whole, model.invoke("add 3 and 4.5")):
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [("add", {"a": 3, "b": 4.5})]


@pytest.fixture
def llamaindex_model(serve):
    from_llamaindex = pytest.importorskip(
        "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is not installed"
    )
    return from_llamaindex.OpenAILike(
        api_base=serve().url, api_key="x", model=MODEL, is_chat_model=True, is_function_calling_model=True
    )


async def test_llamaindexs_model_answers_and_streams(llamaindex_model, question, recorded):
    from llama_index.core.llms import ChatMessage

    asked = [ChatMessage(role="user", content=question)]
    assert llamaindex_model.chat(asked).message.content == recorded.text
    assert (await llamaindex_model.achat(asked)).raw.usage.completion_tokens == recorded.output_tokens
    assert list(llamaindex_model.stream_chat(asked))[-1].message.content == recorded.text
    chunks = [chunk async for chunk in await llamaindex_model.astream_chat(asked)]
    assert chunks[-1].message.content == recorded.text


def test_llamaindexs_tools_are_called(llamaindex_model):
    from llama_index.core.tools import FunctionTool

    tools = [FunctionTool.from_defaults(fn=add)]
    for response in (
        llamaindex_model.chat_with_tools(tools, user_msg="add 3 and 4.5"),
        asyncio.run(llamaindex_model.achat_with_tools(tools, user_msg="add 3 and 4.5")),
    ):
        (call,) = llamaindex_model.get_tool_calls_from_response(response)
        assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 3, "b": 4.5})
