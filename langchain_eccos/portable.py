"""A model call as another provider can take it: without what only the one before understands."""

from collections.abc import Mapping
from typing import Any

from langchain.agents.middleware.types import ModelRequest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool

CACHE_SETTINGS = ("cache_control", "prompt_cache_key")


def portable(
    request: ModelRequest[Any], member: BaseChatModel, members: Mapping[str, BaseChatModel]
) -> ModelRequest[Any]:
    """The request as a member can take it.

    An answer of another provider loses all but text and tool calls. Everything else was written for the model of the
    request: where that is another provider's, it loses its cache marks.
    """
    provider = _provider(member)
    messages: list[Any] = [
        _plain(message)
        if isinstance(message, AIMessage) and _origin(message, members) not in {None, provider}
        else message
        for message in request.messages
    ]
    if _provider(request.model) == provider:
        return request.override(messages=messages)
    return request.override(
        messages=[_unmarked(message) for message in messages],
        system_message=None if request.system_message is None else _unmarked(request.system_message),
        tools=[_unmarked_tool(tool) for tool in request.tools],
        model_settings={name: value for name, value in request.model_settings.items() if name not in CACHE_SETTINGS},
    )


def _origin(message: AIMessage, members: Mapping[str, BaseChatModel]) -> str | None:
    """The provider of an answer, as far as it says."""
    told = message.response_metadata.get("eccos")
    author = members.get(told.get("model", "")) if isinstance(told, dict) else None
    return message.response_metadata.get("model_provider") if author is None else _provider(author)


def _plain(message: AIMessage) -> AIMessage:
    return AIMessage(
        message.text, tool_calls=message.tool_calls, invalid_tool_calls=message.invalid_tool_calls, name=message.name
    )


def _unmarked(message: Any) -> Any:
    if isinstance(message.content, str):
        return message
    return message.model_copy(update={"content": [_unmarked_block(block) for block in message.content]})


def _unmarked_block(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    return {
        key: _unmarked_block(value) if key in {"extras", "metadata"} else value
        for key, value in block.items()
        if key not in CACHE_SETTINGS
    }


def _unmarked_tool(tool: Any) -> Any:
    if isinstance(tool, BaseTool) and tool.extras:
        return tool.model_copy(update={"extras": _unmarked_block(tool.extras) or None})
    return _unmarked_block(tool)


def _provider(model: BaseChatModel) -> str | None:
    return model._get_ls_params().get("ls_provider")  # noqa: SLF001  # nothing public says it
