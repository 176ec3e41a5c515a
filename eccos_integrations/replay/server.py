"""A replayed provider behind the HTTP interface of OpenAI: chat completions on loopback."""

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import chain
from selectors import EVENT_READ, DefaultSelector
from socketserver import ThreadingTCPServer
from types import MappingProxyType, TracebackType
from typing import Any, Self

from eccos_integrations.errors import ConfigError
from eccos_integrations.replay.chat import ChatRequest, Reply, failure, models
from eccos_integrations.replay.faults import CutError, MalformedError, ReplayError
from eccos_integrations.replay.playing import Chunk, Playing
from eccos_integrations.replay.provider import ReplayProvider

MOST_BODY = 10_000_000  # bytes
GARBAGE = '{"id": "chatcmpl-'

logger = logging.getLogger(__name__)


class ReplayServer:
    """Serves `POST /v1/chat/completions` and `GET /v1/models`, with streams, tools, JSON schemas and usage.

    Recorded questions are answered as recorded, wherever in the messages they stand; anything else with a phrase. Tools
    are called with arguments made from their schemas, the numbers in them from the question. The header `x-request-id`
    is the request's id in the log. A client that leaves while it waits ends its call.

    Args:
        provider: Answers, with its limits and faults.
        host: Where to listen; anybody who can reach it can ask.
        port: 0 = any free one.

    Raises:
        ConfigError: The port is taken.

    Example:
        >>> from urllib.request import urlopen
        >>> from eccos_integrations import load_sample
        >>> with ReplayServer(ReplayProvider(load_sample())) as server:
        ...     len(json.load(urlopen(f"{server.url}/models"))["data"])
        10
    """

    def __init__(self, provider: ReplayProvider, host: str = "127.0.0.1", port: int = 0) -> None:
        self.provider = provider
        try:
            self._server = _Server((host, port), provider)
        except OSError as error:
            raise ConfigError(f"{host}:{port}: cannot listen there ({error.strerror}); give another port") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """What clients call `base_url`."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # a call may hang
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], provider: ReplayProvider) -> None:
        self.provider = provider
        self._lock = threading.Lock()
        self._callers = DefaultSelector()
        super().__init__(address, _Handler)

    @contextmanager
    def call(self, connection: socket.socket, reply: Reply, request_id: str | None) -> Iterator[Playing]:
        """A call, begun after those whose clients have left are ended: a client may take their places at once."""
        with self._lock:
            self._callers.register(connection, EVENT_READ)
        try:
            with self._lock:
                left = [key for key, _ in self._callers.select(0) if _has_left(key.fileobj)]
                for key in left:
                    if key.data is not None:
                        key.data.abandon()
                if any(key.fileobj is connection for key in left):
                    raise ConnectionAbortedError
                playing = self.provider.begin(reply.answer, reply.prompt, request_id)
                self._callers.modify(connection, EVENT_READ, playing)
            with playing:
                yield playing
        finally:
            with self._lock:
                self._callers.unregister(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # those mean that the client has gone
            logger.warning("replay: a request failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:  # the name is of the standard library
        if self.path.rstrip("/") == "/v1/models":
            self._send(200, json.dumps(models(self.server.provider)))
        else:
            self._send_error(ReplayError("There is nothing here; see /v1/models and /v1/chat/completions.", 404))

    def do_POST(self) -> None:
        try:
            self._answer()
        except ReplayError as error:
            self._send_error(error)
        except CutError:
            self.close_connection = True

    def _answer(self) -> None:
        body = self._body()
        if self.path.rstrip("/") != "/v1/chat/completions":
            raise ReplayError("There is nothing here; POST to /v1/chat/completions.", 404)
        request = ChatRequest.read(body)
        reply = Reply.to(request, self.server.provider)
        usage = bool(request.stream_options and request.stream_options.include_usage)
        try:
            with self.server.call(self.connection, reply, self.headers.get("x-request-id")) as playing:
                if request.stream:
                    self._stream(map(json.dumps, reply.events(self._chunks(playing), include_usage=usage)))
                    return
                self._wait(playing.wait_s)
                playing.answer()
            self._send(
                200, json.dumps(reply.completion())
            )  # after the call has ended, as the client will take it to have
        except MalformedError:
            if request.stream:
                self._stream(iter([GARBAGE]))
            else:
                self._send(200, GARBAGE)

    def _body(self) -> bytes:
        try:
            length = int(self.headers.get("content-length", ""))
        except ValueError:
            raise ReplayError("Give a Content-Length.", 411) from None
        if not 0 <= length <= MOST_BODY:
            left = min(length, 10 * MOST_BODY)  # a client reads the answer only when it has sent all
            while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)
            raise ReplayError(f"The body is longer than {MOST_BODY} bytes.", 413)
        return self.rfile.read(length)

    def _chunks(self, playing: Playing) -> Iterator[Chunk]:
        for wait_s, chunk in playing.chunks():
            self._wait(wait_s)
            if chunk:
                yield chunk

    def _wait(self, seconds: float) -> None:
        """Wait, but no longer than the client does."""
        if not seconds:
            return
        self.connection.settimeout(seconds)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
            time.sleep(seconds)  # it has sent more than it was asked for
        except TimeoutError:
            pass
        finally:
            self.connection.settimeout(self.timeout)

    def _stream(self, events: Iterator[str]) -> None:
        """Server-sent events. The status waits for the first, which may be an error; an end without [DONE] is a cut."""
        first = next(events)
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for event in chain([first], events, ["[DONE]"]):
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def _send_error(self, error: ReplayError) -> None:
        self._send(error.status_code, json.dumps(failure(error)), error.headers)

    def _send(self, status: int, content: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        body = content.encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()


def _has_left(connection: Any) -> bool:
    """Whether the client has closed a connection that has something to read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
