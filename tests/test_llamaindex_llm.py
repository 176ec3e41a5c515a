"""`EccosLLM`: one decision per call, the whole call to one member, settings of a call, members and metadata."""

import asyncio

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, MockLLM

from eccos_integrations import ConfigError, Policy, Router
from llamaindex_eccos import EccosLLM
from tests.llamaindex_members import (
    CHATS,
    COMPLETIONS,
    EASY,
    ENDPOINTS,
    HARD,
    KEY,
    Recorder,
    call,
    completion,
    given_to,
    make_router,
    text_of,
    user,
)


@pytest.fixture(scope="module")
def router():
    return make_router()


@pytest.fixture
def members():
    return {"small": Recorder(name="small"), "large": Recorder(name="large")}


@pytest.fixture
def llm(members, router):
    return EccosLLM(members=members, router=router)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_each_endpoint_calls_its_twin_on_the_model_the_router_chooses(llm, members, endpoint):
    for text, model in ((EASY, "small"), (HARD, "large")):
        responses = await call(llm, endpoint, given_to(endpoint, text))
        assert text_of(responses[-1]) == f"{model}: {text}"
        assert [made[0] for made in members[model].calls] == [endpoint]
        for response in responses:
            assert response.additional_kwargs["eccos"]["model"] == model


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_call_gives_what_the_member_gives_and_the_decision_on_top(llm, members, endpoint):
    routed = await call(llm, endpoint, given_to(endpoint, EASY))
    direct = await call(members["small"], endpoint, given_to(endpoint, EASY))
    for response in routed:
        decided = response.additional_kwargs.pop("eccos")
        assert decided.keys() == {"model", "decision_id", "quality", "cost_usd", "floor_met", "reason", "attempt"}
    assert routed == direct


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_keyword_arguments_reach_the_member_and_the_routers_own_do_not(llm, members, endpoint):
    ours = {"eccos_model": "large", "eccos_min_quality": 0.5, "eccos_max_cost_usd": 1.0}
    await call(llm, endpoint, given_to(endpoint, EASY), temperature=0.3, stop=["x"], **ours)
    (made,) = members["large"].calls
    assert {name: value for name, value in made[2].items() if name != "formatted"} == {
        "temperature": 0.3,
        "stop": ["x"],
    }


@pytest.mark.parametrize("endpoint", COMPLETIONS)
async def test_formatted_reaches_the_member(llm, members, endpoint):
    await call(llm, endpoint, EASY, formatted=True)
    assert members["small"].calls[0][2]["formatted"] is True


def test_streamed_deltas_add_up_to_the_answer(llm):
    assert [chunk.delta for chunk in llm.stream_complete(EASY)] == ["small:", *EASY.split()]


def test_the_decision_stands_on_a_copy_and_never_on_the_message(router):
    answer = ChatResponse(message=ChatMessage(role="assistant", content="kept"))

    class Fixed(MockLLM):
        def chat(self, messages, **kwargs):
            return answer

    response = EccosLLM(members={"small": Fixed(), "large": Fixed()}, router=router).chat(user(EASY))
    assert response.message.additional_kwargs == {}
    assert answer.additional_kwargs == {}


def test_the_decision_takes_feedback(llm, router):
    forecast = router.forecast([EASY])
    decided = llm.complete(EASY).additional_kwargs["eccos"]
    router.feedback(decided["decision_id"], quality=1.0)
    assert router.feedbacks[-1].decision_id == decided["decision_id"]
    assert router.feedbacks[-1].model == decided["model"] == "small"
    small = router.models.index("small")
    assert (decided["quality"], decided["cost_usd"]) == (forecast.quality[0, small], forecast.cost_usd[0, small])


def test_a_stream_closed_early_closes_the_members_stream(llm, members):
    stream = llm.stream_chat(user(EASY))
    next(stream)
    assert not members["small"].stream_closed
    stream.close()
    assert members["small"].stream_closed


async def test_an_async_stream_closed_early_closes_the_members_stream(router):
    class Bare(Recorder):  # LlamaIndex's decorator leaves the closing to the garbage collector
        async def astream_complete(self, prompt, formatted=False, **kwargs):
            return self._achunks([prompt, "more"], completion)

    members = {name: Bare(name=name) for name in router.models}
    stream = await EccosLLM(members=members, router=router).astream_complete(EASY)
    await anext(stream)
    assert not members["small"].stream_closed
    await stream.aclose()
    assert members["small"].stream_closed


