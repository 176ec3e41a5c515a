"""`ChatEccos` sends a chat only to members that can take it: tools, schemas, media, a long enough window."""

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

from eccos_integrations import ConfigError, Model, ModelPool, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos.chat_model import ChatEccos
from tests.conftest import PRICES, make_table
from tests.fake_chat import FakeChat

NAMES = list(PRICES)
PIXEL = "iVBORw0KGgo="
PICTURE = {"type": "image", "base64": PIXEL, "mime_type": "image/png"}
IMAGE = HumanMessage([{"type": "text", "text": "what is it?"},
                      {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}])  # fmt: skip


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="What it is about")
    laughs: int = 1


def router_of(**abilities):
    """Cheapest first: tiny, small, medium, large; abilities as mappings from names."""
    models = []
    for name, (input_usd, output_usd) in PRICES.items():
        own = {field: values.get(name) for field, values in abilities.items()}
        models.append(Model(name=name, input_usd_per_million_tokens=input_usd,
                            output_usd_per_million_tokens=output_usd, **own))  # fmt: skip
    return Router.fit(make_table(seed=0, per_task=20), pool=ModelPool(models), policy=Policy(), predictor="prior")


ROUTER = router_of()


def chat_of(router=ROUTER, profiles=None, **members):
    made = {name: FakeChat(model_name=name, profile=(profiles or {}).get(name)) for name in NAMES}
    return ChatEccos({**made, **members}, router, dispatcher=Dispatcher(router, window_s=0))


def by(answer):
    return answer.response_metadata["eccos"]["model"]


# -- tools and schemas


async def test_bound_tools_are_called_by_the_chosen_member():
    bound = chat_of().bind_tools([add])
    answers = [bound.invoke("what is 2 + 3?"), await bound.ainvoke("what is 2 + 3?")]
    answers += [*bound.batch(["what is 2 + 3?"]), *await bound.abatch(["what is 2 + 3?"])]
    whole = None
    for chunk in bound.stream("what is 2 + 3?"):
        whole = chunk if whole is None else whole + chunk
    for answer in [*answers, whole]:
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 2, "b": 3})
        assert by(answer) == "tiny"


def test_tools_are_given_to_the_member_as_they_were_bound():
    chat = chat_of()
    chat.bind_tools([add], tool_choice="any", strict=True).invoke("hello", model="small")
    (asked,) = chat.members["small"].asked
    assert asked["tools"][0]["function"]["name"] == "add"
    assert (asked["tool_choice"], asked["strict"]) == ("any", True)


def test_members_that_call_no_tools_are_passed_over():
    plain = FakeListChatModel(responses=["no"])
    assert by(chat_of(tiny=plain).bind_tools([add]).invoke("hello")) == "small"
    profiled = chat_of(tiny=plain, profiles={"small": {"tool_calling": False}})
    assert by(profiled.bind_tools([add]).invoke("hello")) == "medium"
    assert by(profiled.bind(tools=[{"function": {"name": "add"}}]).invoke("hello")) == "medium"
    assert by(profiled.invoke("hello")) == "tiny"


def test_the_pool_comes_before_the_profile():
    router = router_of(tools={"tiny": False, "small": True})
    chat = chat_of(router, profiles={"tiny": {"tool_calling": True}, "small": {"tool_calling": False}})
    assert by(chat.bind_tools([add]).invoke("hello")) == "small"


def test_a_batch_with_tools_is_planned_among_those_that_call_them():
    chat = chat_of(tiny=FakeListChatModel(responses=["no"]))
    told = [answer.response_metadata["eccos"] for answer in chat.bind_tools([add]).batch(["a", "b", "c"])]
    assert {(each["model"], each["reason"].split(",")[0]) for each in told} == {("small", "planned jointly")}


def test_tools_that_nobody_calls_are_refused_when_they_are_bound():
    chat = chat_of(**{name: FakeListChatModel(responses=["no"]) for name in NAMES})
    with pytest.raises(ConfigError, match=r"tiny: it does not call tools; .*large: .*tools, vision"):
        chat.bind_tools([add])
    with pytest.raises(ConfigError, match="cannot be held to a schema"):
        chat.with_structured_output(Joke)


