"""`EccosLLM`: a LlamaIndex LLM that hands each call, whole, to the member its router chooses."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import (
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
from llama_index.core.llms import LLM

from eccos_integrations import ConfigError, Decision, Policy, Router

# Keyword arguments of a call that are for the router, not for the member.
SETTINGS = ("eccos_model", "eccos_min_quality", "eccos_max_cost_usd")

_Response = TypeVar("_Response", ChatResponse, CompletionResponse)


class EccosLLM(LLM):
    """An LLM that routes: each call goes to the member the router chooses for its text.

    A completion is routed on its prompt, a chat on the text of its last user message; so in a query engine, a template
    whose user message is the bare question keeps the retrieved context out of the choice. The member gets the whole
    call and owns its events, tokens and cost. The decision stands in `additional_kwargs["eccos"]` of the response and
    of every chunk: `model`, `quality`, `cost_usd` (both forecast), `reason`, `decision_id` (None for a pinned call).

    Three keyword arguments of a call are for the router; all others reach the member:

    - `eccos_model`: the member to use, whatever the router would choose; the other two then say nothing.
    - `eccos_min_quality`: a floor in place of the policy's, read as the policy reads its own: a fraction of the best
      model's quality where it says `relative_to="best"`, else absolute.
    - `eccos_max_cost_usd`: a budget in place of the policy's `max_mean_cost_usd`: what calls under it may cost on
      average, not a cap on the one call. The policy's floor stays, and gives way where both cannot hold.

    A floor or budget out of reach stops no call: the nearest decision is taken.

    A member without callback handlers of its own gets this LLM's callback manager when it is called. Copies share the
    router, so `router.feedback` knows their decisions. A dump names the members and never holds them, so no key is in
    it; `EccosLLM.from_dict(dump, members=..., router=...)` reads it back.

    Args:
        members: The LLM that serves each model of the router, by the model's name.
        router: A fitted router.
        policy: What must hold, default the router's own policy.
        settings: Fields of `llama_index.core.llms.LLM`: `callback_manager`, `system_prompt`, `output_parser`, ...

    Raises:
        ConfigError: The members are not exactly the router's models, or one of them is not a LlamaIndex LLM.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from eccos_integrations import OutcomeTable, Router
        >>> cost_usd = [[1e-4, 1e-3], [1e-4, 1e-3]]
        >>> table = OutcomeTable(["a", "b"], ["2+2?", "prove it"], ["small", "large"], [[1, 1], [1, 1]], cost_usd)
        >>> llm = EccosLLM(
        ...     members={"small": MockLLM(), "large": MockLLM()}, router=Router.fit(table, predictor="prior")
        ... )
        >>> llm.complete("3+3?").additional_kwargs["eccos"]["model"]
        'small'
    """

    members: dict[str, LLM] = Field(exclude=True, repr=False)
    router: Router = Field(exclude=True, repr=False)
    policy: Policy | None = None
    # The manager each member was last given, to tell it from one of the member's own.
    _lent: dict[str, CallbackManager] = PrivateAttr(default_factory=dict)

    def __init__(
        self, members: Mapping[str, LLM], router: Router, policy: Policy | None = None, **settings: Any
    ) -> None:
        router.check_members(members)
        _check_kinds(members)
        members = {name: members[name] for name in router.models}
        super().__init__(members=members, router=router, policy=policy, **settings)
        if self.policy is not None:
            self.policy.check_models(router.models)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.router)] = self.router
        return super().__deepcopy__(memo)

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "EccosLLM"

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, _info: SerializationInfo) -> dict[str, Any]:
        """The fields, and the members and the router in words."""
        return {
            **handler(self),
            "members": {
                name: {"class_name": member.class_name(), "model_name": member.metadata.model_name}
                for name, member in self.members.items()
            },
            "router": repr(self.router),
            "class_name": self.class_name(),
        }

    @property
    def metadata(self) -> LLMMetadata:
        """The tightest member's window, so that a prompt packed for it fits whoever is chosen."""
        each = [member.metadata for member in self.members.values()]
        return min(each, key=_room).model_copy(
            update={
                "is_chat_model": any(metadata.is_chat_model for metadata in each),
                "is_function_calling_model": False,
                "model_name": f"eccos[{','.join(self.members)}]",
            }
        )

    # No llm_chat_callback and no llm_completion_callback here: the member has them, and tokens would count twice.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat with the member chosen for the last user message."""
        member, decision = self._choose(_last_user_text(messages), kwargs)
        return _tagged(member.chat(messages, **kwargs), decision)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: FBT001, FBT002  # LlamaIndex's signature
        """Complete with the member chosen for the prompt."""
        member, decision = self._choose(prompt, kwargs)
        return _tagged(member.complete(prompt, formatted=formatted, **kwargs), decision)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream a chat with the member chosen for the last user message."""
        member, decision = self._choose(_last_user_text(messages), kwargs)
        return _tagged_stream(member.stream_chat(messages, **kwargs), decision)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: FBT001, FBT002
        """Stream a completion by the member chosen for the prompt."""
        member, decision = self._choose(prompt, kwargs)
        return _tagged_stream(member.stream_complete(prompt, formatted=formatted, **kwargs), decision)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat with the member chosen for the last user message."""
        member, decision = await self._achoose(_last_user_text(messages), kwargs)
        return _tagged(await member.achat(messages, **kwargs), decision)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: FBT001, FBT002
        """Complete with the member chosen for the prompt."""
        member, decision = await self._achoose(prompt, kwargs)
        return _tagged(await member.acomplete(prompt, formatted=formatted, **kwargs), decision)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Stream a chat with the member chosen for the last user message."""
        member, decision = await self._achoose(_last_user_text(messages), kwargs)
        return _tagged_astream(await member.astream_chat(messages, **kwargs), decision)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:  # noqa: FBT001, FBT002
        """Stream a completion by the member chosen for the prompt."""
        member, decision = await self._achoose(prompt, kwargs)
        return _tagged_astream(await member.astream_complete(prompt, formatted=formatted, **kwargs), decision)

    def _choose(self, text: str, kwargs: dict[str, Any]) -> tuple[LLM, Decision]:
        """The member for this text, ready to be called; takes what is for the router out of `kwargs`."""
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()
        decision = self._decide(text, **{name: kwargs.pop(name) for name in SETTINGS if name in kwargs})
        return self._member(decision), decision

    async def _achoose(self, text: str, kwargs: dict[str, Any]) -> tuple[LLM, Decision]:
        """As `_choose`, off the event loop: an encoder may be a network, or across one."""
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()
        settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        decision = await asyncio.to_thread(self._decide, text, **settings)
        return self._member(decision), decision

    def _decide(
        self,
        text: str,
        *,
        eccos_model: str | None = None,
        eccos_min_quality: float | None = None,
        eccos_max_cost_usd: float | None = None,
    ) -> Decision:
        if eccos_model is not None:
            return self._pinned(text, eccos_model)
        given = {"min_quality": eccos_min_quality, "max_mean_cost_usd": eccos_max_cost_usd}
        changes = {name: value for name, value in given.items() if value is not None}
        policy = self.router.policy if self.policy is None else self.policy
        return self.router.route(text, Policy(**{**policy.model_dump(), **changes}) if changes else policy)

    def _pinned(self, text: str, model: str) -> Decision:
        if model not in self.members:
            raise ConfigError(f"eccos_model: {model!r} is not a member; give one of {list(self.members)}")
        forecast = self.router.forecast([text]).select([model])
        quality, cost_usd = float(forecast.quality[0, 0]), float(forecast.cost_usd[0, 0])
        # Not the router's decision, so it has no id to give feedback by.
        return Decision("", model, quality, cost_usd, (model,), "pinned by eccos_model", floor_met=False)

    def _member(self, decision: Decision) -> LLM:
        assert decision.model is not None  # route knows no loads, so every query is placed
        member = self.members[decision.model]
        theirs = member.callback_manager
        if not theirs.handlers or any(theirs is lent for lent in self._lent.values()):
            member.callback_manager = self._lent[decision.model] = self.callback_manager
        return member


def _check_kinds(members: Mapping[str, object]) -> None:
    for name, member in members.items():
        if not isinstance(member, LLM):  # its value may hold a key: never shown
            raise ConfigError(f"members: {name!r} is a {type(member).__name__}; give a llama_index.core.llms.LLM")


def _room(metadata: LLMMetadata) -> int:
    """Tokens left for the prompt."""
    unknown = metadata.num_output == -1
    return metadata.context_window - (DEFAULT_NUM_OUTPUTS if unknown else metadata.num_output)


def _last_user_text(messages: Sequence[ChatMessage]) -> str:
    """The text blocks of the last user message, "" if there is none."""
    return next((m.content or "" for m in reversed(messages) if m.role == MessageRole.USER), "")


def _tagged(response: _Response, decision: Decision) -> _Response:
    """A copy that says what was decided. On the response: what stands on a message is sent to providers as history."""
    eccos = {
        "model": decision.model,
        "quality": decision.quality,
        "cost_usd": decision.cost_usd,
        "reason": decision.reason,
        "decision_id": decision.id or None,
    }
    return response.model_copy(update={"additional_kwargs": {**response.additional_kwargs, "eccos": eccos}})


def _tagged_stream(chunks: Generator[_Response, None, None], decision: Decision) -> Generator[_Response, None, None]:
    with closing(chunks):
        for chunk in chunks:
            yield _tagged(chunk, decision)


async def _tagged_astream(
    chunks: AsyncGenerator[_Response, None], decision: Decision
) -> AsyncGenerator[_Response, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield _tagged(chunk, decision)
