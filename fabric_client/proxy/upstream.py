"""HTTP/1.1 towards an engine: warm connections, one request at a time on each, by callback."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools

from fabric_client.engines.addresses import Address
from fabric_client.engines.engine_key import EngineKey
from protocol.tunnel.frames import MAX_DATA

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 30.0
"""An unused connection is closed after this time; most engines close theirs sooner."""
MAX_IDLE = 64
USAGE_REFUSED_SECONDS = 600.0
"""How long an engine is asked for no usage after it has refused ``stream_options``."""
MAX_HEAD = 64 * 1024
MAX_PIECE = MAX_DATA // 2
"""Bytes of a body up to which what was read at once is one piece."""
_FRAMING = ("content-length", "transfer-encoding")
"""A response without one of these headers ends with its connection."""
_HEADERS = {
    name.encode(): name
    for name in (
        "content-encoding",
        "content-language",
        "content-length",
        "content-type",
        "retry-after",
        "transfer-encoding",
    )
}
"""The headers of a response that mean something to nodes or users; the others are not kept."""


class ResponseHandler(Protocol):
    """Gets the response, and writes the request.  Called from the event loop."""

    def on_response_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        """The response begins; names of headers are in lower case, and only those in ``_HEADERS``
        are there."""

    @property
    def on_response_body(self) -> Callable[[bytes], None]:
        """Called with each piece of the body: all that was read at once."""

    def on_response_end(self) -> None:
        """The response is complete; the connection is no longer the handler's."""

    def on_response_lost(self, reason: str) -> None:
        """The connection broke before the response was complete."""

    def on_upstream_writable(self) -> None:
        """The connection is no longer ``paused``: more of the request may be written."""


