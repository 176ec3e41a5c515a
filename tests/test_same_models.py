"""LangChain and LlamaIndex are two ways to one router: same outcomes, same policy, same models."""

import pytest
from langchain_core.runnables import RunnableLambda
from llama_index.core import SummaryIndex
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.tools import ToolMetadata

from eccos_integrations import Policy, Router
from langchain_eccos import RunnableRouter
from llamaindex_eccos import EccosLLM
from llamaindex_eccos.batch import chat_batch, complete_batch, query_batch
from llamaindex_eccos.selector import EccosSelector, build_query_engine_tools

POLICIES = {
    "a floor by the best": Policy(min_quality=0.95, relative_to="best"),
    "an absolute floor": Policy(min_quality=0.78),
    "a budget": Policy(max_mean_cost_usd=5e-4),
    "a floor and a capacity": Policy(min_quality=0.9, relative_to="best", capacity={"deepseek-v2.5-0908": 5}),
}


@pytest.fixture(scope="module")
def texts(sample_parts):
    return sample_parts[1].queries[:24]


@pytest.fixture(scope="module", params=POLICIES)
def pair(request, sample_parts):
    """One way in for each framework, each with a router of its own, fitted on one table with one policy."""
    ours, theirs = [
        Router.fit(sample_parts[0], policy=POLICIES[request.param], predictor="retrieval", seed=0) for _ in range(2)
    ]
    runnable = RunnableRouter(members={name: _says(name) for name in ours.models}, router=ours)
    return runnable, EccosLLM(members={name: MockLLM(max_tokens=1) for name in theirs.models}, router=theirs)


def _says(name):
    return RunnableLambda(lambda _: name)


def told(answer):
    return answer.additional_kwargs["eccos"]["model"]


def test_batches_of_prompts_and_of_chats_go_to_the_models_of_langchains_batch(pair, texts):
    runnable, llm = pair
    models = runnable.batch(texts)
    assert len(set(models)) > 1
    assert [told(answer) for answer in complete_batch(llm, texts)] == models
    assert [told(answer) for answer in chat_batch(llm, [[ChatMessage(text)] for text in texts])] == models


def test_a_batch_of_queries_selects_the_models_of_langchains_batch(pair, texts):
    runnable, llm = pair
    tools = build_query_engine_tools(SummaryIndex([]), dict(llm.members))
    engine = RouterQueryEngine(EccosSelector(llm.router), tools, llm=MockLLM())
    selected = [answer.metadata["selector_result"].model for answer in query_batch(engine, texts)]
    assert selected == runnable.batch(texts)


def test_single_calls_go_to_the_same_models(pair, texts):
    runnable, llm = pair
    selector = EccosSelector(llm.router)
    tools = [ToolMetadata("", name=name) for name in llm.members]
    for text in texts[:10]:
        model = runnable.invoke(text)
        assert told(llm.complete(text)) == told(llm.chat([ChatMessage(text)])) == model
        assert selector.select(tools, text).model == model