async def test_an_answer_is_an_object_of_its_schema():
    made = chat_of().with_structured_output(Joke)
    expected = Joke(setup="cats", laughs=7)
    assert made.invoke("'cats' 7") == await made.ainvoke("'cats' 7") == expected
    assert made.batch(["'cats' 7"] * 2) == await made.abatch(["'cats' 7"] * 2) == [expected] * 2
    assert list(made.stream("'cats' 7"))[-1] == expected
    assert [piece async for piece in made.astream("'cats' 7")][-1] == expected
    assert made.OutputType is Joke


async def test_with_the_raw_message_comes_the_decision():
    made = chat_of().with_structured_output(Joke, include_raw=True)
    for answer in (made.invoke("'cats'"), await made.ainvoke("'cats'")):
        assert answer["parsed"] == Joke(setup="cats")
        assert by(answer["raw"]) == "tiny"
    assert sum("eccos" in piece["raw"].response_metadata for piece in made.stream("'cats'") if "raw" in piece) == 1


def test_what_a_structured_answer_used_is_known():
    used = []

    class Listening(Dispatcher):
        def call(self, query, function, **options):
            served = super().call(query, function, **options)
            used.append(served.usage)
            return served

    members = {name: FakeChat(model_name=name) for name in NAMES}
    ChatEccos(members, ROUTER, dispatcher=Listening(ROUTER)).with_structured_output(Joke).invoke("a b c")
    assert (used[0].input_tokens, used[0].output_tokens) == (3, 5)


def test_method_and_strictness_are_the_members_own():
    class Strict(FakeChat):
        def with_structured_output(self, schema, **kwargs):
            given.append(kwargs)
            return super().with_structured_output(schema)

    given = []
    chat = chat_of(tiny=Strict())
    chat.with_structured_output(Joke, method="json_schema", strict=True).invoke("'cats'")
    assert given == [{"include_raw": False, "method": "json_schema", "strict": True}]


# -- media and length


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("image_inputs", IMAGE),
        ("image_inputs", HumanMessage([PICTURE])),
        ("pdf_inputs", HumanMessage([{"type": "file", "base64": PIXEL, "mime_type": "application/pdf"}])),
        ("audio_inputs", HumanMessage([{"type": "audio", "base64": PIXEL, "mime_type": "audio/wav"}])),
        ("video_inputs", HumanMessage([{"type": "video", "base64": PIXEL, "mime_type": "video/mp4"}])),
        ("image_tool_message", ToolMessage([PICTURE], tool_call_id="1")),
    ],
)  # fmt: skip
def test_only_members_that_can_read_a_medium_get_it(profile, message):
    chat = chat_of(profiles={"medium": {profile: True}, "small": {profile: False}})
    assert by(chat.invoke([HumanMessage("look"), message])) == "medium"
    assert by(chat.invoke("look")) == "tiny"
    with pytest.raises(ConfigError, match="tiny: it does not"):
        chat_of().invoke([message])


def test_vision_of_the_pool_counts_where_there_is_no_profile():
    assert by(chat_of(router_of(vision={"large": True})).invoke([IMAGE])) == "large"


def test_pictures_that_a_model_made_itself_need_no_eyes():
    drawn = AIMessage([PICTURE])
    assert by(chat_of().invoke([HumanMessage("draw"), drawn, HumanMessage("thanks")])) == "tiny"


def test_a_chat_too_long_for_a_window_goes_to_a_longer_one():
    history = [SystemMessage("word " * 2000), HumanMessage("hello")]
    assert by(chat_of(router_of(context_window={"tiny": 1000, "small": 100_000})).invoke(history)) == "small"
    chat = chat_of(profiles={"tiny": {"max_input_tokens": 1000}})
    assert by(chat.invoke(history)) == by(chat.batch([history])[0]) == "small"
    assert by(chat.invoke("hello")) == "tiny"


def test_the_expected_answer_must_fit_too():
    history = [SystemMessage("word " * 300), HumanMessage("hello")]  # about 380 tokens, and about 200 of the answer
    chat = chat_of(router_of(context_window={"tiny": 450}))
    assert [by(answer) for answer in [chat.invoke(history), *chat.batch([history, "hello"])]] == [
        "small",
        "small",
        "tiny",
    ]


def test_tools_count_towards_the_length():
    long = {"type": "function", "function": {"name": "f", "description": "word " * 2000, "parameters": {}}}
    chat = chat_of(profiles={"tiny": {"max_input_tokens": 1000}})
    assert by(chat.bind_tools([long]).invoke("hello")) == "small"


