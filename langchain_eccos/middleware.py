"""`EccosMiddleware`: each turn of an agent goes to one of several chat models."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from typing_extensions import TypedDict, override

from eccos_integrations.errors import ConfigError, MissingExtraError
from eccos_integrations.plan import Decision
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher, Options, Ticket, Usage
from langchain_eccos.abilities import SCHEMA, TOOLS, candidates, media, prompt_tokens
from langchain_eccos.bindings import SchemaBinding, ToolBinding
from langchain_eccos.chat_members import ChatMembers
from langchain_eccos.decisions import EVENT, aannounce, announce, child_config, options_of, record, stamped
from langchain_eccos.member import Meter

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
        TracePolicy,
        omit_payload,
    )
    from langchain.agents.structured_output import ProviderStrategy
    from langgraph.channels.untracked_value import UntrackedValue
    from langgraph.errors import GraphBubbleUp
    from langgraph.types import Command

    from langchain_eccos.portable import portable
except ImportError:
    raise MissingExtraError("langchain", "agents") from None

MOST_FAILED = 1000  # model nodes whose failure is remembered

Request = ModelRequest[Any]
Response = ModelResponse[Any]


class EccosDecision(TypedDict):
    """A decision in plain values, which any checkpointer can keep."""

    model: str
    decision_id: str
    quality: float
    cost_usd: float
    floor_met: bool
    reason: str
    attempt: int


class EccosRoute(TypedDict):
    """Where an agent is: the decision in force, and the id of the human message that it was made for."""

    decision: EccosDecision
    turn: str | None


class EccosState(AgentState[Any]):
    """What the middleware keeps in the agent's state; none of it is part of input or output."""

    eccos_route: NotRequired[Annotated[EccosRoute | None, PrivateStateAttr]]
    eccos_run: NotRequired[Annotated[bool, UntrackedValue, PrivateStateAttr]]  # decided in this run of the agent


