"""What `EccosLLM` decides by: the question behind a call, the prompt, the tool loop that a call is part of."""

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ChatResponse, MockLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode
from pydantic import BaseModel

from eccos_integrations import Router
from eccos_integrations.serving.dispatch import Dispatcher
from llamaindex_eccos import EccosLLM
from llamaindex_eccos.events import EccosRouteEvent
from llamaindex_eccos.listening import Questions
from llamaindex_eccos.tool_loops import ToolLoops
from tests.llamaindex_members import (
    EASY,
    HARD,
    TOOLS,
    Caller,
    Obliging,
    Recorder,
    make_router,
    model_of,
    pool_of,
    user,
)


@pytest.fixture(scope="module")
def router():
    return make_router()


@pytest.fixture
def windows(monkeypatch):
    """The texts that were forecast, window by window."""
    seen, forecast = [], Router.forecast
    monkeypatch.setattr(
        Router, "forecast", lambda self, queries, policy=None: seen.append(queries) or forecast(self, queries, policy)
    )
    return seen


@pytest.fixture
def routed():
    """What instrumentation hears of decisions."""
    seen = []

    class Seen(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, EccosRouteEvent):
                seen.append(event)

    handler = Seen()
    get_dispatcher().add_event_handler(handler)
    yield seen
    get_dispatcher().event_handlers.remove(handler)


def recorders(router, **options):
    return EccosLLM(members={name: Recorder(name=name) for name in router.models}, router=router, **options)


# -- the question


PROOFS = [TextNode(text=f"{HARD}: part {i}. " + "prove the theorem " * 20) for i in range(4)]


@pytest.mark.parametrize("mode", [mode for mode in ResponseMode if mode not in {"no_text", "context_only"}])
@pytest.mark.parametrize("chats", [True, False])
async def test_a_query_engine_is_decided_by_its_question_and_not_by_what_it_has_found(router, windows, mode, chats):
    members = {name: MockLLM(is_chat_model=chats) for name in router.models}
    engine = SummaryIndex(PROOFS).as_query_engine(llm=EccosLLM(members=members, router=router), response_mode=mode)
    engine.query(EASY)
    await engine.aquery(EASY)
    assert {text for texts in windows for text in texts} == {EASY}


async def test_objects_from_a_query_engine_are_decided_by_its_question(router, windows):
    class Answer(BaseModel):
        a: int = 3
        b: int = 4

    llm = EccosLLM(members={name: Obliging() for name in router.models}, router=router)
    engine = SummaryIndex(PROOFS).as_query_engine(llm=llm, output_cls=Answer, response_mode="tree_summarize")
    engine.query(EASY)
    await engine.aquery(EASY)
    assert {text for texts in windows for text in texts} == {EASY}


@pytest.mark.parametrize(
    ("prompt", "given", "text"),
    [
        (PromptTemplate("{context_str} {query_str}"), {"context_str": HARD, "query_str": EASY}, EASY),
        (PromptTemplate("{context_str} {query_str}").partial_format(query_str=EASY), {"context_str": HARD}, EASY),
        (PromptTemplate("{context_str}"), {"context_str": HARD}, HARD),
        (
            ChatPromptTemplate([ChatMessage("be {how}", role="system"), ChatMessage("{what}", role="user")]),
            {"how": "brief", "what": EASY},
            EASY,
        ),
        (
            PromptTemplate("{context} {question}", template_var_mappings={"query_str": "question"}),
            {"context": HARD, "query_str": EASY},
            EASY,
        ),
    ],
    ids=["query_str", "filled-in-before", "none", "last-user-message", "mapped"],
)
async def test_a_prompt_is_decided_by_its_question_or_else_by_its_last_user_message(
    router, windows, prompt, given, text
):
    llm = recorders(router)
    llm.predict(prompt, **given)
    list(llm.stream(prompt, **given))
    await llm.apredict(prompt, **given)
    [_ async for _ in await llm.astream(prompt, **given)]
    assert windows == [[text]] * 4


