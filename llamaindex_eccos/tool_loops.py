"""Which conversation a tool call belongs to, so that whoever called a tool is the one that gets its result."""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock

MOST = 10_000  # tool calls


class ToolLoops:
    """Remembers conversations by the ids of their tool calls, the oldest forgotten first. A copy starts empty.

    Example:
        >>> loops, call = (
        ...     ToolLoops(),
        ...     ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="7", tool_name="add")]),
        ... )
        >>> loops.keep(call, "mine")
        >>> loops.of([call, ChatMessage("3", role="tool", tool_call_id="7")])
        'mine'
    """

    def __init__(self) -> None:
        self._conversations: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ToolLoops, ()

    def of(self, messages: Sequence[ChatMessage]) -> str | None:
        """The conversation that messages belong to, by their latest tool call; None: it is not known."""
        with self._lock:
            known = (self._conversations.get(call) for message in reversed(messages) for call in calls_of(message))
            return next((conversation for conversation in known if conversation is not None), None)

    def keep(self, message: ChatMessage, conversation: str) -> None:
        """Remember the tool calls of an answer."""
        with self._lock:
            for call in calls_of(message):
                self._conversations[call] = conversation
                self._conversations.move_to_end(call)
            while len(self._conversations) > MOST:
                self._conversations.popitem(last=False)


def new_conversation() -> str:
    """A name for one."""
    return uuid.uuid4().hex


def is_result(messages: Sequence[ChatMessage]) -> bool:
    """Whether messages end with what a tool has returned."""
    return bool(messages) and messages[-1].role in {MessageRole.TOOL, MessageRole.FUNCTION}


def calls_of(message: ChatMessage) -> Iterator[str]:
    """The ids of the tool calls in a message, or of the one that it is the result of."""
    told = message.additional_kwargs
    legacy = told.get("tool_calls")
    ids = [
        *(block.tool_call_id for block in message.blocks if isinstance(block, ToolCallBlock)),
        *(_id(call) for call in (legacy if isinstance(legacy, list) else [])),
        told.get("tool_call_id"),
    ]
    return (name for name in ids if isinstance(name, str) and name)


def _id(call: Any) -> Any:
    return call.get("id") if isinstance(call, dict) else getattr(call, "id", None)
