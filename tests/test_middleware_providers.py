"""`EccosMiddleware` among providers: what one says that another does not understand."""

import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from eccos_integrations import Policy
from tests.fake_chat import FakeChat
from tests.langchain_agents import agent_of, answers, ask, fakes, middleware_of, names

CHEAP = Policy(min_quality=0.0)  # the small model, and where that fails the medium one


class Other(FakeChat):
    """Of another provider, which thinks aloud."""

    def _get_ls_params(self, stop=None, **kwargs):
        return {**super()._get_ls_params(stop=stop, **kwargs), "ls_provider": "other"}

    def _answer(self, messages, stop, kwargs):
        answer = super()._answer(messages, stop, kwargs)
        content = [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "text", "text": "said", "cache_control": {"type": "ephemeral"}},
            *({"type": "tool_use", "id": call["id"], "name": call["name"]} for call in answer.tool_calls),
        ]
        return answer.model_copy(update={"content": content, "additional_kwargs": {"reasoning_content": "hm"}})


MARK = {"cache_control": {"type": "ephemeral"}}


class Marks(AgentMiddleware):
    """Marks everything for the cache of the agent's own provider."""

    def wrap_model_call(self, request, handler):
        block = {"type": "text", "text": "be brief", **MARK}
        own = [tool.model_copy(update={"extras": {**MARK, "defer": True}}) for tool in request.tools]
        asked = HumanMessage([{"type": "text", "text": "a question", **MARK, "extras": dict(MARK)}])
        return handler(
            request.override(
                system_message=SystemMessage([block]),
                messages=[asked, *request.messages[1:]],
                tools=own,
                model_settings={**MARK, "seed": 1},
            )
        )


def test_an_answer_of_another_provider_is_shown_as_text_and_tool_calls_only():
    members = fakes()
    members["large"] = Other(model_name="large")
    agent = agent_of(middleware_of(members, policy=CHEAP), checkpointer=InMemorySaver())
    first = ask(agent, thread_id="t", eccos_model="large")
    assert members["large"].asked[1]["messages"][1].content[0]["type"] == "thinking"  # its own, it sees again
    second = ask(agent, thread_id="t", eccos_model="small")
    shown = answers(members["small"].asked[0]["messages"])
    assert [message.content for message in shown] == ["said", "said"]
    assert shown[0].tool_calls == answers(first)[0].tool_calls
    assert all(message.additional_kwargs == {} and message.response_metadata == {} for message in shown)
    assert second[: len(first)] == first  # what is kept is as it was


def test_who_takes_over_within_a_call_is_shown_no_more():
    members = fakes()
    members["small"] = Other(model_name="small")

    @tool
    def spoil(word: str) -> str:
        """Take the small model away."""
        members["small"].fail = ConnectionError()
        return word

    messages = ask(agent_of(middleware_of(members, policy=CHEAP), tools=[spoil]))
    assert names(messages) == ["small", "medium"]
    assert [type(m) for m in members["medium"].asked[0]["messages"]] == [HumanMessage, AIMessage, ToolMessage]
    assert answers(members["medium"].asked[0]["messages"])[0].content == "said"


@pytest.mark.parametrize(("provider", "kept"), [("fake", True), ("other", False), (None, True)])
def test_an_answer_that_no_member_gave_is_of_the_provider_that_it_names(provider, kept):
    members = fakes()
    said = AIMessage([{"type": "reasoning", "reasoning": "hm"}], response_metadata={"model_provider": provider})
    agent_of(middleware_of(members, policy=CHEAP), tools=()).invoke({"messages": ["a", said, "b"]})
    assert (members["small"].asked[0]["messages"][1].content == said.content) is kept


class Sees(AgentMiddleware):
    def wrap_model_call(self, request, handler):
        self.tools = request.tools
        return handler(request)


def test_cache_marks_for_another_provider_are_taken_off_and_for_the_same_they_stay():
    for own in (False, True):
        members = fakes()
        model = members["large"] if own else Other(model_name="the agent's own")
        inner = Sees()
        agent = agent_of(Marks(), middleware_of(members, policy=CHEAP), inner, model=model)
        ask(agent)
        asked = members["small"].asked[0]
        system, human = asked["messages"][:2]
        assert ("cache_control" in system.content[0]) is own
        assert ("cache_control" in human.content[0]) is own
        assert human.content[0]["extras"] == (MARK if own else {})
        assert (asked.get("cache_control") == MARK["cache_control"], asked["seed"]) == (own, 1)
        assert human.content[0]["text"] == "a question"
        assert inner.tools[0].extras == ({**MARK, "defer": True} if own else {"defer": True})
