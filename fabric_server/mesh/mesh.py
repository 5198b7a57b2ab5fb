"""The mesh of this server: the other servers that it is connected to.

Two servers have two tunnels, in each of which one of them opens streams.  Over a socket within one
machine they are made so: the one whose name comes first opens streams on the socket that both have
got, and sends the other an end of a second one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any

from fabric_server.dialects.errors import ApiError
from fabric_server.mesh.digest import TICK_SECONDS, Digest
from fabric_server.mesh.peer import Peer
from fabric_server.mesh.tunnels import AnsweringTunnel, OpeningTunnel
from fabric_server.mesh.views import Answer
from fabric_server.mesh.waiting import PeerLost
from fabric_server.nodes.node import Engine
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import Choice
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.load_balancer import filter_engine
from protocol.aio.node import NodeTunnel
from protocol.aio.server import ServerTunnel
from protocol.errors import Code
from protocol.messages import Hello

log = logging.getLogger("fabric.mesh")

SOON_SECONDS = 0.005
"""Time after which it is told that nothing is free any more, or something is again: several such
changes are one message."""
MEETING_SECONDS = 5.0
"""Time in which the second socket must come."""
WARN_SECONDS = 60.0
"""Interval at which it is logged that not all engines can be told."""
_HELLO = b"mesh"


class Mesh:
    """The other servers (``routing.homes.Homes``), and the owner of the tunnels to them."""

    def __init__(
        self,
        name: str,
        upstream: UpstreamContext,
        *,
        rng: Random,
        answer: Answer,
        on_lost: Callable[[str], None] = lambda peer: None,
    ) -> None:
        """``name`` is this server's; ``answer`` says what it shows to others; ``on_lost`` gets the
        name of another one that is connected no longer: call ``connect`` again."""
        self.name = name
        self.peers: dict[str, Peer] = {}
        self._upstream = upstream
        self._rng = rng
        self._answer = answer
        self._on_lost = on_lost
        self._digest = Digest(upstream.registry)
        self._peer_of: dict[ServerTunnel | NodeTunnel, Peer] = {}
        self._idle = asyncio.Event()
        """Set when a peer's last request here has ended."""
        self._tasks = set[asyncio.Task[None]]()
        self._soon: asyncio.TimerHandle | None = None
        self._warn_at = float("-inf")
        upstream.registry.on_load = self._on_load
        upstream.admission.homes = self

    # ── connections ───────────────────────────────────────────────────────────────────────────

    def connect(self, peer: str, sock: socket.socket) -> None:
        """Take one end of a pair of connected stream sockets; the other end is the peer's."""
        if peer == self.name:
            raise ValueError(f"{peer!r} is this server's own name")
        if peer in self.peers:
            self._lose(self.peers[peer], "a new connection has come")
        sock.setblocking(False)
        if self.name < peer:
            mine, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(sock, [b"\0"], [theirs.fileno()])
            self._spawn(self._join(peer, sock, mine))
        else:
            self._spawn(self._meet(peer, sock))

    async def _meet(self, peer: str, sock: socket.socket) -> None:
        """Wait for the second socket."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(sock, readable.set)
        try:
            async with asyncio.timeout(MEETING_SECONDS):
                await readable.wait()
            _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        except (OSError, TimeoutError):
            fds = []
        finally:
            loop.remove_reader(sock)
        if not fds:
            sock.close()
            log.warning("another server did not answer on a new connection", extra={"peer": peer})
            self._on_lost(peer)
            return
        await self._join(peer, socket.socket(fileno=fds[0]), sock)

    async def _join(self, name: str, opening: socket.socket, answering: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        peer = Peer(name, self._upstream, self._digest, self._idle.set, self._answer)
        peer.opening = OpeningTunnel(self, loop, rng=self._rng)
        peer.answering = AnsweringTunnel(self, loop, rng=self._rng, accept=peer.accept)
        peer.opening.peer = peer.answering.peer = name
        self.peers[name] = peer
        self._peer_of[peer.opening] = self._peer_of[peer.answering] = peer
        for tunnel, sock in ((peer.opening, opening), (peer.answering, answering)):
            # Also when the other one is closed already: this socket has to be closed, too.
            made: Callable[[], Any] = partial(_itself, tunnel)
            await loop.create_unix_connection(made, sock=sock)
        peer.answering.hello(_HELLO)

    def _lose(self, peer: Peer, reason: str) -> None:
        """Forget a server; what runs at it is lost."""
        if self.peers.get(peer.name) is peer:
            del self.peers[peer.name]
        peer.leave()
        peer.close(Code.NONE, reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Tell the others what changes here, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.peers:
                self._refresh(loop.time())
                self._tell(loop.time())
            for peer in self.peers.values():
                peer.check(loop.time())

    def drain(self, seconds: float) -> None:
        """Take no new requests of others; those that run may finish."""
        for peer in self.peers.values():
            peer.drain("the server is shutting down", seconds)

    async def wait_idle(self) -> None:
        """Wait until no request of another server runs here."""
        while self.active:
            self._idle.clear()
            await self._idle.wait()

    @property
    def active(self) -> int:
        """Return how many requests of others run here."""
        return sum(peer.active for peer in self.peers.values())

    def count_nodes(self) -> int:
        """Count the others' nodes that requests can be sent to, as far as is known here."""
        return sum(peer.nodes for peer in self.peers.values())

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for peer in list(self.peers.values()):
            self._lose(peer, "the server is shutting down")

    # ── what is told ──────────────────────────────────────────────────────────────────────────

    def _refresh(self, now: float) -> None:
        """Look at all engines again."""
        self._digest.refresh()
        if self._digest.left_out and now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            log.warning(
                "other servers are not told of some engines and send them no requests: "
                "there are more different lists of models than fit in a message; "
                "have more nodes serve the same models",
                extra={"engines": self._digest.left_out},
            )

    def _tell(self, now: float) -> None:
        for peer in self.peers.values():
            peer.tell(now)

    def _on_load(self, engine: Engine) -> None:
        """Tell soon that no engine of a row has a free slot any more, or that one has again."""
        if self._digest.count(engine) and self._soon is None:
            self._soon = self._upstream.loop.call_later(SOON_SECONDS, self._tell_soon)

    def _tell_soon(self) -> None:
        self._soon = None
        self._tell(self._upstream.loop.time())

    # ── what admission asks ───────────────────────────────────────────────────────────────────

    async def wait(
        self, requirements: Requirements, here: float | None, deadline: float, request_id: str
    ) -> Choice | None:
        tried, declined = set[Peer](), ApiError(503, "", "")
        while True:
            found = self._shortest(requirements, tried)
            if found is None or (here is not None and here <= found[0]):
                if here is None and declined.code:
                    raise declined
                return None
            tried.add(found[1])
            try:
                return await found[1].wait(requirements, deadline, request_id)
            except PeerLost as lost:
                log.info("a wait has ended", extra={"peer": found[1].name, "reason": str(lost)})
            except ApiError as error:
                declined = error

    def position(self, request_id: str) -> int | None:
        for peer in self.peers.values():
            position = peer.position(request_id)
            if position is not None:
                return position
        return None

    def _shortest(self, requirements: Requirements, tried: set[Peer]) -> tuple[float, Peer] | None:
        """Return the server where a slot is expected first, and the seconds until then."""
        slots = dict[Peer, int]()
        for peer in self.peers.values():
            if peer not in tried:
                slots[peer] = sum(
                    engine.slots
                    for home in peer.homes.values()
                    if home.reachable
                    for engine in home.engines.values()
                    if engine.serves(requirements.model)
                    and engine.may_serve
                    and filter_engine(engine, requirements)
                )
        model, admission = requirements.model, self._upstream.admission
        best: tuple[float, Peer] | None = None
        for peer, count in slots.items():
            if not count:
                continue
            queue = peer.queues.get(model)
            waiting = 0 if queue is None else queue.waiting
            service = admission.service(model) if queue is None else queue.service
            seconds = (waiting + 1) * service / count
            if best is None or seconds < best[0]:
                best = seconds, peer
        return best

    # ── events of the tunnels ─────────────────────────────────────────────────────────────────

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None:
        peer = self._peer_of[tunnel]
        log.info("another server is connected", extra={"peer": peer.name})
        if peer.usable:  # it may have closed the tunnel in the same breath
            peer.ask_for_digest()

    def on_drain(self, tunnel: ServerTunnel | NodeTunnel, reason: str, seconds: float) -> None:
        peer = self._peer_of[tunnel]
        if tunnel is peer.opening:
            log.info("another server leaves", extra={"peer": peer.name, "reason": reason})
            peer.leave()

    def on_closed(self, tunnel: ServerTunnel | NodeTunnel, code: int, reason: str) -> None:
        peer = self._peer_of.pop(tunnel)
        if self.peers.get(peer.name) is not peer:
            return
        if tunnel is peer.opening:
            peer.leave()
        if code == Code.NONE and peer in self._peer_of.values():
            return  # one of both has drained: what runs on the other tunnel may go on
        log.log(
            logging.WARNING if code else logging.INFO,
            "another server is not connected any more; its nodes get no requests from here until "
            "it is back",
            extra={"peer": peer.name, "code": Code.name_of(code), "reason": reason},
        )
        self._lose(peer, "the other connection is lost")
        self._on_lost(peer.name)

    def on_silence(self, tunnel: ServerTunnel) -> None:
        for stream in tunnel.streams:
            if stream.stuck:
                stream.handler.on_stuck()

    def on_pong(self, tunnel: ServerTunnel) -> None:
        for home in self._peer_of[tunnel].homes.values():
            self._upstream.registry.room(home)


def _itself(tunnel: ServerTunnel | NodeTunnel) -> ServerTunnel | NodeTunnel:
    return tunnel
