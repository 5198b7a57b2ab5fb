"""One request of a user as the handlers see it, and the means to answer it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from fabric_server.dialects.error_formats import Dialect, dialect_of, error_event
from fabric_server.dialects.errors import ApiError

if TYPE_CHECKING:
    from fabric_server.auth.keys import Key
    from fabric_server.dialects.endpoints import Endpoint

Headers = list[tuple[bytes, bytes]]

_STATUS_LINE = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_NO_BODY = frozenset({204, 304})
_JSON = (b"content-type", b"application/json")
_EVENTS: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_MAX_ERROR = 64 * 1024
"""Bytes of an error that are told within a stream."""
_CORS = (
    b"access-control-allow-origin: *\r\n"
    b"access-control-expose-headers: x-request-id, x-client-request-id, request-id, x-fabric-route,"
    b" retry-after, retry-after-ms, x-should-retry, openai-processing-ms, openai-version,"
    b" x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens\r\n"
)
_OPENAI_HEADERS = b"openai-version: 2020-10-01\r\nopenai-processing-ms: %d\r\n"
_SANE_ID = re.compile(rb"[!-~]{1,128}")


class Connection(Protocol):
    """What a request needs of the connection that it came on."""

    peer: str
    paused: bool

    def want_body(self) -> None: ...
    def worth_lingering(self, body: Body) -> bool: ...
    def send(self, data: bytes) -> None: ...
    def date(self) -> bytes: ...
    def answered(self, request: Request) -> None: ...
    def cut(self) -> None: ...


class Body:
    """A request's body while it arrives."""

    __slots__ = ("_connection", "_data", "_waiter", "complete", "error", "kept", "length",
                 "received", "unwanted")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._data = bytearray()  # not a list of chunks: a chunk may be one byte
        self._waiter: asyncio.Future[None] | None = None
        self.length: int | None = None
        """Bytes announced; None for a chunked body."""
        self.received = 0
        self.complete = False
        self.unwanted = False
        """What still comes is thrown away."""
        self.error: ApiError | None = None
        """Why the rest will not come."""
        self.kept = b""
        """What was taken and may be needed once more, until an engine has begun to answer."""

    @property
    def buffered(self) -> int:
        return len(self._data)

    def take(self) -> bytes:
        """What has arrived since the last call."""
        data = bytes(self._data)
        self._data.clear()
        return data

    async def more(self) -> None:
        """Wait until there is something to take, or the body is complete.

        Raises Refusal when the body is too large or too slow.
        """
        while not self._data and not self.complete:
            if self.error is not None:
                raise self.error
            self._waiter = asyncio.get_running_loop().create_future()
            self._connection.want_body()
            await self._waiter

    def put_back(self, data: bytes) -> None:
        """To be taken again; ``data`` may be something else than what was taken."""
        self._data[:0] = data

    def add(self, data: bytes) -> None:
        self.received += len(data)
        if not self.unwanted:
            self._data += data
            self._wake()

    def end(self, error: ApiError | None = None) -> None:
        self.error = error
        self.complete = error is None
        self._wake()

    def drop(self) -> None:
        """Nobody will take it any more."""
        self.unwanted = True
        self._data.clear()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Request:
    """Answer it with ``respond`` or ``refuse``, or with ``start``, ``write`` … and ``finish``.

    A stream may be kept alive by ``comment`` before.  The user then has the head of a stream, and
    an answer that is an error is told as an event of it.
    """

    __slots__ = ("_chunked", "_connection", "_error", "_silent", "arrived", "body", "bytes_out",
                 "commented", "endpoint", "expects", "finished", "headers", "id", "keep_alive",
                 "key", "marks", "method", "on_drained", "path", "query", "started", "status",
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
        """Names in lower case; of repeated ones the first."""
        self.body = Body(connection)
        self.key: Key | None = None
        """Whose it is, where that is known beforehand: of requests that the server itself makes for
        a user.  Nothing that comes from a network sets it."""
        self.endpoint: Endpoint | None = None
        """What is asked for, when that is an engine's to answer."""
        self.marks: Headers = []
        """Headers of its answer, whatever that will be."""
        self.keep_alive = True
        self.expects = False
        """``Expect: 100-continue``, not answered yet."""
        self.commented = False
        """The user has a head, 200, and comments."""
        self.started = False
        """The answer has begun; comments are none."""
        self.finished = False
        self.status = 0
        """What the user was told, or will be."""
        self.bytes_out = 0
        self.on_drained: Callable[[], None] | None = None
        """Called when ``paused`` has become False again."""
        self._chunked = False
        self._silent = False
        self._error: bytearray | None = None
        """An error that is to become an event."""

    @property
    def peer(self) -> str:
        return self._connection.peer

    @property
    def dialect(self) -> Dialect:
        """Which its errors are told in."""
        if self.endpoint is not None:
            return self.endpoint.dialect
        return dialect_of(self.path, self.headers)

    @property
    def paused(self) -> bool:
        """The user reads more slowly than the answer comes: stop writing until ``on_drained``."""
        return self._connection.paused

    def respond(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A whole answer at once."""
        self.start(status, [_JSON, *(headers or [])], len(body))
        self.write(body)
        self.finish()

    def refuse(self, refusal: ApiError) -> None:
        headers: Headers = [*refusal.headers]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after))))
            headers.append(
                (b"retry-after-ms", b"%d" % max(1, math.ceil(refusal.retry_after * 1000)))
            )
        if (again := refusal.again) is not None:
            headers.append((b"x-should-retry", b"true" if again else b"false"))
        if refusal.allow is not None:
            headers.append((b"allow", refusal.allow.encode()))
        if refusal.close:
            self.keep_alive = False
        self.respond(refusal.status, refusal.body(self.dialect, self.id), headers)

    def comment(self, text: str) -> None:
        """Say something that is no part of the answer, which must not have begun."""
        assert not self.started
        if not self.commented:
            self.commented = True
            self._send_head(200, _EVENTS, None)
        self.write(b": " + text.encode() + b"\n\n")

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """``length`` is the body's; None sends it as it comes, to an end it marks itself.

        After comments, what is below 300 has to be a stream of events.
        """
        assert not self.started
        self.started = True
        if not self.commented:
            self._send_head(status, headers, length)
        elif status >= 300:
            self._silent = True
            self._error = bytearray()

    def interrupt(self) -> None:
        """The answer broke off between two of its events and is to go on: until ``start`` is called
        once more, this is a stream that waits, as after comments."""
        assert self.started
        self.started, self.commented = False, True

    def _send_head(self, status: int, headers: Headers, length: int | None) -> None:
        self.status = status
        no_body = status in _NO_BODY
        self._silent = no_body or self.method == "HEAD"
        connection = self._connection
        if not self.body.complete and not connection.worth_lingering(self.body):
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
        if b"origin" in self.headers:
            parts.append(_CORS)
        if no_body:
            pass  # RFC 9110, 8.6: not even a length
        elif length is not None:
            parts.append(b"content-length: %d\r\n" % length)
        elif self.version == "1.0":
            self.keep_alive = False
        else:
            self._chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self.version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        connection.send(b"".join(parts))

    def _add_own_headers(self, parts: list[bytes]) -> None:
        """What clients of its dialect look for, with every answer."""
        endpoint = self.endpoint
        dialect = endpoint.dialect if endpoint is not None else self.dialect
        if dialect is Dialect.OPENAI or dialect is Dialect.RESPONSES:
            waited = asyncio.get_running_loop().time() - self.arrived
            parts.append(_OPENAI_HEADERS % int(waited * 1000))
        elif dialect is Dialect.ANTHROPIC:
            parts.append(b"request-id: %b\r\n" % self.id.encode())
        given = self.headers
        theirs = given.get(b"x-client-request-id") or given.get(b"x-request-id")
        if theirs is not None and _SANE_ID.fullmatch(theirs):
            parts.append(b"x-client-request-id: %b\r\n" % theirs)
        for name, value in self.marks:
            parts += (name, b": ", value, b"\r\n")

    def write(self, data: bytes) -> None:
        if self._silent or self.finished or not data:
            if self._error is not None:
                self._error += data[: _MAX_ERROR - len(self._error)]
            return
        self.bytes_out += len(data)
        if self._chunked:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._connection.send(data)

    def finish(self) -> None:
        """The answer is complete."""
        if self.finished:
            return
        if self._error is not None:
            error, self._error, self._silent = bytes(self._error), None, False
            self.write(self._as_event(error))
        if self._chunked and not self._silent:
            self._connection.send(b"0\r\n\r\n")
        self.finished = True
        self._connection.answered(self)

    def abort(self) -> None:
        """Cut the connection, so that the user can tell that the answer is not complete."""
        self.finished = True
        self.on_drained = None
        self._connection.cut()

    def _as_event(self, error: bytes) -> bytes:
        """An error's body as a part of the stream that was begun."""
        event = error_event(self.dialect, error)
        if event is None:
            said = "The engine answered with an error that can't be shown here."
            unknown = ApiError(502, "upstream_error", said, type="server_error")
            event = unknown.event(self.dialect, self.id)
        return event