async def test_fifty_concurrent_completions_are_all_in_flight_at_once(router):
    barrier = asyncio.Barrier(50)  # opens only when all fifty wait at it

    class Slow(Recorder):
        async def acomplete(self, prompt, formatted=False, **kwargs):
            await barrier.wait()
            return CompletionResponse(text=f"{self.name}: {prompt}")

    llm = EccosLLM(members={name: Slow(name=name) for name in router.models}, router=router)
    prompts = [f"{HARD if i % 2 else EASY} {i}" for i in range(50)]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(llm.acomplete(prompt) for prompt in prompts))
    assert [answer.text for answer in answers] == [
        f"{answer.additional_kwargs['eccos']['model']}: {prompt}"
        for answer, prompt in zip(answers, prompts, strict=True)
    ]
    assert len({answer.additional_kwargs["eccos"]["decision_id"] for answer in answers}) == 50


async def test_an_error_that_every_model_would_repeat_passes_through_as_it_is(router):
    class Broken(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            raise ValueError("the provider's own words")

    llm = EccosLLM(members={name: Broken() for name in router.models}, router=router)
    with pytest.raises(ValueError, match="the provider's own words"):
        llm.complete(EASY)
    with pytest.raises(ValueError, match="the provider's own words"):
        await llm.acomplete(EASY)


# --- what a chat is routed on


@pytest.fixture
def routed_on(monkeypatch):
    """The texts that were forecast."""
    texts = []
    forecast = Router.forecast
    monkeypatch.setattr(
        Router, "forecast", lambda self, queries, policy=None: texts.extend(queries) or forecast(self, queries, policy)
    )
    return texts


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [ChatMessage(role="system", content=HARD), *user("first"), ChatMessage(role="assistant", content="no")],
            "first",
        ),
        ([*user("first"), ChatMessage(role="assistant", content="no"), *user("second")], "second"),
        ([*user("question"), ChatMessage(role="tool", content="result")], "question"),
        (
            [ChatMessage(role="user", blocks=[TextBlock(text="a"), ImageBlock(image=b"i"), TextBlock(text="b")])],
            "a\nb",
        ),
        ([ChatMessage(role="user", blocks=[ImageBlock(image=b"i")])], ""),
        ([ChatMessage(role="system", content="only a system prompt")], ""),
    ],
    ids=["after-system", "last-user", "before-tool", "text-blocks", "image-only", "no-user"],
)
async def test_a_chat_is_routed_on_the_text_of_the_last_user_message(llm, routed_on, messages, text):
    for endpoint in CHATS:
        await call(llm, endpoint, messages)
    assert routed_on == [text] * 4


def test_an_empty_chat_is_routed_on_no_text(router, routed_on):
    llm = EccosLLM(members={"small": MockLLM(max_tokens=1), "large": MockLLM(max_tokens=1)}, router=router)
    assert llm.chat([]).message.content == "text"
    assert routed_on == [""]


