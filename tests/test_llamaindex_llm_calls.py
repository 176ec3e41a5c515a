"""`EccosLLM` and its dispatcher: who can take a call, and what failures, limits and caps do."""

import asyncio
import itertools

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, MockLLM
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from eccos_integrations import ConfigError
from eccos_integrations.errors import NoCapacityError
from eccos_integrations.serving.dispatch import Dispatcher
from llamaindex_eccos import EccosLLM
from tests.llamaindex_members import (
    CHATS,
    EASY,
    ENDPOINTS,
    HARD,
    TOOLS,
    Caller,
    Recorder,
    call,
    given_to,
    make_router,
    model_of,
    pool_of,
    text_of,
    user,
)


class City(BaseModel):
    """A city."""

    name: str = "Ur"


@pytest.fixture(scope="module")
def router():
    return make_router()


# -- who can take a call


@pytest.mark.parametrize("endpoint", CHATS)
async def test_only_members_that_call_tools_are_given_any(router, endpoint):
    members = {"large": Caller("large"), "small": Recorder(name="small")}
    llm = EccosLLM(members=members, router=router)
    assert llm.metadata.is_function_calling_model
    assert model_of((await call(llm, endpoint, user(EASY)))[-1]) == "small"
    answer = getattr(llm, f"{endpoint}_with_tools")(TOOLS, user_msg=EASY)
    answer = await answer if endpoint.startswith("a") else answer
    if "stream" in endpoint:
        chunks = [chunk async for chunk in answer] if endpoint.startswith("a") else list(answer)
        assert {model_of(chunk) for chunk in chunks} == {"large"}
        answer = chunks[-1]
    assert model_of(answer) == "large"
    assert llm.get_tool_calls_from_response(answer)[0].tool_kwargs == {"read_by": "large"}


def test_the_pool_may_say_that_a_member_calls_no_tools():
    router = make_router(pool_of({"tools": False}))
    llm = EccosLLM(members={name: Caller(name) for name in router.models}, router=router)
    assert model_of(llm.chat_with_tools(TOOLS, user_msg=HARD)) == "small"


def test_a_member_without_the_methods_calls_no_tools_whatever_the_pool_says():
    router = make_router(pool_of(small={"tools": True}))
    llm = EccosLLM(members={"large": Caller("large"), "small": Recorder(name="small")}, router=router)
    assert model_of(llm.chat_with_tools(TOOLS, user_msg=EASY)) == "large"


@pytest.mark.parametrize("endpoint", CHATS)
async def test_tools_in_the_providers_own_form_go_to_members_that_call_tools(router, endpoint):
    llm = EccosLLM(members={"large": Caller("large"), "small": Recorder(name="small")}, router=router)
    assert model_of((await call(llm, endpoint, user(EASY), tools=TOOLS))[-1]) == "large"


def test_a_pool_without_tools_says_so_and_refuses_them(router):
    llm = EccosLLM(members={name: Recorder(name=name) for name in router.models}, router=router)
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(ConfigError, match="none can take this call: large: it does not call tools; small: it does"):
        llm.chat_with_tools(TOOLS, user_msg=EASY)
    answer = llm.chat(user(EASY))
    assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="at least one tool call"):
        llm.get_tool_calls_from_response(answer)


def test_images_and_schemas_go_where_the_pool_does_not_rule_them_out():
    router = make_router(pool_of({"vision": False, "json_output": False}))
    llm = EccosLLM(members={name: Caller(name) for name in router.models}, router=router)
    image = ChatMessage(role="user", blocks=[TextBlock(text=HARD), ImageBlock(image=b"i")])
    assert model_of(llm.chat([image])) == "small"
    assert model_of(llm.chat(user(HARD))) == "large"
    with pytest.raises(ConfigError, match="large: it cannot be held to a schema; small: the call is pinned to large"):
        llm.structured_predict(City, PromptTemplate("{q}"), llm_kwargs={"eccos_model": "large"}, q=HARD)


async def test_a_prompt_goes_only_where_it_fits(router):
    members = {"large": Recorder(name="large", window=9000), "small": Recorder(name="small", window=600, output=100)}
    llm = EccosLLM(members=members, router=router)
    long = f"{EASY} {'x' * 4 * 600}"
    for endpoint in ENDPOINTS:
        assert model_of((await call(llm, endpoint, given_to(endpoint, EASY)))[-1]) == "small"
        assert model_of((await call(llm, endpoint, given_to(endpoint, long)))[-1]) == "large"
    with pytest.raises(ConfigError, match="small: its context window leaves 500 tokens to the prompt, which has about"):
        llm.complete("x" * 100_000)


def test_a_window_that_the_pool_declares_holds_whatever_the_member_says():
    router = make_router(pool_of(small={"context_window": 10**6}))
    llm = EccosLLM(members={name: Recorder(name=name, window=600) for name in router.models}, router=router)
    assert model_of(llm.complete(f"{EASY} {'x' * 4000}")) == "small"
    router = make_router(pool_of({"context_window": 100}))
    llm = EccosLLM(members={name: Recorder(name=name, window=10**6) for name in router.models}, router=router)
    history = [ChatMessage(role="system", content="y" * 4000), *user(HARD)]
    assert model_of(llm.chat(user(HARD))) == "large"
    assert model_of(llm.chat(history)) == "small"
    with pytest.raises(NoCapacityError, match="its context window is too short"):
        llm.chat(history, eccos_model="large")


# -- failure


