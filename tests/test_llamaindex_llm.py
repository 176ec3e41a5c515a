"""`EccosLLM`: one decision per call, the whole call to one member, nothing counted twice and no key shown."""

import asyncio
import copy
import json
import logging
import pickle

import pytest
from llama_index.core import Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index.core.llms import (
    LLM,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CustomLLM,
    LLMMetadata,
    MockLLM,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import PromptTemplate
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode
from pydantic import BaseModel, PrivateAttr

from eccos_integrations import ConfigError, Decision, OutcomeTable, Policy, Router
from llamaindex_eccos import EccosLLM

EASY = "add the numbers 3 and 4"
HARD = "prove the theorem of Fermat"
KEY = "sk-planted-0123456789"


@pytest.fixture(scope="module")
def router():
    easy = [f"add the numbers {i} and {i + 1}" for i in range(20)]
    hard = [f"prove the theorem of {name}" for name in "abcdefghijklmnopqrst"]
    return Router.fit(
        OutcomeTable(
            query_ids=[f"q{i:02}" for i in range(40)],
            queries=easy + hard,
            models=["large", "small"],
            quality=[[1, 1]] * 20 + [[1, 0]] * 20,
            cost_usd=[[1e-2, 1e-4]] * 40,
        ),
        policy=Policy(min_quality=0.78, relative_to="best"),
        predictor="clusters",
    )


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=8))
    monkeypatch.setattr(Settings, "_callback_manager", None)


class Recorder(LLM):
    """A member that answers `name: text`, emits one event per call, and remembers how it was called."""

    name: str
    api_key: str = KEY
    chats: bool = True
    window: int = 4096
    output: int = 256
    stream_closed: bool = False
    _calls: list = PrivateAttr(default_factory=list)

    @property
    def calls(self):
        return self._calls

    @property
    def metadata(self):
        return LLMMetadata(
            context_window=self.window, num_output=self.output, is_chat_model=self.chats, model_name=f"{self.name}-v1"
        )

    @classmethod
    def class_name(cls):
        return "Recorder"

    def _words(self, endpoint, given, kwargs):
        self._calls.append((endpoint, given, kwargs))
        text = given if isinstance(given, str) else given[-1].content or ""
        return [f"{self.name}:", *text.split()]

    def _chunks(self, words, make):
        try:
            for i, word in enumerate(words):
                yield make(" ".join(words[: i + 1]), word)
        finally:
            self.stream_closed = True

    async def _achunks(self, words, make):
        try:
            for i, word in enumerate(words):
                yield make(" ".join(words[: i + 1]), word)
        finally:
            self.stream_closed = True

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        return _chat(" ".join(self._words("chat", messages, kwargs)))

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return _completion(" ".join(self._words("complete", prompt, {"formatted": formatted, **kwargs})))

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        return self._chunks(self._words("stream_chat", messages, kwargs), _chat)

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        return self._chunks(self._words("stream_complete", prompt, {"formatted": formatted, **kwargs}), _completion)

    @llm_chat_callback()
    async def achat(self, messages, **kwargs):
        return _chat(" ".join(self._words("achat", messages, kwargs)))

    @llm_completion_callback()
    async def acomplete(self, prompt, formatted=False, **kwargs):
        return _completion(" ".join(self._words("acomplete", prompt, {"formatted": formatted, **kwargs})))

    @llm_chat_callback()
    async def astream_chat(self, messages, **kwargs):
        return self._achunks(self._words("astream_chat", messages, kwargs), _chat)

    @llm_completion_callback()
    async def astream_complete(self, prompt, formatted=False, **kwargs):
        words = self._words("astream_complete", prompt, {"formatted": formatted, **kwargs})
        return self._achunks(words, _completion)


def _chat(text, delta=None):
    return ChatResponse(
        message=ChatMessage(role="assistant", content=text), delta=delta, additional_kwargs={"prompt_tokens": 7}
    )


def _completion(text, delta=None):
    return CompletionResponse(text=text, delta=delta, additional_kwargs={"prompt_tokens": 7})


@pytest.fixture
def members():
    return {"small": Recorder(name="small"), "large": Recorder(name="large")}


@pytest.fixture
def llm(members, router):
    return EccosLLM(members=members, router=router)


def user(text):
    return [ChatMessage(role="user", content=text)]


