"""Agents and structured outputs over an `EccosLLM`: streaming or not, over pools of which not all call tools."""

import pytest
from llama_index.core import Settings, SummaryIndex
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from eccos_integrations import ConfigError
from eccos_integrations.serving.dispatch import Dispatcher
from llamaindex_eccos import EccosLLM
from llamaindex_eccos.events import EccosRouteEvent
from tests.llamaindex_members import EASY, HARD, TOOLS, Caller, Obliging, make_router


class Verdict(BaseModel):
    """A verdict."""

    answer: int = 7


@pytest.fixture(scope="module")
def router():
    return make_router()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_callback_manager", None)


@pytest.fixture
def models():
    """Who was called, one after the other."""
    seen = []

    class Seen(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, EccosRouteEvent):
                seen.append(event.model)

    handler = Seen()
    get_dispatcher().add_event_handler(handler)
    yield seen
    get_dispatcher().event_handlers.remove(handler)


class Thinker(CustomLLM):
    """Reasons as a ReAct agent is told to: an action first, then the answer."""

    name: str

    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=True)

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        if "Observation: 7" in prompt:
            return CompletionResponse(text=f"Thought: I can answer.\nAnswer: seven, says {self.name}")
        return CompletionResponse(text='Thought: I need a tool.\nAction: add\nAction Input: {"a": 3, "b": 4}')

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        text = self.complete(prompt).text
        yield CompletionResponse(text=text, delta=text)


def thinkers(router):
    members = {name: Thinker(name=name) for name in router.models}
    return EccosLLM(members=members, router=router)


def callers(router, **more):
    members = {name: Caller(name) for name in router.models}
    return EccosLLM(members={**members, **more}, router=router)


# -- function agents


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(("text", "model"), [(EASY, "small"), (HARD, "large")])
async def test_a_function_agent_stays_with_one_member_while_tools_are_called(router, models, streaming, text, model):
    agent = FunctionAgent(tools=TOOLS, llm=callers(router), streaming=streaming)
    answer = await agent.run(user_msg=text)
    assert str(answer) == model
    assert models == [model, model]
    assert [call.tool_output.raw_output for call in answer.tool_calls] == [7]


@pytest.mark.parametrize("streaming", [True, False])
async def test_in_a_mixed_pool_a_function_agent_is_with_those_that_call_tools(router, models, streaming):
    agent = FunctionAgent(tools=TOOLS, llm=callers(router, small=MockLLM(is_chat_model=True)), streaming=streaming)
    assert str(await agent.run(user_msg=EASY)) == "large"
    assert models == ["large", "large"]


async def test_a_function_agent_streams_what_the_member_says(router):
    handler = FunctionAgent(tools=TOOLS, llm=callers(router)).run(user_msg=HARD)
    steps = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    await handler
    assert [[call.tool_kwargs for call in step.tool_calls] for step in steps] == [[{"read_by": "large"}], []]
    assert steps[-1].delta == "large"


async def test_a_function_agent_needs_a_member_that_calls_tools(router):
    llm = EccosLLM(members={name: MockLLM(is_chat_model=True) for name in router.models}, router=router)
    with pytest.raises(ValueError, match="LLM must be a FunctionCallingLLM"):
        await FunctionAgent(tools=TOOLS, llm=llm).run(user_msg=EASY)


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agents_final_object_comes_from_the_pool_too(router, streaming):
    agent = FunctionAgent(tools=TOOLS, llm=objects(router), streaming=streaming, output_cls=Verdict)
    answer = await agent.run(user_msg=EASY)
    assert answer.get_pydantic_model(Verdict) == Verdict(answer=7)


async def test_a_member_that_fails_in_a_tool_loop_costs_the_agent_nothing(router, models):
    members = {name: Caller(name) for name in router.models}
    llm = EccosLLM(members=members, router=router, dispatcher=Dispatcher(router))

    def breaking(a: int = 3, b: int = 4, read_by: str = "") -> int:
        """Add two numbers, and break the member that has asked for it."""
        llm.members["small"].fails = 1
        return a + b

    agent = FunctionAgent(tools=[FunctionTool.from_defaults(fn=breaking)], llm=llm)
    assert str(await agent.run(user_msg=EASY)) == "large"
    assert models == ["small", "small", "large"]


# -- other agents


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("text", [EASY, HARD])
async def test_a_react_agent_works_with_any_pool(router, models, streaming, text):
    agent = ReActAgent(tools=TOOLS, llm=thinkers(router), streaming=streaming)
    assert str(await agent.run(user_msg=text)) == f"seven, says {models[-1]}"
    assert len(models) == 2


@pytest.mark.parametrize("pool", [callers, thinkers])
async def test_an_agent_workflow_takes_the_kind_of_agent_that_suits_the_pool(router, models, pool):
    workflow = AgentWorkflow.from_tools_or_functions(TOOLS, llm=pool(router))
    kinds = {type(agent) for agent in workflow.agents.values()}
    assert kinds == {FunctionAgent if pool is callers else ReActAgent}
    assert str(await workflow.run(user_msg=EASY)).split()[-1] == "small"
    assert models == ["small", "small"]


