"""Batches of queries: who decides is found in the engine, and all that it asks for a query goes as planned."""

import asyncio

import pytest
from llama_index.core import Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import CustomQueryEngine, RouterQueryEngine, TransformQueryEngine
from llama_index.core.schema import QueryBundle, TextNode

from eccos_integrations import ConfigError, Policy
from llamaindex_eccos.batch import achat_batch, acomplete_batch, aquery_batch, query_batch
from llamaindex_eccos.decisions import PLANNED
from llamaindex_eccos.selector import EccosSelector, build_query_engine_tools
from tests.llamaindex_batches import PROOFS, SUMS, Named, chat_of, counted_plans, engine_of, fit, llm_of, model_of


@pytest.fixture(scope="module")
def router():
    return fit()


@pytest.fixture(scope="module")
def twin():
    """A router that knows the same, and is asked for what to expect."""
    return fit()


@pytest.fixture
def sizes(router, monkeypatch):
    """Of the batches that the router plans."""
    return counted_plans(router, monkeypatch)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=8))
    monkeypatch.setattr(Settings, "_callback_manager", None)


# -- as planned


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_all_that_an_engine_asks_for_one_query_goes_to_its_planned_model(router, how):
    llm, members = llm_of(router, Policy(min_quality=0.0, capacity={"small": 2}))
    nodes = [TextNode(text=f"page {i}") for i in range(3)]
    engine = SummaryIndex(nodes).as_query_engine(llm=llm, response_mode="accumulate", use_async=True)
    run = asyncio.to_thread(query_batch, engine, SUMS[:4]) if how == "sync" else aquery_batch(engine, SUMS[:4])
    await run
    asked = {text: {name for name, member in members.items() if any(text in prompt for prompt in member._asked)}
             for text in SUMS[:4]}  # fmt: skip
    assert sorted(map(sorted, asked.values())) == [["large"], ["large"], ["small"], ["small"]]
    assert sum(len(member._asked) for member in members.values()) >= 4


async def test_an_answer_of_an_engine_says_which_model_gave_it_and_takes_feedback(router):
    llm, members = llm_of(router, Policy(min_quality=0.0, capacity={"small": 2}))
    engine = SummaryIndex([TextNode(text="a page")]).as_query_engine(llm=llm)
    answers = await aquery_batch(engine, SUMS[:4])
    for text, answer in zip(SUMS[:4], answers, strict=True):
        told = answer.metadata["eccos"]
        assert any(text in prompt for prompt in members[told["model"]]._asked)
        router.feedback(told["decision_id"], quality=1.0)


async def test_each_query_travels_with_its_own_decision_and_forecast(router):
    class Spy(CustomQueryEngine):
        def custom_query(self, query_str):
            raise AssertionError

        async def acustom_query(self, query_str):
            return PLANNED.get()

    texts = [SUMS[0], PROOFS[0], SUMS[1]]
    plans = await aquery_batch(Spy(), texts, llm=llm_of(router)[0])
    assert len({plan.decision.id for plan in plans}) == 3
    for text, plan in zip(texts, plans, strict=True):
        assert plan.forecast.quality == pytest.approx(router.forecast([text]).quality)


async def test_query_bundles_are_planned_by_their_text(router, twin):
    llm, _ = llm_of(router)
    answers = await aquery_batch(engine_of(llm), [QueryBundle(PROOFS[0]), SUMS[0]])
    assert [model_of(answer) for answer in answers] == twin.plan([PROOFS[0], SUMS[0]]).models == ["large", "small"]


# -- who decides


async def test_a_router_query_engine_is_planned_for_by_its_selector(router, sizes):
    index = VectorStoreIndex([TextNode(text="one is a number")])
    selector = EccosSelector(router, Policy(min_quality=0.0, capacity={"small": 3}))
    engine = RouterQueryEngine(selector, build_query_engine_tools(index, {name: Named(name) for name in router.models}))
    answers = await aquery_batch(engine, SUMS)
    assert sizes == [8]
    models = [model_of(answer) for answer in answers]
    assert models.count("small") == 3
    assert models == [answer.metadata["selector_result"].model for answer in answers]


@pytest.mark.parametrize("wrap", ["transform", "router", "custom"])
async def test_the_llm_is_found_deep_inside(router, sizes, wrap):
    llm, _ = llm_of(router)
    inner = engine_of(llm)

    class Own(CustomQueryEngine):
        steps: dict

        def custom_query(self, query_str):
            return str(self.steps["first"][0].query(query_str))

    engine = {
        "transform": lambda: TransformQueryEngine(inner, HyDEQueryTransform(llm=MockLLM())),
        "router": lambda: RouterQueryEngine(
            EccosSelector(router, bindings={"all": "small"}), [_tool(inner)], llm=MockLLM()
        ),
        "custom": lambda: Own(steps={"first": [inner]}),
    }[wrap]()
    assert len(await aquery_batch(engine, SUMS)) == 8
    assert sizes == [8]


def _tool(engine):
    tool = build_query_engine_tools(SummaryIndex([]), {"all": MockLLM()})[0]
    tool._query_engine = engine
    return tool


async def test_an_engine_without_any_says_what_to_give_and_takes_it(router, sizes):
    engine, (llm, _) = engine_of(MockLLM()), llm_of(router)
    with pytest.raises(ConfigError, match="no EccosLLM and no EccosSelector found in the RetrieverQueryEngine; make"):
        await aquery_batch(engine, SUMS)
    assert len(await aquery_batch(engine, SUMS, llm=llm)) == 8
    assert sizes == [8]


async def test_an_engine_with_several_that_differ_has_to_be_told_which(router, twin, sizes):
    llm, _ = llm_of(router)
    other, _ = llm_of(twin)
    engine = TransformQueryEngine(engine_of(llm), HyDEQueryTransform(llm=MockLLM()))
    engine._other = engine_of(other)._response_synthesizer
    with pytest.raises(ConfigError, match="several EccosLLMs or EccosSelectors that decide differently; give llm="):
        await aquery_batch(engine, SUMS)
    await aquery_batch(engine, SUMS, llm=llm)
    assert sizes == [8]


@pytest.mark.parametrize(
    "call",
    [
        lambda: acomplete_batch(MockLLM(), SUMS),
        lambda: achat_batch(MockLLM(), [chat_of(SUMS[0])]),
        lambda: aquery_batch(engine_of(MockLLM()), SUMS, llm=MockLLM()),
    ],
)
async def test_an_llm_that_decides_nothing_is_refused(call):
    with pytest.raises(ConfigError, match="llm: got a MockLLM; give the EccosLLM that decides"):
        await call()
