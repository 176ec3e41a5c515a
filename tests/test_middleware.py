"""`EccosMiddleware`: an agent's turns go to models, and stay with them."""

import asyncio
import subprocess
import sys

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from eccos_integrations import ConfigError, Policy
from langchain_eccos.callbacks import EccosCostCallback, get_eccos_cost
from langchain_eccos.middleware import EccosMiddleware
from tests.fake_chat import FakeChat
from tests.langchain_agents import (
    EASY,
    HARD,
    agent_of,
    answers,
    ask,
    fakes,
    look_up,
    middleware_of,
    models,
    router_of,
)
from tests.langchain_router import USD_PER_MILLION, at_once


@tool
def approve(word: str) -> str:
    """Ask somebody."""
    return interrupt("may I?")


# -- turns


def test_a_tool_loop_stays_on_the_model_that_the_turn_was_decided_for():
    agent = agent_of(middleware_of())
    assert models(ask(agent, EASY)) == ["small", "small"]
    assert models(ask(agent, HARD)) == ["large", "large"]


async def test_asynchronous_agents_are_decided_alike():
    agent = agent_of(middleware_of())
    answers = await asyncio.gather(*(agent.ainvoke({"messages": [text]}) for text in (EASY, HARD)))
    assert [models(answer["messages"]) for answer in answers] == [["small"] * 2, ["large"] * 2]


def test_one_turn_is_one_decision_and_the_next_is_another():
    agent = agent_of(middleware_of(), checkpointer=InMemorySaver())
    ask(agent, EASY, thread_id="t")
    messages = ask(agent, HARD, thread_id="t")
    assert models(messages) == ["small", "small", "large", "large"]
    ids = [answer.response_metadata["eccos"]["decision_id"] for answer in answers(messages)]
    assert ids[0] == ids[1] != ids[2] == ids[3]


class Steering(AgentMiddleware):
    """Puts in a word of its own, once, after the first tool."""

    def before_model(self, state, runtime):
        said = [message.text for message in state["messages"]]
        return {"messages": [HumanMessage(HARD)]} if said[-1].startswith("all about") and HARD not in said else None


def test_a_human_message_in_between_begins_a_turn_but_no_run():
    agent = agent_of(Steering(), middleware_of())
    assert models(ask(agent, EASY)) == ["small", "large", "large"]
    agent = agent_of(Steering(), middleware_of(per="run"), checkpointer=InMemorySaver())
    assert models(ask(agent, EASY, thread_id="t")) == ["small"] * 3
    assert models(ask(agent, HARD, thread_id="t"))[3:] == ["large"] * 2


