"""What a call needs of its model, and which members have it: tools, schemas, images, a context window long enough."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, LLMMetadata
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM

from eccos_integrations.pool import Model, ModelPool
from eccos_integrations.serving.able import able

TOOLS, SCHEMA, IMAGES = "tools", "schema", "images"
LACKS = {
    TOOLS: "it does not call tools",
    SCHEMA: "it cannot be held to a schema",
    IMAGES: "it does not read images",
}
REMEDY = (
    "Add a member that can, or say what they can do: tools, vision, json_output and context_window in the pool, "
    "context_window and is_function_calling_model on an LLM"
)


def has(ability: str, model: Model, member: LLM) -> bool:
    """Whether a member has an ability: as the pool says; else tools by its metadata, and the others are tried."""
    if ability == TOOLS:
        said = member.metadata.is_function_calling_model if model.tools is None else model.tools
        return said and isinstance(member, FunctionCallingLLM)
    return (model.json_output if ability == SCHEMA else model.vision) is not False


def candidates(
    pool: ModelPool,
    members: Mapping[str, LLM],
    needs: Iterable[str],
    tokens: int,
    only: Collection[str] | None = None,
) -> list[str]:
    """The members that can take a call.

    Args:
        pool: What is known of them.
        members: By name.
        needs: Abilities.
        tokens: Of the whole prompt, about.
        only: Those it may go to at all; None: all.

    Raises:
        ConfigError: There is none; says of each why.
    """
    return able(pool, members, lambda model: _lack(model, members[model.name], needs, tokens), only, REMEDY)


def _lack(model: Model, member: LLM, needs: Iterable[str], tokens: int) -> str | None:
    for ability in needs:
        if not has(ability, model, member):
            return LACKS[ability]
    if model.context_window is None and tokens > (most := room(member.metadata)):  # else the dispatcher sees to it
        return f"its context window leaves {most} tokens to the prompt, which has about {tokens}"
    return None


def room(metadata: LLMMetadata) -> int:
    """Tokens left for the prompt."""
    unknown = metadata.num_output == -1
    return metadata.context_window - (DEFAULT_NUM_OUTPUTS if unknown else metadata.num_output)


def media(messages: Sequence[ChatMessage]) -> set[str]:
    """The abilities that reading these messages takes."""
    return {IMAGES} if any(isinstance(block, ImageBlock) for m in messages for block in m.blocks) else set()


def rough_tokens(text: str) -> int:
    """About how many tokens a text has: four bytes each. A tokenizer is slow, and the member's own is not known."""
    return len(text.encode(errors="surrogatepass")) // 4 + 1
