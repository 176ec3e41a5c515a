"""`plan_agent_batch`: a batch of agent runs, decided in one joint solve."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list, merge_configs

from eccos_integrations.errors import ConfigError
from langchain_eccos.chats import Chat, decided
from langchain_eccos.decisions import EVENT, record
from langchain_eccos.middleware import EccosMiddleware


def plan_agent_batch(
    middleware: EccosMiddleware,
    inputs: Sequence[Any],
    config: RunnableConfig | Sequence[RunnableConfig] | None = None,
) -> list[RunnableConfig]:
    """Decide a batch of agent runs in one joint solve: a config for each, by which its run stays with its model.

    For `agent.batch(inputs, configs)`, whose runs would otherwise be decided one by one. Each config has the model
    under `eccos_model` and the decision under `eccos_decision` in `configurable`. A run leaves the model only where it
    fails, or cannot take a call. In an event loop, plan by `asyncio.to_thread`.

    Args:
        middleware: Of the agent.
        inputs: As for the agent: with the messages under `messages`.
        config: For all, or one each. An input whose config has an `eccos_model` keeps it.

    Raises:
        ConfigError: An input has no messages, or no member can take it.
        NoCapacityError: An input fits nowhere by the policy's capacity.

    Example:
        >>> from eccos_integrations import Router, load_sample
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import FakeListChatModel
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> members = {name: FakeListChatModel(responses=["4"]) for name in router.models}
        >>> middleware = EccosMiddleware(members, router)
        >>> agent = create_agent(members[router.best], middleware=[middleware])
        >>> inputs = [{"messages": ["What is 2 + 2?"]}, {"messages": ["What is 3 + 3?"]}]
        >>> configs = plan_agent_batch(middleware, inputs)
        >>> answers = [state["messages"][-1] for state in agent.batch(inputs, configs)]
        >>> [answer.response_metadata["eccos"]["model"] for answer in answers] == [
        ...     config["configurable"]["eccos_model"] for config in configs
        ... ]
        True
    """
    configs = get_config_list(config if config is None or isinstance(config, dict) else list(config), len(inputs))
    router, policy, members = middleware.router, middleware.policy, middleware.members
    chats = [
        Chat.of(_messages(each), {}, own, router, policy, members) for each, own in zip(inputs, configs, strict=True)
    ]
    planned = []
    for chat, own in zip(decided(chats, router), configs, strict=True):
        if isinstance(chat, Exception):
            raise chat
        decision = chat.options["decision"]
        assert decision is not None
        if (own.get("configurable") or {}).get("eccos_model") is None:
            told = {"eccos_model": decision.model, EVENT: record(decision)}
            own = merge_configs(own, {"configurable": told})  # noqa: PLW2901
        planned.append(own)
    return planned


def _messages(value: Any) -> list[BaseMessage]:
    messages = value.get("messages") if isinstance(value, Mapping) else None
    if not messages:
        raise ConfigError(f"inputs: a {type(value).__name__} without messages; give {{'messages': [...]}}")
    return convert_to_messages([messages] if isinstance(messages, str | BaseMessage) else messages)