def test_a_large_file_is_not_taken_for_a_long_text():
    file = HumanMessage([{"type": "file", "base64": PIXEL * 10_000, "mime_type": "application/pdf"}])
    profile = {"pdf_inputs": True, "max_input_tokens": 1000}
    assert by(chat_of(profiles={"tiny": profile}).invoke([file])) == "tiny"


def test_what_nobody_can_take_says_of_each_why():
    router = router_of(context_window=dict.fromkeys(NAMES, 100), tools={"small": False})
    with pytest.raises(ConfigError, match=r"small: its context window of 100 tokens is too short for about \d+;"):
        chat_of(router).invoke("secret " * 200)
    with pytest.raises(ConfigError, match="tiny: the call is pinned to small; small: it does not call tools") as error:
        chat_of(router).bind_tools([add]).invoke("secret", model="small")
    assert "secret" not in str(error.value)


# -- the profile


def test_the_profile_is_what_every_member_can_do():
    profiles = {name: {"tool_calling": True, "image_inputs": name == "large", "max_input_tokens": 100 + len(name)}
                for name in NAMES}  # fmt: skip
    assert chat_of(profiles=profiles).profile == {
        "tool_calling": True, "image_inputs": False, "max_input_tokens": 104,
    }  # fmt: skip
    del profiles["tiny"]
    assert chat_of(profiles=profiles).profile is None


# -- tool loops


def agent_of(chat, **kwargs):
    return create_agent(chat, tools=[add], **kwargs)


async def test_within_a_tool_loop_the_same_model_goes_on():
    chat = chat_of()
    given = {"messages": [HumanMessage("what is 2 + 3?")]}
    config = {"configurable": {"thread_id": "1"}, "recursion_limit": 10}
    agent = agent_of(chat, checkpointer=InMemorySaver())
    pinned = agent.invoke(
        given, {"configurable": {**config["configurable"], "eccos_model": "large"}, "recursion_limit": 10}
    )
    said = [message for message in pinned["messages"] if message.type == "ai"]
    assert [by(message) for message in said] == ["large", "large"]
    loop = pinned["messages"][:-1]
    assert loop[-1].type == "tool"
    assert by(chat.invoke(loop)) == by(await chat.ainvoke(loop)) == "large"
    assert by(chat.invoke([*pinned["messages"], HumanMessage("and now?")])) == "tiny"
    told = await agent.ainvoke({"messages": [HumanMessage("what is 4 + 5?")]}, config)
    assert by(told["messages"][-1]) == "tiny"


@pytest.mark.parametrize("told", [None, {}, "large", {"model": 7}, {"model": "gone"}])
def test_a_loop_begun_by_who_knows_whom_is_decided_afresh(told):
    asked = AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}], response_metadata={"eccos": told})
    assert by(chat_of().invoke([HumanMessage("add"), asked, ToolMessage("5", tool_call_id="1")])) == "tiny"


def test_an_agent_with_a_response_format_gives_the_object():
    profiles = {name: {"structured_output": True, "tool_calling": True} for name in NAMES}
    agent = create_agent(chat_of(profiles=profiles), response_format=Joke)
    answer = agent.invoke({"messages": [HumanMessage("a joke about 'cats'")]}, {"recursion_limit": 5})
    assert answer["structured_response"] == Joke(setup="cats")
    assert by(answer["messages"][-1]) == "tiny"


@pytest.mark.parametrize("block", [{"type": None}, {"text": "no type"}, {"type": "image_url"}, "x"])
def test_blocks_that_make_no_sense_are_left_to_the_member(block):
    eyes = {name: {"image_inputs": True} for name in NAMES}
    assert by(chat_of(profiles=eyes).invoke([HumanMessage([{"type": "text", "text": "hello"}, block])])) == "tiny"


def test_tools_in_a_form_that_only_a_provider_knows_are_passed_on():
    class Native(FakeChat):
        def bind_tools(self, tools, **kwargs):
            return self.bind(native=tools)

    chat = chat_of(tiny=Native())
    chat.bind_tools([{"kind": "search"}]).invoke("hello")
    assert chat.members["tiny"].asked[0]["native"] == [{"kind": "search"}]