def test_a_question_is_forgotten_with_its_query_even_where_that_fails(router, windows):
    class Broken(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            raise TypeError("no")

    llm = EccosLLM(members={name: Broken() for name in router.models}, router=router)
    with pytest.raises(TypeError, match="no"):
        SummaryIndex(PROOFS).as_query_engine(llm=llm, response_mode="simple_summarize").query(EASY)
    recorders(router).complete(HARD)
    assert windows == [[EASY], [HARD]]


def test_what_is_sent_counts_against_the_window_though_the_question_is_short(router):
    members = {"large": Recorder(name="large", window=9000), "small": Recorder(name="small", window=400)}
    llm = EccosLLM(members=members, router=router)
    assert llm.predict(PromptTemplate("{context_str} {query_str}"), context_str="", query_str=EASY).startswith("small")
    long = llm.predict(PromptTemplate("{context_str} {query_str}"), context_str="y " * 900, query_str=EASY)
    assert long.startswith("large")


def test_no_question_is_kept_when_it_is_answered_or_shown_till_then(router):
    shown = []

    class Showing(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            shown.append(repr(questions))
            return super().complete(prompt)

    llm = EccosLLM(members={name: Showing() for name in router.models}, router=router)
    (questions,) = (handler for handler in get_dispatcher().span_handlers if isinstance(handler, Questions))
    before = set(questions.open_spans)
    SummaryIndex(PROOFS).as_query_engine(llm=llm).query(EASY)
    assert set(questions.open_spans) == before
    assert "Asked(" in shown[0]
    assert EASY not in shown[0]


def test_what_a_call_costs_is_forecast_from_all_that_is_sent(routed):
    router = make_router(pool_of())
    llm = EccosLLM(members={name: Recorder(name=name, window=10**6) for name in router.models}, router=router)
    prompt = PromptTemplate("{context_str} {query_str}")
    for words in (100, 4100):
        llm.predict(prompt, context_str="word " * words, query_str=EASY)
    short, long = routed
    assert (short.model, long.model) == ("small", "small")
    assert long.cost_usd - short.cost_usd == pytest.approx(4000 * 5 / 4 * 1e-6)  # four bytes a token, 1 USD a million


# -- an LLM with something of its own to say


def test_members_fill_prompts_in_with_their_own_templates(router):
    members = {
        name: MockLLM(completion_to_prompt=lambda text: f"<{text}>", system_prompt="Be brief.")
        for name in router.models
    }
    filled = EccosLLM(members=members, router=router).predict(PromptTemplate("{q}"), q=EASY)
    assert filled == members["small"].predict(PromptTemplate("{q}"), q=EASY) == f"Be brief.\n\n<{EASY}>"


async def test_a_system_prompt_of_its_own_is_said_to_every_member(router, windows):
    llm = EccosLLM(members={name: MockLLM() for name in router.models}, router=router, system_prompt="Answer in verse.")
    prompt = PromptTemplate("{query_str}")
    answers = [
        llm.predict(prompt, query_str=EASY),
        await llm.apredict(prompt, query_str=EASY),
        "".join(llm.stream(prompt, query_str=EASY)),
        "".join([token async for token in await llm.astream(prompt, query_str=EASY)]),
    ]
    assert answers == [f"Answer in verse.\n\n{EASY}"] * 4
    assert windows == [[EASY]] * 4


@pytest.mark.parametrize("own", [{}, {"system_prompt": "Answer in verse."}])
async def test_a_prompt_may_carry_settings_of_its_call(router, routed, own):
    llm = recorders(router, **own)
    prompt, given = PromptTemplate("{q}"), {"q": EASY, "eccos_model": "large"}
    llm.predict(prompt, **given)
    list(llm.stream(prompt, **given))
    await llm.apredict(prompt, **given)
    [_ async for _ in await llm.astream(prompt, **given)]
    assert [event.model for event in routed] == ["large"] * 4
    assert llm.predict(prompt, q=EASY).startswith("small")


def test_a_mixed_pool_is_asked_in_one_form(router):
    from llama_index.core.prompts import SelectorPromptTemplate
    from llama_index.core.prompts.utils import is_chat_model

    prompt = SelectorPromptTemplate(
        default_template=PromptTemplate("complete {text}"),
        conditionals=[(is_chat_model, ChatPromptTemplate([ChatMessage("chat {message}", role="user")]))],
    )
    for small, large in ((True, False), (False, True)):
        members = {"small": MockLLM(is_chat_model=small), "large": MockLLM(is_chat_model=large)}
        assert "chat " + EASY in EccosLLM(members=members, router=router).predict(prompt, message=EASY)


# -- tool loops


async def test_the_results_of_tools_go_back_to_whoever_called_them(router):
    llm = EccosLLM(members={name: Caller(name) for name in router.models}, router=router)
    for text, owner in ((HARD, "large"), (EASY, "small")):
        first = await llm.achat_with_tools(TOOLS, user_msg=text)
        (selection,) = llm.get_tool_calls_from_response(first)
        result = ChatMessage("7", role="tool", additional_kwargs={"tool_call_id": selection.tool_id})
        # what the model is asked about has changed, yet it is the same loop
        for asked in (EASY, HARD):
            history = [*user(asked), first.message, result]
            again = llm.chat_with_tools(TOOLS, chat_history=history)
            assert (model_of(first), model_of(again)) == (owner, owner)
            assert model_of(await llm.achat(history)) == owner
            chunks = [chunk async for chunk in await llm.astream_chat_with_tools(TOOLS, chat_history=history)]
            assert {model_of(chunk) for chunk in chunks} == {owner}
        following = [*user(text), first.message, result, ChatMessage("done", role="assistant")]
        assert model_of(await llm.achat_with_tools(TOOLS, user_msg=EASY, chat_history=following)) == "small"


def test_a_tool_loop_leaves_a_member_that_fails(router):
    members = {name: Caller(name) for name in router.models}
    llm = EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))
    first = llm.chat_with_tools(TOOLS, user_msg=EASY)
    (selection,) = llm.get_tool_calls_from_response(first)
    members["small"].fails = 1
    result = ChatMessage("7", role="tool", additional_kwargs={"tool_call_id": selection.tool_id})
    again = llm.chat_with_tools(TOOLS, chat_history=[*user(EASY), first.message, result])
    assert (model_of(first), model_of(again)) == ("small", "large")


