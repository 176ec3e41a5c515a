"""Members of an `EccosLLM` that tests look into, and ways to call every endpoint."""

import uuid

from llama_index.core.base.llms.types import TextBlock, ToolCallBlock
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool
from pydantic import PrivateAttr

from eccos_integrations import Model, ModelPool, OutcomeTable, Policy, Router

EASY = "add the numbers 3 and 4"
HARD = "prove the theorem of Fermat"
KEY = "sk-planted-0123456789"


def add(a: int = 3, b: int = 4, read_by: str = "") -> int:
    """Add two numbers."""
    return a + b


TOOLS = [FunctionTool.from_defaults(fn=add)]


def pool_of(large=None, small=None):
    """The pool, with what is given of its models."""
    cheap = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 2.0}
    dear = {name: 100 * usd for name, usd in cheap.items()}
    return ModelPool([Model(name="large", **dear, **(large or {})), Model(name="small", **cheap, **(small or {}))])


def make_router(pool=None, **policy):
    """Sums are easy for both models, proofs only for the large one, which costs a hundred times as much."""
    easy = [f"add the numbers {i} and {i + 1}" for i in range(20)]
    hard = [f"prove the theorem of {name}" for name in "abcdefghijklmnopqrst"]
    table = OutcomeTable(
        query_ids=[f"q{i:02}" for i in range(40)],
        queries=easy + hard,
        models=["large", "small"],
        quality=[[1, 1]] * 20 + [[1, 0]] * 20,
        cost_usd=[[1e-2, 1e-4]] * 40,
        input_tokens=[[20, 20]] * 40,
        output_tokens=[[50, 50]] * 40,
    )
    policy = Policy(**(policy or {"min_quality": 0.78, "relative_to": "best"}))
    return Router.fit(table, pool, policy=policy, predictor="clusters")


class Recorder(LLM):
    """A member that answers `name: text`, emits one event per call, and remembers how it was called."""

    name: str
    api_key: str = KEY
    chats: bool = True
    window: int = 4096
    output: int = 256
    stream_closed: bool = False
    _calls: list = PrivateAttr(default_factory=list)

    @property
    def calls(self):
        return self._calls

    @property
    def metadata(self):
        return LLMMetadata(
            context_window=self.window, num_output=self.output, is_chat_model=self.chats, model_name=f"{self.name}-v1"
        )

    @classmethod
    def class_name(cls):
        return "Recorder"

    def _words(self, endpoint, given, kwargs):
        self._calls.append((endpoint, given, kwargs))
        text = given if isinstance(given, str) else given[-1].content or ""
        return [f"{self.name}:", *text.split()]

    def _chunks(self, words, make):
        try:
            for i, word in enumerate(words):
                yield make(" ".join(words[: i + 1]), word)
        finally:
            self.stream_closed = True

    async def _achunks(self, words, make):
        try:
            for i, word in enumerate(words):
                yield make(" ".join(words[: i + 1]), word)
        finally:
            self.stream_closed = True

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        return chat_response(" ".join(self._words("chat", messages, kwargs)))

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return completion(" ".join(self._words("complete", prompt, {"formatted": formatted, **kwargs})))

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        return self._chunks(self._words("stream_chat", messages, kwargs), chat_response)

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        return self._chunks(self._words("stream_complete", prompt, {"formatted": formatted, **kwargs}), completion)

    @llm_chat_callback()
    async def achat(self, messages, **kwargs):
        return chat_response(" ".join(self._words("achat", messages, kwargs)))

    @llm_completion_callback()
    async def acomplete(self, prompt, formatted=False, **kwargs):
        return completion(" ".join(self._words("acomplete", prompt, {"formatted": formatted, **kwargs})))

    @llm_chat_callback()
    async def astream_chat(self, messages, **kwargs):
        return self._achunks(self._words("astream_chat", messages, kwargs), chat_response)

    @llm_completion_callback()
    async def astream_complete(self, prompt, formatted=False, **kwargs):
        words = self._words("astream_complete", prompt, {"formatted": formatted, **kwargs})
        return self._achunks(words, completion)


def chat_response(text, delta=None):
    return ChatResponse(
        message=ChatMessage(role="assistant", content=text), delta=delta, additional_kwargs={"prompt_tokens": 7}
    )


