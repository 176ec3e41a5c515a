"""`EccosMiddleware` where things fail or fill up: fallback, limits, books, threads."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ModelRetryMiddleware
from langchain_core.callbacks import CallbackManager
from langchain_core.tools import tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphInterrupt
from langgraph.types import Command, interrupt
from pydantic import PrivateAttr

from eccos_integrations import Model, Policy
from langchain_eccos.callbacks import EccosCostCallback
from tests.fake_chat import FakeChat
from tests.langchain_agents import agent_of, answers, ask, ask_either_way, fakes, middleware_of, names, router_of, told
from tests.langchain_router import MODELS, Books, at_once

CHEAP = Policy(min_quality=0.0)  # the small model, and where that fails the medium one

# -- fallback


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_failing_member_is_replaced_within_the_call_and_for_the_rest_of_the_turn(asynchronous):
    members = fakes()
    members["small"].fail = [ConnectionError()]
    agent = agent_of(middleware_of(members, policy=CHEAP))
    messages = await ask_either_way(agent, asynchronous=asynchronous)
    assert names(messages) == told(messages) == ["medium", "medium"]
    assert len(members["small"].asked) == 1
    assert answers(messages)[0].response_metadata["eccos"]["attempt"] == 2


def test_a_member_that_fails_in_a_tool_loop_is_replaced_from_there_on():
    members = fakes()

    @tool
    def spoil(word: str) -> str:
        """Take the small model away."""
        members["small"].fail = ConnectionError()
        return word

    messages = ask(agent_of(middleware_of(members, policy=CHEAP), tools=[spoil]))
    assert names(messages) == told(messages) == ["small", "medium"]


def test_an_error_that_every_model_would_repeat_is_raised_as_it_is():
    error = ValueError("malformed")
    members = fakes(fail=error)
    with pytest.raises(ValueError, match="malformed") as caught:
        ask(agent_of(middleware_of(members, policy=CHEAP)))
    assert caught.value is error
    assert [len(members[name].asked) for name in MODELS] == [1, 0, 0]


class TooLong(AgentMiddleware):
    """Interrupts with words that a provider would refuse a prompt with."""

    def __init__(self):
        self.asked = 0

    def wrap_model_call(self, request, handler):
        self._ask()
        return handler(request)

    async def awrap_model_call(self, request, handler):
        self._ask()
        return await handler(request)

    def _ask(self):
        self.asked += 1
        interrupt("context_length_exceeded: maximum context length")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_interrupt_is_no_fault_of_a_model_whatever_it_says(asynchronous):
    inner = TooLong()
    agent = agent_of(middleware_of(policy=CHEAP), inner, tools=(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    for value in ({"messages": ["x"]}, Command(resume="yes")):
        answer = await agent.ainvoke(value, config) if asynchronous else agent.invoke(value, config)
    assert names(answer["messages"]) == ["small"]
    assert inner.asked == 2


def test_the_same_interrupt_comes_out_that_went_in():
    class Raises(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            raise bubble

    bubble, seen = GraphInterrupt(), []

    class Watches(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            try:
                return handler(request)
            except GraphInterrupt as error:
                seen.append(error)
                raise

    ask(agent_of(Watches(), middleware_of(policy=CHEAP), Raises()))
    assert seen == [bubble]


# -- with ModelFallbackMiddleware, on either side


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_fallback_before_us_is_the_last_resort_once_every_member_has_failed(asynchronous):
    members = fakes(fail=ConnectionError())
    last = FakeChat(model_name="last")
    agent = agent_of(ModelFallbackMiddleware(last), middleware_of(members, policy=CHEAP), tools=())
    messages = await ask_either_way(agent, asynchronous=asynchronous)
    assert (names(messages), told(messages)) == (["last"], [None])
    assert [len(members[name].asked) for name in MODELS] == [1, 1, 1]


def test_a_fallback_before_us_is_not_called_while_a_member_answers():
    members = fakes()
    members["small"].fail = ConnectionError()
    last = FakeChat(model_name="last")
    assert names(ask(agent_of(ModelFallbackMiddleware(last), middleware_of(members, policy=CHEAP)))) == [
        "medium",
        "medium",
    ]
    assert not last.asked


def test_the_call_after_the_last_resort_is_decided_again():
    members = fakes()
    for member in members.values():
        member.fail = [ConnectionError()]
    last = FakeChat(model_name="last")
    router = router_of()
    messages = ask(agent_of(ModelFallbackMiddleware(last), middleware_of(members, router, CHEAP)))
    assert names(messages)[0] == "last"
    assert names(messages)[1] in MODELS


def test_a_member_as_the_last_resort_is_called_under_its_limits():
    router = router_of(max_concurrency=dict.fromkeys(MODELS, 1))
    members = fakes(fail=[ConnectionError()])
    middleware = middleware_of(members, router, CHEAP)
    messages = ask(agent_of(ModelFallbackMiddleware(members["large"]), middleware, tools=()))
    assert names(messages) == told(messages)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_fallback_after_us_answers_and_nothing_says_that_the_member_did(asynchronous):
    members = fakes()
    members["small"].fail = ConnectionError()
    last = FakeChat(model_name="last")
    agent = agent_of(middleware_of(members, policy=CHEAP), ModelFallbackMiddleware(last), tools=())
    messages = await ask_either_way(agent, asynchronous=asynchronous)
    assert (names(messages), told(messages)) == (["last"], [None])
    assert not members["medium"].asked


def test_a_retry_before_us_is_routed_as_the_first_call_was():
    members = fakes()
    for member in members.values():
        member.fail = [ConnectionError()]
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False)
    messages = ask(agent_of(retry, middleware_of(members, policy=CHEAP), tools=()))
    assert names(messages) == told(messages)


# -- limits, books


class Counting(FakeChat):
    """Counts the calls under way over all its copies."""

    _seen: dict = PrivateAttr(default_factory=lambda: {"now": 0, "most": 0, "calls": 0})

    def _begin(self, messages, stop, kwargs):
        with self._lock:
            seen = self._seen
            seen["now"], seen["calls"] = seen["now"] + 1, seen["calls"] + 1
            seen["most"] = max(seen["most"], seen["now"])

    def _end(self):
        with self._lock:
            self._seen["now"] -= 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_thirty_agents_at_once_never_exceed_a_limit(asynchronous):
    most = {"small": 2, "medium": 3, "large": 4}
    router = router_of(max_concurrency=most)
    members = {name: Counting(model_name=name, latency=0.005) for name in MODELS}
    agent = agent_of(middleware_of(members, router, CHEAP))
    inputs = [{"messages": [f"question {i}"]} for i in range(30)]
    if asynchronous:
        done = await asyncio.gather(*(agent.ainvoke(each) for each in inputs))
    else:
        with ThreadPoolExecutor(30) as executor:
            done = list(executor.map(agent.invoke, inputs))
    assert all(len(set(names(each["messages"]))) == 1 for each in done)
    assert sum(member._seen["calls"] for member in members.values()) == 60
    assert all(member._seen["most"] <= most[name] for name, member in members.items())


def test_the_cap_that_was_reserved_for_is_the_cap_of_the_call():
    router = router_of(max_output_tokens=dict.fromkeys(MODELS, 64), tokens_per_minute=dict.fromkeys(MODELS, 10_000))
    members = fakes()
    ask(agent_of(middleware_of(members, router, CHEAP), tools=()))
    assert members["small"].asked[0]["max_tokens"] == 64
    own = fakes(max_tokens=7)
    ask(agent_of(middleware_of(own, router, CHEAP), tools=()))
    assert own["small"].asked[0]["max_tokens"] == 7


def test_what_each_call_used_is_booked_under_the_one_decision_of_the_turn():
    router, books = router_of(), Books()
    messages = ask(agent_of(middleware_of(router=router, policy=CHEAP, dispatcher=at_once(router, log=books))))
    used = [answer.usage_metadata for answer in answers(messages)]
    assert books.tokens == [(use["input_tokens"], use["output_tokens"], 0) for use in used]


def test_the_members_own_callbacks_tags_and_metadata_are_kept_and_the_member_is_not_changed():
    listed, managed = RunCollectorCallbackHandler(), RunCollectorCallbackHandler()
    members = fakes(tags=["mine"], metadata={"my": "own"})
    members["small"].callbacks = [listed]
    members["large"].callbacks = CallbackManager([managed])
    middleware = middleware_of(members, policy=CHEAP)
    cost = EccosCostCallback(middleware.router)
    agent = agent_of(middleware, tools=()).with_config(callbacks=[cost])
    ask(agent, eccos_model="small")
    ask(agent, eccos_model="large")
    for name, collector in (("small", listed), ("large", managed)):
        (run,) = collector.traced_runs
        assert {"mine", f"eccos:{name}"} <= set(run.tags)
        assert (run.metadata["my"], run.metadata["eccos_model"]) == ("own", name)
    assert set(cost.by_model) == {"small", "large"}
    assert members["small"].callbacks == [listed]
    assert members["large"].callbacks.handlers == [managed]
    assert members["small"].tags == ["mine"]


# -- threads


class Caching(FakeChat):
    """Has nearly all of its input in its cache."""

    def _answer(self, messages, stop, kwargs):
        answer = super()._answer(messages, stop, kwargs)
        used = {"input_tokens": 100_000, "output_tokens": 5, "total_tokens": 100_005}
        return answer.model_copy(update={"usage_metadata": used})


def test_a_thread_changes_its_model_only_where_that_pays_for_what_is_cached():
    router = router_of()
    cached = Model(
        name="warm",
        input_usd_per_million_tokens=30.0,
        output_usd_per_million_tokens=1.0,
        cached_input_usd_per_million_tokens=0.1,
    )
    router.add_model(cached)
    members = {name: Caching(model_name=name) for name in router.models}
    agent = agent_of(middleware_of(members, router, CHEAP), tools=(), checkpointer=InMemorySaver())
    assert names(ask(agent, thread_id="cold")) == ["small"]
    assert names(ask(agent, thread_id="t", eccos_model="warm")) == ["warm"]
    assert names(ask(agent, thread_id="t"))[1:] == ["warm"]
    assert names(ask(agent, thread_id="other")) == ["small"]


class Talks(Books):
    """A log that shows the conversation of each call."""

    def __init__(self):
        super().__init__()
        self.talks = []

    def submit_decided(self, *args, conversation=None, **rest):
        self.talks.append(conversation)
        return super().submit_decided(*args, conversation=conversation, **rest)


def test_an_agent_within_an_agent_has_a_conversation_of_its_own_in_the_thread():
    router, log = router_of(), Talks()
    middleware = middleware_of(router=router, policy=CHEAP, dispatcher=at_once(router, log=log))
    inner = agent_of(middleware, tools=())

    @tool
    def delegate(word: str) -> str:
        """Ask another agent."""
        return ask(inner, word)[-1].text

    outer = agent_of(middleware, tools=[delegate], checkpointer=InMemorySaver())
    ask(outer, thread_id="t")
    ask(outer, thread_id="t")
    first, within, after = log.talks[:3]
    assert log.talks == [first, within, after] * 2
    assert first == after != within
    ask(agent_of(middleware, tools=()))
    assert log.talks[-1] is None


def test_threads_that_share_one_middleware_do_not_mix_up_their_turns():
    agent = agent_of(middleware_of(policy=CHEAP), checkpointer=InMemorySaver())
    start = threading.Barrier(8)

    def talk(i):
        start.wait(20)
        pin = MODELS[i % 3]
        return pin, ask(agent, f"question {i}", thread_id=str(i), eccos_model=pin)

    with ThreadPoolExecutor(8) as executor:
        for pin, messages in executor.map(talk, range(8)):
            assert names(messages) == told(messages) == [pin, pin]
