"""`EccosLLM`: nothing is counted twice, no key is shown, copies work alike."""

import copy
import json
import logging
import pickle

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.rate_limiter import BaseRateLimiter

from eccos_integrations import ConfigError, Policy
from eccos_integrations.serving.dispatch import Dispatcher
from llamaindex_eccos import EccosLLM
from tests.llamaindex_members import (
    EASY,
    ENDPOINTS,
    HARD,
    KEY,
    TOOLS,
    Caller,
    Recorder,
    call,
    given_to,
    make_router,
    model_of,
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


async def test_a_copy_made_while_calls_are_under_way_works_and_starts_empty(router):
    llm = EccosLLM(members={name: Caller(name) for name in router.models}, router=router, dispatcher=Dispatcher(router))
    first = llm.chat_with_tools(TOOLS, user_msg=HARD)
    stream = llm.stream_chat(user(EASY))
    next(stream)
    assert copy.deepcopy(llm).dispatcher is llm.dispatcher
    for duplicate in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):
        assert duplicate.dispatcher.router is duplicate.router
        (selection,) = duplicate.get_tool_calls_from_response(first)
        result = ChatMessage("7", role="tool", additional_kwargs={"tool_call_id": selection.tool_id})
        again = await duplicate.achat_with_tools(TOOLS, chat_history=[*user(EASY), first.message, result])
        assert model_of(again) == "small"  # the loop is the original's
    stream.close()


def test_a_dispatcher_of_another_router_is_refused(members, router):
    with pytest.raises(ConfigError, match="dispatcher: it is another router's"):
        EccosLLM(members=members, router=router, dispatcher=Dispatcher(make_router()))


def test_an_llm_shares_its_routers_limits_with_every_other(members, router):
    assert EccosLLM(members=members, router=router)._dispatcher is Dispatcher.shared(router)
