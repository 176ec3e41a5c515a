"""`EccosSelector`: the tool whose model is worth it, within what the dispatcher has free; and the tools of an index."""

import asyncio
from types import SimpleNamespace

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.base_selector import BaseSelector
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import CompletionResponse, MockLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.retrievers import RouterRetriever
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool, ToolMetadata

from eccos_integrations import ConfigError, Policy, Router
from eccos_integrations.serving.dispatch import BackpressureError, Dispatcher
from llamaindex_eccos.decisions import planned
from llamaindex_eccos.events import EccosRouteEvent
from llamaindex_eccos.selector import EccosSelector, EccosSelectorResult, build_query_engine_tools
from tests.llamaindex_members import EASY, HARD, KEY, make_router, pool_of

BOTH = [ToolMetadata("Knows all.", name="large"), ToolMetadata("Knows little.", name="small")]


def fit(**small):
    """A router of `large` and `small`: small is as good on sums only, and has what is given."""
    return make_router(pool_of(small=small))


@pytest.fixture(scope="module")
def router():
    return fit()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=8))
    monkeypatch.setattr(Settings, "_callback_manager", None)


class Named(MockLLM):
    """Answers with its name."""

    name: str = ""
    api_key: str = KEY

    def __init__(self, name):
        super().__init__()
        self.name = name

    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=self.name)


def llms():
    return {name: Named(name) for name in ("large", "small")}


def engine(selector, **settings):
    index = VectorStoreIndex([TextNode(text=text) for text in ("one is a number", "Fermat was a lawyer")])
    return RouterQueryEngine(selector, build_query_engine_tools(index, llms(), **settings))


@pytest.fixture
def heard():
    """Route events, as the instrumentation hears them."""

    class Handler(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, EccosRouteEvent):
                events.append(event)

    events, root = [], get_dispatcher()
    handler = Handler()
    root.add_event_handler(handler)
    yield events
    root.event_handlers.remove(handler)


async def selected(how, selector, tools, query):
    return selector.select(tools, query) if how == "sync" else await selector.aselect(tools, query)


# -- the choice


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_each_query_goes_to_the_tool_of_the_model_that_is_worth_it(router, how):
    selector = EccosSelector(router)
    for query, model, position in [(EASY, "small", 1), (HARD, "large", 0)]:
        result = await selected(how, selector, BOTH, QueryBundle(query))
        assert isinstance(result, EccosSelectorResult)
        assert (result.model, result.ind) == (model, position)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_the_result_holds_the_decision_and_its_id_takes_feedback(router, how):
    result = await selected(how, EccosSelector(router), BOTH, EASY)
    forecast = router.forecast([EASY]).select(["small"])
    assert result.quality == pytest.approx(float(forecast.quality[0, 0]))
    assert result.cost_usd == pytest.approx(float(forecast.cost_usd[0, 0]))
    assert result.floor_met
    assert result.reason == "routed at the current prices"
    before = len(router.feedbacks)
    router.feedback(result.decision_id, latency_s=1.0)
    assert len(router.feedbacks) == before + 1


def test_only_models_that_have_a_tool_are_chosen_from(router):
    result = EccosSelector(router).select([ToolMetadata("Knows little.", name="small")], HARD)
    assert (result.ind, result.model) == (0, "small")


def test_the_policy_of_the_selector_replaces_that_of_the_router(router):
    selector = EccosSelector(router, policy=Policy(min_quality=0.0))
    assert selector.select(BOTH, HARD).model == "small"


def test_bindings_name_the_model_of_each_tool(router):
    selector = EccosSelector(router, bindings={"archive": "large", "faq": "small", "not there today": "small"})
    tools = [ToolMetadata("Short answers.", name="faq"), ToolMetadata("All there is.", name="archive")]
    assert [selector.select(tools, query).ind for query in (EASY, HARD)] == [0, 1]


def test_it_is_a_selector_without_prompts(router):
    selector = EccosSelector(router)
    assert isinstance(selector, BaseSelector)
    assert selector.get_prompts() == {}


async def test_within_a_plan_the_planned_model_is_selected_and_keeps_its_decision(router):
    selector = EccosSelector(router)
    plan = router.plan([EASY], Policy(min_quality=0.99))
    decision = plan.decisions[0]
    other = router.plan([HARD]).decisions[0]
    assert other.model == "large"
    with planned(other, plan.forecast):
        result = await selector.aselect(BOTH, EASY)
    assert (result.model, result.decision_id) == ("large", other.id)
    with planned(decision, plan.forecast):
        assert selector.select(BOTH, EASY).decision_id == decision.id


async def test_a_plan_of_another_router_is_not_meant_for_it(router, sample_parts):
    other = Router.fit(sample_parts[0], predictor="prior").plan([HARD])
    with planned(other.decisions[0], other.forecast):
        result = await EccosSelector(router).aselect(BOTH, EASY)
    assert (result.model, result.reason) == ("small", "routed at the current prices")


# -- within load


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_a_model_that_others_keep_busy_is_passed_over(how):
    router = fit(max_concurrency=1)
    selector = EccosSelector(router)
    with selector.dispatcher.ticket(EASY, candidates=["small"]):
        assert (await selected(how, selector, BOTH, EASY)).model == "large"
    assert (await selected(how, selector, BOTH, EASY)).model == "small"


async def test_a_selection_counts_as_a_request_of_its_model():
    router = fit(requests_per_minute=3)
    selector = EccosSelector(router)
    models = [(await selector.aselect(BOTH, EASY)).model for _ in range(5)]
    assert models == ["small"] * 3 + ["large"] * 2


