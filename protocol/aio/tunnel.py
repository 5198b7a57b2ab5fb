"""A tunnel on a transport: streams as objects, events as calls on each stream's handler.

``server`` and ``node`` hold the two sides.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Generic, Protocol, TypeVar

from protocol.aio.driver import Driver
from protocol.errors import Code
from protocol.tunnel.connection import Connection
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    StreamReset,
    StreamWritable,
)

log = logging.getLogger("fabric.tunnel")

C = TypeVar("C", bound=Connection)


class StreamHandler(Protocol):
    """Receives the events of one stream, from the event loop: nothing here may block."""

    def on_data(self, data: bytes, ended: bool) -> None: ...
    def on_writable(self) -> None: ...

    def on_reset(self, code: int, reason: str) -> None:
        """Server: the stream is gone (after ``Stream.reset``: confirmed, with ``Code.NONE``).

        Node: stop the work, then call ``NodeStream.confirm_reset``.
        """


class Stream(Generic[C]):
    """Commands of one stream; see ``Connection`` for what each does.

    The object stays the same when the stream moves to another tunnel, so its users need not know.
    """

    __slots__ = ("_tunnel", "connection", "handler", "id")

    def __init__(self, tunnel: Tunnel[C], id: int) -> None:
        self._tunnel = tunnel
        self.connection: C = tunnel.connection
        self.id = id
        self.handler: Any = None
        """None after its last event, which also breaks the reference cycle with the handler."""

    def move(self, tunnel: Tunnel[C], id: int) -> None:
        """Continue on another tunnel; called by tunnels only."""
        self._tunnel.detach(self.id)
        self._tunnel = tunnel
        self.connection = tunnel.connection
        self.id = id

    def send(self, data: bytes, ended: bool = False) -> bool:
        more = self.connection.send_data(self.id, data, ended=ended)
        self._tunnel.flush_soon()
        return more

    def reset(self, code: int, reason: str = "") -> None:
        self.connection.reset(self.id, code, reason)
        self._tunnel.flush_soon()

    def consumed(self, count: int) -> None:
        if self.connection.consumed(self.id, count):
            self._tunnel.flush_soon()

    def give_up(self, reason: str) -> None:
        """Close the whole tunnel, because its peer does not do what this stream needs."""
        self._tunnel.close(Code.TIMEOUT, reason)


class Tunnel(Driver, Generic[C]):
    """Common part of ``ServerTunnel`` and ``NodeTunnel``, asyncio protocols of port 17001."""

    def __init__(self, connection: C, loop: asyncio.AbstractEventLoop) -> None:
        self.connection: C = connection
        super().__init__(connection, loop)
        self._streams: dict[int, Any] = {}
        self._on = {
            DataReceived: self._on_data,
            StreamReset: self._on_reset,
            StreamWritable: self._on_writable,
            ConnectionClosed: self._on_closed,
        }

    def __repr__(self) -> str:
        return f"<Tunnel {self.peer} {self.connection!r}>"

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def abandon(self, reason: str) -> None:
        """End the suspended streams of a closed tunnel: they are lost."""
        self.connection.abandon(reason)
        self._deliver_all()

    def detach(self, stream_id: int) -> None:
        """Let another tunnel have a stream."""
        self._streams.pop(stream_id, None)

    def forget(self, stream_id: int) -> None:
        """Deliver no further events of a stream."""
        self._take_handler(stream_id)
        self.flush_soon()

    def drain(self, reason: str, seconds: float) -> None:
        self.connection.drain(reason, seconds)
        self.flush_soon()

    def close(self, code: int, reason: str = "") -> None:
        self.connection.close(code, reason)
        self._deliver_all()
        self.flush_soon()

    # ── events ────────────────────────────────────────────────────────────────────────────────

    def _on_defect(self, event: Any) -> None:
        # A defect in one stream's handler must cost that stream, not all its neighbours.
        log.exception("stream handler failed", extra={"peer": self.peer})
        stream_id = getattr(event, "stream_id", None)
        if stream_id is None:
            self.connection.close(Code.INTERNAL, "defect")
        else:
            self.connection.reset(stream_id, Code.INTERNAL, "defect")
            if stream_id in self._streams:  # a task that waits for it must not wait for ever
                self._inbox.appendleft(StreamReset(stream_id, Code.INTERNAL, "defect"))
        self.flush_soon()

    def _on_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.on_data(event.data, event.ended)

    def _on_reset(self, event: StreamReset) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            handler.on_reset(event.code, event.reason)

    def _on_writable(self, event: StreamWritable) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.on_writable()

    def _on_closed(self, event: ConnectionClosed) -> None:
        if not self.connection.active:
            for stream_id in list(self._streams):
                self._take_handler(stream_id)
        self._report_closed(event)

    def _report_closed(self, event: ConnectionClosed) -> None:
        raise NotImplementedError

    def _take_handler(self, stream_id: int) -> Any:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return None
        handler, stream.handler = stream.handler, None
        return handler
