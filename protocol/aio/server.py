"""The server's side of a tunnel on a transport."""

from __future__ import annotations

import asyncio
from random import Random
from typing import ClassVar, Protocol

from protocol.aio.tunnel import Stream, StreamHandler, Tunnel
from protocol.errors import Code
from protocol.messages import Figures, Hello, RequestHead, ResponseHead
from protocol.tunnel.events import (
    ConnectionClosed,
    DrainReceived,
    HeadReceived,
    HelloReceived,
    PongReceived,
    ResetConfirmed,
    SilenceNoticed,
    StreamEnded,
)
from protocol.tunnel.server import ServerConnection


class AnswerHandler(StreamHandler, Protocol):
    """Receives the answer on one stream."""

    def on_head(self, head: ResponseHead) -> None: ...
    def on_end(self, figures: Figures) -> None: ...


class ServerStream(Stream[ServerConnection]):
    """The server's commands of one stream.  After ``reset``, ``on_reset`` confirms it."""

    __slots__ = ()

    @property
    def stuck(self) -> bool:
        """The tunnel is lost or suspected, and no other one has taken the stream yet."""
        connection = self.connection
        return (connection.closed or connection.suspected) and self.handler is not None


class ServerTunnelOwner(Protocol):
    """Receives the events of a server's tunnel."""

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None: ...
    def on_drain(self, tunnel: ServerTunnel, reason: str, seconds: float) -> None: ...
    def on_closed(self, tunnel: ServerTunnel, code: int, reason: str) -> None: ...

    def on_silence(self, tunnel: ServerTunnel) -> None:
        """``probe``, or the probe of a stream just opened, has had no answer."""

    def on_pong(self, tunnel: ServerTunnel) -> None: ...


class ServerTunnel(Tunnel[ServerConnection]):
    """The server's asyncio protocol of port 17001."""

    _streams: dict[int, ServerStream]
    stream_type: ClassVar[type[ServerStream]] = ServerStream

    def __init__(
        self,
        owner: ServerTunnelOwner,
        loop: asyncio.AbstractEventLoop,
        *,
        rng: Random,
        resumes: bool = False,
    ) -> None:
        """Create the server's side.

        An owner that gives ``resumes`` resumes suspended streams, and calls ``abandon`` some time
        after ``on_closed``.
        """
        super().__init__(self._make_connection(loop.time(), rng, resumes), loop)
        self.owner = owner
        self._on |= {
            HeadReceived: self._on_head,
            StreamEnded: self._on_end,
            ResetConfirmed: self._on_confirmed,
            HelloReceived: self._on_hello,
            DrainReceived: self._on_drain,
            PongReceived: self._on_pong,
            SilenceNoticed: self._on_silence,
        }

    def _make_connection(self, now: float, rng: Random, resumes: bool) -> ServerConnection:
        return ServerConnection(now=now, rng=rng, resumes=resumes)

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def open(
        self, head: RequestHead, handler: AnswerHandler, body: bytes = b"", *, ended: bool
    ) -> ServerStream:
        """Start a request with what there is of its body.

        Raises LocalError when ``connection.usable`` is False.
        """
        now = self._loop.time()
        stream_id = self.connection.open_stream(head, now=now, body=body, ended=ended)
        stream = self._streams[stream_id] = self.stream_type(self, stream_id)
        stream.handler = handler
        self.flush_soon()
        return stream

    def resume(self, stream: ServerStream) -> None:
        """Take a suspended stream from its lost tunnel.

        Raises LocalError when ``connection.usable`` or ``connection.resumes`` is False.
        """
        former, now = stream.connection, self._loop.time()
        stream_id = self.connection.resume_stream(former, stream.id, now=now)
        stream.move(self, stream_id)
        self._streams[stream_id] = stream
        self.flush_soon()

    @property
    def streams(self) -> list[ServerStream]:
        """Streams whose end was not delivered yet."""
        return list(self._streams.values())

    @property
    def suspended(self) -> list[ServerStream]:
        """Streams that another tunnel can resume; empty while this one is open."""
        return self.streams if self.connection.closed else []

    def probe(self) -> None:
        """Check that the node responds; see ``Connection.probe``."""
        self.connection.probe(self._loop.time())
        self.flush_soon()

    def abort(self, reason: str) -> None:
        """Cut the tunnel: running streams are suspended."""
        if self._transport is not None:
            self._transport.abort()
        self.connection.lost(reason)
        self._deliver_all()

    # ── events ────────────────────────────────────────────────────────────────────────────────

    def _on_head(self, event: HeadReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.on_head(event.head)

    def _on_end(self, event: StreamEnded) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            try:
                handler.on_end(event.figures)
            except Exception:  # what waits for the stream's end must not wait for ever
                handler.on_reset(Code.INTERNAL, "defect")
                raise

    def _on_confirmed(self, event: ResetConfirmed) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            handler.on_reset(Code.NONE, "")

    def _on_hello(self, event: HelloReceived) -> None:
        self.owner.on_hello(self, event.hello)

    def _on_drain(self, event: DrainReceived) -> None:
        self.owner.on_drain(self, event.drain.reason, event.drain.seconds)

    def _on_pong(self, event: PongReceived) -> None:
        self.owner.on_pong(self)

    def _on_silence(self, event: SilenceNoticed) -> None:
        self.owner.on_silence(self)

    def _report_closed(self, event: ConnectionClosed) -> None:
        self.owner.on_closed(self, event.code, event.reason)
