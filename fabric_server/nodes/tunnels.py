"""Port 17001: nodes' tunnels connect, prove their registration, and carry its streams.

The streams of a lost tunnel resume over another tunnel of the same node: at once if there is one,
or when one connects within ``RESUME_SECONDS``.  Streams without any answer yet need not wait for
that: their requests may be retried on another node.

A tunnel that is silent just when it is needed may be lost, or slow.  The node's other tunnels are
probed then: if one of them answers first, the silent one is declared lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from random import Random
from time import time

from fabric_server.net.connection_budget import Peer
from fabric_server.nodes.node import Node
from fabric_server.nodes.registrar import EXPIRED, node_id_of
from fabric_server.nodes.registry import Registry
from protocol.aio.server import ServerStream, ServerTunnel
from protocol.aio.tls import has_expired
from protocol.errors import Code
from protocol.messages import Hello
from protocol.tunnel.resume import RESUME_SECONDS

log = logging.getLogger("fabric.tunnels")

MAX_TUNNELS = 16
"""Limit per registration."""


class Tunnels:
    """Makes tunnels for the listener, and owns them (``protocol.aio.server.ServerTunnelOwner``)."""

    def __init__(self, registry: Registry, rng: Random) -> None:
        self._registry = registry
        self._rng = rng
        self._open: set[ServerTunnel] = set()
        self._nodes: dict[ServerTunnel, Node] = {}
        self._strangers: dict[ServerTunnel, Peer] = {}
        """Tunnels that have not proved their registration yet."""
        self._numbered: dict[tuple[str, int], ServerTunnel] = {}
        """Those of ``_nodes`` whose streams can resume elsewhere, by node and number."""
        self._lost: dict[ServerTunnel, tuple[str, asyncio.TimerHandle]] = {}
        """Lost tunnels with streams that wait for another tunnel of that node."""
        self.refused = 0
        self.resumed = 0
        """Streams that resumed over another tunnel."""
        self._received_before = 0
        self._sent_before = 0

    def __call__(self, peer: Peer) -> ServerTunnel:
        loop = asyncio.get_running_loop()
        tunnel = ServerTunnel(self, loop, rng=self._rng, resumes=True)
        tunnel.on_lost = peer.release
        if peer.proxied:
            tunnel.peer = str(peer.ip)
        self._strangers[tunnel] = peer
        self._open.add(tunnel)
        return tunnel

    @property
    def count(self) -> int:
        return len(self._nodes)

    @property
    def streams(self) -> int:
        return sum(tunnel.connection.active for tunnel in self._nodes)

    def bytes_by_direction(self) -> dict[str, float]:
        received = self._received_before + sum(t.connection.bytes_received for t in self._open)
        sent = self._sent_before + sum(t.connection.bytes_sent for t in self._open)
        return {"in": received, "out": sent}

    def drain(self, seconds: float) -> None:
        for tunnel in list(self._open):
            tunnel.drain("the server is shutting down", seconds)

    def close(self) -> None:
        for tunnel in list(self._open):
            tunnel.close(Code.DRAINING, "the server is shutting down")
        for tunnel in list(self._lost):
            self._give_up(tunnel)

    # ── callbacks of a tunnel ─────────────────────────────────────────────────────────────────

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None:
        node = self._registry.by_session(hello.session)
        if node is None or node.id != node_id_of(tunnel.peer_certificate()):
            self.refused += 1
            tunnel.close(Code.UNAUTHORISED, "unknown session: register again")
            return
        if has_expired(tunnel.peer_certificate(), time()):
            self.refused += 1
            tunnel.close(Code.UNAUTHORISED, EXPIRED)
            return
        if len(node.tunnels) >= MAX_TUNNELS:
            self.refused += 1
            tunnel.close(Code.REFUSED, "too many tunnels")
            return
        if (peer := self._strangers.pop(tunnel, None)) is not None:
            peer.recognise()
        node.tunnels.append(tunnel)
        self._nodes[tunnel] = node
        log.debug("tunnel up", extra={"node": node.id, "epoch": node.epoch, "peer": tunnel.peer})
        for number in hello.lost:
            if (lost := self._numbered.get((node.id, number))) is not None:
                lost.abort("the node has lost it")
        if hello.tunnel:
            self._numbered[node.id, hello.tunnel] = tunnel
        self._on_usable(node)

    def on_drain(self, tunnel: ServerTunnel, reason: str, seconds: float) -> None:
        log.debug("tunnel drains", extra={"peer": tunnel.peer, "reason": reason})
        if (node := self._nodes.get(tunnel)) is not None:
            node.refresh()

    def on_closed(self, tunnel: ServerTunnel, code: int, reason: str) -> None:
        self._open.discard(tunnel)
        self._strangers.pop(tunnel, None)
        self._received_before += tunnel.connection.bytes_received
        self._sent_before += tunnel.connection.bytes_sent
        node = self._nodes.pop(tunnel, None)
        if node is None:
            log.info(
                "tunnel refused",
                extra={"peer": tunnel.peer, "code": Code.name_of(code), "reason": reason},
            )
            return
        node.tunnels.remove(tunnel)
        node.refresh()
        number = node.id, tunnel.connection.number
        if self._numbered.get(number) is tunnel:
            del self._numbered[number]
        log.info(
            "tunnel down",
            extra={"node": node.id, "code": Code.name_of(code), "reason": reason},
        )
        if tunnel.suspended:
            loop = asyncio.get_running_loop()
            self._lost[tunnel] = node.id, loop.call_later(RESUME_SECONDS, self._give_up, tunnel)
            self._resume(tunnel)

    def on_silence(self, tunnel: ServerTunnel) -> None:
        node = self._nodes.get(tunnel)
        if node is None:
            return
        log.info("tunnel silent", extra={"node": node.id, "peer": tunnel.peer})
        node.refresh()
        for other in node.tunnels:
            if not other.connection.suspected:
                other.probe()
        self._notify_stuck(iter(tunnel.streams))

    def on_pong(self, tunnel: ServerTunnel) -> None:
        node = self._nodes.get(tunnel)
        if node is None:
            return
        for other in list(node.tunnels):
            if other.connection.suspected and other.connection.active:
                other.abort("silent, while another tunnel answers")
        self._on_usable(node)  # once more, if it was suspected itself

    # ── after a cut ───────────────────────────────────────────────────────────────────────────

    def _on_usable(self, node: Node) -> None:
        for lost, (node_id, _) in list(self._lost.items()):
            if node_id == node.id:
                self._resume(lost)
        self._registry.room(node)

    def _resume(self, lost: ServerTunnel) -> None:
        """Move the streams of ``lost`` to the node's other tunnels, as far as they have room."""
        node_id, timer = self._lost[lost]
        node = self._registry.node(node_id)  # perhaps a newer registration of it
        streams, now = lost.suspended, asyncio.get_running_loop().time()
        moved = 0
        for stream in streams:
            other = None if node is None else node.tunnel(now)
            if other is None or not other.connection.resumes:
                break
            other.resume(stream)
            moved += 1
        self.resumed += moved
        if moved:
            log.info("streams resumed", extra={"node": node_id, "count": moved})
        if moved == len(streams):
            timer.cancel()
            del self._lost[lost]
        else:
            self._notify_stuck(iter(streams[moved:]))

    def _notify_stuck(self, streams: Iterator[ServerStream]) -> None:
        """Notify one stream per turn of the loop: one that leaves may take the last slot."""
        for stream in streams:
            if stream.stuck:
                stream.handler.on_stuck()
                asyncio.get_running_loop().call_soon(self._notify_stuck, streams)
                return

    def _give_up(self, lost: ServerTunnel) -> None:
        node_id, timer = self._lost.pop(lost)
        timer.cancel()
        count = len(lost.suspended)
        if count:
            log.info("streams lost", extra={"node": node_id, "count": count})
        lost.abandon("the node lost its tunnel and opened no other")
