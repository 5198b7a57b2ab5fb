"""The public port: bytes of HTTP/1.1 in, requests out; answers in, bytes out.

One connection handles its requests one after the other; pipelined ones wait in line.  The body of
a request is not awaited: it arrives in ``Body`` while the request is handled, and is only read from
the socket as fast as it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from random import Random
from time import time
from typing import cast

import httptools

from fabric_server import refusals
from fabric_server.deadlines import NEVER, Deadlines
from fabric_server.refusals import Refusal
from fabric_server.request import Body, Request

log = logging.getLogger("fabric.edge")

MOST_PIPELINED = 64
MOST_TARGET = 4096
BODY_GRACE_SECONDS = 10.0
"""A body may be slow for so long before its rate is looked at."""
LINGER_SECONDS = 5.0
"""How long the rest of a body is read and thrown away after an early answer."""
LINGER_BYTES = 1024 * 1024
READ_AHEAD = 256 * 1024
"""Body bytes taken from the socket before somebody has asked for them."""

_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
    (b"access-control-max-age", b"86400"),
)

Handler = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a user's connection may cost: sizes in bytes, times in seconds; see ``Config``."""

    body: int
    headers: int
    header_count: int
    header_seconds: float
    body_rate: float
    keepalive_seconds: float


class Connection(asyncio.Protocol):
    """One user's connection."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self.peer = ""
        self.paused = False
        self.deadline = NEVER
        self.draining = False
        self._edge = edge
        self._limits = edge.limits
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._flush_due = False
        self._reading = True
        self._closing = False
        self._head_bytes = 0
        """Bytes read since the last head was complete: bounds a header that never ends."""
        self._head_size = 0
        self._body_since = 0.0
        self._arriving: Request | None = None
        """The request whose head or body is coming in."""
        self._target = b""
        self._in_head = False
        self._count = 0
        self._broken: Refusal | None = None
        self._line: deque[Request] = deque()
        self._current: Request | None = None
        """The request that is being answered."""
        self._task: asyncio.Task[None] | None = None

    # ── asyncio calls these ───────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.deadline = self._loop.time() + self._limits.header_seconds
        self._edge.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._in_head or self._arriving is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(refusals.bad_request("Connection upgrades are not possible here."))
        except httptools.HttpParserError as error:
            if self._broken is None:
                self._broken = refusals.bad_request(f"This is not HTTP/1.1: {error}.")
            self._break(self._broken)
        else:
            if self._in_head and self._head_bytes > self._limits.headers:
                self._break(self._too_large())
        body = self._arriving and self._arriving.body
        if body and body.buffered > READ_AHEAD:
            self._pause_reading()

    def eof_received(self) -> bool:
        return False  # a user who has closed his side has hung up

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.closed(self)
        self._closing = True
        self._transport = None
        self._line.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._current is not None and self._current.on_drained is not None:
            self._current.on_drained()

    # ── the parser calls these ────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        now = self._loop.time()
        self._in_head = True
        self._target = b""
        self._count = 0
        self._head_size = 0
        self._arriving = Request(self, self._edge.new_id(), now)
        if not self._line and self._current is None:
            self.deadline = now + self._limits.header_seconds

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > MOST_TARGET:
            self._fail(refusals.headers_too_large("The request's URL is too long."))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > self._limits.header_count:
            self._fail(
                refusals.headers_too_large(
                    f"The request has more than {self._limits.header_count} headers."
                )
            )
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.headers:
            self._fail(self._too_large())
        assert self._arriving is not None
        self._arriving.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        request = self._arriving
        assert request is not None
        self._in_head = False
        self._head_bytes = 0
        parser, headers = self._parser, request.headers
        request.method = parser.get_method().decode()
        request.version = parser.get_http_version()
        target = self._target.decode("ascii", "replace")
        request.path, _, request.query = target.partition("?")
        request.keep_alive = parser.should_keep_alive() and not self.draining
        length = headers.get(b"content-length")
        if length is not None:
            request.body.length = int(length)
            if request.body.length > self._limits.body:
                self._fail(refusals.body_too_large(self._limits.body))
        request.expects = headers.get(b"expect", b"").lower() == b"100-continue"
        self._body_since = self._loop.time()
        self.deadline = self._body_since + BODY_GRACE_SECONDS
        self._enqueue(request)

    def on_body(self, data: bytes) -> None:
        request = self._arriving
        assert request is not None
        if request.finished:  # an early answer: what still comes is thrown away
            request.body.received += len(data)
            if request.body.received > LINGER_BYTES:
                self.close()
            return
        if request.body.received + len(data) > self._limits.body:
            self._fail(refusals.body_too_large(self._limits.body))
        request.body.add(data)

    def on_message_complete(self) -> None:
        request = self._arriving
        assert request is not None
        self._arriving = None
        self.deadline = NEVER
        request.body.end()
        if request.finished:
            self._next()

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    def want_body(self) -> None:
        """Somebody waits for the body: read on, and tell a client that asked first to send it."""
        request = self._current
        if request is not None and request.expects:
            request.expects = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume_reading()

    def _pause_reading(self) -> None:
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and self._transport is not None and not self._closing:
            self._reading = True
            self._body_since = self._loop.time()
            if self._arriving is not None:
                self.deadline = self._body_since + BODY_GRACE_SECONDS
                self._body_since -= self._arriving.body.received / self._limits.body_rate
            self._transport.resume_reading()

    def _too_large(self) -> Refusal:
        return refusals.headers_too_large(
            f"The request's headers are larger than {self._limits.headers} bytes."
        )

    def _fail(self, refusal: Refusal) -> None:
        """Inside a parser's callback: stop parsing, and answer with this."""
        self._broken = refusal
        raise refusal

    def _break(self, refusal: Refusal) -> None:
        """What comes in can't be read on: answer what was asked before, then this, then close."""
        self._pause_reading()
        self._in_head = False
        request, self._arriving = self._arriving, None
        if request is None:
            request = Request(self, self._edge.new_id(), self._loop.time())
        if request is self._current or request in self._line:
            if not request.finished:
                request.keep_alive = False
                request.body.end(refusal)
                return
            self.close()
            return
        request.keep_alive = False
        request.body.end(refusal)
        self._enqueue(request)

    # ── answering, one request after the other ────────────────────────────────────────────────

    def _enqueue(self, request: Request) -> None:
        if self._current is None:
            self._begin(request)
        elif len(self._line) < MOST_PIPELINED:
            self._line.append(request)
            self._pause_reading()
        else:
            self.close()

    def _begin(self, request: Request) -> None:
        self._current = request
        self._task = self._loop.create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        try:
            if request.body.error is not None:
                raise request.body.error
            if request.method == "OPTIONS":
                self._preflight(request)
            else:
                await self._edge.handler(request)
                if not request.finished:
                    raise RuntimeError("the handler left a request unanswered")
        except Refusal as refusal:
            if self._transport is None:
                return
            if request.started:
                request.abort()
            else:
                request.refuse(refusal)
        except asyncio.CancelledError:
            if self._transport is not None:  # not the user but the server is leaving
                self.abort()
            raise
        except Exception:
            log.exception("request failed", extra={"request": request.id, "path": request.path})
            if request.started:
                request.abort()
            else:
                request.refuse(
                    Refusal(500, "internal_error", "The server failed.", type="server_error")
                )

    def _preflight(self, request: Request) -> None:
        wanted = request.headers.get(b"access-control-request-headers", b"authorization")
        headers = [*_PREFLIGHT, (b"access-control-allow-headers", wanted)]
        request.start(204, headers if b"origin" in request.headers else [], 0)
        request.finish()

    def worth_lingering(self, body: Body) -> bool:
        """Whether reading the rest of an unwanted body is cheaper than a new connection."""
        request = self._current
        if request is None or request.expects or body.error is not None:
            return False
        return body.length is not None and body.length - body.received <= LINGER_BYTES

    def answered(self, request: Request) -> None:
        """``request`` has its whole answer: go on to the next one, or close."""
        request.on_drained = None
        if not request.keep_alive:
            self.close()
        elif request.body.complete:
            self._next()
        else:
            self.deadline = self._loop.time() + LINGER_SECONDS
            self._resume_reading()

    def _next(self) -> None:
        self._current = self._task = None
        if self._closing:
            return
        if self._line:
            self._begin(self._line.popleft())
            return
        self._resume_reading()
        if self._arriving is None:
            self.deadline = self._loop.time() + self._limits.keepalive_seconds
        elif self._in_head:
            self.deadline = self._loop.time() + self._limits.header_seconds

    # ── writing ───────────────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        """One write per turn of the event loop."""
        self._out.append(data)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._out and self._transport is not None:
            out = self._out
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def date(self) -> bytes:
        return self._edge.date()

    # ── leaving ───────────────────────────────────────────────────────────────────────────────

    def expire(self, now: float) -> None:
        """What was awaited of the user has not come in time."""
        request = self._arriving
        if self._in_head:
            self._break(refusals.too_slow("head"))
        elif request is None or request.finished:
            self.close()  # idle, or lingering over an unwanted body
        elif not self._reading:
            pass  # it is us who don't read; resuming sets a new deadline
        elif request.expects or self._fast_enough(request, now):
            self.deadline = now + 1.0
        else:
            self._break(refusals.too_slow("body"))

    def _fast_enough(self, request: Request, now: float) -> bool:
        return request.body.received >= (now - self._body_since) * self._limits.body_rate

    def drain(self) -> None:
        """Finish what was asked, then close."""
        self.draining = True
        if self._current is None and self._arriving is None:
            self.close()
        elif self._current is not None and not self._current.started:
            self._current.keep_alive = False

    def close(self) -> None:
        """After what was written has gone out."""
        self._closing = True
        self._flush()
        if self._transport is not None:
            self.deadline = NEVER
            self._transport.close()

    def abort(self) -> None:
        self._closing = True
        self._flush()
        if self._transport is not None:
            self._transport.abort()


class Edge:
    """Makes connections for the listener, and keeps them in sight for draining."""

    def __init__(self, handler: Handler, limits: Limits, deadlines: Deadlines, rng: Random) -> None:
        self.handler = handler
        self.limits = limits
        self._deadlines = deadlines
        self._rng = rng
        self._connections: set[Connection] = set()
        self._date_second = 0
        self._date_line = b""

    def __call__(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    @property
    def connections(self) -> int:
        return len(self._connections)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._deadlines.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._deadlines.discard(connection)

    def drain(self) -> None:
        """Every connection finishes what it was asked, and closes."""
        for connection in list(self._connections):
            connection.drain()

    def close(self) -> None:
        """Cut every connection; requests under way are cancelled."""
        for connection in list(self._connections):
            connection.abort()

    def new_id(self) -> str:
        """Begins with the time, so that the ledger's rows lie in the order in which they came."""
        return f"req_{int(time() * 1000):011x}{self._rng.getrandbits(52):013x}"

    def date(self) -> bytes:
        second = int(time())
        if second != self._date_second:
            self._date_second = second
            self._date_line = f"date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._date_line