async def test_agents_that_hand_over_may_share_one_pool(router, models):
    class Hander(Obliging):
        def respond(self, messages, tools=()):
            return super().respond(messages, [tool for tool in tools if tool.metadata.name == "handoff"])

        def arguments(self, given):
            return {"to_agent": "prover", "reason": "it is hard"}

    llm = EccosLLM(members={name: Hander("done") for name in router.models}, router=router)
    agents = [
        FunctionAgent(name="adder", description="adds", tools=TOOLS, llm=llm, can_handoff_to=["prover"]),
        FunctionAgent(name="prover", description="proves", tools=TOOLS, llm=llm),
    ]
    answer = await AgentWorkflow(agents=agents, root_agent="adder").run(user_msg=HARD)
    assert (str(answer), answer.current_agent_name) == ("done", "prover")
    assert models == ["large", "large"]


async def test_a_code_agent_works_with_a_pool_that_calls_no_tools(router, models):
    class Coder(MockLLM):
        @llm_completion_callback()
        def stream_complete(self, prompt, formatted=False, **kwargs):
            text = "done" if "7" in prompt.rsplit("assistant", 2)[-2] else "<execute>\nprint(3 + 4)\n</execute>"
            yield CompletionResponse(text=text, delta=text)

    ran = []
    llm = EccosLLM(members={name: Coder(is_chat_model=True) for name in router.models}, router=router)
    agent = CodeActAgent(code_execute_fn=lambda code: ran.append(code) or "7", tools=[], llm=llm)
    assert str(await agent.run(user_msg=EASY)) == "done"
    assert ran == ["print(3 + 4)"]


# -- objects


def objects(router, mixed=False):
    members = {name: Obliging() for name in router.models}
    if mixed:
        members["small"] = Json(is_chat_model=True)
    return EccosLLM(members=members, router=router)


class Json(MockLLM):
    """Answers every prompt with the same JSON."""

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text='{"answer": 7}')


@pytest.mark.parametrize("mixed", [False, True])
async def test_objects_come_whole_and_in_pieces(router, models, mixed):
    llm, prompt = objects(router, mixed=mixed), PromptTemplate("{question}")
    seven = Verdict(answer=7)
    assert llm.structured_predict(Verdict, prompt, question=EASY) == seven
    assert await llm.astructured_predict(Verdict, prompt, question=EASY) == seven
    assert models == ["small", "small"]
    assert list(llm.stream_structured_predict(Verdict, prompt, question=EASY))[-1].answer == 7
    pieces = [piece async for piece in await llm.astream_structured_predict(Verdict, prompt, question=EASY)]
    assert pieces[-1].answer == 7
    assert models[2:] == ["large" if mixed else "small"] * 2


async def test_a_structured_llm_stands_outside_of_the_pool(router, models):
    llm = objects(router).as_structured_llm(Verdict)
    asked = [ChatMessage(EASY, role="user")]
    answers = [llm.chat(asked), await llm.achat(asked), llm.complete(EASY), await llm.acomplete(EASY)]
    answers += [list(llm.stream_chat(asked))[-1], [piece async for piece in await llm.astream_chat(asked)][-1]]
    assert [answer.raw.answer for answer in answers] == [7] * 6
    assert models == ["small"] * 6
    assert llm.chat(asked, eccos_model="large").raw == Verdict()
    assert models[-1] == "large"
    with pytest.raises(ConfigError, match="'huge' is not a model of the router"):
        llm.chat(asked, eccos_model="huge")


async def test_a_query_engine_over_a_structured_llm_is_decided_by_its_question(router, models):
    nodes = [TextNode(text=f"{HARD} " * 30)]
    engine = SummaryIndex(nodes).as_query_engine(llm=objects(router).as_structured_llm(Verdict))
    assert engine.query(EASY).response == Verdict()
    assert (await engine.aquery(EASY)).response == Verdict()
    assert set(models) == {"small"}


async def test_tools_are_predicted_and_called_once(router):
    llm, counter = objects(router), TokenCountingHandler()
    llm.callback_manager = CallbackManager([counter])
    assert llm.predict_and_call(TOOLS, user_msg=EASY).response == "7"
    assert len(counter.llm_token_counts) == 1
    assert (await llm.apredict_and_call(TOOLS, user_msg=EASY)).response == "7"


async def test_objects_are_had_with_a_system_prompt_of_its_own(router):
    members = {name: Obliging() for name in router.models}
    llm = EccosLLM(members=members, router=router, system_prompt="Be fair.")
    prompt = ChatPromptTemplate([ChatMessage("{q}", role="user")])
    assert llm.structured_predict(Verdict, prompt, q=EASY) == Verdict()
    assert await llm.astructured_predict(Verdict, prompt, q=EASY) == Verdict()
    assert list(llm.stream_structured_predict(Verdict, prompt, q=EASY))[-1].answer == 7
    assert [piece.answer async for piece in await llm.astream_structured_predict(Verdict, prompt, q=EASY)][-1] == 7
