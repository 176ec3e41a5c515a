"""What `EccosLLM` decides together, as planned, and what it tells: windows, plans, events, usage."""

import asyncio

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.async_utils import run_jobs
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel

from eccos_integrations import Router
from eccos_integrations.serving.dispatch import Dispatcher, Usage
from llamaindex_eccos import EccosLLM
from llamaindex_eccos.decisions import planned
from llamaindex_eccos.events import EccosRouteEvent
from tests.llamaindex_members import (
    EASY,
    ENDPOINTS,
    HARD,
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


# -- windows


async def gather(*coroutines):
    async with asyncio.timeout(60):
        return await asyncio.gather(*coroutines)


async def test_ten_queries_that_come_together_are_decided_together(router, windows):
    llm = recorders(router, dispatcher=Dispatcher(router, window_s=2))
    engine = SummaryIndex([TextNode(text=HARD)]).as_query_engine(llm=llm)
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


async def test_a_plan_of_another_router_is_no_plan(router, sample):
    plan = Router.fit(sample.take(range(40)), predictor="prior").plan([HARD])
    with planned(plan.decisions[0], plan.forecast):
        assert model_of(await recorders(router).acomplete(EASY)) == "small"


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


def test_a_call_that_a_member_makes_of_another_counts_once(router, used):
    class Nested(MockLLM):  # its chat is a completion, and tells of both
        @llm_completion_callback()
        def complete(self, prompt, formatted=False, **kwargs):
            return CompletionResponse(text="7", raw={"usage": {"prompt_tokens": 30, "completion_tokens": 4}})

    llm = EccosLLM(members={name: Nested(is_chat_model=True) for name in router.models}, router=router)
    llm.predict(PromptTemplate("{q}"), q=EASY)
    assert used == [Usage(30, 4)]


def test_what_the_provider_had_cached_is_known(router, used):
    class Details(BaseModel):
        cached_tokens: int = 20

    class Used(BaseModel):
        prompt_tokens: int = 30
        completion_tokens: int = 4
        prompt_tokens_details: Details = Details()

    class Raw(BaseModel):
        usage: Used = Used()

    class Caching(Obliging):
        def chat(self, messages, **kwargs):
            return ChatResponse(message=ChatMessage("7", role="assistant"), raw=Raw())

    EccosLLM(members={name: Caching() for name in router.models}, router=router).chat(user(EASY))
    assert used == [Usage(30, 4, cached_tokens=20)]
