"""Takes connections on a port, each in a task of its own, so that a slow or hostile peer costs
only itself.  What they must begin with is in ``arrival``."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Sequence

from fabric_server.net.handshake import REASONS, Handshake, Limits, Port
from fabric_server.net.sockets import PortProblem, bind

__all__ = ["REASONS", "Limits", "Listener", "Port", "PortProblem"]

log = logging.getLogger("fabric.listen")

ACCEPTS_PER_TURN = 64
PAUSE_SECONDS = 1.0
"""How long accepting pauses when the process has no file descriptors left."""
NOTE_SECONDS = 10.0
"""At most one line in the log per reason and this time: strangers must not fill the disk."""


class Listener:
    """One port.  ``opened``, ``accepted``, ``refused`` and ``pending`` are for metrics."""

    def __init__(self, port: Port, limits: Limits | None = None) -> None:
        self.spec = port
        self.limits = limits or Limits()
        self.accepted = 0
        """Connections taken from the kernel."""
        self.opened = 0
        """Of these, handed to the port's protocol."""
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """Of these, not; by ``REASONS``."""
        self._port = port.number
        self._sockets: list[socket.socket] = []
        self._resting = False
        self._pending: dict[Handshake, None] = {}  # oldest first
        self._by_origin: Counter[str] = Counter()
        self._notes: dict[str, tuple[float, int]] = {}
        self._full = False
        self._resuming: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "accepting" if self.accepting else "closed"
        return f"<Listener {self.spec.name} {self._port} {state} pending={self.pending}>"

    @property
    def port(self) -> int:
        """The real number, also when 0 was asked for."""
        return self._port

    @property
    def pending(self) -> int:
        """Connections that are not through yet."""
        return len(self._pending)

    @property
    def accepting(self) -> bool:
        return bool(self._sockets) and not self._resting

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """What is listened on: for a successor, which accepts from the same queues."""
        return tuple(self._sockets)

    def open(self, inherited: Sequence[socket.socket] = ()) -> None:
        """Bind and begin; needs a running loop.  Raises ``PortProblem``.

        Sockets that another server still listens on are taken as they are, and rest until
        ``begin``.
        """
        spec = self.spec
        self._loop = asyncio.get_running_loop()
        if inherited:
            self._sockets, self._port = list(inherited), inherited[0].getsockname()[1]
            self._resting = True
            return
        self._sockets, self._port = bind(
            spec.hosts, spec.number, setting=f"{spec.name}_port", reuse_port=spec.reuse_port
        )
        self._listen()
        log.debug("listening", extra={"port": spec.name, "number": self._port})

    def rest(self) -> None:
        """Leave what comes in the kernel's queue, for ``begin`` or for another server."""
        if not self._resting:
            self._resting = True
            self._stop_listening()

    def begin(self) -> None:
        """Take in what comes, and what has come during the rest."""
        if self._resting:
            self._resting = False
            self._listen()
            log.debug("listening", extra={"port": self.spec.name, "number": self._port})

    def stop_accepting(self) -> None:
        """Close the port; connections that came before go on, those under way too."""
        self._stop_listening()
        sockets, self._sockets = self._sockets, []
        for listening in sockets:
            if not self._resting:
                # Closing would reset what the kernel has queued: take it in first.
                self._accept(listening)
            listening.close()

    def _stop_listening(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        for listening in self._sockets:
            self._loop.remove_reader(listening)

    async def welcomed(self) -> None:
        """Returns when those that are under way now have been handed over or refused."""
        tasks = [arrival.task for arrival in self._pending]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """``stop_accepting``, and end what is under way; what was handed over is its owner's."""
        self.stop_accepting()
        tasks = [arrival.task for arrival in self._pending]
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
                continue  # hung up while in the queue
            except OSError as error:
                self._pause(error)
                return
            if self._full:
                self._full = False
                log.info("accepting again", extra={"port": self.spec.name})
            sock.setblocking(False)
            self.admit(sock, peer[0])

    def _pause(self, error: OSError) -> None:
        """No descriptors or memory: the queue stays readable, and asking on would only spin."""
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

    def admit(self, sock: socket.socket, address: str) -> None:
        """Take on an accepted, non-blocking connection from ``address``."""
        self.accepted += 1
        arrival, limits = Handshake(self, sock, address), self.limits
        many_of_its_own = self._by_origin[arrival.origin] >= limits.per_address
        if many_of_its_own and self.pending >= limits.total // 2 and not arrival.local:
            arrival.refuse("crowded_address")
            sock.close()
            return
        if self.pending >= limits.total:
            # Honest peers are through in two round trips; the oldest is the likeliest to be none.
            oldest = next(iter(self._pending))
            oldest.refuse("crowded")
            oldest.task.cancel()
            self._forget(oldest)
        self._pending[arrival] = None
        self._by_origin[arrival.origin] += 1
        arrival.task = self._loop.create_task(arrival.welcome())
        arrival.task.add_done_callback(lambda task: self._ended(arrival, task))

    def _ended(self, arrival: Handshake, task: asyncio.Task[None]) -> None:
        arrival.release()
        self._forget(arrival)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "a connection was lost to a defect while it was accepted",
                exc_info=error,
                extra={"port": self.spec.name},
            )

    def _forget(self, arrival: Handshake) -> None:
        if arrival not in self._pending:
            return
        del self._pending[arrival]
        self._by_origin[arrival.origin] -= 1
        if not self._by_origin[arrival.origin]:
            del self._by_origin[arrival.origin]

    def refuse(self, reason: str, address: str, error: object = None) -> None:
        """Count it, and log the first of its kind in a while."""
        self.refused[reason] += 1
        now = self._loop.time()
        until, unsaid = self._notes.get(reason, (float("-inf"), 0))
        if now < until:
            self._notes[reason] = until, unsaid + 1
            return
        self._notes[reason] = now + NOTE_SECONDS, 0
        fields: dict[str, object] = {"port": self.spec.name, "reason": reason, "peer": address}
        if error is not None:
            fields["error"] = str(error)
        if unsaid:
            fields["since_last"] = unsaid
        log.info("connection refused", extra=fields)
