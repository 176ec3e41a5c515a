"""Engines over an `EccosLLM` answer as they do over the member, routed by whichever of their calls, counted once."""

import asyncio
import os

import pytest
from llama_index.core import Document, PropertyGraphIndex, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import BatchEvalRunner, FaithfulnessEvaluator, RelevancyEvaluator
from llama_index.core.extractors import KeywordExtractor, QuestionsAnsweredExtractor, SummaryExtractor, TitleExtractor
from llama_index.core.indices.property_graph import SimpleLLMPathExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import CompletionResponse, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import CitationQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from llamaindex_eccos import EccosLLM
from tests.llamaindex_members import EASY, HARD, Recorder, make_router

NODES = [TextNode(text=f"Fact {i}: the sum of {i} and {i} is {2 * i}.", id_=f"n{i}") for i in range(6)]
EMBEDDING = MockEmbedding(embed_dim=8)
MODES = [mode for mode in ResponseMode if mode not in {"no_text", "context_only"}]
SCRIPT = {
    "Using only the choices above": '[{"choice": 2, "reason": "it fits"}]',
    "sub-questions": '```json\n{"items": [{"sub_question": "add the numbers 1 and 2", "tool_name": "sums"}, '
    '{"sub_question": "prove the theorem of Gauss", "tool_name": "sums"}]}\n```',
    "Relevance": "Doc: 2, Relevance: 7\nDoc: 1, Relevance: 3",
    "knowledge triplets": "(Ada, knows, Charles)",
    "YES or NO": "YES",
    "search queries": "sums\nproofs",
}


class Scripted(MockLLM):
    """Says what the script has for a prompt, else the prompt."""

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=next((answer for words, answer in SCRIPT.items() if words in prompt), prompt))


@pytest.fixture(scope="module")
def router():
    return make_router()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", EMBEDDING)
    monkeypatch.setattr(Settings, "_callback_manager", None)


def vectors():
    return VectorStoreIndex(NODES, embed_model=EMBEDDING)


def tool(llm, name="sums"):
    return QueryEngineTool.from_defaults(SummaryIndex(NODES[:1]).as_query_engine(llm=llm), name=name, description=name)


async def in_a_thread(function):
    """Outside of the running loop, as a script calls it."""
    return await asyncio.to_thread(function)


async def both(engine, text):
    return [str(engine.query(text)), str(await engine.aquery(text))]


# -- each flow: from an LLM to what comes out


async def streamed(llm):
    engine = vectors().as_query_engine(llm=llm, streaming=True)
    pieces = (await engine.aquery(HARD)).async_response_gen()
    return ["".join(engine.query(HARD).response_gen), "".join([piece async for piece in pieces])]


def chatting(mode):
    async def flow(llm):
        engine = (
            SimpleChatEngine.from_defaults(llm=llm)
            if mode == "simple"
            else vectors().as_chat_engine(chat_mode=mode, llm=llm)
        )
        said = [str(await in_a_thread(lambda: engine.chat(EASY))), str(await engine.achat(HARD))]
        engine.reset()
        said.append("".join(await in_a_thread(lambda: list(engine.stream_chat(EASY).response_gen))))
        return [*said, "".join([piece async for piece in (await engine.astream_chat(HARD)).async_response_gen()])]

    return flow


async def routed_to_an_engine(llm):
    selector = LLMSingleSelector.from_defaults(llm=llm)
    engine = RouterQueryEngine(selector, [tool(llm, "sums"), tool(llm, "proofs")], llm=llm)
    answers = [engine.query(HARD), await engine.aquery(HARD)]
    return [(str(answer), answer.metadata["selector_result"].ind) for answer in answers]


async def in_sub_questions(llm):
    generator = LLMQuestionGenerator.from_defaults(llm=llm)
    engine = SubQuestionQueryEngine.from_defaults([tool(llm)], llm=llm, question_gen=generator, verbose=False)
    return [str(await in_a_thread(lambda: engine.query(HARD))), str(await engine.aquery(HARD))]


async def reranked(llm):
    rerank = LLMRerank(llm=llm, choice_batch_size=3, top_n=3)
    nodes, query = [NodeWithScore(node=node) for node in NODES], QueryBundle(HARD)
    found = [rerank.postprocess_nodes(nodes, query), await rerank.apostprocess_nodes(nodes, query)]
    return [[(node.node_id, node.score) for node in some] for some in found]


async def cited(llm):
    return await both(CitationQueryEngine.from_args(vectors(), llm=llm, similarity_top_k=2), HARD)


async def fused(llm):
    retriever = QueryFusionRetriever([vectors().as_retriever()], llm=llm, num_queries=3, use_async=False)
    found = [retriever.retrieve(HARD), await retriever.aretrieve(HARD)]
    return [[node.node_id for node in nodes] for nodes in found]


async def evaluated(llm):
    evaluators = {"faithful": FaithfulnessEvaluator(llm=llm), "relevant": RelevancyEvaluator(llm=llm)}
    runner = BatchEvalRunner(evaluators, workers=4)
    found = await runner.aevaluate_queries(vectors().as_query_engine(llm=llm), queries=[EASY, HARD])
    return {name: [(result.query, result.passing) for result in results] for name, results in found.items()}


