"""One HTTP request as the handlers see it, and the means to answer it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Protocol

from fabric_server.auth.keys import Key
from fabric_server.dialects.endpoints import Endpoint
from fabric_server.dialects.error_formats import Dialect, dialect_of
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.body import Body
from fabric_server.edge.known_head import KnownHead, find_head
from fabric_server.edge.response import BufferedError, Response
from fabric_server.edge.response import Connection as ResponseConnection
from fabric_server.net.memory_budget import MemoryBudget

__all__ = ["Body", "Connection", "Headers", "Request", "Response"]

Headers = list[tuple[bytes, bytes]]

_STATUS_LINE = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_NO_BODY = frozenset({204, 304})
_JSON = (b"content-type", b"application/json")
_STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_EVENTS: Headers = [(b"content-type", b"text/event-stream"), *_STREAM_HEADERS]
_LINES: Headers = [(b"content-type", b"application/x-ndjson"), *_STREAM_HEADERS]
_OPENAI_HEADERS = b"openai-version: 2020-10-01\r\nopenai-processing-ms: %d\r\n"
_VALID_CLIENT_ID = re.compile(rb"[!-~]{1,128}")


class Connection(Protocol):
    """Methods that a request, its body and its response need of the connection they came on."""

    @property
    def paused(self) -> bool: ...
    @property
    def memory(self) -> MemoryBudget: ...
    def client_address(self, headers: Mapping[bytes, bytes]) -> str: ...
    def recognise(self) -> None: ...
    def suspect(self) -> None: ...
    def cors(self, origin: bytes) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def time(self) -> float: ...
    def date(self) -> bytes: ...
    def want_body(self) -> None: ...
    def can_discard_rest(self, body: Body) -> bool: ...
    def response_finished(self) -> None: ...
    def response_aborted(self) -> None: ...


class Request:
    """One request; answer it with ``respond`` or ``respond_error``, or in steps.

    The steps are ``start_response``, then ``response.write`` … and ``response.finish``.  A stream
    may be kept alive by ``send_ahead`` before.  The client then has the head of a stream, and an
    answer that is an error becomes an event of it.
    """

    __slots__ = ("_connection", "arrived", "body", "endpoint", "expects", "head", "headers",
                 "id", "keep_alive", "key", "method", "path", "query", "response",
                 "version")  # fmt: skip

    def __init__(self, connection: Connection, request_id: str, arrived: float) -> None:
        self._connection = connection
        self.id = request_id
        self.arrived = arrived
        """Event-loop seconds."""
        self.method = ""
        self.path = ""
        self.query = ""
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        """Names in lower case; of repeated headers the first, and all of ``x-forwarded-for``.

        Complete once a handler has the request; other requests may share them then."""
        self.head: KnownHead | None = None
        """The head that it shares with other requests of its connection, if there may be some."""
        self.body = Body(connection)
        self.response = Response(connection)
        self.key: Key | None = None
        """The key, where it is known beforehand: in requests that the server makes for a user.
        Nothing that comes from a network sets it."""
        self.endpoint: Endpoint | None = None
        """The endpoint, when an engine is to answer."""
        self.keep_alive = True
        self.expects = False
        """``Expect: 100-continue`` was sent and is not answered yet."""

    def use_head(self, head: KnownHead) -> None:
        """Be a request with this head."""
        self.head = head
        self.method, self.path, self.query = head.method, head.path, head.query
        self.version, self.headers, self.keep_alive = head.version, head.headers, head.keep_alive

    def learn_head(self, data: bytes) -> KnownHead | None:
        """Return its head, with which ``data`` begins, if another request may share it."""
        head = self.head = find_head(data)
        if head is not None:
            head.method, head.path, head.query = self.method, self.path, self.query
            head.version, head.headers = self.version, self.headers
            head.keep_alive = self.keep_alive
        return head

    @property
    def dialect(self) -> Dialect:
        """The dialect of its errors."""
        if self.endpoint is not None:
            return self.endpoint.dialect
        return dialect_of(self.path, self.headers)

    @property
    def client_address(self) -> str:
        """The client's IP address, behind trusted proxies; empty for the server's own requests.

        An IPv4 address is never written as IPv6, and there is no zone: texts can be compared.
        """
        return self._connection.client_address(self.headers)

    def recognise(self) -> None:
        """Have its connection kept when strangers' are shed; call it once the key is valid."""
        self._connection.recognise()

    def admit(self) -> None:
        """Raise ``ApiError`` 503 while the server has no memory for one more request."""
        self._connection.memory.admit()

    def suspect(self) -> None:
        """Report its connection as unwelcome, if nobody known comes from there."""
        self._connection.suspect()

    def answer_with(self, make: Callable[[ResponseConnection], Response]) -> None:
        """Use another kind of response; call it before anything is written."""
        headers = self.response.headers
        self.response = make(self._connection)
        self.response.headers = headers

    async def pause(self, seconds: float) -> None:
        """Wait so long before the answer; cancelled when the client hangs up."""
        await asyncio.sleep(seconds)

    # ── answering ─────────────────────────────────────────────────────────────────────────────

    def respond(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """Send a whole answer at once."""
        response = self.start_response(status, [_JSON, *(headers or [])], len(body))
        response.write(body)
        response.finish()

    def respond_error(self, error: ApiError) -> None:
        headers: Headers = [*error.headers]
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
            headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after * 1000))))
        if (should_retry := error.should_retry) is not None:
            headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
        if error.allow is not None:
            headers.append((b"allow", error.allow.encode()))
        if error.close:
            self.keep_alive = False
        self.respond(error.status, error.body(self.dialect, self.id), headers)

    def send_ahead(self, data: bytes) -> None:
        """Send a comment, or what stands for one; the answer itself must not have begun."""
        response = self.response
        assert not response.started
        if not response.comments_sent:
            response.comments_sent = True
            headers = _LINES if self.dialect is Dialect.OLLAMA else _EVENTS
            self._send_head(200, headers, None)
        response.write(data)

    def start_response(self, status: int, headers: Headers, length: int | None) -> Response:
        """Send the head.  ``length`` is the body's; None sends a body that marks its own end.

        After comments, an answer with a status below 300 has to be a stream.
        """
        response = self.response
        assert not response.started
        response.started = True
        if not response.comments_sent:
            self._send_head(status, headers, length)
        elif status >= 300:
            response.buffer_error(BufferedError(self.dialect, self.id))
        return response

    def _send_head(self, status: int, headers: Headers, length: int | None) -> None:
        no_body = status in _NO_BODY
        chunked = False
        connection = self._connection
        if not self.body.complete and not connection.can_discard_rest(self.body):
            self.keep_alive = False
        parts = [
            _STATUS_LINE.get(status) or f"HTTP/1.1 {status} -\r\n".encode(),
            connection.date(),
            b"x-request-id: ",
            self.id.encode(),
            b"\r\n",
        ]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        self._add_own_headers(parts)
        if (origin := self.headers.get(b"origin")) is not None:
            parts.append(connection.cors(origin))
        if no_body:
            pass  # RFC 9110, 8.6: not even a length
        elif length is not None:
            parts.append(b"content-length: %d\r\n" % length)
        elif self.version == "1.0":
            self.keep_alive = False
        else:
            chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self.version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self.response.send_head(
            status, b"".join(parts), chunked=chunked, no_body=no_body or self.method == "HEAD"
        )

    def _add_own_headers(self, parts: list[bytes]) -> None:
        """Add the headers that clients of its dialect look for in every answer."""
        endpoint = self.endpoint
        dialect = endpoint.dialect if endpoint is not None else self.dialect
        if dialect is Dialect.OPENAI or dialect is Dialect.RESPONSES:
            waited = self._connection.time() - self.arrived
            parts.append(_OPENAI_HEADERS % int(waited * 1000))
        elif dialect is Dialect.ANTHROPIC:
            parts.append(b"request-id: %b\r\n" % self.id.encode())
        given = self.headers
        client_id = given.get(b"x-client-request-id") or given.get(b"x-request-id")
        if client_id is not None and _VALID_CLIENT_ID.fullmatch(client_id):
            parts.append(b"x-client-request-id: %b\r\n" % client_id)
        for name, value in self.response.headers:
            parts += (name, b": ", value, b"\r\n")
