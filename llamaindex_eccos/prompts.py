"""Prompts and objects: with its own templates, system prompt and parser, the chosen member fills a prompt in."""

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.prompts import BasePromptTemplate, SelectorPromptTemplate
from llama_index.core.types import TokenAsyncGen, TokenGen

from llamaindex_eccos.abilities import SCHEMA, TOOLS
from llamaindex_eccos.messages import last_user_text, whole_text
from llamaindex_eccos.routed import Arguments, Call, RoutedLLM, asked_for


class PromptLLM(RoutedLLM):
    """The part of `EccosLLM` that answers prompts."""

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Have a member answer a prompt."""
        if self._speaks_for_itself:
            with asked_for(prompt_args):
                return super().predict(prompt, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, prompt_args, set())
        return self._answer(call, lambda member, given: member.predict(prompt, **given))

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """As `predict`, in tokens."""
        if self._speaks_for_itself:
            with asked_for(prompt_args):
                return super().stream(prompt, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, prompt_args, set())
        return self._pieces(call, lambda member, given: member.stream(prompt, **given))

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """As `predict`."""
        if self._speaks_for_itself:
            with asked_for(prompt_args):
                return await super().apredict(prompt, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, prompt_args, set())
        return await self._aanswer(call, lambda member, given: member.apredict(prompt, **given))

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """As `predict`, in tokens."""
        if self._speaks_for_itself:
            with asked_for(prompt_args):
                return await super().astream(prompt, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, prompt_args, set())
        return await self._apieces(call, lambda member, given: member.astream(prompt, **given))

    def structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Arguments | None = None, **prompt_args: Any
    ) -> Any:
        """Have a member answer a prompt with an object; settings of the call are in `llm_kwargs`."""
        if self._speaks_for_itself:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, dict(llm_kwargs or {}), {SCHEMA})
        return self._answer(
            call, lambda member, given: member.structured_predict(output_cls, prompt, llm_kwargs=given, **prompt_args)
        )

    def stream_structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Arguments | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        """As `structured_predict`, in ever more complete objects."""
        if self._speaks_for_itself:
            return super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, dict(llm_kwargs or {}), self._streamed_schema)
        return self._pieces(
            call,
            lambda member, given: member.stream_structured_predict(output_cls, prompt, llm_kwargs=given, **prompt_args),
        )

    async def astructured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Arguments | None = None, **prompt_args: Any
    ) -> Any:
        """As `structured_predict`."""
        if self._speaks_for_itself:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, dict(llm_kwargs or {}), {SCHEMA})
        return await self._aanswer(
            call, lambda member, given: member.astructured_predict(output_cls, prompt, llm_kwargs=given, **prompt_args)
        )

    async def astream_structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Arguments | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        """As `stream_structured_predict`."""
        if self._speaks_for_itself:
            return await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        call, prompt = self._prompt_call(prompt, prompt_args, dict(llm_kwargs or {}), self._streamed_schema)
        return await self._apieces(
            call,
            lambda member, given: member.astream_structured_predict(
                output_cls, prompt, llm_kwargs=given, **prompt_args
            ),
        )

    def _prompt_call(
        self, prompt: BasePromptTemplate, prompt_args: Arguments, arguments: Arguments, needs: set[str]
    ) -> tuple[Call, BasePromptTemplate]:
        """The call, and the prompt for the member to fill in."""
        if isinstance(prompt, SelectorPromptTemplate) and self._is_mixed:
            prompt = prompt.select(self)  # what the caller fills in suits this LLM's kind, not every member's
        messages = self._get_messages(prompt, **prompt_args)
        text, whole = last_user_text(messages), whole_text(messages)
        return self._call_of(arguments, text, whole, needs, messages), prompt

    @property
    def _is_mixed(self) -> bool:
        """Whether some members chat and some complete."""
        return len({member.metadata.is_chat_model for member in self.members.values()}) > 1

    @property
    def _streamed_schema(self) -> set[str]:
        """What it takes to stream objects: LlamaIndex does so by tools only."""
        return {TOOLS} if self.metadata.is_function_calling_model else {SCHEMA}

    @property
    def _speaks_for_itself(self) -> bool:
        """Whether prompts are filled in here, because this LLM has something of its own to add."""
        return bool(
            self.system_prompt
            or self.output_parser
            or self.query_wrapper_prompt
            or self.completion_to_prompt is not default_completion_to_prompt
            or self.messages_to_prompt is not generic_messages_to_prompt
        )
