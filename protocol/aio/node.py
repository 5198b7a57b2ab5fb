"""The node's side of a tunnel on a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from protocol.aio.tunnel import Stream, StreamHandler, Tunnel
from protocol.messages import Figures, RequestHead, ResponseHead
from protocol.tunnel.events import (
    ConnectionClosed,
    DrainReceived,
    PongReceived,
    SilenceNoticed,
    StreamOpened,
    StreamReset,
    StreamResumed,
)
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable


class NodeStream(Stream[NodeConnection]):
    """The node's commands of one stream."""

    __slots__ = ()

    def send_head(self, head: ResponseHead) -> None:
        self.connection.send_head(self.id, head)
        self._tunnel.flush_soon()

    def answer(self, head: ResponseHead, body: bytes, figures: Figures) -> None:
        """Send a whole answer; the handler gets no further events."""
        self.connection.send_answer(self.id, head, body, figures)
        self._tunnel.forget(self.id)

    def end(self, figures: Figures) -> None:
        """Complete the answer; the handler gets no further events."""
        self.connection.end_stream(self.id, figures)
        self._tunnel.forget(self.id)

    def reset(self, code: int, reason: str = "") -> None:
        """Give the stream up; the handler gets no further events."""
        self.connection.reset(self.id, code, reason)
        self._tunnel.forget(self.id)

    def confirm_reset(self) -> None:
        self.connection.confirm_reset(self.id)
        self._tunnel.forget(self.id)


Accept = Callable[[NodeStream, RequestHead, bool], StreamHandler | None]
"""Takes a new stream (the flag: without a body); None when it was answered or reset at once."""


class NodeTunnelOwner(Protocol):
    """Receives the events of a node's tunnel."""

    def on_drain(self, tunnel: NodeTunnel, reason: str, seconds: float) -> None: ...
    def on_closed(self, tunnel: NodeTunnel, code: int, reason: str) -> None: ...


class NodeTunnel(Tunnel[NodeConnection]):
    """The node's asyncio protocol of port 17001; call ``hello`` first."""

    _streams: dict[int, NodeStream]

    def __init__(
        self,
        owner: NodeTunnelOwner,
        loop: asyncio.AbstractEventLoop,
        *,
        rng: Random,
        accept: Accept,
        number: int = 0,
        resume_table: ResumeTable | None = None,
    ) -> None:
        """``number`` and ``resume_table`` are ``NodeConnection``'s.

        An owner that gives them calls ``abandon`` some time after ``on_closed``.
        """
        super().__init__(self._make_connection(loop.time(), rng, number, resume_table), loop)
        self.owner = owner
        self._accept = accept
        self._on |= {
            StreamOpened: self._on_opened,
            StreamResumed: self._on_resumed,
            DrainReceived: self._on_drain,
            PongReceived: self._ignore,
            SilenceNoticed: self._ignore,
        }

    def _make_connection(
        self, now: float, rng: Random, number: int, resume_table: ResumeTable | None
    ) -> NodeConnection:
        return NodeConnection(now=now, rng=rng, number=number, resume_table=resume_table)

    def hello(self, session: bytes) -> None:
        self.connection.hello(session)
        self.flush_soon()

    def _on_opened(self, event: StreamOpened) -> None:
        stream = NodeStream(self, event.stream_id)
        stream.handler = self._accept(stream, event.head, event.ended)
        if stream.handler is not None:
            self._streams[event.stream_id] = stream
            if self.connection.number:
                self.connection.set_owner(event.stream_id, stream)

    def _on_resumed(self, event: StreamResumed) -> None:
        stream: NodeStream | None = self.connection.owner(event.stream_id)
        if stream is not None:  # else its work has ended, and only its last bytes are claimed
            stream.move(self, event.stream_id)
            if stream.handler is not None:  # else it has had a RESET, and will confirm it
                self._streams[event.stream_id] = stream

    def _on_reset(self, event: StreamReset) -> None:
        handler = self._take_handler(event.stream_id)
        if handler is not None:
            handler.on_reset(event.code, event.reason)
        else:  # its work had ended, and only its last bytes were still waiting here
            self.connection.confirm_reset(event.stream_id)

    def _on_drain(self, event: DrainReceived) -> None:
        self.owner.on_drain(self, event.drain.reason, event.drain.seconds)

    def _ignore(self, event: Any) -> None:
        """Drop an event that is of no use to a node."""

    def _report_closed(self, event: ConnectionClosed) -> None:
        self.owner.on_closed(self, event.code, event.reason)
