"""A tunnel on a transport: streams as objects, events as calls on whoever handles the stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from protocol.aio.driver import Driver
from protocol.errors import Code
from protocol.messages import Figures, Hello, RequestHead, ResponseHead
from protocol.tunnel.connection import Connection, Role
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    DrainReceived,
    HeadReceived,
    HelloReceived,
    PongReceived,
    ResetConfirmed,
    SilenceNoticed,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamResumed,
    StreamWritable,
)
from protocol.tunnel.resume import ResumeTable

log = logging.getLogger("fabric.tunnel")


class StreamHandler(Protocol):
    """What both sides hear of a stream, called from the event loop: nothing here may block."""

    def on_data(self, data: bytes, ended: bool) -> None: ...
    def on_writable(self) -> None: ...

    def on_reset(self, code: int, reason: str) -> None:
        """Server: the stream is gone (after ``Stream.reset``: confirmed, with ``Code.NONE``).

        Node: stop the work, then call ``Stream.confirm_reset``.
        """


class AnswerHandler(StreamHandler, Protocol):
    """What the server hears besides."""

    def on_head(self, head: ResponseHead) -> None: ...
    def on_end(self, figures: Figures) -> None: ...


class Stream:
    """One stream's commands; see ``Connection`` for what each does.

    It stays the same when the stream moves to another tunnel, so nobody who holds it need know.
    """

    __slots__ = ("_connection", "_tunnel", "handler", "id")

    def __init__(self, tunnel: Tunnel, id: int) -> None:
        self._tunnel = tunnel
        self._connection = tunnel.connection
        self.id = id
        self.handler: Any = None
        """None once it has heard the end, which also unties the knot of the two."""

    def move(self, tunnel: Tunnel, id: int) -> None:
        """It goes on there; only the two tunnels call this."""
        self._tunnel.disown(self.id)
        self._tunnel = tunnel
        self._connection = tunnel.connection
        self.id = id

    def send_head(self, head: ResponseHead) -> None:
        self._connection.send_head(self.id, head)
        self._tunnel._soon()

    def send(self, data: bytes, ended: bool = False) -> bool:
        more = self._connection.send_data(self.id, data, ended=ended)
        self._tunnel._soon()
        return more

    def end(self, figures: Figures) -> None:
        """The handler hears nothing more."""
        self._connection.end_stream(self.id, figures)
        self._tunnel._forget(self.id)

    def reset(self, code: int, reason: str = "") -> None:
        """Node side: the handler hears nothing more.  Server side: ``on_reset`` will tell."""
        self._connection.reset(self.id, code, reason)
        if self._connection.role is Role.NODE:
            self._tunnel._forget(self.id)
        self._tunnel._soon()

    def confirm_reset(self) -> None:
        self._connection.confirm_reset(self.id)
        self._tunnel._forget(self.id)

    @property
    def stuck(self) -> bool:
        """Server side: its tunnel is lost or silent, and no other one has taken it yet."""
        connection = self._connection
        return (connection.closed or connection.doubted) and self.handler is not None

    def consumed(self, count: int) -> None:
        self._connection.consumed(self.id, count)
        if self._connection.has_output:
            self._tunnel._soon()

    def give_up(self, reason: str) -> None:
        """Close the whole tunnel, because its peer does not do what this stream needs."""
        self._tunnel.close(Code.TIMEOUT, reason)


Accept = Callable[[Stream, RequestHead, bool], StreamHandler | None]
"""Node side: takes a new stream; None when it was answered or reset on the spot."""


class TunnelOwner(Protocol):
    """Whoever keeps the tunnel hears of the tunnel itself."""

    def on_hello(self, tunnel: Tunnel, hello: Hello) -> None: ...
    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None: ...
    def on_closed(self, tunnel: Tunnel, code: int, reason: str) -> None: ...


def _nobody(tunnel: Tunnel) -> None:
    """Hears nothing."""


class Tunnel(Driver):
    """The asyncio protocol of ports 17001's both sides."""

    def __init__(
        self,
        role: Role,
        owner: TunnelOwner,
        loop: asyncio.AbstractEventLoop,
        *,
        rng: Random,
        accept: Accept | None = None,
        resumes: bool = False,
        number: int = 0,
        keeper: ResumeTable | None = None,
    ) -> None:
        """``resumes``, ``number`` and ``keeper`` are ``Connection``'s.

        An owner that gives them calls ``abandon`` some time after ``on_closed``.
        """
        self.connection = Connection(
            role, now=loop.time(), rng=rng, resumes=resumes, number=number, keeper=keeper
        )
        super().__init__(self.connection, loop)
        self.owner = owner
        self.on_silence: Callable[[Tunnel], None] = _nobody
        """Told when ``connection.probe`` has had no answer."""
        self.on_pong: Callable[[Tunnel], None] = _nobody
        self._accept = accept
        self._streams: dict[int, Stream] = {}
        self._on: dict[type, Callable[[Any], None]] = {
            DataReceived: self._on_data,
            HeadReceived: self._on_head,
            StreamEnded: self._on_end,
            StreamOpened: self._on_opened,
            StreamReset: self._on_reset,
            ResetConfirmed: self._on_confirmed,
            StreamWritable: self._on_writable,
            StreamResumed: self._on_resumed,
            HelloReceived: lambda event: self.owner.on_hello(self, event.hello),
            DrainReceived: lambda event: self.owner.on_drain(
                self, event.drain.reason, event.drain.seconds
            ),
            PongReceived: lambda event: self.on_pong(self),
            SilenceNoticed: lambda event: self.on_silence(self),
            ConnectionClosed: self._on_closed,
        }

    def __repr__(self) -> str:
        return f"<Tunnel {self.peer} {self.connection!r}>"

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def hello(self, session: bytes) -> None:
        self.connection.hello(session)
        self._soon()

    def open(self, head: RequestHead, handler: AnswerHandler, *, ended: bool) -> Stream:
        """Server side: start a request.  Raises LocalError when ``connection.usable`` is False."""
        stream_id = self.connection.open_stream(head, now=self._loop.time(), ended=ended)
        stream = self._streams[stream_id] = Stream(self, stream_id)
        stream.handler = handler
        self._soon()
        return stream

    def resume(self, stream: Stream) -> None:
        """Server side: take a suspended stream from its lost tunnel.

        Raises LocalError when ``connection.usable`` or ``connection.resumes`` is False.
        """
        connection = self.connection
        now = self._loop.time()
        stream_id = connection.resume_stream(stream._connection, stream.id, now=now)
        stream.move(self, stream_id)
        self._streams[stream_id] = stream
        self._soon()

    @property
    def streams(self) -> list[Stream]:
        """Those whose end has not been told."""
        return list(self._streams.values())

    @property
    def suspended(self) -> list[Stream]:
        """Server side, once closed: streams that may go on elsewhere."""
        return self.streams if self.connection.closed else []

    def probe(self) -> None:
        """See ``Connection.probe``."""
        self.connection.probe(self._loop.time())
        self._soon()

    def lose(self, reason: str) -> None:
        """As if the transport had just gone: what runs may go on elsewhere."""
        if self._transport is not None:
            self._transport.abort()
        self.connection.lost(reason)
        self._deliver_all()

    def abandon(self, reason: str) -> None:
        """Once closed: suspended streams are lost now."""
        self.connection.abandon(reason)
        self._deliver_all()

    def disown(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)

    def drain(self, reason: str, seconds: float) -> None:
        self.connection.drain(reason, seconds)
        self._soon()

    def close(self, code: int, reason: str = "") -> None:
        self.connection.close(code, reason)
        self._deliver_all()
        self._soon()

    # ── events ────────────────────────────────────────────────────────────────────────────────

    def _deliver(self, event: Any) -> None:
        try:
            self._on[type(event)](event)
        except Exception:
            # A defect in one stream's handler must cost that stream, not all its neighbours.
            log.exception("stream handler failed", extra={"peer": self.peer})
            stream_id = getattr(event, "stream_id", None)
            if stream_id is None:
                self.connection.close(Code.INTERNAL, "defect")
            else:
                self.connection.reset(stream_id, Code.INTERNAL, "defect")
                if stream_id in self._streams:  # whoever waits for it must not wait for ever
                    self._deliver(StreamReset(stream_id, Code.INTERNAL, "defect"))
            self._soon()

    def _on_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.on_data(event.data, event.ended)

    def _on_head(self, event: HeadReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.on_head(event.head)

    def _on_end(self, event: StreamEnded) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            handler.on_end(event.figures)

    def _on_opened(self, event: StreamOpened) -> None:
        assert self._accept is not None  # OPEN is refused before it gets here on a server
        stream = Stream(self, event.stream_id)
        stream.handler = self._accept(stream, event.head, event.ended)
        if stream.handler is not None:
            self._streams[event.stream_id] = stream
            if self.connection.number:
                self.connection.own(event.stream_id, stream)

    def _on_resumed(self, event: StreamResumed) -> None:
        stream: Stream | None = self.connection.owner(event.stream_id)
        if stream is not None:  # or its work has ended, and only its last bytes are asked for
            stream.move(self, event.stream_id)
            if stream.handler is not None:  # or it has heard of a RESET, and will confirm it
                self._streams[event.stream_id] = stream

    def _on_reset(self, event: StreamReset) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            handler.on_reset(event.code, event.reason)
        else:  # its work had ended, and only its last bytes were still waiting here
            self.connection.confirm_reset(event.stream_id)

    def _on_confirmed(self, event: ResetConfirmed) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            handler.on_reset(Code.NONE, "")

    def _take_handler(self, stream_id: int) -> Any:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return None
        handler, stream.handler = stream.handler, None
        return handler

    def _forget(self, stream_id: int) -> None:
        self._take_handler(stream_id)
        self._soon()

    def _on_writable(self, event: StreamWritable) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.on_writable()

    def _on_closed(self, event: ConnectionClosed) -> None:
        if not self.connection.active:
            for stream_id in list(self._streams):
                self._take_handler(stream_id)
        self.owner.on_closed(self, event.code, event.reason)
