"""What a chat model over named chat models has apart from routing: its members, profile, token counts, old methods."""

import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import ConfigurableFieldSpec, get_unique_config_specs
from pydantic import ConfigDict, Field
from typing_extensions import override

from eccos_integrations.errors import ConfigError, MissingExtraError
from eccos_integrations.policy import Policy
from eccos_integrations.router import Router
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos.abilities import common_profile
from langchain_eccos.decisions import SPECS

logger = logging.getLogger("eccos")

# What every chat model may be made with and only the one that calls a provider can follow.
OF_MEMBERS = frozenset({"api_key", "max_retries", "max_tokens", "stop", "streaming", "temperature", "timeout"})
# What a router's members can be told on their way in: how they stream, and in which form they answer.
HANDED_ON = frozenset({"disable_streaming", "output_version"})


class ChatMembers(BaseChatModel):
    """Named chat models, and the router that chooses among them."""

    members: Mapping[str, BaseChatModel] = Field(exclude=True)
    """The chat models by name: exactly the models of the router."""

    router: Router = Field(exclude=True)
    """Decides who gets which chat."""

    policy: Policy | None = None
    """What must hold; default the router's own policy."""

    dispatcher: Dispatcher | None = Field(default=None, exclude=True)
    """Keeps limits, falls back, logs; default the one that all wrappers of the router share."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # a misspelt policy is no policy

    def __init__(
        self,
        members: Mapping[str, BaseChatModel | str],
        router: Router,
        policy: Policy | None = None,
        dispatcher: Dispatcher | None = None,
        **kwargs: Any,
    ) -> None:
        """Check that the members are the router's models, and chat models.

        Args:
            members: A chat model for each of the router's models, or the words `init_chat_model` makes one of.
            router: Chooses.
            policy: What must hold; default the router's own.
            dispatcher: Of this router; default the one it shares.
            **kwargs: As of any chat model. `output_version` and `disable_streaming` are handed on to the members;
                settings of a provider (`temperature`, `api_key` ...) belong to the members and are ignored.

        Raises:
            ConfigError: The members are not the router's models, one of them is no chat model, or what only members
                can have (`cache`, `rate_limiter`) is given to the router.
            MissingExtraError: A member is given in words, and `langchain` is not installed.
        """
        router.check_members(members)
        if policy is not None:
            policy.check_models(router.models)
        if dispatcher is not None and dispatcher.router is not router:
            raise ConfigError("dispatcher: it is another router's; give Dispatcher(router) of this one")
        for name in ("cache", "rate_limiter"):
            if kwargs.get(name) is not None:
                raise ConfigError(f"{name}: the router calls no provider itself; give it to the members, which do")
        if unknown := sorted(kwargs.keys() - type(self).model_fields.keys() - OF_MEMBERS):
            raise ConfigError(f"{unknown[0]}: a router has no such setting; give it to the members, or correct it")
        if ignored := sorted(OF_MEMBERS & kwargs.keys()):
            logger.warning("ChatEccos: %s are for the members, and ignored here; give them to each member", ignored)
        handed = {name: value for name, value in kwargs.items() if name in HANDED_ON}
        models = {name: _chat_model(name, member) for name, member in members.items()}
        if handed:
            models = {name: model.model_copy(update=handed) for name, model in models.items()}
        own = {name: value for name, value in kwargs.items() if name not in OF_MEMBERS}
        super().__init__(members=models, router=router, policy=policy, dispatcher=dispatcher, **own)

    def __repr_args__(self) -> Any:  # members may hold keys that they do not hide
        yield "members", list(self.members)
        if self.policy is not None:
            yield "policy", self.policy

    @property
    def _dispatcher(self) -> Dispatcher:
        return self.dispatcher or Dispatcher.shared(self.router)

    @property
    def _llm_type(self) -> str:
        return "eccos"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"members": {name: member._llm_type for name, member in self.members.items()}}  # noqa: SLF001

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params.setdefault("ls_model_name", "eccos")
        return params

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        return common_profile(self.members.values())

    @property
    @override
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        own = (spec for member in self.members.values() for spec in member.config_specs)
        return get_unique_config_specs(chain(SPECS, own))

    # Members count tokens each in their own way, some with a vocabulary they must download first.

    @override
    def get_num_tokens(self, text: str) -> int:
        """About how many tokens a text has."""
        return super().get_num_tokens(text) if self.custom_get_token_ids else math.ceil(len(text) / 4)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """About how many tokens messages, and tools, have."""
        return count_tokens_approximately(messages, tools=None if tools is None else list(tools))

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """As the best of the members numbers them."""
        if self.custom_get_token_ids:
            return super().get_token_ids(text)
        return self.members[self.router.best].get_token_ids(text)

    # The old ways in, for those who still come by them.

    @override
    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        config = _config(callbacks=callbacks, tags=tags, metadata=metadata, run_name=run_name, run_id=run_id)
        return _result(self.batch(list(messages), config, stop=stop, **kwargs))

    @override
    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        config = _config(callbacks=callbacks, tags=tags, metadata=metadata, run_name=run_name, run_id=run_id)
        return _result(await self.abatch(list(messages), config, stop=stop, **kwargs))

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.invoke(messages, stop=stop, **kwargs))])

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=await self.ainvoke(messages, stop=stop, **kwargs))])

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.stream(messages, stop=stop, **kwargs):
            yield ChatGenerationChunk(message=chunk)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self.astream(messages, stop=stop, **kwargs):
            yield ChatGenerationChunk(message=chunk)


def _chat_model(name: str, member: Any) -> BaseChatModel:
    """A member, made from words where it is given so."""
    if isinstance(member, str):
        try:
            from langchain.chat_models import init_chat_model
        except ImportError:
            raise MissingExtraError("langchain", "agents") from None
        member = init_chat_model(member)
    if not isinstance(member, BaseChatModel):
        raise ConfigError(
            f"members: {name!r} is a {type(member).__name__}; give the chat model itself, and bind tools, schemas, "
            "arguments and config to the router"
        )
    return member


def _config(**given: Any) -> RunnableConfig:
    return cast("RunnableConfig", {name: value for name, value in given.items() if value is not None})


def _result(answers: Sequence[AIMessage]) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=answer)] for answer in answers])
