"""One client's connection to the public port, whose requests are answered in turn.

A connection handles its requests one after the other; pipelined ones are queued.  The body of a
request is not awaited: it arrives in ``Body`` while the request is handled, and is only read from
the socket as fast as it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, cast

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.cors import Cors
from fabric_server.edge.parser import Limits, RequestParser
from fabric_server.edge.request import Body, Request
from fabric_server.edge.slices import UnwantedBytes
from fabric_server.edge.write_buffer import WriteBuffer
from fabric_server.net.addresses import NO_ADDRESS, peer_of
from fabric_server.net.connection_budget import Peer
from fabric_server.net.deadlines import NEVER
from fabric_server.net.memory_budget import NOBODY, UNCOUNTED, MemoryBudget

__all__ = ["Connection", "Handler", "Limits", "Owner"]

log = logging.getLogger("fabric.edge")

MAX_PIPELINED = 64
BODY_GRACE_SECONDS = 10.0
"""How long a body may be slow before its rate is checked."""
LINGER_BYTES = 1024 * 1024
"""Up to this much of an unwanted body is read to its end, in order to keep the connection."""
LINGER_SECONDS = 5.0
"""How long the next bytes of an unwanted body are awaited: cut off at once, a client that is still
sending could not read its answer."""
MAX_LINGER_SECONDS = 30.0
CLOSING_SECONDS = 30.0
"""How long a client may take to read the last bytes."""

Handler = Callable[[Request], Awaitable[None]]


class Owner(Protocol):
    """Parts that the connections of one port share; see ``edge.Edge``."""

    handler: Handler
    limits: Limits
    cors: Cors
    memory: MemoryBudget
    unwanted: UnwantedBytes
    draining: bool
    linger: float
    refused: Counter[str]

    def opened(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def new_id(self) -> str: ...
    def date(self) -> bytes: ...


class Connection:
    """The connection of one client, an ``AsyncioProtocol``."""

    def __init__(self, edge: Owner, loop: asyncio.AbstractEventLoop, peer: Peer | None) -> None:
        self.paused = False
        self.deadline = NEVER
        self._edge = edge
        self._loop = loop
        self._parser = RequestParser(self, edge.limits)
        self._transport: asyncio.Transport | None = None
        self._output = WriteBuffer(loop, edge.memory.open(NOBODY))
        self.send = self._output.send
        self._reading = True
        self._closing = False
        self._peer = peer
        self._since = 0.0
        """When the body began; later, when its rest began to be thrown away."""
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        """The request that is being answered."""
        self._task: asyncio.Task[None] | None = None

    # ── asyncio calls these ───────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        self._output.open(self._transport)
        if self._peer is None:
            self._peer = Peer(peer_of(transport) or NO_ADDRESS)
        self.deadline = self._loop.time() + self._parser.limits.header_seconds
        self._edge.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._throw_away(len(data))
            return
        parser = self._parser
        if parser.error is not None:
            return  # was on its way when reading was paused
        error = parser.feed(data)
        if error is not None:
            self._on_unreadable(error)
        elif parser.request is not None and (
            parser.request.body.buffered > parser.request.body.read_ahead
        ):
            self._pause_reading()
            self._count(parser.request)

    def eof_received(self) -> bool:
        return False  # a client that has closed its side has hung up

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.closed(self)
        if self._peer is not None:
            self._peer.release()
        self._closing = True
        self._transport = None
        self._output.close()
        for request in self._queue:
            request.body.drop()
        self._queue.clear()
        self._parser.close()
        if self._current is not None:
            self._current.body.release()
        if self._task is not None:
            self._task.cancel()
            self._task = self._current = None

    def pause_writing(self) -> None:
        self.paused = True
        if self._current is not None:
            self._output.reader = self._current.body.key
        if not self._output.count_unread():
            self._loop.call_soon(self.abort)

    def resume_writing(self) -> None:
        self.paused = False
        self._output.unread.release()
        if self._current is None:
            self._serve_next()
        elif self._current.response.on_drained is not None:
            self._current.response.on_drained()

    # ── requests come in ──────────────────────────────────────────────────────────────────────

    def new_request(self) -> Request:
        return Request(self, self._edge.new_id(), self._loop.time())

    def on_head_begun(self, request: Request) -> None:
        if self._current is None and not self._queue:
            self.deadline = request.arrived + self._parser.limits.header_seconds

    def on_request(self, request: Request) -> ApiError | None:
        if len(self._queue) >= MAX_PIPELINED:
            return errors.bad_request("Too many pipelined requests on one connection.")
        self._since = self._loop.time()
        self._enqueue(request)
        if self._current is not None:
            self.deadline = self._since + BODY_GRACE_SECONDS
        return None

    def on_whole_request(self, request: Request) -> ApiError | None:
        if len(self._queue) >= MAX_PIPELINED:
            return errors.bad_request("Too many pipelined requests on one connection.")
        self.deadline = NEVER
        self._enqueue(request)
        if request.body.buffered > UNCOUNTED and request is not self._current:
            self._count(request)
        return None

    def on_body_complete(self, request: Request) -> None:
        if request.body.buffered > UNCOUNTED and request is not self._current:
            self._count(request)
        if request.response.finished:
            self._serve_next()
        elif self._current is not None:
            self.deadline = NEVER

    def _count(self, request: Request) -> None:
        """Count what has come of a body that nobody has asked for; refuse it if that is too much.

        A request that is being answered and whose key is not known yet is about to do so itself.
        """
        try:
            if request is not self._current or request.body.key:
                request.body.hold(0)
        except ApiError as error:
            self._on_unreadable(errors.closing(error))

    def _on_unreadable(self, error: ApiError) -> None:
        """Answer the requests that came before, then ``error``, then close."""
        self._pause_reading()
        parser = self._parser
        request = parser.request or self.new_request()
        request.keep_alive = False
        if request.response.finished:
            self.close()
            return
        request.body.end(error)
        if parser.request is None or parser.in_head:
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if self._current is None and not self._queue and not self.paused:
            self._start(request)
        else:
            self._queue.append(request)
            self._pause_reading()

    def want_body(self) -> None:
        """Read on for a handler that waits; answer ``Expect: 100-continue``."""
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
        request = self._parser.request
        if request is not None and not self._parser.in_head:
            now = self._loop.time()
            self.deadline = now + BODY_GRACE_SECONDS
            self._since = now - request.body.received / self._parser.limits.body_rate
        self._read_on()

    # ── and are answered, one after the other ─────────────────────────────────────────────────

    def _start(self, request: Request) -> None:
        self._current = request
        if self._edge.draining and not self._queue:
            request.keep_alive = False
        self._task = self._loop.create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        try:
            if request.body.error is not None:
                self._edge.refused[request.body.error.code] += 1
                raise request.body.error
            if request.method == "OPTIONS":
                headers = self._edge.cors.preflight(request.headers)
                request.start_response(204, headers, 0).finish()
            else:
                await self._edge.handler(request)
                if not request.response.finished:
                    raise RuntimeError("the handler left a request unanswered")
        except ApiError as error:
            if not request.response.started:
                request.respond_error(error)
            elif not request.response.finished:
                request.response.abort()
        except asyncio.CancelledError:
            if self._transport is not None:  # not the client but the server is leaving
                self.abort()
            raise
        except Exception:
            log.exception("request failed", extra={"request": request.id, "path": request.path})
            if not request.response.started:
                request.respond_error(
                    ApiError(500, "internal_error", "Internal server error.", type="server_error")
                )
            elif not request.response.finished:
                request.response.abort()
        finally:
            request.body.drop()

    def can_discard_rest(self, body: Body) -> bool:
        """Return whether reading the rest of an unwanted body is cheaper than a new connection."""
        request = self._current
        if request is None or request.expects or body.error is not None:
            return False
        return body.length is not None and body.length - body.received <= LINGER_BYTES

    def response_finished(self) -> None:
        """Go on to the next request, or close: the current one has its whole answer."""
        request = self._current
        if request is None:
            return  # the connection was lost first
        self._release_current()
        if not request.body.complete:
            request.body.discard()
            request.body.release()
        if not request.keep_alive:
            self.close()
        elif request.body.complete:
            self._serve_next()
        else:
            self._resume_reading()
            self.deadline = self._loop.time() + LINGER_SECONDS

    def response_aborted(self) -> None:
        """Cut the connection: the current answer failed half-way, and the client must see it."""
        self._release_current()
        self.abort()

    def _release_current(self) -> None:
        # Its task may have some bookkeeping left, which the connection's end must not break off.
        self._current = self._task = None

    def _serve_next(self) -> None:
        if self._closing:
            return
        if self.paused:  # a client that does not read gets no further answers
            self.deadline = self._loop.time() + self._parser.limits.keepalive_seconds
            return
        if self._queue:
            self._start(self._queue.popleft())
        if not self._queue:
            self._resume_reading()
        if self._current is None:
            self._idle()

    def _idle(self) -> None:
        if self._parser.request is None:
            seconds = self._parser.limits.keepalive_seconds
            if self._edge.draining:
                # A request may be on its way at this very moment, and closing would lose it.
                seconds = min(seconds, self._edge.linger)
                if not seconds:
                    self.close()
                    return
            self.deadline = self._loop.time() + seconds
        elif self._parser.in_head:
            self.deadline = self._loop.time() + self._parser.limits.header_seconds

    def time(self) -> float:
        """Return event-loop seconds; to ask for the running loop would cost a system call."""
        return self._loop.time()

    def date(self) -> bytes:
        return self._edge.date()

    @property
    def memory(self) -> MemoryBudget:
        return self._edge.memory

    def client_address(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the address of the client that ``headers`` are from."""
        assert self._peer is not None
        return self._peer.client_address(headers.get(b"x-forwarded-for"))

    def cors(self, origin: bytes) -> bytes:
        return self._edge.cors.headers(origin)

    def recognise(self) -> None:
        """Keep the connection when strangers' are shed: a valid key came on it."""
        if self._peer is not None and not self._peer.known:
            self._peer.recognise()

    def suspect(self) -> None:
        """Report the connection as unwelcome, if nobody known comes from its address."""
        if self._peer is not None:
            self._peer.suspect()

    # ── leaving ───────────────────────────────────────────────────────────────────────────────

    def expire(self, now: float) -> None:
        """Give up on a client that has not done in time what was awaited."""
        request = self._parser.request
        if self._closing:
            self.abort()
        elif self.paused and self._current is None:
            self.close()
        elif self._parser.in_head:
            self._on_unreadable(errors.too_slow("head"))
        elif request is None or request.response.finished:
            self.close()  # idle, or still sending an unwanted body
        elif not self._reading:
            pass  # the server does not read; resuming sets a new deadline
        elif request.expects or self._fast_enough(request, now):
            self.deadline = now + 1.0
        else:
            self._on_unreadable(errors.too_slow("body"))

    def _fast_enough(self, request: Request, now: float) -> bool:
        return request.body.received >= (now - self._since) * self._parser.limits.body_rate

    def drain(self) -> None:
        """Finish the requests that have come, then close; the edge is draining."""
        if self._current is not None:
            if not self._current.response.started and not self._queue:
                self._current.keep_alive = False
        elif not self._queue:
            self._idle()

    def close(self) -> None:
        """Close once everything written has gone out; what still comes is thrown away."""
        if self._closing:
            return
        self._closing = True
        self._output.flush()
        if self._transport is None:
            return
        now = self._loop.time()
        if self._parser.request is None and self._parser.error is None:
            self.deadline = now + CLOSING_SECONDS
            self._transport.close()
            return
        self._since = now
        self.deadline = now + LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._read_on()

    def _throw_away(self, size: int) -> None:
        """Read the next bytes in turn: to read what nobody wants takes time from the others."""
        now = self._loop.time()
        self.deadline = min(now + LINGER_SECONDS, self._since + MAX_LINGER_SECONDS)
        if self._transport is not None and not self._transport.is_closing():
            self._pause_reading()
            self._loop.call_at(self._edge.unwanted.next_turn(size, now), self._read_on)

    def _read_on(self) -> None:
        if not self._reading and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()

    def abort(self) -> None:
        self._closing = True
        self._output.flush()
        if self._transport is not None:
            self._transport.abort()