class EccosMiddleware(AgentMiddleware[EccosState, Any, Any]):
    """Sends an agent's model calls to one of several chat models, and stays with it for a whole turn of the user.

    In a thread (`thread_id`), to change the model between turns costs what its provider has cached of the
    conversation, and is only done where it pays. Within a tool loop the model is never changed, unless it fails. Every
    call goes through the dispatcher, which keeps the pool's limits and falls back to another member within the call.
    Members that lack what a call needs (tools, a schema, images, a long enough context window) are passed over. A
    member of another provider is not shown the reasoning, signatures and cache marks of the one before.

    The model that `create_agent` is given is never called; give it any member. `eccos_model`, `eccos_min_quality` and
    `eccos_max_cost_usd` in `config["configurable"]` hold for one run.

    Put `ModelFallbackMiddleware` *before* this one in the list: its models, which are no members, are the last resort
    once the dispatcher has no member left to try. It works *after* this one, too, but then hides each failure of a
    member from the dispatcher, which neither tries another member nor leaves the failing one alone.

    The decision stands in `response_metadata["eccos"]` of the answer, in the metadata and tags of the member's run, in
    the event `eccos_decision`, and in the agent's private state under `eccos_route`.

    Args:
        members: A chat model for each of the router's models, or the words `init_chat_model` makes one of.
        router: Chooses.
        policy: What must hold; default the router's own.
        dispatcher: Of this router; default the one it shares.
        per: How long a decision holds: for a `"turn"`, until the next human message; for a `"run"` of the agent; or
            for one `"call"` of a model, which may change it within a tool loop.

    Raises:
        ConfigError: The members are not the router's models, one of them is no chat model, or `per` is unknown.

    Example:
        >>> from eccos_integrations import Router, load_sample
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import FakeListChatModel
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> members = {name: FakeListChatModel(responses=["4"]) for name in router.models}
        >>> agent = create_agent(members[router.best], middleware=[EccosMiddleware(members, router)])
        >>> answer = agent.invoke({"messages": ["What is 2 + 2?"]})["messages"][-1]
        >>> answer.text, answer.response_metadata["eccos"]["model"] in members
        ('4', True)
    """

    state_schema = EccosState
    trace_policy = TracePolicy(process_inputs=omit_payload)

    def __init__(
        self,
        members: Mapping[str, BaseChatModel | str],
        router: Router,
        policy: Policy | None = None,
        dispatcher: Dispatcher | None = None,
        *,
        per: Literal["turn", "call", "run"] = "turn",
    ) -> None:
        if per not in {"turn", "call", "run"}:
            raise ConfigError(f"per={per!r}: give 'turn', 'call' or 'run'")
        self.members = ChatMembers(members, router, policy, dispatcher).members  # which checks them
        self.router, self.policy, self.dispatcher, self.per = router, policy, dispatcher, per
        self._failed: OrderedDict[str, BaseChatModel] = OrderedDict()

    def __repr__(self) -> str:
        return f"EccosMiddleware({list(self.members)}, per={self.per!r})"

    @override
    def wrap_model_call(self, request: Request, handler: Callable[[Request], Response]) -> Any:
        """Answer one model call of the agent."""
        if self._is_last_resort(request):
            return handler(portable(request, request.model, self.members))
        config = ensure_config()
        text, options = self._asked(request, config)

        def ask(ticket: Ticket) -> tuple[Response | GraphBubbleUp, Usage | None]:
            announce(ticket, config)
            attempt = _Attempt(request, ticket, self.members)
            try:
                return attempt.ended(handler(attempt.request))
            except GraphBubbleUp as bubble:  # an interrupt is no fault of the model, whatever it says
                return bubble, None

        try:
            served = (self.dispatcher or Dispatcher.shared(self.router)).call(text, ask, **options)
        except Exception:
            self._note_failure(request)
            raise
        return self._answer(request, served.answer, served.decision, served.attempts)

    @override
    async def awrap_model_call(self, request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Any:
        """As `wrap_model_call`."""
        if self._is_last_resort(request):
            return await handler(portable(request, request.model, self.members))
        config = ensure_config()
        text, options = self._asked(request, config)

        async def ask(ticket: Ticket) -> tuple[Response | GraphBubbleUp, Usage | None]:
            await aannounce(ticket, config)
            attempt = _Attempt(request, ticket, self.members)
            try:
                return attempt.ended(await handler(attempt.request))
            except GraphBubbleUp as bubble:
                return bubble, None

        try:
            served = await (self.dispatcher or Dispatcher.shared(self.router)).acall(text, ask, **options)
        except Exception:
            self._note_failure(request)
            raise
        return self._answer(request, served.answer, served.decision, served.attempts)

    def _asked(self, request: Request, config: RunnableConfig) -> tuple[str, Options]:
        """The text that a call is decided by, and what the dispatcher has to know of it."""
        options = options_of(self.router, self.policy, config)
        settings = config.get("configurable") or {}
        decision, planned = self._in_force(request), settings.get(EVENT)
        if planned is not None and (plan := _decision(planned)).model == settings.get("eccos_model"):
            del options["candidates"]  # a plan is left where its model fails; a pin is not
            decision = decision or plan
        system = [] if request.system_message is None else [request.system_message]
        tools, form = ToolBinding(request.tools, {}), request.response_format
        needs, tokens = media(request.messages), prompt_tokens([*system, *request.messages]) + tools.tokens
        if form is not None:
            needs.add(SCHEMA if isinstance(form, ProviderStrategy) else TOOLS)
            tokens += SchemaBinding(getattr(form, "schema", form), {}).tokens
        if request.tools:
            needs.add(TOOLS)
        able = candidates(self.router.pool, self.members, needs, tokens=tokens, only=options.get("candidates"))
        options["candidates"] = None if len(able) == len(self.router.pool) else able
        options["decision"] = decision
        options["conversation"] = _conversation(settings)
        options["input_tokens"] = max(tokens, 1)
        options["max_output_tokens"] = request.model_settings.get("max_tokens")
        return _text([*system, *request.messages]), options

    def _in_force(self, request: Request) -> Decision | None:
        """The decision that this call is under, if it was made before."""
        route: EccosRoute | None = request.state.get("eccos_route")  # type: ignore[assignment]  # of our own schema
        if route is None or self.per == "call":
            return None
        messages, turn = request.messages, _turn(request)
        same = request.state.get("eccos_run") if self.per == "run" or turn is None else route["turn"] == turn
        return _decision(route["decision"]) if same or _in_tool_loop(messages) else None

    def _answer(
        self, request: Request, answer: Response | GraphBubbleUp, decision: Decision, attempts: int
    ) -> ExtendedModelResponse[Any]:
        if isinstance(answer, GraphBubbleUp):
            raise answer
        told: Any = record(decision, attempts)
        route = EccosRoute(decision=told, turn=_turn(request))
        return ExtendedModelResponse(answer, Command(update={"eccos_route": route, "eccos_run": True}))

    # A fallback that stands before us calls again with a model of its choice; a retry, with the same as before.

    def _note_failure(self, request: Request) -> None:
        if task := _task(request):
            self._failed[task] = request.model
            while len(self._failed) > MOST_FAILED:
                self._failed.popitem(last=False)

    def _is_last_resort(self, request: Request) -> bool:
        known = [self._failed.get(_task(request)), *self.members.values()]
        return known[0] is not None and not any(request.model is model for model in known)


class _Attempt:
    """One attempt at a model call: the request to the member that a ticket names.

    Args:
        request: Of the agent.
        ticket: The right to call.
        members: By name.
    """

    def __init__(self, request: Request, ticket: Ticket, members: Mapping[str, BaseChatModel]) -> None:
        self._ticket, self._meter = ticket, _Listener()
        member, told, settings = members[ticket.model], child_config({}, ticket), request.model_settings
        callbacks = member.callbacks
        if isinstance(callbacks, BaseCallbackManager):
            callbacks = callbacks.copy()
            callbacks.add_handler(self._meter)
        else:
            callbacks = [*(callbacks or []), self._meter]
        if ticket.max_output_tokens is not None:
            caps = [ticket.max_output_tokens, settings.get("max_tokens"), getattr(member, "max_tokens", None)]
            settings = {**settings, "max_tokens": min(cap for cap in caps if isinstance(cap, int))}
        model = member.model_copy(update={
            "metadata": {**(member.metadata or {}), **told["metadata"]},
            "tags": [*(member.tags or []), *told["tags"]],
            "callbacks": callbacks,
        })  # fmt: skip
        self.request = portable(request.override(model_settings=settings), member, members).override(model=model)

    def ended(self, response: Response) -> tuple[Response, Usage | None]:
        """The response, with the decision on it if the member is who answered; and what the member used."""
        if self._meter.heard:
            result = [stamped(each, self._ticket) if isinstance(each, AIMessage) else each for each in response.result]
            response = replace(response, result=result)
        return response, self._meter.told([])


class _Listener(Meter):
    @property
    def heard(self) -> bool:
        """Whether any run has come to its end."""
        return bool(self._uses)


def _decision(told: Any) -> Decision:
    """A decision that was kept in plain values.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(told, Mapping) or not (told.keys() >= EccosDecision.__required_keys__):
        raise ConfigError(f"{EVENT}: not a decision as plan_agent_batch makes them; pass its configs on as they are")
    return Decision(told["decision_id"], told["model"], told["quality"], told["cost_usd"], (told["model"],),
                    told["reason"], told["floor_met"])  # fmt: skip


def _turn(request: Request) -> str | None:
    """The id of the last human message."""
    messages = request.state.get("messages") or request.messages
    return next((message.id for message in reversed(messages) if isinstance(message, HumanMessage)), None)


def _in_tool_loop(messages: Sequence[BaseMessage]) -> bool:
    """Whether the last message answers a call of ours."""
    said = next((message for message in reversed(messages) if isinstance(message, AIMessage)), None)
    return said is not None and "eccos" in said.response_metadata and messages[-1].type == "tool"


def _text(messages: Sequence[BaseMessage]) -> str:
    """What the user said last, or the last text there is."""
    human = [message for message in messages if isinstance(message, HumanMessage)]
    return next((text for message in [*messages, *human][::-1] if (text := str(message.text))), "")


def _task(request: Request) -> str:
    """Names the model node under way; "" outside of one."""
    info = getattr(request.runtime, "execution_info", None)
    return "" if info is None else str(info.task_id)


def _conversation(settings: Mapping[str, Any]) -> str | None:
    """The thread, and in it the agent: agents within agents have prompts of their own."""
    if (thread := settings.get("thread_id")) is None:
        return None
    nodes = [step.split(":")[0] for step in str(settings.get("checkpoint_ns") or "").split("|")]
    return "/".join([str(thread), *nodes])
