"""Replay over HTTP: what goes over the wire, with the standard library's client and with hostile requests."""

import http.client
import json
import math
import socket
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import ConfigError, Model, ModelPool, OutcomeTable
from eccos_integrations.replay import Faults, Reference, ReplayProvider, ReplayServer
from eccos_integrations.replay.chat import ChatRequest, Reply
from eccos_integrations.replay.schema import filled

QUESTION = "What are 6 times 7?"
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["name", "people"],
}
TOOLS = [
    {"type": "function", "function": {"name": "look_up", "parameters": CITY}},
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},
]


def provider_of(faults=None, speed=math.inf, **limits):
    ones = np.ones((2, 2))
    table = OutcomeTable(["a", "b"], [QUESTION, "b?"], ["m", "n"], ones, ones * 0.001, ones * 10, ones * 20)
    pool = ModelPool([Model(name="m", **limits), Model(name="n")])
    return ReplayProvider(table, pool, {"a": Reference("42", "number")}, faults, speed=speed)


@pytest.fixture(scope="module")
def server():
    with ReplayServer(provider_of()) as server:
        yield server


def send(server, body, path="/v1/chat/completions", method="POST", headers=None):
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def ask(server, content=QUESTION, headers=None, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    response, content = send(server, body, headers=headers)
    assert response.status == 200, content
    assert response.headers["connection"] == "close"
    return json.loads(content)


def events(server, content=QUESTION, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "stream": True, **fields}
    response, content = send(server, body)
    assert response.headers["content-type"] == "text/event-stream"
    *data, done, rest = content.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in data]


def test_a_recorded_question_is_answered_as_recorded(server):
    answer = ask(server)
    assert answer["choices"][0]["message"]["content"] == "42"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    assert (answer["object"], answer["model"]) == ("chat.completion", "m")
    assert answer["id"] != ask(server)["id"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": f"Please: {QUESTION}"}, {"type": "image_url"}]}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "?"},
         {"role": "user", "content": "well?"}],
        [{"role": "system", "content": QUESTION}],
    ],
)  # fmt: skip
def test_the_question_is_found_wherever_it_stands(server, messages):
    assert json.loads(send(server, {"model": "m", "messages": messages})[1])["choices"][0]["message"]["content"] == "42"


def test_anything_else_is_answered_with_a_phrase_and_rough_counts(server):
    answer = ask(server, "hello there, you")
    assert answer["choices"][0]["message"]["content"].endswith("hello there, you")
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] > 4


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_cap_is_kept(server, field):
    answer = ask(server, "hello there, you and all the others", **{field: 3})
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_answer_ends_before_a_stop_word(server):
    text = ask(server, "one two three", stop=["two"])["choices"][0]["message"]["content"]
    assert text.endswith("one ")


def test_a_stream_has_the_same_answer_in_pieces_and_usage_if_asked(server):
    pieces = events(server, "hello there", stream_options={"include_usage": True})
    deltas = [piece["choices"][0]["delta"] for piece in pieces[:-1]]
    whole = ask(server, "hello there")
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert pieces[-2]["choices"][0]["finish_reason"] == "stop"
    assert (pieces[-1]["choices"], pieces[-1]["usage"]) == ([], whole["usage"])
    assert all("usage" not in piece for piece in events(server, "hello there"))


@pytest.mark.parametrize(
    ("content", "choice", "name"),
    [
        ("who?", None, "look_up"),
        ("please add 5", "auto", "add"),
        ("who?", "required", "look_up"),
        ("who?", {"type": "function", "function": {"name": "add"}}, "add"),
        ("who?", "none", None),
    ],
)
def test_a_tool_is_called_as_the_choice_says(server, content, choice, name):
    fields = {"tools": TOOLS} | ({} if choice is None else {"tool_choice": choice})
    message = ask(server, content, **fields)["choices"][0]["message"]
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == ([name] if name else [])
    assert (message["content"] is None) == bool(name)
    deltas = [event["choices"][0]["delta"] for event in events(server, content, **fields)]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["name"] for call in calls if "name" in call] == ([name] if name else [])
    if name:
        arguments = json.loads("".join(call["arguments"] for call in calls))
        assert arguments == json.loads(message["tool_calls"][0]["function"]["arguments"])


