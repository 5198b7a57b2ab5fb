"""Accepts connections on a port, each in a task of its own.

So a slow or hostile peer delays only itself.  ``handshake`` has the rules for their first bytes,
``sorting`` those of a number that several ports share.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Sequence

from fabric_server.net.addresses import IpAddress, origin_of, parse
from fabric_server.net.arrival import REASONS, Arrival, Limits
from fabric_server.net.connection_budget import Budget, Peer, Places
from fabric_server.net.handshake import Handshake, Port
from fabric_server.net.known_addresses import KnownAddresses
from fabric_server.net.sockets import PortProblem, bind
from fabric_server.net.sorting import SharedPort, Sorting

__all__ = ["REASONS", "Limits", "Listener", "Port", "PortProblem", "SharedPort"]

log = logging.getLogger("fabric.listen")

ACCEPTS_PER_TURN = 64
PAUSE_SECONDS = 1.0
"""How long accepting pauses when the process is out of file descriptors."""
LOG_SECONDS = 10.0
"""Refusals are logged at most once per reason and this time: strangers must not fill the disk."""


_ANY_NUMBER = Places(total=2**31, per_address=2**31)
_REMEDIES = {
    "full": "all places are taken by known clients or nodes: raise ulimit -n (see check-config)",
    "full_address": "all places of this address are taken by known clients: if it is a proxy, add "
    "it to trusted_proxies",
    "acme": "nothing to do: a certificate authority has checked this server's name",
    "proxy_header": "the proxy has to send version 2 of the PROXY protocol",
    "untrusted_proxy": "if it is a proxy of yours, add its address to trusted_proxies",
}


class Listener:
    """One listening port; ``opened``, ``accepted``, ``refused`` and ``pending`` are metrics."""

    def __init__(
        self,
        port: Port | SharedPort,
        limits: Limits | None = None,
        places: Places | None = None,
        known: KnownAddresses | None = None,
    ) -> None:
        """``known`` has the known addresses of all ports."""
        self.spec = port
        self.limits = limits or Limits()
        self.budget = Budget(
            places or _ANY_NUMBER,
            self._on_shed,
            on_suspect=lambda peer: port.on_suspect(str(peer.ip)),
            known=known,
        )
        """The places of connections, in their handshake and after it."""
        self.accepted = 0
        """Connections taken from the kernel."""
        self.opened = 0
        """Connections handed to the port's protocol."""
        self._refusals = _Refusals(port.name)
        self._port = port.number
        self._sockets: list[socket.socket] = []
        self._paused = False
        self._front: Listener | _Elsewhere | None = None
        self._pending: dict[Arrival, None] = {}  # oldest first
        self._by_origin: Counter[str] = Counter()
        self._full = False
        self._resuming: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "accepting" if self.accepting else "closed"
        return f"<Listener {self.spec.name} {self._port} {state} pending={self.pending}>"

    @property
    def port(self) -> int:
        """The actual number, also when 0 was configured."""
        return self._port

    @property
    def refused(self) -> Counter[str]:
        """Connections refused, by ``REASONS``."""
        return self._refusals.counts

    @property
    def pending(self) -> int:
        """Connections in their handshake."""
        return len(self._pending)

    @property
    def accepting(self) -> bool:
        if self._front is not None:
            return self._front.accepting and not self._paused
        return bool(self._sockets) and not self._paused

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The listening sockets, for a successor that accepts from the same queues."""
        return tuple(self._sockets)

    def open_behind(self, front: Listener) -> None:
        """Get connections only from a shared port, which is open."""
        self._loop = asyncio.get_running_loop()
        self._front, self._port = front, front.port

    def open_handed(self, number: int) -> None:
        """Get connections only by ``admit``, of another process, which listens on ``number``."""
        self._loop = asyncio.get_running_loop()
        self._port, self._front = number, _Elsewhere()

    def open(self, inherited: Sequence[socket.socket] = ()) -> None:
        """Bind and accept; needs a running loop.  Raises ``PortProblem``.

        Inherited sockets, which another server still accepts on, are not accepted on until
        ``resume_accepting``.
        """
        spec = self.spec
        self._loop = asyncio.get_running_loop()
        if inherited:
            self._sockets, self._port = list(inherited), inherited[0].getsockname()[1]
            self._paused = True
            return
        self._sockets, self._port = bind(
            spec.hosts, spec.number, setting=f"{spec.name}_port", reuse_port=spec.reuse_port
        )
        self._listen()
        log.debug("listening", extra={"port": spec.name, "number": self._port})

    def pause_accepting(self) -> None:
        """Leave new connections in the kernel's queue, for later or for another server."""
        if not self._paused:
            self._paused = True
            self._stop_listening()

    def resume_accepting(self) -> None:
        """Accept connections again, those queued during the pause first."""
        if self._paused:
            self._paused = False
            self._listen()
            log.debug("listening", extra={"port": self.spec.name, "number": self._port})

    def stop_accepting(self) -> None:
        """Close the port; accepted connections continue, and so do handshakes."""
        if isinstance(self._front, _Elsewhere):
            self._front.accepting = False
        self._stop_listening()
        sockets, self._sockets = self._sockets, []
        for listening in sockets:
            if not self._paused:
                # Closing would reset the connections that the kernel has queued: accept them first.
                self._accept(listening)
            listening.close()

    def _stop_listening(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        for listening in self._sockets:
            self._loop.remove_reader(listening)

    async def handshakes_done(self) -> None:
        """Wait until the handshakes that run now have ended."""
        tasks = [handshake.task for handshake in self._pending]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop accepting and cancel handshakes; handed-over connections are not touched."""
        self.stop_accepting()
        tasks = [handshake.task for handshake in self._pending]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _listen(self) -> None:
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # the peer hung up while queued
            except OSError as error:
                self._back_off(error)
                return
            if self._full:
                self._full = False
                log.info("accepting again", extra={"port": self.spec.name})
            sock.setblocking(False)
            self.admit(sock, peer[0])

    def _back_off(self, error: OSError) -> None:
        """Pause: out of descriptors, the queue stays readable, and retrying would spin."""
        if not self._full:
            self._full = True
            log.error(
                "can't accept connections", extra={"port": self.spec.name, "error": str(error)}
            )
        if self._sockets and self._resuming is None:
            for listening in self._sockets:
                self._loop.remove_reader(listening)
            self._resuming = self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._resuming = None
        self._listen()

    def admit(self, sock: socket.socket, address: str, via: Peer | None = None) -> None:
        """Start the handshake of an accepted, non-blocking connection from ``address``.

        ``via`` is the client as the shared port that the connection came to knows it.
        """
        self.accepted += 1
        limits = self.limits
        ip = parse(address)
        peer = Peer(ip, self.spec.proxies, self.budget)
        if via is not None and via.proxied:
            peer.stand_for(via.ip)
        handshake = self._arrival(sock, peer, ip)
        if via is not None:
            handshake.header_due = False
        origin = handshake.origin = origin_of(peer.ip)
        many_of_its_own = self._by_origin[origin] >= limits.per_address
        if many_of_its_own and self.pending >= limits.total // 2 and not peer.exempt:
            handshake.refuse("crowded_address")
            peer.suspect()
            sock.close()
            return
        reason = peer.enter()
        if reason is not None:
            handshake.refuse(reason)
            sock.close()
            return
        if self.pending >= limits.total:
            # Honest peers need two round trips; the oldest is the likeliest to be hostile.
            oldest = next(iter(self._pending))
            oldest.refuse("crowded")
            oldest.task.cancel()
            self._forget(oldest)
        peer.drop = handshake.drop
        self._pending[handshake] = None
        self._by_origin[origin] += 1
        handshake.task = self._loop.create_task(handshake.run())
        handshake.task.add_done_callback(lambda task: self._ended(handshake, task))

    def _arrival(self, sock: socket.socket, peer: Peer, ip: IpAddress) -> Arrival:
        if isinstance(self.spec, SharedPort):
            return Sorting(self, self.spec, sock, peer, ip)
        return Handshake(self, self.spec, sock, peer, ip)

    def _ended(self, handshake: Arrival, task: asyncio.Task[None]) -> None:
        handshake.release()
        self._forget(handshake)
        if not handshake.opened:
            handshake.peer.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "a connection was lost to a defect while it was accepted",
                exc_info=error,
                extra={"port": self.spec.name},
            )

    def _forget(self, handshake: Arrival) -> None:
        if handshake not in self._pending:
            return
        del self._pending[handshake]
        self._by_origin[handshake.origin] -= 1
        if not self._by_origin[handshake.origin]:
            del self._by_origin[handshake.origin]

    def _on_shed(self, reason: str, peer: Peer) -> None:
        self.refuse(reason, str(peer.ip))
        if reason == "shed_address":
            peer.suspect()

    def refuse(self, reason: str, address: str, error: object = None) -> None:
        """Count a refusal, and log the first of its reason in ``LOG_SECONDS``."""
        self._refusals.add(reason, address, error, self._loop.time())


class _Elsewhere:
    """The other process that accepts, in the place of a shared port."""

    accepting = True


class _Refusals:
    """The refusals of a port, by their reasons."""

    def __init__(self, port: str) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._port = port
        self._logged: dict[str, tuple[float, int]] = {}

    def add(self, reason: str, address: str, error: object, now: float) -> None:
        self.counts[reason] += 1
        until, unlogged = self._logged.get(reason, (float("-inf"), 0))
        if now < until:
            self._logged[reason] = until, unlogged + 1
            return
        self._logged[reason] = now + LOG_SECONDS, 0
        fields: dict[str, object] = {"port": self._port, "reason": reason, "peer": address}
        if error is not None:
            fields["error"] = str(error)
        elif reason in _REMEDIES:
            fields["remedy"] = _REMEDIES[reason]
        if unlogged:
            fields["since_last"] = unlogged
        log.info("connection refused", extra=fields)