def completion(text, delta=None):
    return CompletionResponse(text=text, delta=delta, additional_kwargs={"prompt_tokens": 7})


class Obliging(MockFunctionCallingLLM):
    """Calls every tool that it is given with its defaults; has it a result, or no tools, it says its name."""

    name: str = "obliging"

    def __init__(self, name="obliging", **kwargs):
        super().__init__(name=name, **kwargs)

    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True)

    def respond(self, messages, tools=()):
        if messages[-1].role == "tool" or not tools:
            return ChatMessage(self.name, role="assistant")
        calls = [self.call_of(tool) for tool in tools]
        legacy = {"tool_calls": [{"id": call.tool_call_id} for call in calls]}  # without it streams of objects are text
        return ChatMessage(role="assistant", blocks=[TextBlock(text=self.name), *calls], additional_kwargs=legacy)

    def call_of(self, tool):
        fields = tool.metadata.fn_schema.model_fields.items()
        defaults = {name: field.default for name, field in fields if not field.is_required()}
        return ToolCallBlock(
            tool_call_id=f"{self.name}-{uuid.uuid4().hex}", tool_name=tool.metadata.name, tool_kwargs=defaults
        )

    @llm_chat_callback()
    def chat(self, messages, tools=(), **kwargs):
        return ChatResponse(message=self.respond(messages, tools))

    @llm_chat_callback()
    async def achat(self, messages, tools=(), **kwargs):
        return ChatResponse(message=self.respond(messages, tools))

    @llm_chat_callback()
    def stream_chat(self, messages, tools=(), **kwargs):
        message = self.respond(messages, tools)
        return (ChatResponse(message=message, delta=message.content) for _ in range(1))

    @llm_chat_callback()
    async def astream_chat(self, messages, tools=(), **kwargs):
        message = self.respond(messages, tools)

        async def chunks():
            yield ChatResponse(message=message, delta=message.content)

        return chunks()

    def _prepare_chat_with_tools(self, tools, user_msg=None, chat_history=None, tool_required=False, **kwargs):
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(user_msg, role="user") if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": tools}

    def get_tool_calls_from_response(self, response, error_on_no_tool_call=True, **kwargs):
        return [
            ToolSelection(
                tool_id=block.tool_call_id, tool_name=block.tool_name, tool_kwargs=self.arguments(block.tool_kwargs)
            )
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]

    def arguments(self, given):
        return given


class Caller(Obliging):
    """Knows its own tool calls; adds to the history, as OpenAI's does; fails a number of times."""

    fails: int = 0
    _histories: list = PrivateAttr(default_factory=list)

    def respond(self, messages, tools=()):
        self._histories.append(list(messages))
        if self.fails > 0:
            self.fails -= 1
            raise ConnectionError("gone")
        return super().respond(messages, tools)

    def _prepare_chat_with_tools(self, tools, user_msg=None, chat_history=None, tool_required=False, **kwargs):
        messages = chat_history if chat_history is not None else []
        messages.append(ChatMessage(role="system", content="added by the member"))
        messages.sort(key=lambda message: message.role != "system")
        return {"messages": messages, "tools": tools}

    def get_tool_calls_from_response(self, response, error_on_no_tool_call=True):  # no **kwargs, as LiteLLM's
        return super().get_tool_calls_from_response(response, error_on_no_tool_call)

    def arguments(self, given):
        return {"read_by": self.name}


def user(text):
    return [ChatMessage(role="user", content=text)]


async def call(llm, endpoint, given, **kwargs):
    """Every endpoint behind one door: all responses of a call as a list."""
    method = getattr(llm, endpoint)
    if not endpoint.startswith("a"):
        answer = method(given, **kwargs)
        return list(answer) if "stream" in endpoint else [answer]
    answer = await method(given, **kwargs)
    return [chunk async for chunk in answer] if "stream" in endpoint else [answer]


CHATS = ["chat", "stream_chat", "achat", "astream_chat"]
COMPLETIONS = ["complete", "stream_complete", "acomplete", "astream_complete"]
ENDPOINTS = CHATS + COMPLETIONS


def given_to(endpoint, text):
    return user(text) if endpoint in CHATS else text


def model_of(response):
    return response.additional_kwargs["eccos"]["model"]


def text_of(response):
    return response.message.content if isinstance(response, ChatResponse) else response.text