def test_messages_that_are_rewritten_for_each_call_are_of_the_same_turn():
    class Rewrites(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return handler(request.override(messages=[m.model_copy(update={"id": None}) for m in request.messages]))

    assert models(ask(agent_of(Rewrites(), Steering(), middleware_of()), EASY)) == ["small", "large", "large"]


def test_without_a_human_message_each_run_is_a_turn():
    agent = agent_of(middleware_of(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    agent.invoke({"messages": [SystemMessage(EASY)]}, config)
    messages = agent.invoke({"messages": [SystemMessage(HARD)]}, config)["messages"]
    assert models(messages) == ["small", "small", "large", "large"]


def test_per_call_each_call_is_decided():
    router = router_of()
    agent = agent_of(middleware_of(router=router, per="call"))
    messages = ask(agent, EASY)
    ids = {answer.response_metadata["eccos"]["decision_id"] for answer in answers(messages)}
    assert (len(models(messages)), len(ids)) == (2, 2)


def test_a_turn_that_was_interrupted_goes_on_with_its_model_in_another_process():
    saver = InMemorySaver()
    for per in ("turn", "run"):
        middleware = middleware_of(per=per)
        config = {"configurable": {"thread_id": per}}
        first = agent_of(middleware, tools=[approve], checkpointer=saver).invoke({"messages": [HARD]}, config)
        assert first["__interrupt__"]
        again = middleware_of(policy=Policy(min_quality=0.1), per=per)  # which would choose another
        resumed = agent_of(again, tools=[approve], checkpointer=saver).invoke(Command(resume="yes"), config)
        assert models(resumed["messages"]) == ["large", "large"]


def test_the_decision_is_in_private_state_and_in_nobodys_output():
    agent = agent_of(middleware_of(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    output = agent.invoke({"messages": [EASY]}, config)
    assert set(output) == {"messages"}
    state = agent.get_state(config).values
    told = output["messages"][-1].response_metadata["eccos"]
    assert state["eccos_route"] == {"decision": told, "turn": output["messages"][0].id}
    assert "eccos_run" not in state
    assert not {"eccos_route", "eccos_run"} & set(agent.get_input_jsonschema()["properties"])


def test_a_history_that_is_gone_ends_the_turn():
    class Forgets(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return handler(request.override(messages=[]))

    agent = agent_of(Forgets(), middleware_of(), tools=(), system_prompt=HARD, checkpointer=InMemorySaver())
    for text in ("one", "two"):
        assert models(ask(agent, text, thread_id="t"))[-1] == "large"


def test_the_system_prompt_counts_as_input():
    router = router_of(context_window=dict.fromkeys(["small", "medium"], 9000))
    middleware = middleware_of(router=router)
    assert models(ask(agent_of(middleware, system_prompt="be brief"), EASY)) == ["small"] * 2
    assert models(ask(agent_of(middleware, system_prompt="be brief " * 5000), EASY)) == ["large"] * 2


@pytest.mark.parametrize(
    ("messages", "model"),
    [
        ([SystemMessage(HARD)], "large"),
        ([AIMessage(EASY), AIMessage("")], "small"),
        ([HumanMessage(HARD), HumanMessage([{"type": "text", "text": ""}])], "large"),
    ],
    ids=["a system message", "an empty answer last", "an empty human message last"],
)
def test_without_words_of_a_human_the_last_text_there_is_decides(messages, model):
    agent = agent_of(middleware_of(), tools=())
    assert models(agent.invoke({"messages": messages})["messages"][-1:]) == [model]


def test_without_any_message_the_system_prompt_decides():
    agent = agent_of(middleware_of(), tools=(), system_prompt=HARD)
    assert models(agent.invoke({"messages": []})["messages"]) == ["large"]


# -- what one call may ask


def test_a_pin_holds_for_the_whole_run():
    agent = agent_of(middleware_of(), checkpointer=InMemorySaver())
    assert models(ask(agent, EASY, thread_id="t", eccos_model="medium")) == ["medium"] * 2
    assert models(ask(agent, EASY, thread_id="t"))[2:] == ["small"] * 2


def test_an_unknown_pin_is_refused_by_name():
    with pytest.raises(ConfigError, match="eccos_model: 'huge' is not a model"):
        ask(agent_of(middleware_of()), EASY, eccos_model="huge")


def test_a_floor_and_a_budget_hold_for_the_run_they_are_given_to():
    agent = agent_of(middleware_of())
    assert models(ask(agent, HARD, eccos_min_quality=0.0)) == ["small"] * 2
    tight = middleware_of(policy=Policy(max_mean_cost_usd=1.0))
    assert models(ask(agent_of(tight), HARD)) == ["large"] * 2
    assert models(ask(agent_of(tight), HARD, eccos_max_cost_usd=0.04)) != ["large"] * 2


def test_members_that_call_no_tools_get_no_call_with_tools():
    router = router_of(tools={"small": False})
    assert "small" not in models(ask(agent_of(middleware_of(router=router)), EASY))
    assert models(ask(agent_of(middleware_of(router=router), tools=()), EASY)) == ["small"]
    with pytest.raises(ConfigError, match="small: it does not call tools"):
        ask(agent_of(middleware_of(router=router)), EASY, eccos_model="small")


class Verdict(BaseModel):
    """What came of it."""

    word: str
    right: bool


@pytest.mark.parametrize("form", [Verdict, ToolStrategy(Verdict), ProviderStrategy(Verdict)])
@pytest.mark.parametrize("text", [EASY, HARD])
async def test_answers_in_a_form_are_made_by_the_chosen_model(form, text):
    agent = agent_of(middleware_of(), tools=(), response_format=form)
    for answer in (agent.invoke({"messages": [text]}), await agent.ainvoke({"messages": [text]})):
        assert answer["structured_response"] == Verdict(word="word", right=True)
        assert models(answer["messages"]) == [{EASY: "small", HARD: "large"}[text]]


# -- what can be seen


async def test_the_members_run_and_an_event_show_the_decision():
    agent = agent_of(middleware_of())
    events = [
        event
        async for event in agent.astream_events({"messages": [HARD]}, version="v2")
        if event["event"] in {"on_custom_event", "on_chat_model_start"}
    ]
    told = [event["data"] for event in events if event.get("name") == "eccos_decision"]
    starts = [event for event in events if event["event"] == "on_chat_model_start"]
    assert [one["model"] for one in told] == ["large", "large"]
    for start, one in zip(starts, told, strict=True):
        assert "eccos:large" in start["tags"]
        assert start["metadata"]["eccos_decision_id"] == one["decision_id"]
    assert HARD not in repr(told)


def test_an_agent_costs_what_its_members_runs_cost_and_each_once():
    middleware = middleware_of()
    cost = EccosCostCallback(middleware.router)
    with get_eccos_cost(middleware.router) as block:
        answer = agent_of(middleware).invoke({"messages": [HARD]}, {"callbacks": [cost]})
    used = [each.usage_metadata["total_tokens"] for each in answers(answer["messages"])]
    assert cost.by_model == block.by_model
    assert cost.by_model["large"].calls == 2
    assert cost.total_cost_usd == pytest.approx(sum(used) * USD_PER_MILLION["large"] / 1e6)


async def test_a_stream_of_messages_has_as_many_pieces_as_that_of_the_bare_model():
    async def pieces(agent):
        return [chunk.text async for chunk, _ in agent.astream({"messages": [HARD]}, stream_mode="messages")]

    middleware = middleware_of()
    bare = create_agent(FakeChat(model_name="large"), [look_up])
    assert await pieces(agent_of(middleware)) == await pieces(bare)


# -- how it is made


def test_wrong_arguments_are_refused_by_name():
    router = router_of()
    with pytest.raises(ConfigError, match="per='thread': give 'turn', 'call' or 'run'"):
        EccosMiddleware(fakes(), router, per="thread")
    with pytest.raises(ConfigError, match="tiny"):
        EccosMiddleware({**fakes(), "tiny": FakeChat()}, router)
    with pytest.raises(ConfigError, match="another router's"):
        EccosMiddleware(fakes(), router, dispatcher=at_once(router_of()))
    secret = EccosMiddleware(fakes(api_key="s3cr3t"), router)
    assert repr(secret) == "EccosMiddleware(['small', 'medium', 'large'], per='turn')"


def test_members_may_be_given_in_words(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    middleware = middleware_of({**fakes(), "large": "openai:gpt-5"})
    assert middleware.members["large"].model_name == "gpt-5"


def test_where_langchain_is_missing_the_error_says_how_to_install_it():
    code = (
        "import sys; sys.modules['langchain'] = sys.modules['langchain.agents'] = None\n"
        "import langchain_eccos\n"
        "import langchain_eccos.middleware\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "MissingExtraError: langchain is not installed; run: pip install 'eccos-integrations[agents]'" in done.stderr