async def in_a_graph(llm):
    def triplets():
        extractor = SimpleLLMPathExtractor(llm=llm, num_workers=4)
        index = PropertyGraphIndex(
            NODES[:2], llm=llm, embed_model=EMBEDDING, kg_extractors=[extractor], embed_kg_nodes=False
        )
        found = index.property_graph_store.get_triplets(entity_names=["Ada"])
        return [[part.id for part in (start, end)] + [relation.label] for start, relation, end in found]

    return await in_a_thread(triplets)


def extracting(**settings):
    async def flow(llm):
        extractors = [
            SummaryExtractor(llm=llm, show_progress=False),
            KeywordExtractor(llm=llm, show_progress=False),
            QuestionsAnsweredExtractor(llm=llm, show_progress=False),
            TitleExtractor(llm=llm, show_progress=False),
        ]
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), *extractors], disable_cache=False)
        documents = [Document(text=node.text, id_=node.node_id) for node in NODES[:3]]
        nodes = [
            *await in_a_thread(lambda: pipeline.run(documents=documents, **settings)),
            *await pipeline.arun(documents=documents),
        ]
        return [sorted(node.metadata.items()) for node in nodes]

    return flow


FLOWS = {
    "streaming": streamed,
    **{mode: chatting(mode) for mode in ("simple", "context", "condense_question", "condense_plus_context")},
    "router": routed_to_an_engine,
    "sub-questions": in_sub_questions,
    "rerank": reranked,
    "citation": cited,
    "fusion": fused,
    "evaluation": evaluated,
    "graph": in_a_graph,
    "extractors": extracting(),
}


def counted(make, router=None):
    """An LLM over members, or a member alone, and its counter of tokens."""
    counter = TokenCountingHandler()
    Settings._callback_manager = None  # a manager copies the handlers that are there when it is made
    llm = make() if router is None else EccosLLM(members={name: make() for name in router.models}, router=router)
    Settings.callback_manager = llm.callback_manager = CallbackManager([counter])
    return llm, counter


async def check(flow, make, router):
    direct, direct_counter = counted(make)
    expected = await flow(direct)
    routed, counter = counted(make, router)
    assert await flow(routed) == expected
    assert len(counter.llm_token_counts) == len(direct_counter.llm_token_counts) > 0
    assert counter.total_llm_token_count == direct_counter.total_llm_token_count
    assert expected


@pytest.mark.parametrize("chats", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
async def test_a_flow_comes_to_what_it_does_with_the_member(router, flow, chats):
    await check(flow, lambda: Scripted(is_chat_model=chats), router)


@pytest.mark.parametrize("chats", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_query_engine_answers_in_every_response_mode_as_it_would_with_the_member(router, mode, chats):
    async def flow(llm):
        engine = SummaryIndex(NODES).as_query_engine(llm=llm, response_mode=mode)
        llm.callback_manager = Settings.callback_manager  # as_query_engine put the index's own there
        return await both(engine, HARD)

    await check(flow, lambda: MockLLM(is_chat_model=chats), router)


class Process(MockLLM):
    """Says which process it is in."""

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=str(os.getpid()))


def test_a_pipeline_runs_in_processes_that_are_spawned(router):
    """Each worker has a router, and so limits, of its own."""
    llm = EccosLLM(members={name: Process() for name in router.models}, router=router)
    llm.complete(EASY)  # the dispatcher's thread is running when it is pickled
    pipeline = IngestionPipeline(transformations=[SummaryExtractor(llm=llm, show_progress=False)])
    nodes = pipeline.run(nodes=NODES[:4], num_workers=2)
    processes = [int(node.metadata["section_summary"]) for node in nodes]
    assert len(processes) == 4
    assert os.getpid() not in processes


def test_what_a_pipeline_has_done_is_found_again_until_the_pool_changes(router):
    calls = []

    class Counted(MockLLM):
        @llm_completion_callback()
        def complete(self, prompt, formatted=False, **kwargs):
            calls.append(prompt)
            return CompletionResponse(text="done")

    def pipeline(member, cache=None):
        llm = EccosLLM(members={"small": member, "large": MockLLM()}, router=router)
        given = {} if cache is None else {"cache": cache}
        return IngestionPipeline(transformations=[SummaryExtractor(llm=llm, show_progress=False)], **given)

    def nodes():
        return [TextNode(text=EASY, id_="n")]

    first = pipeline(Counted())
    first.run(nodes=nodes())
    pipeline(Counted(), first.cache).run(nodes=nodes())
    assert len(calls) == 1
    pipeline(Scripted(), first.cache).run(nodes=nodes())
    assert len(calls) == 1


def test_it_can_be_the_global_llm(router):
    members = {name: Recorder(name=name) for name in router.models}
    counter = TokenCountingHandler()
    Settings.llm = EccosLLM(members=members, router=router)
    Settings.callback_manager = CallbackManager([counter])
    assert str(SummaryIndex(NODES[:1]).as_query_engine().query(HARD)).startswith("large:")
    assert isinstance(Settings.llm, EccosLLM)
    assert len(counter.llm_token_counts) == len(members["large"].calls) == 1
    assert members["small"].calls == []
