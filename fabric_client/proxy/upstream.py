"""HTTP/1.1 towards an engine: warm connections, one request at a time on each, by callback."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from fabric_client.engines.addresses import Address

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 30.0
"""An unused connection is closed after this time; most engines close theirs sooner."""
MAX_IDLE = 64
MAX_HEAD = 64 * 1024


class Reader(Protocol):
    """Who asked, and hears the answer."""

    def on_answer_head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def on_answer_data(self, data: bytes) -> None: ...
    def on_answer_end(self) -> None:
        """The answer is complete; the connection is no longer the reader's."""

    def on_answer_lost(self, reason: str) -> None:
        """The connection broke before the answer was complete."""

    def on_upstream_writable(self) -> None: ...


class EngineConnection(asyncio.Protocol):
    """One connection to an engine.  Between two requests it waits in its pool."""

    def __init__(self, pool: Pool) -> None:
        self.used = False
        """It has carried a request before, so that the engine may have closed it meanwhile."""
        self.paused = False
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reader: Reader | None = None
        self._headers: list[tuple[str, str]] = []
        self._status = 0
        self._head_bytes = 0
        self._until_close = False
        self._reusable = False

    def __repr__(self) -> str:
        state = "lost" if self._transport is None else "busy" if self._reader else "idle"
        return f"<EngineConnection {self._pool.address.url} {state}>"

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # ── what the reader calls ─────────────────────────────────────────────────────────────────

    def attach(self, reader: Reader) -> None:
        """The next answer is for ``reader``, who writes the request now or later."""
        self._reader = reader
        self._status = self._head_bytes = 0
        self._headers = []

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Read no more of the answer until ``resume``: the engine will feel it."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """The answer is not wanted any more.  The engine sees its client hang up."""
        self._reader = None
        if self._transport is not None:
            self._transport.abort()

    def release(self, reusable: bool) -> None:
        """Everything was said on both sides."""
        self._reader = None
        if reusable and self.usable:
            self.used = True
            self.resume()  # the end may have come with what made its reader pause
            self._pool.put(self)
        elif self._transport is not None:
            self._transport.close()

    @property
    def reusable(self) -> bool:
        """Whether the engine keeps the connection open after the answer that just ended."""
        return self._reusable

    # ── asyncio calls these ───────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._reader is None:  # nothing was asked: whatever this is, it is no answer
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(f"the engine does not speak HTTP/1.1: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        reader, self._reader = self._reader, None
        if reader is None:
            return
        if exc is None and self._until_close:
            self._reusable = False
            reader.on_answer_end()
        else:
            reader.on_answer_lost(str(exc) if exc else "the engine closed the connection")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._reader is not None:
            self._reader.on_upstream_writable()

    # ── the parser calls these ────────────────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD:
            raise ValueError("the answer's headers are too large")
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its like; the answer is still to come
            self._headers = []
            return
        self._status = status
        names = {name for name, _ in self._headers}
        self._until_close = not names & {"content-length", "transfer-encoding"}
        if self._reader is not None:
            self._reader.on_answer_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.on_answer_data(data)

    def on_message_complete(self) -> None:
        if not self._status:
            return
        self._reusable = self._parser.should_keep_alive()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.on_answer_end()

    def _lose(self, reason: str) -> None:
        reader, self._reader = self._reader, None
        self.abort()
        if reader is not None:
            reader.on_answer_lost(reason)


class Pool:
    """The connections to one engine."""

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._loop = loop
        parts = urlsplit(address.url)
        self.prefix = parts.path
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._context = ssl.create_default_context() if self._tls else None
        self._idle: deque[EngineConnection] = deque()

    def take(self, now: float) -> EngineConnection | None:
        """A warm connection, the last used first; None when there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def connect(self) -> EngineConnection:
        """A new connection.  Raises OSError or TimeoutError."""
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await self._loop.create_connection(
                lambda: EngineConnection(self), self._host, self._port, ssl=self._context
            )
        return connection

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