# --- settings of one call


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_pinned_call_goes_to_the_pinned_model_and_says_so(llm, router, endpoint):
    responses = await call(llm, endpoint, given_to(endpoint, EASY), eccos_model="large")
    decided = responses[-1].additional_kwargs["eccos"]
    assert text_of(responses[-1]).startswith("large:")
    assert (decided["model"], decided["reason"], decided["floor_met"]) == ("large", "the only candidate", False)
    router.feedback(decided["decision_id"], quality=1.0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_pinning_a_model_that_is_not_there_names_those_that_are(llm, members, endpoint):
    with pytest.raises(ConfigError, match=r"eccos_model: 'huge' is not a model .* give one of \['large', 'small'\]"):
        await call(llm, endpoint, given_to(endpoint, EASY), eccos_model="huge")
    assert members["small"].calls == members["large"].calls == []


def test_a_floor_for_one_call_is_kept_for_that_call_only(llm):
    assert llm.complete(HARD).additional_kwargs["eccos"]["model"] == "large"
    assert llm.complete(HARD, eccos_min_quality=0.0).additional_kwargs["eccos"]["model"] == "small"
    assert llm.complete(HARD).additional_kwargs["eccos"]["model"] == "large"


def test_a_budget_for_one_call_is_kept_for_that_call_only(llm):
    assert llm.complete(HARD, eccos_max_cost_usd=5e-5).additional_kwargs["eccos"]["model"] == "small"
    assert llm.complete(HARD).additional_kwargs["eccos"]["model"] == "large"


BEST = {"relative_to": "best"}


@pytest.mark.parametrize(
    ("own", "settings", "derived"),
    [
        ({"min_quality": 0.9, **BEST}, {"eccos_min_quality": 0.5}, {"min_quality": 0.5, **BEST}),
        ({"min_quality": 0.9}, {"eccos_min_quality": 0.5}, {"min_quality": 0.5}),
        ({"min_quality": {"a": 0.9}}, {"eccos_min_quality": 0.5}, {"min_quality": 0.5}),
        ({}, {"eccos_min_quality": 0.5}, {"min_quality": 0.5}),
        ({"min_quality": 0.9}, {"eccos_max_cost_usd": 0.1}, {"min_quality": 0.9, "max_mean_cost_usd": 0.1}),
        ({"max_mean_cost_usd": 9.0}, {"eccos_max_cost_usd": 0.0}, {"max_mean_cost_usd": 0.0}),
        ({"min_quality": 0.9}, {"eccos_min_quality": None, "eccos_model": None}, {"min_quality": 0.9}),
        ({"capacity": {"small": 3}}, {"eccos_min_quality": 0.2}, {"min_quality": 0.2, "capacity": {"small": 3}}),
    ],
)
def test_settings_of_a_call_change_only_their_own_field_of_the_policy(
    members, router, monkeypatch, own, settings, derived
):
    policies, rank = [], Router.rank
    monkeypatch.setattr(
        Router,
        "rank",
        lambda self, forecast, policy=None, added=None: policies.append(policy) or rank(self, forecast, Policy()),
    )
    EccosLLM(members=members, router=router, policy=Policy(**own)).complete(EASY, **settings)
    assert policies == [Policy(**derived)]


def test_without_a_policy_of_its_own_the_routers_policy_holds(members, router):
    cheapest = EccosLLM(members=members, router=router, policy=Policy())
    assert cheapest.complete(HARD).additional_kwargs["eccos"]["model"] == "small"
    assert EccosLLM(members=members, router=router).complete(HARD).additional_kwargs["eccos"]["model"] == "large"


@pytest.mark.parametrize(
    "settings", [{"eccos_min_quality": 1.0}, {"eccos_min_quality": 1.0, "eccos_max_cost_usd": 0.0}]
)
def test_what_cannot_be_met_is_still_answered(members, router, settings):
    for on_infeasible in ("best_effort", "raise"):
        llm = EccosLLM(members=members, router=router, policy=Policy(min_quality=1.0, on_infeasible=on_infeasible))
        assert llm.complete(EASY, **settings).text.endswith(EASY)


@pytest.mark.parametrize(
    "settings", [{"eccos_min_quality": 1.5}, {"eccos_max_cost_usd": -1.0}, {"eccos_max_cost_usd": "cheap"}]
)
async def test_a_setting_out_of_range_is_refused_before_any_call(llm, members, settings):
    with pytest.raises(ConfigError, match=r"min_quality|max_mean_cost_usd"):
        await llm.achat(user(EASY), **settings)
    assert members["small"].calls == members["large"].calls == []


# --- members


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["small"], r"missing \['large'\], unknown \[\]"),
        (["small", "large", "huge"], r"missing \[\], unknown \['huge'\]"),
        (["Small", "large"], r"missing \['small'\], unknown \['Small'\]"),
        ([], r"missing \['large', 'small'\], unknown \[\]"),
    ],
)
def test_members_that_are_not_the_routers_models_are_refused(router, names, message):
    with pytest.raises(
        ConfigError, match=message + r"; give one member for each of the router's models \['large', 'small'\]"
    ):
        EccosLLM(members={name: MockLLM() for name in names}, router=router)


def test_a_member_that_is_no_llm_is_refused_without_showing_it(router):
    with pytest.raises(ConfigError, match=r"'small' is a dict; give a llama_index\.core\.llms\.LLM") as caught:
        EccosLLM(members={"small": {"api_key": KEY}, "large": MockLLM()}, router=router)
    assert KEY not in str(caught.value)


def test_a_policy_about_unknown_models_is_refused(members, router):
    with pytest.raises(ConfigError, match=r"capacity: \['huge'\] not in the pool"):
        EccosLLM(members=members, router=router, policy=Policy(capacity={"huge": 1}))


def test_members_are_kept_by_identity_in_the_routers_order(llm, members, router):
    assert list(llm.members) == router.models
    assert all(llm.members[name] is members[name] for name in members)


@pytest.mark.parametrize(
    ("small", "large", "tightest"),
    [
        ((4096, 256), (128_000, 16_384), (4096, 256)),
        ((16_000, 256), (16_000, 8_000), (16_000, 8_000)),
        ((4000, -1), (4000, 200), (4000, -1)),
    ],
    ids=["smaller-window", "same-window-longer-output", "unknown-output"],
)
def test_metadata_is_the_window_of_the_tightest_member(router, small, large, tightest):
    members = {
        "small": Recorder(name="small", window=small[0], output=small[1]),
        "large": Recorder(name="large", window=large[0], output=large[1]),
    }
    metadata = EccosLLM(members=members, router=router).metadata
    assert (metadata.context_window, metadata.num_output) == tightest
    assert metadata.model_name == "eccos[large,small]"
    assert metadata.is_function_calling_model is False


@pytest.mark.parametrize(("small", "large"), [(True, True), (True, False), (False, True), (False, False)])
def test_it_is_a_chat_model_if_any_member_is(router, small, large):
    members = {"small": Recorder(name="small", chats=small), "large": Recorder(name="large", chats=large)}
    assert EccosLLM(members=members, router=router).metadata.is_chat_model is (small or large)