async def call(llm, endpoint, given, **kwargs):
    """Every endpoint behind one door: all responses of a call as a list."""
    method = getattr(llm, endpoint)
    if not endpoint.startswith("a"):
        answer = method(given, **kwargs)
        return list(answer) if "stream" in endpoint else [answer]
    answer = await method(given, **kwargs)
    return [chunk async for chunk in answer] if "stream" in endpoint else [answer]


CHATS = ["chat", "stream_chat", "achat", "astream_chat"]
COMPLETIONS = ["complete", "stream_complete", "acomplete", "astream_complete"]
ENDPOINTS = CHATS + COMPLETIONS


def given_to(endpoint, text):
    return user(text) if endpoint in CHATS else text


def text_of(response):
    return response.message.content if isinstance(response, ChatResponse) else response.text


# --- the endpoints


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
        assert set(decided) == {"model", "quality", "cost_usd", "reason", "decision_id"}
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
            return self._achunks([prompt, "more"], _completion)

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


async def test_a_members_error_passes_through_as_it_is(router):
    class Broken(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            raise TimeoutError("the provider's own words")

    llm = EccosLLM(members={name: Broken() for name in router.models}, router=router)
    with pytest.raises(TimeoutError, match="the provider's own words"):
        llm.complete(EASY)
    with pytest.raises(TimeoutError, match="the provider's own words"):
        await llm.acomplete(EASY)


# --- what a chat is routed on


@pytest.fixture
def routed_on(monkeypatch, router):
    texts = []
    route = Router.route
    monkeypatch.setattr(
        Router, "route", lambda self, query, policy=None: texts.append(query) or route(self, query, policy)
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
    forecast = router.forecast([EASY])
    assert text_of(responses[-1]).startswith("large:")
    assert decided == {
        "model": "large",
        "quality": forecast.quality[0, router.models.index("large")],
        "cost_usd": forecast.cost_usd[0, router.models.index("large")],
        "reason": "pinned by eccos_model",
        "decision_id": None,
    }


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_pinning_a_model_that_is_not_there_names_those_that_are(llm, members, endpoint):
    with pytest.raises(ConfigError, match=r"eccos_model: 'huge' is not a member; give one of \['large', 'small'\]"):
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
    policies = []

    def route(self, query, policy=None):
        policies.append(policy)
        return Decision("id", "small", 1.0, 0.0, ("small",), "", floor_met=True)

    monkeypatch.setattr(Router, "route", route)
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


# --- events and callbacks


@pytest.fixture
def events():
    """Start events of language models, wherever they are dispatched."""
    seen = []

    class Seen(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, LLMChatStartEvent | LLMCompletionStartEvent):
                seen.append(event)

    root = get_dispatcher()
    handler = Seen()
    root.add_event_handler(handler)
    yield seen
    root.event_handlers.remove(handler)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_call_is_one_event_and_it_is_the_members(llm, members, events, endpoint):
    await call(llm, endpoint, given_to(endpoint, HARD))
    assert [event.model_dict["class_name"] for event in events] == ["Recorder"]
    assert len(members["large"].calls) == 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_tokens_are_counted_once(llm, members, endpoint):
    counted, direct = TokenCountingHandler(), TokenCountingHandler()
    llm.callback_manager = CallbackManager([counted])
    await call(llm, endpoint, given_to(endpoint, EASY))
    members["small"].callback_manager = CallbackManager([direct])
    await call(members["small"], endpoint, given_to(endpoint, EASY))
    assert len(counted.llm_token_counts) == 1
    assert counted.total_llm_token_count == direct.total_llm_token_count > 0


def test_a_callback_manager_set_after_the_members_were_made_reaches_them(llm):
    first, second = LlamaDebugHandler(print_trace_on_end=False), LlamaDebugHandler(print_trace_on_end=False)
    llm.complete(EASY)
    llm.callback_manager = CallbackManager([first])
    llm.complete(EASY)
    llm.complete(HARD)
    llm.callback_manager = CallbackManager([second])
    llm.complete(EASY)
    assert len(first.get_event_pairs(CBEventType.LLM)) == 2
    assert len(second.get_event_pairs(CBEventType.LLM)) == 1


def test_one_object_that_serves_two_models_follows_the_callback_manager(router):
    both = Recorder(name="both")
    llm = EccosLLM(members={"small": both, "large": both}, router=router)
    first, second = LlamaDebugHandler(print_trace_on_end=False), LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([first])
    llm.complete(EASY)
    llm.callback_manager = CallbackManager([second])
    llm.complete(HARD)
    assert len(first.get_event_pairs(CBEventType.LLM)) == len(second.get_event_pairs(CBEventType.LLM)) == 1


def test_a_member_with_handlers_of_its_own_keeps_them(llm, members):
    own = LlamaDebugHandler(print_trace_on_end=False)
    members["small"].callback_manager = CallbackManager([own])
    others = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([others])
    llm.complete(EASY)
    llm.complete(EASY)
    assert len(own.get_event_pairs(CBEventType.LLM)) == 2
    assert others.get_event_pairs(CBEventType.LLM) == []


async def test_a_rate_limiter_is_asked_once_per_call(members, router):
    class Counter(BaseRateLimiter):
        asked = 0

        def acquire(self, num_tokens=0):
            self.asked += 1

        async def async_acquire(self, num_tokens=0):
            self.asked += 1

    limiter = Counter()
    llm = EccosLLM(members=members, router=router, rate_limiter=limiter)
    for endpoint in ENDPOINTS:
        await call(llm, endpoint, given_to(endpoint, EASY))
    assert limiter.asked == len(ENDPOINTS)


# --- dumps, copies, pickles


@pytest.mark.parametrize(
    "show",
    [
        lambda llm: json.dumps(llm.to_dict()),
        lambda llm: llm.to_json(),
        lambda llm: llm.model_dump_json(),
        lambda llm: llm.metadata.model_dump_json(),
        repr,
        str,
    ],
    ids=["to_dict", "to_json", "model_dump_json", "metadata", "repr", "str"],
)
def test_no_view_of_it_shows_a_members_key(llm, show):
    assert KEY in json.dumps(llm.members["small"].to_dict())
    llm.complete(EASY)
    assert KEY not in show(llm)


def test_a_dump_names_the_members_and_is_the_same_before_and_after_calls(members, router):
    before = EccosLLM(members=members, router=router).to_dict()
    backwards = EccosLLM(members=dict(reversed(members.items())), router=router)
    backwards.complete(EASY)
    assert backwards.to_dict() == before
    assert before["members"]["small"] == {"class_name": "Recorder", "model_name": "small-v1"}
    assert before["class_name"] == "EccosLLM"


def test_a_dump_tells_pools_and_policies_apart(members, router):
    plain = EccosLLM(members=members, router=router).to_dict()
    assert EccosLLM(members=members, router=router, policy=Policy(min_quality=0.5)).to_dict() != plain
    assert EccosLLM(members={**members, "small": MockLLM()}, router=router).to_dict() != plain


def test_a_dump_is_read_back_with_members_and_router(members, router):
    dump = EccosLLM(members=members, router=router, policy=Policy(min_quality=0.5), system_prompt="Be brief.").to_dict()
    again = EccosLLM.from_dict(dump, members=members, router=router)
    assert again.to_dict() == dump
    assert again.policy == Policy(min_quality=0.5)
    with pytest.raises(ConfigError, match="'large' is a dict; give a llama_index"):
        EccosLLM.from_dict(dump, router=router)


def test_a_deep_copy_has_members_of_its_own_and_shares_the_router(router):
    llm = EccosLLM(members={name: MockLLM() for name in router.models}, router=router)
    duplicate = copy.deepcopy(llm)
    assert duplicate.members["small"] is not llm.members["small"]
    assert duplicate.router is llm.router
    decided = duplicate.complete(HARD).additional_kwargs["eccos"]
    assert decided["model"] == "large"
    router.feedback(decided["decision_id"], quality=1.0)


def test_a_pickle_answers_as_the_original(router, caplog):
    policy = Policy(min_quality=0.5)
    llm = EccosLLM(members={name: MockLLM() for name in router.models}, router=router, policy=policy)
    with caplog.at_level(logging.WARNING):
        again = pickle.loads(pickle.dumps(llm))
    assert "unpickleable" not in caplog.text
    assert again.to_dict() == llm.to_dict()
    for text in (EASY, HARD):
        ours, theirs = again.complete(text), llm.complete(text)
        assert ours.text == theirs.text
        assert ours.additional_kwargs["eccos"]["model"] == theirs.additional_kwargs["eccos"]["model"]


# --- inside LlamaIndex


class Verdict(BaseModel):
    """A verdict."""

    answer: int


def test_predict_and_stream_go_through_the_router(llm, members):
    prompt = PromptTemplate("{question}")
    assert llm.predict(prompt, question=HARD) == f"large: {HARD}"
    assert "".join(llm.stream(prompt, question=EASY)) == f"small: {EASY}".replace(" ", "")
    assert [made[0] for made in members["large"].calls] == ["chat"]


async def test_async_predict_and_stream_go_through_the_router(llm):
    prompt = PromptTemplate("{question}")
    assert await llm.apredict(prompt, question=HARD) == f"large: {HARD}"
    tokens = [token async for token in await llm.astream(prompt, question=EASY)]
    assert tokens == ["small:", *EASY.split()]


def test_a_pool_without_chat_models_is_asked_to_complete(router):
    members = {name: Recorder(name=name, chats=False) for name in router.models}
    llm = EccosLLM(members=members, router=router)
    assert llm.predict(PromptTemplate("{question}"), question=HARD) == f"large: {HARD}"
    assert [made[0] for made in members["large"].calls] == ["complete"]


class Json(CustomLLM):
    """Answers every prompt with the same JSON."""

    @property
    def metadata(self):
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text='{"answer": 7}')

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield CompletionResponse(text='{"answer": 7}', delta='{"answer": 7}')


async def test_structured_prediction_works_and_takes_settings_of_the_call(router):
    llm = EccosLLM(members={name: Json() for name in router.models}, router=router)
    prompt = PromptTemplate("{question}")
    assert llm.structured_predict(Verdict, prompt, question=HARD) == Verdict(answer=7)
    assert await llm.astructured_predict(Verdict, prompt, question=HARD) == Verdict(answer=7)
    assert llm.as_structured_llm(Verdict).complete(HARD).raw == Verdict(answer=7)
    with pytest.raises(ConfigError, match="'huge' is not a member"):
        llm.structured_predict(Verdict, prompt, llm_kwargs={"eccos_model": "huge"}, question=HARD)


NODES = [TextNode(text=f"Fact {i}: the sum of {i} and {i} is {2 * i}.") for i in range(6)]
MODES = [
    ResponseMode.REFINE,
    ResponseMode.COMPACT,
    ResponseMode.SIMPLE_SUMMARIZE,
    ResponseMode.TREE_SUMMARIZE,
    ResponseMode.GENERATION,
    ResponseMode.ACCUMULATE,
    ResponseMode.COMPACT_ACCUMULATE,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chats", [True, False], ids=["chat", "completion"])
async def test_a_query_engine_answers_in_every_response_mode_as_it_would_with_the_member(router, mode, chats):
    def answers(llm):
        engine = SummaryIndex(NODES).as_query_engine(llm=llm, response_mode=mode)
        counter = TokenCountingHandler()
        llm.callback_manager = CallbackManager([counter])  # as_query_engine put the index's own there
        return engine, counter

    def member():
        return MockLLM(is_chat_model=chats)

    direct, direct_counter = answers(member())
    routed, counter = answers(EccosLLM(members={name: member() for name in router.models}, router=router))
    assert str(routed.query(HARD)) == str(direct.query(HARD))
    assert str(await routed.aquery(HARD)) == str(await direct.aquery(HARD))
    assert len(counter.llm_token_counts) == len(direct_counter.llm_token_counts) >= 2
    assert counter.total_llm_token_count == direct_counter.total_llm_token_count


def test_a_query_engine_streams(router):
    members = {name: MockLLM(is_chat_model=True) for name in router.models}
    index = VectorStoreIndex(NODES, embed_model=MockEmbedding(embed_dim=8))
    engine = index.as_query_engine(llm=EccosLLM(members=members, router=router), streaming=True)
    assert HARD in "".join(engine.query(HARD).response_gen)


def test_it_can_be_the_global_llm(router, members):
    counter = TokenCountingHandler()
    Settings.llm = EccosLLM(members=members, router=router)
    Settings.callback_manager = CallbackManager([counter])
    answer = SummaryIndex(NODES[:1]).as_query_engine().query(HARD)
    assert HARD in str(answer)
    assert isinstance(Settings.llm, EccosLLM)
    assert len(counter.llm_token_counts) == len(members["small"].calls) + len(members["large"].calls) == 1