class Flaky(Recorder):
    """Fails a number of times, before the first piece or after it."""

    fails: int = 0
    late: bool = False

    def _words(self, endpoint, given, kwargs):
        words = super()._words(endpoint, given, kwargs)
        if self.fails > 0 and not self.late:
            self.fails -= 1
            raise ConnectionError("gone")
        return words

    def _chunks(self, words, make):
        yield from itertools.islice(super()._chunks(words, make), 2 if self.late else None)
        if self.late:
            raise ConnectionError("gone")

    async def _achunks(self, words, make):
        for piece in self._chunks(words, make):
            yield piece


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_what_fails_before_its_first_piece_goes_to_another_member(router, endpoint):
    members = {"small": Flaky(name="small", fails=1), "large": Flaky(name="large")}
    llm = EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))
    responses = await call(llm, endpoint, given_to(endpoint, EASY))
    assert text_of(responses[-1]).startswith("large:")
    assert {response.additional_kwargs["eccos"]["attempt"] for response in responses} == {2}
    assert len(members["small"].calls) == len(members["large"].calls) == 1


@pytest.mark.parametrize("endpoint", ["stream_chat", "stream_complete", "astream_chat", "astream_complete"])
async def test_a_stream_that_breaks_off_raises(router, endpoint):
    members = {"small": Flaky(name="small", late=True), "large": Flaky(name="large")}
    llm = EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))
    with pytest.raises(ConnectionError):
        await call(llm, endpoint, given_to(endpoint, EASY))
    assert members["large"].calls == []


async def test_prompts_and_objects_fall_back_too(router):
    def fallen(name):
        members = {"small": Caller("small", fails=1), "large": Caller("large")}
        return EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))

    prompt = PromptTemplate("{q}")
    assert fallen("predict").predict(prompt, q=EASY) == "large"
    assert await fallen("apredict").apredict(prompt, q=EASY) == "large"
    assert "".join(fallen("stream").stream(prompt, q=EASY)) == "large"
    assert "".join([token async for token in await fallen("astream").astream(prompt, q=EASY)]) == "large"


@pytest.mark.parametrize("endpoint", CHATS)
async def test_every_attempt_has_a_history_of_its_own(router, endpoint):
    members = {"small": Caller("small", fails=1), "large": Caller("large")}
    llm = EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))
    history = user(EASY)
    answer = getattr(llm, f"{endpoint}_with_tools")(TOOLS, chat_history=history)
    answer = await answer if endpoint.startswith("a") else answer
    if endpoint == "astream_chat":
        [_ async for _ in answer]
    elif endpoint == "stream_chat":
        list(answer)
    assert history == user(EASY)
    seen = [[message.role for message in member._histories[0]] for member in members.values()]
    assert seen == [["system", "user"]] * 2


def test_what_a_member_does_to_a_message_does_not_show(router):
    class Rewriting(Recorder):
        def chat(self, messages, **kwargs):
            messages[0].content = "rewritten"
            messages[0].additional_kwargs["more"] = 1
            return ChatResponse(message=ChatMessage(role="assistant", content="done"))

    messages = user(EASY)
    EccosLLM(members={name: Rewriting(name=name) for name in router.models}, router=router).chat(messages)
    assert messages == user(EASY)


# -- limits and caps


async def test_a_members_concurrency_is_kept_and_nothing_is_lost():
    pool = pool_of({"max_concurrency": 2}, {"max_concurrency": 1})
    busy, most = dict.fromkeys(pool.names, 0), dict.fromkeys(pool.names, 0)

    class Slow(Recorder):
        async def acomplete(self, prompt, formatted=False, **kwargs):
            busy[self.name] += 1
            most[self.name] = max(most[self.name], busy[self.name])
            await asyncio.sleep(0.01)
            busy[self.name] -= 1
            return CompletionResponse(text=prompt)

    router = make_router(pool)
    llm = EccosLLM(members={name: Slow(name=name) for name in router.models}, router=router)
    prompts = [f"{EASY} {i}" for i in range(12)]
    answers = await asyncio.gather(*(llm.acomplete(prompt) for prompt in prompts))
    assert [answer.text for answer in answers] == prompts
    assert most["large"] <= 2
    assert most["small"] == 1


async def test_a_synchronous_call_in_a_running_loop_decides_at_once(router):
    llm = EccosLLM(
        members={name: Recorder(name=name) for name in router.models},
        router=router,
        dispatcher=Dispatcher(router, window_s=600),
    )
    assert model_of(llm.complete(EASY)) == "small"
    assert {model_of(chunk) for chunk in llm.stream_chat(user(HARD))} == {"large"}


def test_the_pools_cap_reaches_members_that_take_one():
    router = make_router(pool_of({"max_output_tokens": 5}, {"max_output_tokens": 5}))
    small, large = MockLLM(max_tokens=9), MockLLM(max_tokens=3)
    llm = EccosLLM(members={"small": small, "large": large}, router=router)
    assert len(llm.complete(EASY).text.split()) == 5
    assert len(llm.predict(PromptTemplate("{q}"), q=EASY).split()) == 5
    assert len(llm.complete(HARD).text.split()) == 3
    assert len(llm.complete(EASY, max_tokens=2).text.split()) == 2
    assert (small.max_tokens, large.max_tokens) == (9, 3)


def test_a_callers_cap_never_exceeds_the_pools():
    router = make_router(pool_of({"max_output_tokens": 5}, {"max_output_tokens": 5}))
    members = {name: Recorder(name=name) for name in router.models}
    llm = EccosLLM(members=members, router=router)
    llm.complete(EASY, max_tokens=100)
    llm.complete(EASY, max_tokens=2)
    assert [made[2]["max_tokens"] for made in members["small"].calls] == [5, 2]


def test_callers_may_give_any_number_of_caps(router):
    llm = EccosLLM(members={name: MockLLM(max_tokens=500) for name in router.models}, router=router)
    assert [len(llm.complete(EASY, max_tokens=cap).text.split()) for cap in range(1, 100)] == list(range(1, 100))
    assert len(llm._capped) <= 64