def test_tool_calls_are_known_in_every_form_and_the_oldest_forgotten(monkeypatch):
    class Legacy(BaseModel):
        id: str

    monkeypatch.setattr("llamaindex_eccos.tool_loops.MOST", 3)
    loops = ToolLoops()
    forms = {
        "block": ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="block", tool_name="add")]),
        "dict": ChatMessage(role="assistant", additional_kwargs={"tool_calls": [{"id": "dict"}]}),
        "object": ChatMessage(role="assistant", additional_kwargs={"tool_calls": [Legacy(id="object")]}),
    }
    for name, message in forms.items():
        loops.keep(message, f"of {name}")
    assert [loops.of([message]) for message in forms.values()] == [f"of {name}" for name in forms]
    assert loops.of(list(forms.values())) == "of object"  # the latest
    loops.keep(ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="new", tool_name="add")]), "of new")
    assert loops.of([forms["block"]]) is None
    assert loops.of([ChatMessage(role="assistant", additional_kwargs={"tool_calls": "?", "tool_call_id": 7})]) is None


def test_a_response_that_nobody_signed_is_read_by_its_blocks(router):
    llm = recorders(router)
    blocks = [
        ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs='{"a": 3, "b'),
        ToolCallBlock(tool_call_id=None, tool_name="add", tool_kwargs="no JSON"),
    ]
    found = llm.get_tool_calls_from_response(ChatResponse(message=ChatMessage(role="assistant", blocks=blocks)))
    assert [(call.tool_id, call.tool_name, call.tool_kwargs) for call in found] == [
        ("1", "add", {"a": 3}),
        ("", "add", {}),
    ]
