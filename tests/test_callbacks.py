"""What LLM runs cost: by model, in total, and where nobody knows."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListLLM, FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableLambda

from eccos_integrations import Model, ModelPool
from langchain_eccos.callbacks import EccosCostCallback, ModelCost, get_eccos_cost
from langchain_eccos.chat_model import ChatEccos
from langchain_eccos.runnable import RunnableRouter
from tests.fake_chat import FakeChat
from tests.langchain_router import INPUT_TOKENS, USD_PER_MILLION, USED, at_once, chat_models, router_of

POOL = ModelPool([
    Model(name="cheap", input_usd_per_million_tokens=1, output_usd_per_million_tokens=2,
          cached_input_usd_per_million_tokens=0.1),
    Model(name="dear", input_usd_per_million_tokens=10, output_usd_per_million_tokens=40),
    Model(name="unpriced"),
])  # fmt: skip


def chat(name, input_tokens, output_tokens, cached=0, **fields):
    used = {"input_tokens": input_tokens, "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens, "input_token_details": {"cache_read": cached}}  # fmt: skip
    answer = AIMessage("an answer", usage_metadata=used, response_metadata={"model_name": name})
    return FakeMessagesListChatModel(responses=[answer], **fields)


def test_costs_add_up_to_the_sums_by_hand_with_cached_tokens_at_their_own_price():
    cost = EccosCostCallback(POOL)
    config = {"callbacks": [cost]}
    for _ in range(3):
        chat("cheap", 100, 10, cached=80).invoke("x", config)
    chat("dear", 1000, 7, cached=500).invoke("x", config)  # no price for cached ones: the full one
    assert cost.by_model == {
        "cheap": ModelCost(3, 300, 240, 30, pytest.approx(3 * (20 * 1 + 80 * 0.1 + 10 * 2) / 1e6)),
        "dear": ModelCost(1, 1000, 500, 7, pytest.approx((1000 * 10 + 7 * 40) / 1e6)),
    }
    assert cost.total_cost_usd == pytest.approx(144e-6 + 10280e-6)
    assert cost.total == ModelCost(4, 1300, 740, 37, pytest.approx(10424e-6))


async def test_streams_and_asynchronous_calls_count_as_any_other():
    cost = EccosCostCallback(POOL)
    config = {"callbacks": [cost]}
    member = FakeChat(model_name="cheap")
    member.invoke("two words", config)
    whole = cost.total
    await member.ainvoke("two words", config)
    list(member.stream("two words", config))
    _ = [chunk async for chunk in member.astream("two words", config)]
    await member.abatch(["two words"] * 2, config)
    assert cost.by_model["cheap"].calls == 6
    assert cost.total_cost_usd == pytest.approx(6 * whole.cost_usd)
    assert whole.cost_usd == pytest.approx((2 * 1 + 3 * 2) / 1e6)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (chat("unpriced", 5, 5), "unpriced"),
        (chat("stranger", 5, 5), "stranger"),
        (FakeListLLM(responses=["no usage"]), "(unnamed)"),
        (FakeMessagesListChatModel(responses=[AIMessage("x", response_metadata={"model_name": "cheap"})]), "cheap"),
    ],
    ids=["no price", "no model of the pool", "no chat model", "usage unknown"],
)
def test_an_unknown_cost_is_counted_as_unknown_and_said(model, name):
    cost = EccosCostCallback(POOL)
    model.invoke("a secret", {"callbacks": [cost]})
    assert (cost.by_model[name].unknown_calls, cost.total_cost_usd) == (1, 0)
    assert repr(cost) == "EccosCostCallback(1 call, 0 USD, 1 of unknown cost)"
    line, total = cost.report().splitlines()
    assert line.startswith(f"{name}: 1 call, ")
    assert line.endswith("cost of 1 call unknown")
    assert "USD" not in total


def test_the_report_names_the_dearest_first_and_never_a_word_of_the_query():
    cost = EccosCostCallback(POOL)
    for member in (chat("cheap", 100, 10, cached=80), chat("dear", 10, 1), chat("stranger", 1, 1)):
        member.invoke("a secret", {"callbacks": [cost]})
    assert cost.report().splitlines() == [
        "dear: 1 call, 10 + 1 tokens, 0.00014 USD",
        "cheap: 1 call, 100 (80 cached) + 10 tokens, 4.8e-05 USD",
        "stranger: 1 call, 1 + 1 tokens, cost of 1 call unknown",
        "total: 3 calls, 111 (80 cached) + 12 tokens, 0.000188 USD, cost of 1 call unknown",
    ]


def test_an_answer_from_the_cache_costs_nothing():
    cost = EccosCostCallback(POOL)
    member = chat("dear", 1000, 100, cache=InMemoryCache())
    member.invoke("x", {"callbacks": [cost]})
    paid = cost.total
    member.invoke("x", {"callbacks": [cost]})
    assert paid.cost_usd > 0
    assert cost.total == ModelCost(2, 1000, 0, 100, paid.cost_usd)


def test_a_failed_call_is_forgotten_with_what_was_noted_of_it():
    cost = EccosCostCallback(POOL)
    run = uuid4()
    cost.on_chat_model_start({}, [[]], run_id=run, metadata={"eccos_model": "dear", "eccos_decision_id": "d"})
    cost.on_llm_error(ConnectionError(), run_id=run)
    message = AIMessage("x", usage_metadata=USED, response_metadata={"model_name": "cheap"})
    cost.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run)
    assert list(cost.by_model) == ["cheap"]


def test_a_routed_run_is_of_the_model_it_was_routed_to_whatever_its_provider_calls_it():
    router = router_of()
    members = {name: FakeChat(model_name="their-own-name") for name in router.models}
    routed = ChatEccos(members, router, dispatcher=at_once(router))
    with get_eccos_cost(router) as cost:
        answers = routed.batch(["add 1 and 2", "prove it", "add 3"])
    models = [answer.response_metadata["eccos"]["model"] for answer in answers]
    assert {name: one.calls for name, one in cost.by_model.items()} == {name: models.count(name) for name in models}
    usd = sum(
        USD_PER_MILLION[name] * answer.usage_metadata["total_tokens"] / 1e6
        for name, answer in zip(models, answers, strict=True)
    )
    assert cost.total_cost_usd == pytest.approx(usd)


def test_a_pin_in_the_config_names_no_other_run():
    cost = EccosCostCallback(POOL)
    pinned = {"callbacks": [cost], "configurable": {"eccos_model": "cheap"}, "metadata": {"eccos_model": "cheap"}}
    chat("dear", 10, 1).invoke("x", pinned)
    assert list(cost.by_model) == ["dear"]


def test_a_member_that_calls_two_models_costs_two_calls_at_its_own_price():
    router = router_of()
    inner = chat_models()["small"]
    member = RunnableLambda(lambda text: inner.invoke(inner.invoke(text).text).text)
    routed = RunnableRouter(dict.fromkeys(router.models, member), router, dispatcher=at_once(router))
    with get_eccos_cost(router) as cost:
        routed.invoke("add 1", {"configurable": {"eccos_model": "large"}})
    assert cost.by_model["large"].calls == 2
    assert cost.total_cost_usd == pytest.approx(2 * USD_PER_MILLION["large"] * USED["total_tokens"] / 1e6)


def test_blocks_within_blocks_count_what_is_in_them_once():
    member = chat("cheap", 10, 0)
    inner = RunnableLambda(member.invoke)
    with get_eccos_cost(POOL) as outer:
        member.invoke("x")

        def nested(text):
            with get_eccos_cost(POOL) as own:
                inner.invoke(text)
            return own

        within = RunnableLambda(nested).invoke("x")
        member.invoke("x")
    member.invoke("x")
    assert (outer.total.calls, within.total.calls) == (3, 1)


def test_a_block_ends_even_where_it_fails():
    member = chat("cheap", 10, 0)

    def failing():
        with get_eccos_cost(POOL) as cost:
            raise KeyError(cost)

    with pytest.raises(KeyError) as caught:
        failing()
    member.invoke("x")
    assert caught.value.args[0].total.calls == 0


def test_threads_at_once_lose_no_call():
    cost = EccosCostCallback(POOL)
    member = chat("cheap", 1, 1)
    start = threading.Barrier(8)

    def work():
        start.wait(20)
        for _ in range(25):
            member.invoke("x", {"callbacks": [cost]})

    with ThreadPoolExecutor(8) as executor:
        for done in [executor.submit(work) for _ in range(8)]:
            done.result()
    assert cost.total == ModelCost(200, 200, 0, 200, pytest.approx(200 * 3 / 1e6))


def test_prices_are_those_that_the_router_has_when_a_run_ends():
    router = router_of()
    cost = EccosCostCallback(router)
    new = Model(name="new", input_usd_per_million_tokens=3, output_usd_per_million_tokens=3)
    chat("new", 1, 1).invoke("x", {"callbacks": [cost]})
    router.add_model(new)
    chat("new", INPUT_TOKENS, 0).invoke("x", {"callbacks": [cost]})
    assert cost.by_model["new"].unknown_calls == 1
    assert cost.total_cost_usd == pytest.approx(3 * INPUT_TOKENS / 1e6)


async def test_calls_of_other_tasks_are_not_counted():
    member = chat("cheap", 1, 1)
    with get_eccos_cost(POOL) as cost:
        await member.ainvoke([HumanMessage("x")])
    await member.ainvoke([HumanMessage("x")])
    assert cost.total.calls == 1
