"""The query inside a runnable's input: the text the forecast is made from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.prompt_values import PromptValue

from eccos_integrations.errors import ConfigError

# Where a dict usually keeps the user's words, tried in this order.
USUAL_KEYS = ("query", "question", "input", "text", "prompt", "messages")

QuerySource = str | Callable[[Any], str] | None


def query_text(value: Any, source: QuerySource = None) -> str:
    """The user's words in an input.

    A string is the query itself. Of messages and prompt values it is the last human message, of a dict the value under
    the first of `USUAL_KEYS`.

    Args:
        value: The input of a runnable.
        source: A key of a dict input, or a function from the input to the text, where the above does not fit.

    Raises:
        ConfigError: No text is found; says how to point at it.
    """
    if callable(source):
        text = source(value)
        if not isinstance(text, str):
            raise ConfigError(f"query: the function returned a {type(text).__name__}; return the text to route by")
        return text
    if source is not None:
        if not isinstance(value, Mapping) or source not in value:
            keys = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise ConfigError(f"query: no key {source!r} in the input ({keys}); give a key it has, or a function")
        return query_text(value[source])
    if isinstance(value, str):
        return value
    if isinstance(value, PromptValue):
        return _last_human(value.to_messages())
    if isinstance(value, BaseMessage):
        return str(value.text)
    if isinstance(value, Mapping):
        for key in USUAL_KEYS:
            if key in value:
                return query_text(value[key])
        raise ConfigError(f"query: none of {list(USUAL_KEYS)} is in the input ({list(value)}); give query=KEY")
    if isinstance(value, Sequence) and value:
        try:
            return _last_human(convert_to_messages(value))
        except (ValueError, NotImplementedError):
            pass  # a list of something else
    raise ConfigError(f"query: no text found in a {type(value).__name__}; give query=, a function from it to its text")


def prompt_tokens(value: Any) -> int | None:
    """About how many tokens an input has, where it is more than the query: messages, with system prompt and history.

    Args:
        value: The input of a runnable.
    """
    if isinstance(value, Mapping):
        value = value.get("messages")
    if isinstance(value, PromptValue):
        value = value.to_messages()
    if not isinstance(value, list) or len(value) < 2:
        return None
    try:
        return count_tokens_approximately(convert_to_messages(value))
    except (ValueError, NotImplementedError):
        return None  # a list of something else


def joined(chunks: Sequence[Any]) -> Any:
    """Streamed pieces of one input, added up as LangChain does; the last one where they do not add.

    Raises:
        ConfigError: There are none.
    """
    if not chunks:
        raise ConfigError("input: the stream ended before it began; give at least one piece")
    whole = chunks[0]
    for chunk in chunks[1:]:
        try:
            whole = whole + chunk
        except TypeError:
            whole = chunk
    return whole


def _last_human(messages: Sequence[BaseMessage]) -> str:
    """Text of the last human message, or of the last message where there is none."""
    human = [message for message in messages if message.type == "human"]
    return str((human or messages)[-1].text)
