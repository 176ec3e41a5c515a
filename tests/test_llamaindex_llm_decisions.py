"""What `EccosLLM` decides by and tells: questions, tool loops, windows, plans, events, usage."""

import asyncio

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.async_utils import run_jobs
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel

from eccos_integrations import Router
from eccos_integrations.serving.dispatch import Dispatcher, Usage
from llamaindex_eccos import EccosLLM
from llamaindex_eccos.decisions import planned
from llamaindex_eccos.events import EccosRouteEvent
from llamaindex_eccos.tool_loops import ToolLoops
from tests.llamaindex_members import (
    EASY,
    ENDPOINTS,
    HARD,
    TOOLS,
    Caller,
    Obliging,
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


# -- windows


async def gather(*coroutines):
    async with asyncio.timeout(60):
        return await asyncio.gather(*coroutines)


async def test_ten_queries_that_come_together_are_decided_together(router, windows):
    llm = recorders(router, dispatcher=Dispatcher(router, window_s=2))
    engine = SummaryIndex(PROOFS[:1]).as_query_engine(llm=llm)
    questions = [f"prove the theorem of {i}" if i % 2 else f"add the numbers {i} and 4" for i in range(10)]
    answers = await gather(*(engine.aquery(question) for question in questions))
    assert [str(answer).split(":")[0] for answer in answers] == ["small", "large"] * 5
    assert [sorted(texts) for texts in windows] == [sorted(questions)]


class Ask(Event):
    number: int


class Answer(Event):
    text: str


class FanOut(Workflow):
    """Asks six questions at once."""

    llm: object = None

    @step
    async def begin(self, context: Context, event: StartEvent) -> Ask | None:
        for number in range(6):
            context.send_event(Ask(number=number))

    @step(num_workers=6)
    async def ask(self, event: Ask) -> Answer:
        return Answer(text=(await self.llm.acomplete(f"{EASY} {event.number}")).text)

    @step
    async def end(self, context: Context, event: Answer) -> StopEvent | None:
        found = context.collect_events(event, [Answer] * 6)
        return None if found is None else StopEvent(result=sorted(answer.text for answer in found))


async def test_a_workflow_that_fans_out_is_decided_in_one_window(router, windows):
    workflow = FanOut(timeout=60)
    workflow.llm = recorders(router, dispatcher=Dispatcher(router, window_s=2))
    assert await workflow.run() == [f"small: {EASY} {number}" for number in range(6)]
    assert [len(texts) for texts in windows] == [6]


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_no_semaphore_above_locks_it(router, workers):
    llm = recorders(router, dispatcher=Dispatcher(router, window_s=0.05))
    jobs = [llm.acomplete(f"{EASY} {i}") for i in range(8)]
    answers = await gather(run_jobs(jobs, workers=workers))
    assert [answer.text for answer in answers[0]] == [f"small: {EASY} {i}" for i in range(8)]


# -- plans


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_within_a_plan_every_call_goes_as_it_has_decided(router, windows, endpoint):
    llm = recorders(router)
    plan = router.plan([HARD])
    windows.clear()
    with planned(plan.decisions[0], plan.forecast):
        responses = await call(llm, endpoint, given_to(endpoint, EASY))
    told = responses[-1].additional_kwargs["eccos"]
    assert (told["model"], told["decision_id"]) == ("large", plan.decisions[0].id)
    assert windows == []
    assert model_of((await call(llm, endpoint, given_to(endpoint, EASY)))[-1]) == "small"


async def test_a_plan_of_another_router_is_no_plan(router):
    plan = Router.fit(router_table(), predictor="prior").plan([HARD])
    with planned(plan.decisions[0], plan.forecast):
        assert model_of(await recorders(router).acomplete(EASY)) == "small"


def router_table():
    from eccos_integrations import load_sample

    return load_sample().take(range(40))


# -- events


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_decision_is_an_event_and_has_no_text_of_the_query(router, routed, endpoint):
    responses = await call(recorders(router), endpoint, given_to(endpoint, HARD))
    (event,) = routed
    told = event.model_dump(exclude={"timestamp", "id_", "span_id", "tags"})
    assert told.pop("class_name") == "EccosRouteEvent"
    assert told == responses[-1].additional_kwargs["eccos"]
    assert "Fermat" not in event.model_dump_json()


async def test_every_attempt_is_an_event_in_the_span_of_its_call(router, routed):
    members = {"small": Caller("small", fails=1), "large": Caller("large")}
    llm = EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))
    await llm.apredict(PromptTemplate("{q}"), q=EASY)
    assert [(event.model, event.attempt) for event in routed] == [("small", 1), ("large", 2)]
    assert all(event.span_id.startswith("EccosLLM.apredict-") for event in routed)


# -- what was used


class Counting(CustomLLM):
    """Says what a call has used, as providers do: on the answer, or in its last chunk."""

    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=True)

    def _answer(self, text=""):
        raw = {"usage": {"prompt_tokens": 30, "completion_tokens": 4}}
        return ChatResponse(message=ChatMessage(role="assistant", content="7"), delta=text, raw=raw)

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        return self._answer()

    @llm_chat_callback()
    async def achat(self, messages, **kwargs):
        return self._answer()

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        yield ChatResponse(message=ChatMessage(role="assistant", content="7"), delta="7")
        yield self._answer()

    @llm_chat_callback()
    async def astream_chat(self, messages, **kwargs):
        async def pieces():
            for piece in self.stream_chat(messages):
                yield piece

        return pieces()

    def complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError

    def stream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError


@pytest.fixture
def used(monkeypatch):
    """What calls said they had used."""
    from eccos_integrations.serving.books import Books

    seen, end = [], Books.end

    def spy(self, ticket, usage=None, **options):
        seen.append(usage)
        return end(self, ticket, usage, **options)

    monkeypatch.setattr(Books, "end", spy)
    return seen


async def test_what_a_call_has_used_is_known_on_every_way(router, used):
    llm = EccosLLM(members={name: Counting() for name in router.models}, router=router)
    prompt = PromptTemplate("{q}")
    llm.chat(user(EASY))
    await llm.achat(user(EASY))
    list(llm.stream_chat(user(EASY)))
    [_ async for _ in await llm.astream_chat(user(EASY))]
    llm.predict(prompt, q=EASY)
    await llm.apredict(prompt, q=EASY)
    list(llm.stream(prompt, q=EASY))
    [_ async for _ in await llm.astream(prompt, q=EASY)]
    assert used == [Usage(30, 4)] * 8


@pytest.mark.parametrize("raw", [None, "text", 7, {"usage": None}, {"usage": {"prompt_tokens": "many"}}, object()])
def test_an_answer_that_does_not_say_what_it_used_is_no_trouble(router, used, raw):
    class Odd(Obliging):
        def chat(self, messages, **kwargs):
            return ChatResponse(message=ChatMessage(role="assistant", content="7"), raw=raw)

    EccosLLM(members={name: Odd() for name in router.models}, router=router).chat(user(EASY))
    assert used == [None]