class EngineConnection:
    """An ``AsyncioProtocol`` of one connection to an engine.

    Between two requests it waits in its pool.
    """

    def __init__(self, pool: Pool) -> None:
        self.used = False
        """Set once it has carried a request: the engine may have closed it since then."""
        self.answering = False
        """Set once a byte of the response to its request has come."""
        self.paused = False
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._handler: ResponseHandler | None = None
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        """Chunks that were read of the body and are not with the handler yet."""
        self.on_body = self._body.append
        """The parser calls it with each chunk, for which a method would cost four times as much."""
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._head_bytes = 0
        """Bytes that were read of a head that is not complete."""
        self._reading = True
        self.reusable = False
        """The engine keeps the connection open after the response that just ended."""

    def __repr__(self) -> str:
        state = "lost" if self._transport is None else "busy" if self._handler else "idle"
        return f"<EngineConnection {self._pool.address.url} {state}>"

    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def may_be_stale(self) -> bool:
        """Return whether the engine may have closed it before it could read the request."""
        return self.used and not self.answering

    # ── called by the handler ─────────────────────────────────────────────────────────────────

    def attach(self, handler: ResponseHandler) -> None:
        """Give the next response to ``handler``, which writes the request now or later."""
        self._handler = handler
        self.answering = False
        self._status = self._head_bytes = 0
        self._headers = []
        self._body.clear()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Read no more of the response until ``resume``: TCP slows the engine down."""
        if self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the response; the engine sees its client hang up."""
        self._handler = None
        if self._transport is not None:
            self._transport.abort()

    def release(self, reusable: bool) -> None:
        """Put the connection back into its pool, or end it: request and response are over.

        An engine that has answered before it took the whole request may never take the rest.
        """
        self._handler = None
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            transport.abort()
        elif reusable and not transport.is_closing():
            self.used = True
            if not self._reading:  # its handler has paused at the very end
                self.resume()
            self._pool.put(self)
        else:
            transport.close()

    # ── called by asyncio ───────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._handler is None:  # not a response: nothing was requested
            self.abort()
            return
        self.answering = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._body:
                self._deliver_body()
            self._lose(f"the engine does not speak HTTP/1.1: {error}")
            return
        if self._body:
            self._deliver_body()
        elif not self._status:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._lose("the response's headers are too large")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        handler, self._handler = self._handler, None
        if handler is None:
            return
        framed = any(name in _FRAMING for name, _ in self._headers)
        if exc is None and self._status and not framed:
            self.reusable = False
            handler.on_response_end()
        else:
            handler.on_response_lost(str(exc) if exc else "the engine closed the connection")

    def eof_received(self) -> None:
        """Return None: the connection is closed."""

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._handler is not None:
            self._handler.on_upstream_writable()

    # ── called by the parser ────────────────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        known = _HEADERS.get(name.lower())
        if known is not None:
            self._headers.append((known, value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue or the like; the response is still to come
            self._headers = []
            return
        self._status = status
        if self._handler is not None:
            self._handler.on_response_head(status, self._headers)

    def on_message_complete(self) -> None:
        if not self._status:
            return
        if self._body:
            self._deliver_body()
        self.reusable = self._parser.should_keep_alive()
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.on_response_end()

    def _deliver_body(self) -> None:
        """Hand over what was read at once as one piece: engines send each event as a chunk.

        A piece ends where a chunk does, and fits into a frame, so that the server gets whole
        events.
        """
        chunks = self._body
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        pieces = [data] if len(data) <= MAX_PIECE else _pieces_of(chunks)
        chunks.clear()
        for piece in pieces:
            if self._handler is not None:
                self._handler.on_response_body(piece)

    def _lose(self, reason: str) -> None:
        handler, self._handler = self._handler, None
        self.abort()
        if handler is not None:
            handler.on_response_lost(reason)


def _pieces_of(chunks: list[bytes]) -> list[bytes]:
    """Join chunks to as few pieces as fit into ``MAX_PIECE``; a chunk that does not is one."""
    pieces, first, size = [], 0, 0
    for number, chunk in enumerate(chunks):
        size += len(chunk)
        if size > MAX_PIECE and number > first:
            pieces.append(b"".join(chunks[first:number]))
            first, size = number, len(chunk)
    pieces.append(b"".join(chunks[first:]))
    return pieces


class Pool:
    """The connections to one engine."""

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.key: EngineKey | None = None
        """The key that the engine wants."""
        self._fields = f"host: {address.host}\r\naccept-encoding: identity\r\n"
        self._loop = loop
        parts = urlsplit(address.url)
        self.prefix = parts.path
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._context = ssl.create_default_context() if self._tls else None
        self._idle: deque[EngineConnection] = deque()
        self.accepts_usage = False
        """The engine has answered a request with ``stream_options``, so no refusal is due to it."""
        self._usage_refused_until = 0.0

    def fields(self) -> str:
        """Return the header fields of every request, each with the end of its line."""
        if self.key is None or not self.key.value:
            return self._fields
        return f"{self._fields}authorization: {self.key.authorization}\r\n"

    @property
    def refuses_usage(self) -> bool:
        """Return whether the engine refused ``stream_options`` lately."""
        return self._usage_refused_until > 0 and self._loop.time() < self._usage_refused_until

    def remember_refusal(self) -> None:
        """Note that the engine refuses requests with ``stream_options``."""
        self._usage_refused_until = self._loop.time() + USAGE_REFUSED_SECONDS

    def take(self) -> EngineConnection | None:
        """Return a warm connection, the last used first; None when there is none."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable() and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def connect(self) -> EngineConnection:
        """A new connection.  Raises OSError or TimeoutError."""
        make: Callable[[], Any] = partial(EngineConnection, self)
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await self._loop.create_connection(
                make, self._host, self._port, ssl=self._context
            )
        return cast(EngineConnection, connection)

    def put(self, connection: EngineConnection) -> None:
        now = self._loop.time()
        connection.idle_since = now
        idle = self._idle
        idle.append(connection)
        while len(idle) > MAX_IDLE or now - idle[0].idle_since >= IDLE_SECONDS:
            idle.popleft().abort()

    def forget(self, connection: EngineConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        for connection in list(self._idle):
            connection.abort()
