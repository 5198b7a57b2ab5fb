"""Engines at other servers, as candidates here: a request for one goes to that server, its home."""

from __future__ import annotations

from typing import Protocol

from fabric_server.nodes.node import Node
from protocol.aio.server import AnswerHandler, ServerStream
from protocol.mesh import ForwardedRequest, HomeEngine
from protocol.messages import VERSION, Register
from runtime.version import VERSION as RELEASE


class Forwarded(Protocol):
    """Learns what the home does with a forwarded request."""

    def on_refused(self) -> None: ...
    def on_engine(self, node_id: str, engine: str) -> None: ...


class Peer(Protocol):
    """The connection to another server."""

    @property
    def usable(self) -> bool:
        """Return whether ``open`` works now."""

    def open(
        self,
        head: ForwardedRequest,
        handler: AnswerHandler,
        forwarded: Forwarded,
        body: bytes,
        *,
        ended: bool,
    ) -> ServerStream: ...


class HomeNode(Node):
    """The engines of one region at another server, each row of its digest as one engine."""

    __slots__ = ("_fresh", "peer")

    remote = True

    def __init__(self, id: str, region: str, peer: Peer, at: float) -> None:
        register = Register(VERSION, RELEASE, id, "", [], region)
        super().__init__(id, 0, register, None, at)
        self.peer = peer
        self._fresh = True

    @property
    def fresh(self) -> bool:
        """Return whether what is known of it is recent enough to send it requests."""
        return self._fresh

    @fresh.setter
    def fresh(self, fresh: bool) -> None:
        if fresh is not self._fresh:
            self._fresh = fresh
            self.refresh()

    @property
    def connected(self) -> bool:
        return self._fresh

    @property
    def reachable(self) -> bool:
        return self._fresh and self.peer.usable

    def count_nodes(self, model: str) -> int:
        """Return how many nodes serve the model there, as far as is known."""
        rows = (one.report for one in self.engines.values() if one.serves(model))
        return sum(row.nodes for row in rows if isinstance(row, HomeEngine))