def test_arguments_are_made_from_the_schema_and_the_question(server):
    choice = ask(server, "a city of 5000", tools=TOOLS)["choices"][0]
    arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"name": "a city of 5000", "people": 5000}
    assert choice["finish_reason"] == "tool_calls"


def test_after_a_tools_result_the_model_answers_in_words(server):
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]  # fmt: skip
    answer = json.loads(send(server, {"model": "m", "messages": messages, "tools": TOOLS})[1])
    assert answer["choices"][0]["message"]["content"] == "42"
    assert "tool_calls" not in answer["choices"][0]["message"]


def test_a_structured_answer_keeps_to_its_schema_and_has_the_recorded_answer_in_it(server):
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    content = ask(server, response_format=form)["choices"][0]["message"]["content"]
    assert json.loads(content) == {"name": "42", "people": 42}
    content = ask(server, "as JSON with 'a' and 'b'", response_format={"type": "json_object"})
    assert set(json.loads(content["choices"][0]["message"]["content"])) == {"a", "b"}


def test_the_models_are_those_of_the_pool(server):
    response, content = send(server, b"", "/v1/models", "GET")
    assert response.status == 200
    assert [model["id"] for model in json.loads(content)["data"]] == ["m", "n"]


MESSAGES = [{"role": "user", "content": "hello secret"}]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"\xff\xfe\xff", 400, "not valid JSON"),
        (b"[]", 400, "body"),
        ({"messages": MESSAGES}, 400, "model"),
        ({"model": "m"}, 400, "messages"),
        ({"model": "m", "messages": []}, 400, "messages"),
        ({"model": "m", "messages": ["secret"]}, 400, "messages.0"),
        ({"model": "m", "messages": [{"role": "nobody", "content": "secret"}]}, 400, "messages.0.role"),
        ({"model": "m", "messages": MESSAGES, "n": 2}, 400, "n:"),
        ({"model": "m", "messages": MESSAGES, "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "m", "messages": MESSAGES, "tool_choice": "required"}, 400, "tool_choice"),
        ({"model": "m", "messages": MESSAGES, "tools": TOOLS, "tool_choice": {"function": {"name": "x"}}}, 400,
         "tool_choice"),
        ({"model": "x", "messages": MESSAGES}, 404, "'x' does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_what_is_wrong_in_openais_form(server, body, status, words):
    calls = len(server.provider.log)
    response, content = send(server, body)
    error = json.loads(content)["error"]
    assert response.status == status
    assert words in error["message"]
    assert "secret" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(server.provider.log) == calls


def test_elsewhere_there_is_nothing_and_a_body_has_a_size(server):
    assert send(server, {}, "/v1/embeddings")[0].status == 404
    assert send(server, b"", "/", "GET")[0].status == 404
    assert send(server, b" " * 10_000_001)[0].status == 413
    assert send(server, b"", headers={"Content-Length": "x"})[0].status == 411


def test_above_a_limit_comes_429_with_when_to_come_back():
    with ReplayServer(provider_of(requests_per_minute=1)) as server:
        ask(server)
        response, content = send(server, {"model": "m", "messages": MESSAGES})
        assert response.status == 429
        assert 50 <= int(response.headers["retry-after"]) <= 60
        assert json.loads(content)["error"]["code"] == "rate_limit_exceeded"
        assert server.provider.violations() == {"m": {"requests_per_minute": 1}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("kind", "status"), [("error", 500), ("hang", 504), ("malformed", 200), ("cut", 200)])
def test_each_fault_is_seen_by_the_client(kind, status, stream):
    with ReplayServer(provider_of(Faults(**{f"{kind}_rate": 1}, hang_s=0.05))) as server:
        body = {"model": "m", "messages": MESSAGES, "stream": stream}
        if kind == "cut":
            with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)) as cut:
                send(server, body)
            said = getattr(cut.value, "partial", b"")
            assert (b"content" in said) == stream
            assert b"[DONE]" not in said
        else:
            response, content = send(server, body)
            assert response.status == status
            if kind == "malformed":
                with pytest.raises(json.JSONDecodeError):
                    json.loads(content.split(b"\n\n")[0].removeprefix(b"data: "))
            else:
                assert json.loads(content)["error"]["type"] == "server_error"
        assert [entry.fault for entry in server.provider.log] == [kind]


def begin_call(server, **fields):
    """A connection whose call has begun."""
    body = json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    calls = len(server.provider.log)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    until(lambda: len(server.provider.log) > calls)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_call(stream):
    with ReplayServer(provider_of(speed=0.001, max_concurrency=1)) as server:
        begin_call(server, stream=stream).close()
        until(lambda: server.provider.log[0].status == 499)


def test_a_client_that_leaves_may_take_its_place_at_once():
    provider = provider_of(max_concurrency=1)
    reply = Reply.to(ChatRequest(model="m", messages=MESSAGES), provider)
    (first, first_client), (second, second_client) = socket.socketpair(), socket.socketpair()
    with first, second, second_client, ReplayServer(provider) as server, server._server.call(first, reply, None):
        first_client.close()
        with server._server.call(second, reply, None):  # though nobody has noticed yet that the first one left
            pass
    assert [entry.status for entry in provider.log] == [499, 200]
    assert provider.violations() == {}


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_client_that_takes_turns_is_never_above_a_limit_of_one_call():
    with ReplayServer(provider_of(max_concurrency=1)) as server:
        for turn in range(30):
            ask(server, headers={"X-Request-Id": str(turn)}) if turn % 2 else events(server)
        assert server.provider.violations() == {}
        assert server.provider.answered == {str(turn): 1 for turn in range(1, 30, 2)}


def test_a_port_that_is_taken_is_an_error(server):
    port = int(server.url.removesuffix("/v1").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"{port}: cannot listen"):
        ReplayServer(server.provider, port=port)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "minimum": 10}, 10),
        ({"type": "number", "maximum": 0.5}, 0.5),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [3, 4, 1]),
        ({"enum": ["red", "blue"]}, "blue"),
        ({"const": 7}, 7),
        ({"type": "string", "default": "x"}, "x"),
        ({"type": ["boolean", "null"]}, True),
        ({"type": "string", "format": "date"}, "2024-01-31"),
        ({"type": "string", "maxLength": 4}, "blue"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 3),
        ({"$defs": {"a": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/a"}}, [3]),
        ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]}]}, {"a": 1, "b": 2}),
        ({"properties": {"a": {}, "b": {"type": "null"}}, "required": ["b"]}, {"b": None}),
    ],
)  # fmt: skip
def test_a_schema_is_filled(schema, value):
    assert filled(schema, "blue 3 and 4") == value


def test_a_schema_without_end_is_filled_to_an_end():
    node = {"type": "object", "properties": {c: {"$ref": "#"} for c in "abcdefgh"}, "required": list("abcdefgh")}
    assert len(json.dumps(filled(node, "x"))) < 200_000
    assert filled({"$ref": "#"}, "x") == "x"
    assert len(filled({"type": "array", "minItems": 10**12}, "x")) <= 20


words = ["type", "properties", "required", "items", "anyOf", "allOf", "oneOf", "$ref", "enum", "default", "minimum",
         "minItems", "minLength", "format", "object", "array", "integer", "string", "#", "#/items"]  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(words) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(words), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(anything, st.text(max_size=20))
def test_whatever_the_schema_the_value_can_be_written_as_json(schema, text):
    json.dumps(filled(schema, text))
