"""Tools: only members that call them are asked, and each reads its own calls. `predict_and_call` is LlamaIndex's."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    ToolCallBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from llamaindex_eccos.abilities import TOOLS
from llamaindex_eccos.messages import fresh, joined, last_user_text, whole_text
from llamaindex_eccos.routed import Arguments, Call, RoutedLLM

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class ToolLLM(RoutedLLM):
    """The part of `EccosLLM` that calls tools."""

    def chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002
        allow_parallel_tool_calls: bool = False,  # noqa: FBT001, FBT002
        tool_required: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> ChatResponse:
        """Have a member answer a chat, or call tools."""
        how = {"verbose": verbose, "allow_parallel_tool_calls": allow_parallel_tool_calls}
        call, history = self._tool_call(
            tools, user_msg, chat_history, {**kwargs, **how, "tool_required": tool_required}
        )
        return self._answer(
            call, lambda member, given: member.chat_with_tools(tools, chat_history=fresh(history), **given)
        )

    def stream_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002
        allow_parallel_tool_calls: bool = False,  # noqa: FBT001, FBT002
        tool_required: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> ChatResponseGen:
        """As `chat_with_tools`, in chunks."""
        how = {"verbose": verbose, "allow_parallel_tool_calls": allow_parallel_tool_calls}
        call, history = self._tool_call(
            tools, user_msg, chat_history, {**kwargs, **how, "tool_required": tool_required}
        )
        return self._pieces(
            call, lambda member, given: member.stream_chat_with_tools(tools, chat_history=fresh(history), **given)
        )

    async def achat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002
        allow_parallel_tool_calls: bool = False,  # noqa: FBT001, FBT002
        tool_required: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> ChatResponse:
        """As `chat_with_tools`."""
        how = {"verbose": verbose, "allow_parallel_tool_calls": allow_parallel_tool_calls}
        call, history = self._tool_call(
            tools, user_msg, chat_history, {**kwargs, **how, "tool_required": tool_required}
        )
        return await self._aanswer(
            call, lambda member, given: member.achat_with_tools(tools, chat_history=fresh(history), **given)
        )

    async def astream_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002
        allow_parallel_tool_calls: bool = False,  # noqa: FBT001, FBT002
        tool_required: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> ChatResponseAsyncGen:
        """As `chat_with_tools`, in chunks."""
        how = {"verbose": verbose, "allow_parallel_tool_calls": allow_parallel_tool_calls}
        call, history = self._tool_call(
            tools, user_msg, chat_history, {**kwargs, **how, "tool_required": tool_required}
        )
        return await self._apieces(
            call, lambda member, given: member.astream_chat_with_tools(tools, chat_history=fresh(history), **given)
        )

    def get_tool_calls_from_response(
        self,
        response: ChatResponse,
        error_on_no_tool_call: bool = True,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> list[ToolSelection]:
        """The tool calls of a response, as the member reads them that has made it: each has a form of its own."""
        author = self.members.get((response.additional_kwargs.get("eccos") or {}).get("model", ""))
        if isinstance(author, FunctionCallingLLM):
            return author.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call)
        selections = [_selection(block) for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not selections and error_on_no_tool_call:
            raise ValueError("Expected at least one tool call, but got none.")
        return selections

    def _prepare_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002
        allow_parallel_tool_calls: bool = False,  # noqa: FBT001, FBT002
        tool_required: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> Arguments:
        """Arguments for `chat`; LlamaIndex asks for them only where the tool methods are not overridden, as here."""
        specs = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        return {"messages": joined(user_msg, chat_history), "tools": specs, **kwargs}

    def _tool_call(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None,
        chat_history: list[ChatMessage] | None,
        kwargs: Arguments,
    ) -> tuple[Call, list[ChatMessage]]:
        history = joined(user_msg, chat_history)
        whole = "\n".join(
            [
                whole_text(history),
                *(f"{tool.metadata.description} {json.dumps(tool.metadata.get_parameters_dict())}" for tool in tools),
            ]
        )
        text, most = last_user_text(history), kwargs.get("max_tokens")
        return self._call_of(kwargs, text, whole, {TOOLS}, history, most), history


def _selection(block: ToolCallBlock) -> ToolSelection:
    """The tool that a block calls; arguments that cannot be read are none."""
    arguments: Any = block.tool_kwargs
    if isinstance(arguments, str):
        try:
            arguments = parse_partial_json(arguments)
        except ValueError:
            arguments = {}
    return ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=dict(arguments or {}))
