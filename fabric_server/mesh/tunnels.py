"""The two ends of a tunnel between servers: one opens streams, the other answers them."""

from __future__ import annotations

from random import Random

from fabric_server.nodes.home import Forwarded
from protocol import mesh, messages
from protocol.aio.node import NodeTunnel
from protocol.aio.server import AnswerHandler, ServerStream, ServerTunnel
from protocol.errors import Code
from protocol.mesh import ForwardedRequest, ForwardedResponse
from protocol.tunnel.events import HeadReceived, StreamReset
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import Limits

WINDOW = 64 * 1024 * 1024
"""Bytes that all streams of a tunnel may be ahead of their readers: those of 256 slow ones."""
_LIMITS = Limits(mesh.MAX_STREAMS, window=WINDOW)
_decode_request = messages.decoder(ForwardedRequest).decode
_decode_response = messages.decoder(ForwardedResponse).decode


class ForwardedStream(ServerStream):
    """A stream at another server."""

    __slots__ = ("forwarded",)

    forwarded: Forwarded | None

    def give_up(self, reason: str) -> None:
        """Do nothing: the node is slow to stop, and its home will close its tunnel."""


class OpeningTunnel(ServerTunnel):
    """The end that opens streams."""

    stream_type = ForwardedStream

    def _make_connection(self, now: float, rng: Random, resumes: bool) -> ServerConnection:
        return ServerConnection(
            now=now,
            rng=rng,
            limits=_LIMITS,
            decode_head=_decode_response,
        )

    def forward(
        self,
        head: ForwardedRequest,
        handler: AnswerHandler,
        forwarded: Forwarded | None,
        body: bytes = b"",
        *,
        ended: bool,
    ) -> ForwardedStream:
        """Open a stream; ``forwarded`` learns which engine has got it."""
        stream = self.open(head, handler, body, ended=ended)
        assert isinstance(stream, ForwardedStream)
        stream.forwarded = forwarded
        return stream

    def _on_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if isinstance(stream, ForwardedStream) and event.code == Code.REFUSED:
            forwarded, stream.forwarded = stream.forwarded, None
            if forwarded is not None:
                forwarded.on_refused()
        super()._on_reset(event)

    def _on_head(self, event: HeadReceived) -> None:
        stream, head = self._streams.get(event.stream_id), event.head
        assert isinstance(head, ForwardedResponse)
        if stream is None:
            return
        assert isinstance(stream, ForwardedStream)
        forwarded, stream.forwarded = stream.forwarded, None
        if forwarded is not None:
            forwarded.on_engine(head.node, head.engine)
        if not head.code:
            stream.handler.on_head(head)
            return
        self._take_handler(event.stream_id).on_reset(head.code, head.reason)


class AnsweringTunnel(NodeTunnel):
    """The end that answers."""

    def _make_connection(
        self, now: float, rng: Random, number: int, resume_table: ResumeTable | None
    ) -> NodeConnection:
        return NodeConnection(
            now=now,
            rng=rng,
            limits=_LIMITS,
            decode_head=_decode_request,
        )
