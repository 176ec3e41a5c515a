"""Messages of a chat: what is asked in them, how long they are, copies that a member may change."""

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole


def last_user_text(messages: Sequence[ChatMessage]) -> str:
    """The text blocks of the last user message, "" if there is none."""
    return next((m.content or "" for m in reversed(messages) if m.role == MessageRole.USER), "")


def whole_text(messages: Sequence[ChatMessage]) -> str:
    """The text blocks of all messages."""
    return "\n".join(message.content or "" for message in messages)


def fresh(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Messages of the member's own: some add to the list, or rewrite what is in it."""
    return [
        m.model_copy(update={"blocks": list(m.blocks), "additional_kwargs": dict(m.additional_kwargs)})
        for m in messages
    ]


def joined(user_msg: str | ChatMessage | None, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
    """All messages of a chat, the newest last."""
    if user_msg is None:
        return list(chat_history or [])
    return [*(chat_history or []), ChatMessage(user_msg, role="user") if isinstance(user_msg, str) else user_msg]
