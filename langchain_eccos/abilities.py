"""What a chat needs of its model, and which members have it: tools, schemas, media, a context window long enough."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately

from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.serving.able import able

TOOLS, SCHEMA = "tool_calling", "structured_output"

# What a profile calls the ability to read a medium, from people and from tools; and what blocks of it are called.
IMAGE = ("image_inputs", "image_tool_message")
FILE = ("pdf_inputs", "pdf_tool_message")
AUDIO = ("audio_inputs", "audio_inputs")
VIDEO = ("video_inputs", "video_inputs")
MEDIA = {
    "image": IMAGE, "image_url": IMAGE, "input_image": IMAGE,
    "file": FILE, "document": FILE, "input_file": FILE,
    "audio": AUDIO, "input_audio": AUDIO,
    "video": VIDEO, "video_url": VIDEO,
}  # fmt: skip
LACKS = {
    TOOLS: "it does not call tools",
    SCHEMA: "it cannot be held to a schema",
    "image_inputs": "it does not read images",
    "image_tool_message": "it does not read images from tools",
    "pdf_inputs": "it does not read files",
    "pdf_tool_message": "it does not read files from tools",
    "audio_inputs": "it does not hear audio",
    "video_inputs": "it does not see video",
}
REMEDY = (
    "Add a member that can, or say what they can do: tools, vision, json_output and context_window in the pool, "
    "`profile` on a chat model"
)


def media(messages: Iterable[BaseMessage]) -> set[str]:
    """The abilities that reading these messages takes, by their key in a profile."""
    needs = set()
    for message in messages:
        if message.type == "ai":  # what a model has said, it need not see
            continue
        blocks = [] if isinstance(message.content, str) else message.content
        for medium in filter(None, map(_medium, blocks)):
            needs.add(medium[message.type == "tool"])
    return needs


def _medium(block: Any) -> tuple[str, str] | None:
    kind = block.get("type") if isinstance(block, dict) else None
    return MEDIA.get(kind) if isinstance(kind, str) else None


def has(ability: str, model: Model, member: BaseChatModel) -> bool:
    """Whether a member has an ability: as the pool says, else its profile, else (tools, schemas) its class.

    A medium that neither pool nor profile speaks of is not sent.
    """
    said = {TOOLS: model.tools, SCHEMA: model.json_output, "image_inputs": model.vision}.get(ability)
    if said is None and ability != SCHEMA:  # who has no schemas of its own may still be held to one by a tool
        said = cast("Mapping[str, Any]", member.profile or {}).get(ability)
    if said is None:
        own = type(member)
        tools = own.bind_tools is not BaseChatModel.bind_tools
        schema = own.with_structured_output is not BaseChatModel.with_structured_output
        said = {TOOLS: tools, SCHEMA: tools or schema}.get(ability, False)
    return bool(said)


def candidates(
    pool: ModelPool,
    members: Mapping[str, BaseChatModel],
    needs: Iterable[str],
    *,
    tokens: int = 0,
    only: Collection[str] | None = None,
) -> list[str]:
    """The members that can take a chat.

    Args:
        pool: What is known of them.
        members: By name.
        needs: Abilities.
        tokens: Of the whole prompt.
        only: Those it may go to at all; None: all.

    Raises:
        ConfigError: There is none; says of each why.
    """
    return able(pool, members, lambda model: _lack(model, members[model.name], needs, tokens), only, REMEDY)


def _lack(model: Model, member: BaseChatModel, needs: Iterable[str], tokens: int) -> str | None:
    for ability in needs:
        if not has(ability, model, member):
            return LACKS[ability]
    window = model.context_window or (member.profile or {}).get("max_input_tokens")
    if window is not None and tokens > window:
        return f"its context window of {window} tokens is too short for about {tokens}"
    return None


def prompt_tokens(messages: Sequence[BaseMessage]) -> int:
    """About how many tokens the messages have. Files, audio and video count nothing: theirs are unknown."""
    return count_tokens_approximately([_readable(message) for message in messages])


def _readable(message: BaseMessage) -> BaseMessage:
    if isinstance(message.content, str):
        return message
    read = [block for block in message.content if _medium(block) in {None, IMAGE}]
    return message if len(read) == len(message.content) else message.model_copy(update={"content": read})


def common_profile(members: Iterable[BaseChatModel]) -> ModelProfile | None:
    """What every member can do: flags that all have, the least of the numbers, other entries where all agree.

    None where a member has no profile: nothing can be said of all then.
    """
    profiles = [cast("Mapping[str, Any] | None", member.profile) for member in members]
    known = [profile for profile in profiles if profile is not None]
    if not known or len(known) < len(profiles):
        return None
    shared: dict[str, Any] = {}
    for key in known[0]:
        if not all(key in profile for profile in known):
            continue
        values = [profile[key] for profile in known]
        if all(isinstance(value, bool) for value in values):
            shared[key] = all(values)
        elif all(isinstance(value, int) for value in values):
            shared[key] = min(values)
        elif all(value == values[0] for value in values):
            shared[key] = values[0]
    return cast("ModelProfile", shared)
