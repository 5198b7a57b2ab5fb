"""The public port: one connection of a user, which asks and is answered in turn.

A connection handles its requests one after the other; pipelined ones wait in line.  The body of a
request is not awaited: it arrives in ``Body`` while the request is handled, and is only read from
the socket as fast as it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from random import Random
from time import time
from typing import cast

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.parser import Limits, RequestParser
from fabric_server.edge.request import Body, Request
from fabric_server.net.deadlines import NEVER, Deadlines

__all__ = ["Connection", "Edge", "Limits"]

log = logging.getLogger("fabric.edge")

MAX_PIPELINED = 64
BODY_GRACE_SECONDS = 10.0
"""A body may be slow for so long before its rate is looked at."""
READ_AHEAD = 256 * 1024
"""Body bytes taken from the socket before somebody has asked for them."""
LINGER_BYTES = 1024 * 1024
"""So much of an unwanted body is read to its end, in order to keep the connection."""
LINGER_SECONDS = 5.0
"""How long the next bytes of an unwanted body are awaited: cut off at once, a client that is still
sending could not read its answer."""
MAX_LINGER_SECONDS = 30.0
CLOSING_SECONDS = 30.0
"""How long a user may take to read the last bytes."""

_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
    (b"access-control-max-age", b"86400"),
)
_USUAL_HEADERS = (
    b"authorization, content-type, accept, openai-beta, openai-organization, openai-project,"
    b" x-api-key, anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access,"
    b" x-client-request-id, x-request-id, x-fabric-priority, x-fabric-timeout,"
    b" x-fabric-failover, x-fabric-region, x-fabric-reasoning,"
    b" x-stainless-lang, x-stainless-package-version, x-stainless-os, x-stainless-arch,"
    b" x-stainless-runtime, x-stainless-runtime-version, x-stainless-retry-count,"
    b" x-stainless-timeout, x-stainless-helper-method"
)
"""Allowed to who does not say which; who says is allowed what it says, for no header is trusted."""

Handler = Callable[[Request], Awaitable[None]]


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
        self._intake = RequestParser(self, edge.limits)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._flush_due = False
        self._reading = True
        self._closing = False
        self._linger_until = 0.0
        self._body_since = 0.0
        self._line: deque[Request] = deque()
        self._current: Request | None = None
        """The request that is being answered."""
        self._task: asyncio.Task[None] | None = None

    # ── asyncio calls these ───────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        self.draining = self._edge.draining
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.deadline = self._loop.time() + self._limits.header_seconds
        self._edge.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self.deadline = min(self._loop.time() + LINGER_SECONDS, self._linger_until)
            return
        intake = self._intake
        if intake.refusal is not None:
            return  # was on its way when reading was paused
        intake.feed(data)
        if intake.refusal is not None:
            self._break(intake.refusal)
        elif intake.request is not None and intake.request.body.buffered > READ_AHEAD:
            self._pause_reading()

    def eof_received(self) -> bool:
        return False  # a user who has closed his side has hung up

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.closed(self)
        self._closing = True
        self._transport = None
        self._out.clear()
        self._line.clear()
        self._intake.close()
        if self._task is not None:
            self._task.cancel()
            self._task = self._current = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._current is None:
            self._next()
        elif self._current.on_drained is not None:
            self._current.on_drained()

    # ── requests come in ──────────────────────────────────────────────────────────────────────

    def new_request(self) -> Request:
        return Request(self, self._edge.new_id(), self._loop.time())

    def on_head_begun(self, request: Request) -> None:
        if self._current is None and not self._line:
            self.deadline = request.arrived + self._limits.header_seconds

    def on_request(self, request: Request) -> ApiError | None:
        if len(self._line) >= MAX_PIPELINED:
            return errors.bad_request("Too many requests at once on one connection.")
        self._body_since = self._loop.time()
        self._enqueue(request)
        if self._current is not None:
            self.deadline = self._body_since + BODY_GRACE_SECONDS
        return None

    def on_body_complete(self, request: Request) -> None:
        if request.finished:
            self._next()
        elif self._current is not None:
            self.deadline = NEVER

    def _break(self, refusal: ApiError) -> None:
        """What comes in can't be read on: answer what was asked before, then this, then close."""
        self._pause_reading()
        intake = self._intake
        request = intake.request or self.new_request()
        request.keep_alive = False
        if request.finished:
            self.close()
            return
        request.body.end(refusal)
        if intake.request is None or intake.in_head:
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if self._current is None and not self._line and not self.paused:
            self._begin(request)
        else:
            self._line.append(request)
            self._pause_reading()

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
        if self._reading or self._transport is None:
            return
        self._reading = True
        request = self._intake.request
        if request is not None and not self._intake.in_head:
            now = self._loop.time()
            self.deadline = now + BODY_GRACE_SECONDS
            self._body_since = now - request.body.received / self._limits.body_rate
        self._transport.resume_reading()

    # ── and are answered, one after the other ─────────────────────────────────────────────────

    def _begin(self, request: Request) -> None:
        self._current = request
        if self.draining and not self._line:
            request.keep_alive = False
        self._task = self._loop.create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        try:
            if request.body.error is not None:
                self._edge.refused[request.body.error.code] += 1
                raise request.body.error
            if request.method == "OPTIONS":
                self._preflight(request)
            else:
                await self._edge.handler(request)
                if not request.finished:
                    raise RuntimeError("the handler left a request unanswered")
        except ApiError as refusal:
            if not request.started:
                request.refuse(refusal)
            elif not request.finished:
                request.abort()
        except asyncio.CancelledError:
            if self._transport is not None:  # not the user but the server is leaving
                self.abort()
            raise
        except Exception:
            log.exception("request failed", extra={"request": request.id, "path": request.path})
            if not request.started:
                request.refuse(
                    ApiError(500, "internal_error", "The server failed.", type="server_error")
                )
            elif not request.finished:
                request.abort()

    def _preflight(self, request: Request) -> None:
        wanted = request.headers.get(b"access-control-request-headers", _USUAL_HEADERS)
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
        self._let_go()
        if not request.body.complete:
            request.body.drop()
        if not request.keep_alive:
            self.close()
        elif request.body.complete:
            self._next()
        else:
            self._resume_reading()
            self.deadline = self._loop.time() + LINGER_SECONDS

    def cut(self) -> None:
        """The answer to the current request has failed half-way, and the user must see it."""
        self._let_go()
        self.abort()

    def _let_go(self) -> None:
        # Its task may have some bookkeeping left, which the connection's end must not break off.
        self._current = self._task = None

    def _next(self) -> None:
        if self._closing:
            return
        if self.paused:  # a user who does not read is not answered on
            self.deadline = self._loop.time() + self._limits.keepalive_seconds
            return
        if self._line:
            self._begin(self._line.popleft())
        if not self._line:
            self._resume_reading()
        if self._current is None:
            self._idle()

    def _idle(self) -> None:
        if self._intake.request is None:
            seconds = self._limits.keepalive_seconds
            if self.draining:
                # A user may be asking at this very moment, and closing would lose what he asks.
                seconds = min(seconds, self._edge.linger)
                if not seconds:
                    self.close()
                    return
            self.deadline = self._loop.time() + seconds
        elif self._intake.in_head:
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
        request = self._intake.request
        if self._closing:
            self.abort()
        elif self.paused and self._current is None:
            self.close()
        elif self._intake.in_head:
            self._break(errors.too_slow("head"))
        elif request is None or request.finished:
            self.close()  # idle, or sending on what nobody wants
        elif not self._reading:
            pass  # it is us who don't read; resuming sets a new deadline
        elif request.expects or self._fast_enough(request, now):
            self.deadline = now + 1.0
        else:
            self._break(errors.too_slow("body"))

    def _fast_enough(self, request: Request, now: float) -> bool:
        return request.body.received >= (now - self._body_since) * self._limits.body_rate

    def drain(self) -> None:
        """Finish what was asked, then close."""
        self.draining = True
        if self._current is not None:
            if not self._current.started and not self._line:
                self._current.keep_alive = False
        elif not self._line:
            self._idle()

    def close(self) -> None:
        """After what was written has gone out; what is still coming is thrown away meanwhile."""
        if self._closing:
            return
        self._closing = True
        self._flush()
        if self._transport is None:
            return
        now = self._loop.time()
        if self._intake.request is None and self._intake.refusal is None:
            self.deadline = now + CLOSING_SECONDS
            self._transport.close()
            return
        self._linger_until = now + MAX_LINGER_SECONDS
        self.deadline = now + LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def abort(self) -> None:
        self._closing = True
        self._flush()
        if self._transport is not None:
            self._transport.abort()


class Edge:
    """Makes connections for the listener, and keeps them in sight for draining."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        deadlines: Deadlines,
        rng: Random,
        refused: Counter[str] | None = None,
    ) -> None:
        """``refused`` counts requests that could not be read, by the refusal's code."""
        self.handler = handler
        self.limits = limits
        self._deadlines = deadlines
        self._rng = rng
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        self.linger = 0.0
        """Seconds that a connection may be idle before it is closed, while draining."""
        self.refused: Counter[str] = Counter() if refused is None else refused
        self._date_second = 0
        self._date_line = b""

    def __call__(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    @property
    def connections(self) -> int:
        return len(self._connections)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._empty.clear()
        self._deadlines.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
        self._deadlines.discard(connection)

    def drain(self, linger: float = 0.0) -> None:
        """Every connection finishes what it was asked, and closes; one that is idle answers what
        comes within ``linger`` seconds, and says that it closes then."""
        self.draining, self.linger = True, linger
        for connection in list(self._connections):
            connection.drain()

    async def empty(self) -> None:
        """Returns when no connection is left."""
        await self._empty.wait()

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
