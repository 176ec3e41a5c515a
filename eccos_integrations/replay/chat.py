"""Chat completions in the form of OpenAI: what a request asks, and how an answer is put."""

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from eccos_integrations.errors import ConfigError
from eccos_integrations.replay.faults import ReplayError
from eccos_integrations.replay.playing import Answer, Chunk
from eccos_integrations.replay.provider import ReplayProvider
from eccos_integrations.replay.schema import filled

Json = dict[str, Any]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Message(_Lenient):
    """One message; of its content only the text is read."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Json] | None = None

    @property
    def text(self) -> str:
        """Its words, of all parts."""
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content if isinstance(part.get("text"), str))
        return self.content or ""


class Function(_Lenient):
    """A tool's name and what it takes."""

    name: str = Field(min_length=1)
    parameters: Json = Field(default_factory=dict)


class Tool(_Lenient):
    """A tool the model may call."""

    type: Literal["function"]
    function: Function


class Named(_Lenient):
    """The choice of one tool."""

    function: Function


class JsonSchema(_Lenient):
    """A schema, wrapped as OpenAI wraps it."""

    schema_: Json = Field(alias="schema", default_factory=dict)


class ResponseFormat(_Lenient):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Lenient):
    """What a stream tells besides the answer."""

    include_usage: bool | None = False


class ChatRequest(_Lenient):
    """What is understood of a request; the rest is ignored."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | Named | None = None
    response_format: ResponseFormat | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = 1

    @classmethod
    def read(cls, body: bytes) -> "ChatRequest":
        """A request from the body of a POST.

        Raises:
            ReplayError: It is no JSON, or a field is wrong; status 400.
        """
        try:
            return cls.model_validate(json.loads(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"][:3])
            raise ReplayError(f"{field or 'body'}: {first['msg']}", 400) from None
        except (ValueError, RecursionError):
            raise ReplayError("body: not valid JSON", 400) from None


@dataclass(frozen=True)
class Reply:
    """An answer to a request, as text or as the call of a tool.

    Attributes:
        answer: What is said, or the tool's arguments.
        prompt: What was asked.
        tool: The tool to call with the text as its arguments; None: it is an answer in words.
    """

    answer: Answer
    prompt: str
    tool: str | None = None

    @classmethod
    def to(cls, request: ChatRequest, provider: ReplayProvider) -> "Reply":
        """What a provider's model replies: as recorded where a message has a recorded question, else a phrase.

        Raises:
            ReplayError: The model is unknown (404), or a tool is chosen that was not given (400).
        """
        if request.model not in provider.pool:
            raise ReplayError(f"The model {request.model[:100]!r} does not exist.", 404)
        said = [message.text for message in request.messages]
        asked = [message.text for message in reversed(request.messages) if message.role == "user"]
        prompt = "\n".join(said)
        answer = _recorded(request.model, [*asked, *reversed(said)], provider)
        question = asked[0] if asked else said[-1]
        tool = _chosen_tool(request, question)
        if tool:
            text = json.dumps(filled(tool.parameters, question))
        elif request.response_format and request.response_format.type != "text":
            text = _structured(request.response_format, question, answer.text if answer else question)
        else:
            text = answer.text if answer else _phrase(question)
        answer = replace(answer, text=text) if answer else provider.improvised(request.model, prompt, text)
        answer = answer.within(request.max_completion_tokens or request.max_tokens)
        if not tool:
            answer = _stopped(answer, request.stop)
        return cls(answer, prompt, tool.name if tool else None)

    def completion(self) -> Json:
        """The reply in one piece."""
        message: Json = {"role": "assistant", "content": None if self.tool else self.answer.text, "refusal": None}
        if self.tool:
            message["tool_calls"] = [self._call(self.answer.text)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**_head("chat.completion", self.answer.model), "choices": [choice], "usage": _usage(self.answer)}

    def events(self, chunks: Iterator[Chunk], *, include_usage: bool) -> Iterator[Json]:
        """The reply in pieces, one for each chunk of the answer and a few of its own."""
        head = _head("chat.completion.chunk", self.answer.model) | ({"usage": None} if include_usage else {})

        def event(delta: Json, finish_reason: str | None = None) -> Json:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return {**head, "choices": [choice]}

        for number, chunk in enumerate(chunks):
            if number == 0:
                begin = (
                    {"content": None, "tool_calls": [{"index": 0, **self._call("")}]} if self.tool else {"content": ""}
                )
                yield event({"role": "assistant", **begin})
            if chunk.answer:
                yield event({}, self._finish_reason)
                if include_usage:
                    yield {**head, "choices": [], "usage": _usage(self.answer)}
            elif self.tool:
                yield event({"tool_calls": [{"index": 0, "function": {"arguments": chunk.text}}]})
            else:
                yield event({"content": chunk.text})

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self.tool and self.answer.finish_reason == "stop" else self.answer.finish_reason

    def _call(self, arguments: str) -> Json:
        return {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": self.tool, "arguments": arguments},
        }


def models(provider: ReplayProvider) -> Json:
    """The list of a provider's models."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "replay"} for name in provider.pool.names]
    return {"object": "list", "data": data}


def failure(error: ReplayError) -> Json:
    """An error, as OpenAI puts it."""
    kind, code = {
        400: ("invalid_request_error", None),
        404: ("invalid_request_error", "model_not_found"),
        429: ("rate_limit_error", "rate_limit_exceeded"),
    }.get(error.status_code, ("server_error" if error.status_code >= 500 else "invalid_request_error", None))
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


def _recorded(model: str, texts: list[str], provider: ReplayProvider) -> Answer | None:
    for text in dict.fromkeys(texts):
        try:
            return provider.recorded(model, text)
        except ConfigError:
            continue
    return None


def _phrase(question: str) -> str:
    words = question.split()
    return f"This is a replayed answer to: {' '.join(words[:12])}" if words else "This is a replayed answer."


def _structured(form: ResponseFormat, question: str, text: str) -> str:
    if form.json_schema:
        return json.dumps(filled(form.json_schema.schema_, text))
    names = dict.fromkeys(re.findall(r"[\"'`](\w{1,40})[\"'`]", question)) or ["answer"]
    return json.dumps(dict.fromkeys(list(names)[:20], text))


def _chosen_tool(request: ChatRequest, question: str) -> Function | None:
    """The tool that is to be called now: one that is asked for by its name, else the first."""
    tools = {tool.function.name: tool.function for tool in request.tools or []}
    choice = request.tool_choice or "auto"
    if isinstance(choice, Named):
        if choice.function.name not in tools:
            raise ReplayError("tool_choice: there is no such tool among tools", 400)
        return tools[choice.function.name]
    if choice == "required" and not tools:
        raise ReplayError("tool_choice: 'required' needs tools", 400)
    if not tools or choice == "none" or (choice == "auto" and request.messages[-1].role != "user"):
        return None
    return next((tool for name, tool in tools.items() if name in question), next(iter(tools.values())))


def _stopped(answer: Answer, stop: str | list[str] | None) -> Answer:
    """The answer up to the first of some words."""
    words = [word for word in ([stop] if isinstance(stop, str) else stop or []) if word]
    ends = [answer.text.find(word) for word in words if word in answer.text]
    return replace(answer, text=answer.text[: min(ends)], finish_reason="stop") if ends else answer


def _head(kind: str, model: str) -> Json:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answer: Answer) -> Json:
    total = answer.input_tokens + answer.output_tokens
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": total,
    }