async def test_queries_selected_for_together_are_decided_together(monkeypatch):
    router = fit(max_concurrency=3)
    with Dispatcher(router, window_s=1.0) as dispatcher:
        selector, sizes, forecast = EccosSelector(router, dispatcher=dispatcher), [], router.forecast
        monkeypatch.setattr(
            router, "forecast", lambda queries, *rest: sizes.append(len(queries)) or forecast(queries, *rest)
        )
        results = await asyncio.gather(*(selector.aselect(BOTH, EASY) for _ in range(8)))
    assert sizes == [8]
    assert sorted(result.model for result in results) == ["large"] * 5 + ["small"] * 3


def test_a_selection_says_nothing_of_a_models_health():
    router = fit()
    with Dispatcher(router, max_attempts=1) as dispatcher:
        selector = EccosSelector(router, dispatcher=dispatcher)
        for _ in range(3):
            assert selector.select(BOTH, EASY).model == "small"
            with pytest.raises(TimeoutError):
                dispatcher.call(EASY, lambda ticket: fail(), candidates=["small"])
        assert selector.select(BOTH, EASY).model == "large"  # three failures in a row, and it rests


def fail():
    raise TimeoutError


def test_where_no_tool_has_room_in_time_it_says_when_to_try_again():
    router = fit(max_concurrency=1)
    with Dispatcher(router, deadline_s=0.1) as dispatcher:
        selector = EccosSelector(router, dispatcher=dispatcher)
        with dispatcher.ticket(EASY, candidates=["small"]), pytest.raises(BackpressureError, match="try again in"):
            selector.select(BOTH[1:], EASY)


# -- in engines


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(("query", "model"), [(EASY, "small"), (HARD, "large")])
async def test_a_router_query_engine_answers_by_the_selected_model_and_its_metadata_say_so(router, how, query, model):
    asked = engine(EccosSelector(router), similarity_top_k=1)
    response = asked.query(query) if how == "sync" else await asked.aquery(query)
    assert str(response) == model
    result = response.metadata["selector_result"]
    assert (result.model, result.ind) == (model, ["large", "small"].index(model))
    assert KEY not in repr(response.metadata)


async def test_gathered_queries_of_a_router_query_engine_all_get_their_own_tool(router):
    asked = engine(EccosSelector(router))
    responses = await asyncio.gather(*(asked.aquery(query) for query in [EASY, HARD] * 4))
    assert [str(response) for response in responses] == ["small", "large"] * 4


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_a_router_retriever_retrieves_by_the_bound_retriever(router, how):
    def tool(name, text):
        index = VectorStoreIndex([TextNode(text=text)])
        return RetrieverTool(index.as_retriever(), ToolMetadata(text, name=name))

    selector = EccosSelector(router, bindings={"sums": "small", "proofs": "large"})
    retriever = RouterRetriever(selector, [tool("sums", "of numbers"), tool("proofs", "of theorems")])
    for query, text in [(EASY, "of numbers"), (HARD, "of theorems")]:
        nodes = retriever.retrieve(query) if how == "sync" else await retriever.aretrieve(query)
        assert [node.text for node in nodes] == [text]


async def test_a_selection_is_announced_once_without_the_query(router, heard):
    result = await EccosSelector(router).aselect(BOTH, HARD)
    assert [(event.model, event.decision_id) for event in heard] == [("large", result.decision_id)]
    assert HARD not in heard[0].model_dump_json()


# -- the tools of an index


def test_the_tools_of_an_index_are_named_as_their_models_and_share_its_settings():
    index = VectorStoreIndex([TextNode(text=f"number {i}") for i in range(5)])
    tools = build_query_engine_tools(index, llms(), similarity_top_k=3)
    assert [tool.metadata.name for tool in tools] == ["large", "small"]
    for tool in tools:
        response = tool.query_engine.query("which?")
        assert str(response) == tool.metadata.name
        assert len(response.source_nodes) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "there are none"), ({"small": SimpleNamespace(api_key=KEY)}, "'small' is a SimpleNamespace")],
)
def test_what_is_no_llm_makes_no_tool(given, words):
    with pytest.raises(ConfigError, match=words) as error:
        build_query_engine_tools(VectorStoreIndex([]), given)
    assert KEY not in str(error.value)


# -- errors


@pytest.mark.parametrize(
    ("bindings", "tools", "words"),
    [
        (None, [ToolMetadata("x", name="faq")], r"'faq' is bound to no model; name it .* \['large', 'small'\]"),
        ({"faq": "small"}, [ToolMetadata("x", name="large")], "'large' is bound to no model"),
        (
            {"a": "small", "b": "small"},
            [ToolMetadata("x", name=n) for n in "ab"],
            "'a' and 'b' are both bound to 'small'",
        ),
        (None, ["only words"], "has no name"),
        (None, [], "there are none"),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
async def test_tools_that_are_not_each_bound_to_a_model_are_refused(router, how, bindings, tools, words):
    with pytest.raises(ConfigError, match=words):
        await selected(how, EccosSelector(router, bindings=bindings), tools, EASY)


def test_what_is_not_of_the_router_is_refused_at_once(router):
    with pytest.raises(ConfigError, match="'faq' is bound to 'medium'; give one of"):
        EccosSelector(router, bindings={"faq": "medium"})
    with pytest.raises(ConfigError, match="another router's"):
        EccosSelector(router, dispatcher=Dispatcher(fit()))
    with pytest.raises(ConfigError, match="capacity"):
        EccosSelector(router, policy=Policy(capacity={"medium": 1}))
