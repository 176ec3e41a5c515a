"""`EccosLLM`: a LlamaIndex LLM that hands each call, whole, to the member its router chooses."""

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)

from llamaindex_eccos.abilities import TOOLS
from llamaindex_eccos.messages import fresh, last_user_text, whole_text
from llamaindex_eccos.prompts import PromptLLM
from llamaindex_eccos.routed import Arguments, Call
from llamaindex_eccos.tools import ToolLLM


class EccosLLM(PromptLLM, ToolLLM):
    """An LLM that routes: each call goes, whole, to the member the router chooses for it.

    A call is decided by the question that is being asked: that of the query engine, the retriever or the prompt with a
    `query_str` around it, so that retrieved text keeps out of the choice; else the last user message, or the prompt.
    What it costs is reckoned with all that is sent. Calls that come together are decided together. Every call goes
    through a dispatcher: limits hold, and what fails before its first chunk goes to another member. Only members whose
    window, tools, images and schemas suffice are asked. The results of tools go back to whoever called them.

    The member owns the call's events, tokens and cost; one without callback handlers of its own gets this LLM's
    callback manager. The decision stands in `additional_kwargs["eccos"]` of the response and of every chunk, and in an
    `EccosRouteEvent`: `model`, `decision_id`, `quality` and `cost_usd` (both forecast), `floor_met`, `reason`,
    `attempt`.

    Keyword arguments of a call that are for the router; all others reach the member:

    - `eccos_model`: the member to use, whatever the router would choose.
    - `eccos_min_quality`: a floor in place of the policy's, read as the policy reads its own.
    - `eccos_max_cost_usd`: a budget in place of the policy's: what calls under it may cost on average.

    A floor or budget out of reach stops no call: the nearest decision is taken. `max_tokens` of a call is what it
    reserves for.

    Where this LLM has a `system_prompt`, an `output_parser` or prompt functions of its own, they are applied, and the
    member gets the finished messages. Set `max_retries=0` on members: another member is the better second try, and
    their own retries go past the limits. Copies share the router, so `router.feedback` knows their decisions; another
    process has limits of its own, unless the dispatcher's ledger is on Redis. A dump names the members and never holds
    them, so no key is in it; `EccosLLM.from_dict(dump, members=..., router=...)` reads it back.

    Args:
        members: The LLM that serves each model of the router, by the model's name. Its metadata should be true: the
            tightest context window is the pool's.
        router: A fitted router.
        policy: What must hold, default the router's own policy.
        dispatcher: Keeps the limits, and falls back; default the one that all of the router's wrappers share.
        settings: Fields of `llama_index.core.llms.LLM`: `callback_manager`, `system_prompt`, `output_parser`, ...

    Raises:
        ConfigError: The members are not exactly the router's models, one of them is not a LlamaIndex LLM, or the
            dispatcher is another router's.

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

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "EccosLLM"

    # No llm_chat_callback and no llm_completion_callback here: the member has them, and tokens would count twice.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Have a member answer a chat."""
        call = self._chat_call(messages, kwargs)
        return self._answer(call, lambda member, given: member.chat(fresh(messages), **given))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: FBT001, FBT002  # LlamaIndex's signature
        """Have a member complete a prompt."""
        call = self._completion_call(prompt, kwargs)
        return self._answer(call, lambda member, given: member.complete(prompt, formatted=formatted, **given))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, in chunks."""
        call = self._chat_call(messages, kwargs)
        return self._pieces(call, lambda member, given: member.stream_chat(fresh(messages), **given))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: FBT001, FBT002
        """As `complete`, in chunks."""
        call = self._completion_call(prompt, kwargs)
        return self._pieces(call, lambda member, given: member.stream_complete(prompt, formatted=formatted, **given))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`."""
        call = self._chat_call(messages, kwargs)
        return await self._aanswer(call, lambda member, given: member.achat(fresh(messages), **given))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: FBT001, FBT002
        """As `complete`."""
        call = self._completion_call(prompt, kwargs)
        return await self._aanswer(call, lambda member, given: member.acomplete(prompt, formatted=formatted, **given))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `chat`, in chunks."""
        call = self._chat_call(messages, kwargs)
        return await self._apieces(call, lambda member, given: member.astream_chat(fresh(messages), **given))

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:  # noqa: FBT001, FBT002
        """As `complete`, in chunks."""
        call = self._completion_call(prompt, kwargs)
        return await self._apieces(
            call, lambda member, given: member.astream_complete(prompt, formatted=formatted, **given)
        )

    def _chat_call(self, messages: Sequence[ChatMessage], kwargs: Arguments) -> Call:
        needs, most = {TOOLS} if kwargs.get("tools") else set(), kwargs.get("max_tokens")
        return self._call_of(kwargs, last_user_text(messages), whole_text(messages), needs, messages, most)

    def _completion_call(self, prompt: str, kwargs: Arguments) -> Call:
        return self._call_of(kwargs, prompt, prompt, set(), max_output_tokens=kwargs.get("max_tokens"))
