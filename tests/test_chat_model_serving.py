"""`ChatEccos` goes through the dispatcher: fallback, limits, caps; and its errors name the fix, never a key."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import BaseModel

from eccos_integrations import ConfigError, MissingExtraError, Model, ModelPool, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos.chat_model import ChatEccos
from tests.conftest import PRICES, make_table
from tests.fake_chat import FakeChat

NAMES = list(PRICES)
KEY = "sk-planted"


class ApiError(Exception):
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status_code = status


class Word(BaseModel):
    """A word."""

    word: str


def router_of(policy=None, **limits):
    models = []
    for name, (input_usd, output_usd) in PRICES.items():
        own = {field: values.get(name) for field, values in limits.items()}
        models.append(Model(name=name, input_usd_per_million_tokens=input_usd,
                            output_usd_per_million_tokens=output_usd, **own))  # fmt: skip
    return Router.fit(
        make_table(seed=0, per_task=20), pool=ModelPool(models), policy=policy or Policy(), predictor="prior"
    )


ROUTER = router_of()


def chat_of(router=ROUTER, **members):
    made = {name: FakeChat(model_name=name, api_key=KEY) for name in NAMES}
    return ChatEccos({**made, **members}, router, dispatcher=Dispatcher(router, window_s=0))


def by(answer):
    return answer.response_metadata["eccos"]["model"], answer.response_metadata["eccos"]["attempt"]


def added(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


# -- fallback


async def test_a_failing_member_is_replaced_in_every_way_of_asking():
    def failing():
        return chat_of(tiny=FakeChat(model_name="tiny", fail=ApiError(500)))

    collector = RunCollectorCallbackHandler()
    config = {"callbacks": [collector]}
    answers = [
        failing().invoke("hello", config),
        await failing().ainvoke("hello", config),
        failing().batch(["hello"], config)[0],
        (await failing().abatch(["hello"], config))[0],
        added(failing().stream("hello", config)),
        added([chunk async for chunk in failing().astream("hello", config)]),
        failing().stream_events("hello", config, version="v3").output,
        await (await failing().astream_events("hello", config, version="v3")),
    ]
    assert [by(answer) for answer in answers] == [("small", 2)] * 8
    assert all(answer.text == "small: hello" for answer in answers)
    for run in collector.traced_runs:
        assert run.run_type == "chain"
        assert [(child.run_type, bool(child.error)) for child in run.child_runs] == [("llm", True), ("llm", False)]


def test_one_failure_in_a_batch_moves_one_input():
    chat = chat_of(tiny=FakeChat(model_name="tiny", fail=[ApiError(500)]))
    answers = chat.batch(["a", "b", "c", "d"])
    assert sorted(by(answer) for answer in answers) == [("small", 2), *[("tiny", 1)] * 3]
    assert [answer.text.split(": ")[1] for answer in answers] == ["a", "b", "c", "d"]


async def test_after_the_first_chunk_nobody_takes_over():
    chat = chat_of(tiny=FakeChat(model_name="tiny", fail=ApiError(500), fail_at=1))
    begun = []
    with pytest.raises(ApiError):
        begun.extend(chunk.text for chunk in chat.stream("one two three"))
    chunks = chat.astream("one two three")
    begun.append((await anext(chunks)).text)
    with pytest.raises(ApiError):
        await anext(chunks)
    stream = chat.stream_events("one two three", version="v3")
    with pytest.raises(ApiError):
        begun.extend(stream.text)
    assert begun == ["tiny: "] * 3
    assert [len(chat.members[name].asked) for name in NAMES] == [3, 0, 0, 0]


def test_an_error_that_all_would_repeat_is_raised_as_it_is():
    chat = chat_of(tiny=FakeChat(fail=ApiError(400)))
    with pytest.raises(ApiError, match="status 400"):
        chat.invoke("hello")
    answers = chat.batch(["a", "b"], return_exceptions=True)
    assert [type(answer) for answer in answers] == [ApiError, ApiError]


async def test_a_stream_left_early_ends_the_members_call():
    chat = chat_of()
    for _ in chat.stream("one two three"):
        break
    stream = chat.astream("one two three")
    async for _ in stream:
        break
    await stream.aclose()
    assert [member.now for member in chat.members.values()] == [0] * 4


async def test_a_reader_that_is_cancelled_ends_the_members_call():
    begun = asyncio.Event()

    class Hanging(FakeChat):
        def _begin(self, *given):
            super()._begin(*given)
            begun.set()

    chat = chat_of(tiny=Hanging(latency=60))
    stream = await chat.astream_events("hello", version="v3")
    reader = asyncio.ensure_future(anext(aiter(stream)))
    await begun.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert stream.done
    assert chat.members["tiny"].now == 0


# -- caps


@pytest.mark.parametrize(
    ("own", "asked", "passed"), [(None, None, 50), (20, None, 20), (90, None, 50), (None, 30, 30), (20, 30, 30)]
)
async def test_the_cap_on_an_answer_is_passed_to_the_member(own, asked, passed):
    router = router_of(max_output_tokens=dict.fromkeys(NAMES, 50))
    chat = chat_of(router, tiny=FakeChat(model_name="tiny", max_tokens=own))
    given = {} if asked is None else {"max_tokens": asked}
    chat.invoke("hello", **given)
    await chat.ainvoke("hello", **given)
    list(chat.stream("hello", **given))
    chat.batch(["hello"], **given)
    assert [call["max_tokens"] for call in chat.members["tiny"].asked] == [passed] * 4


def test_a_structured_answer_is_capped_too():
    class Capped(FakeChat):
        def _answer(self, messages, stop, kwargs):
            caps.append(self.max_tokens)
            return super()._answer(messages, stop, kwargs)

    caps = []
    chat = chat_of(router_of(max_output_tokens=dict.fromkeys(NAMES, 50)), tiny=Capped())
    chat.with_structured_output(Word, include_raw=True).invoke("hello")
    list(chat.with_structured_output(Word, include_raw=True).stream("hello"))
    assert caps == [50, 50]
    assert chat.members["tiny"].max_tokens is None


# -- limits


async def test_limits_hold_over_all_ways_of_asking_at_once():
    limits = {"tiny": 2, "small": 3, "medium": 4, "large": 5}
    router = router_of(max_concurrency=limits)
    chat = chat_of(router, **{name: FakeChat(model_name=name, latency=0.001) for name in NAMES})
    done = []

    def in_threads(i):
        if i % 3 == 0:
            done.append(chat.invoke(f"thread {i}"))
        elif i % 3 == 1:
            done.append(added(chat.stream(f"thread {i}")))
        else:
            done.extend(chat.batch([f"thread {i}", f"thread {i} too"]))

    async def in_tasks(i):
        if i % 3 == 0:
            done.append(await chat.ainvoke(f"task {i}"))
        elif i % 3 == 1:
            done.append(added([chunk async for chunk in chat.astream(f"task {i}")]))
        else:
            done.extend(await chat.abatch([f"task {i}", f"task {i} too"]))

    with ThreadPoolExecutor(20) as threads:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(threads, in_threads, i) for i in range(75)]
        await asyncio.gather(*calls, *(in_tasks(i) for i in range(75)))
    assert len(done) == 200
    assert sum(len(member.asked) for member in chat.members.values()) == 200
    assert all(chat.members[name].most_at_once <= limits[name] for name in NAMES)


async def test_max_concurrency_is_the_callers_cap_on_all_members_together():
    lock, now, most = threading.Lock(), 0, 0

    class Counted(FakeChat):
        def _begin(self, *given):
            nonlocal now, most
            super()._begin(*given)
            with lock:
                now += 1
                most = max(most, now)

        def _end(self):
            nonlocal now
            super()._end()
            with lock:
                now -= 1

    chat = chat_of(**{name: Counted(model_name=name, latency=0.001) for name in NAMES})
    pins = [{"configurable": {"eccos_model": NAMES[i % 4]}, "max_concurrency": 3} for i in range(40)]
    chat.batch(["hello"] * 40, pins)
    await chat.abatch(["hello"] * 40, pins)
    assert 1 <= most <= 3
    with pytest.raises(ConfigError, match="max_concurrency=0"):
        chat.batch(["hello"], {"max_concurrency": 0})


async def test_the_first_failure_of_an_async_batch_leaves_no_call_running():
    slow = FakeChat(latency=60)
    chat = chat_of(tiny=FakeChat(fail=ApiError(400)), small=slow)
    pins = [{"configurable": {"eccos_model": name}} for name in ("small", "tiny")]
    with pytest.raises(ApiError):
        await chat.abatch(["a", "b"], pins)
    assert slow.now == 0


async def test_a_batch_does_not_block_the_event_loop(monkeypatch):
    chat, entered, release = chat_of(), threading.Event(), threading.Event()
    original = Router.plan

    def slow_plan(*args, **kwargs):
        entered.set()
        assert release.wait(timeout=10)
        return original(*args, **kwargs)

    monkeypatch.setattr(Router, "plan", slow_plan)
    batch = asyncio.ensure_future(chat.abatch(["a", "b"]))
    assert await asyncio.to_thread(entered.wait, 10)
    release.set()  # reached only because the loop runs while the plan is made
    assert len(await batch) == 2


# -- errors that name the fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": {}}, r"missing \['tiny'"),
        ({"members": {name: FakeChat() for name in [*NAMES, "huge"]}}, r"unknown \['huge'\]"),
        ({"policy": Policy(capacity={"huge": 1})}, "huge"),
        ({"dispatcher": Dispatcher(router_of())}, "another router's"),
        ({"cache": InMemoryCache()}, "cache: the router calls no provider itself; give it to the members"),
        ({"cache": True}, "cache: "),
        ({"rate_limiter": InMemoryRateLimiter()}, "rate_limiter: "),
    ],
)
def test_what_it_cannot_be_made_of_is_refused(change, words):
    given = {"members": {name: FakeChat() for name in NAMES}, "router": ROUTER}
    with pytest.raises(ConfigError, match=words):
        ChatEccos(**{**given, **change})


@pytest.mark.parametrize("member", [FakeChat().bind(stop=["x"]), RunnableLambda(str), str, None])
def test_a_member_that_is_no_chat_model_is_refused(member):
    with pytest.raises(ConfigError, match=r"'tiny' is a \w+; give the chat model itself"):
        chat_of(tiny=member)


def test_a_misspelt_setting_is_refused_and_a_providers_is_ignored_aloud(caplog):
    members = {name: FakeChat() for name in NAMES}
    with pytest.raises(ConfigError, match="polciy: a router has no such setting"):
        ChatEccos(members, ROUTER, polciy=Policy())
    with pytest.raises(ConfigError, match="openai_api_key: ") as error:
        ChatEccos(members, ROUTER, openai_api_key=KEY)
    assert KEY not in str(error.value)
    with caplog.at_level(logging.WARNING, logger="eccos"):
        ChatEccos(members, ROUTER, temperature=0, api_key=KEY)
    assert "['api_key', 'temperature']" in caplog.text
    assert KEY not in caplog.text


def test_an_unknown_pin_names_the_models():
    with pytest.raises(ConfigError, match=r"'huge' is not a model of the router; give one of \['tiny'"):
        chat_of().invoke("hello", model="huge")
    with pytest.raises(ConfigError, match="'huge'"):
        chat_of().batch(["hello"], {"configurable": {"eccos_model": "huge"}})


def test_members_are_made_from_words(monkeypatch):
    made = ChatEccos({**{name: FakeChat() for name in NAMES}, "tiny": "openai:gpt-4o-mini"}, ROUTER)
    assert type(made.members["tiny"]).__name__ == "ChatOpenAI"
    monkeypatch.setitem(__import__("sys").modules, "langchain.chat_models", None)
    with pytest.raises(MissingExtraError, match=r"eccos-integrations\[agents\]"):
        chat_of(tiny="openai:gpt-4o-mini")


@pytest.fixture(autouse=True)
def openai_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


async def test_a_planted_key_is_nowhere_to_be_read(caplog, capsys):
    chat = chat_of(tiny=FakeChat(model_name="tiny", api_key=KEY, fail=ApiError(500)))
    told = [repr(chat), str(chat), str(chat.asdict()), str(chat._identifying_params), repr(chat.bind_tools([Word]))]
    collector = RunCollectorCallbackHandler()
    with caplog.at_level(logging.DEBUG):
        chat.invoke("hello", {"callbacks": [collector]})
        await chat.abatch(["hello", "there"])
        for wrong in ({"model": "huge"}, {"max_tokens": -1}):
            with pytest.raises(ConfigError) as error:
                chat.invoke("hello", **wrong)
            told.append(repr(error.value))
    (run,) = collector.traced_runs
    told += [run.model_dump_json(exclude={"child_runs"}) if hasattr(run, "model_dump_json") else str(run.dict())]
    told += [caplog.text, *capsys.readouterr()]
    assert all(KEY not in text for text in told)
    assert "tiny" in repr(chat)


# -- settings of every chat model


def test_output_version_and_streaming_are_handed_to_the_members():
    members = {name: FakeChat() for name in NAMES}
    chat = ChatEccos(members, ROUTER, output_version="v1", disable_streaming=True)
    assert chat.invoke("hello").content[0]["type"] == "text"
    assert len(list(chat.stream("hello"))) == 1
    assert members["tiny"].output_version is None


def test_a_bare_list_model_will_do():
    chat = ChatEccos({name: FakeListChatModel(responses=["yes"]) for name in NAMES}, ROUTER)
    assert [answer.text for answer in chat.batch(["a", "b"])] == ["yes", "yes"]
