"""Connections between each two workers, over which they forward requests (``fabric_server.mesh``).

The parent makes a pair of sockets for each two, and hands each worker its end.  Neither listens
anywhere: nobody else can connect.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from fabric_server.workers.messages import Joined
from fabric_server.workers.process import Worker

AGAIN_SECONDS = 0.5
"""Time after which a connection is made anew that was lost while both workers serve."""


class Pairs:
    """The pairs of workers that serve."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._waiting: dict[frozenset[str], asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        again = len(self._waiting)
        return f"<Pairs of {len(self._workers)} workers, {again} to be connected again>"

    def join(self, worker: Worker) -> None:
        """Connect a worker that serves now to the others."""
        for other in self._workers:
            if other is not worker:
                self._connect(worker, other)

    def on_lost(self, worker: Worker, peer: str) -> None:
        """Connect a worker and another one again, which it has lost."""
        other = next((one for one in self._workers if one.name == peer), None)
        pair = frozenset((worker.name, peer))
        if other is not None and other is not worker and pair not in self._waiting:
            loop = asyncio.get_running_loop()
            self._waiting[pair] = loop.call_later(AGAIN_SECONDS, self._connect, worker, other)

    def close(self) -> None:
        """Connect none any more."""
        for timer in self._waiting.values():
            timer.cancel()

    def _connect(self, worker: Worker, other: Worker) -> None:
        timer = self._waiting.pop(frozenset((worker.name, other.name)), None)
        if timer is not None:
            timer.cancel()
        if worker.begun.is_set() and other.begun.is_set():
            ends = socket.socketpair()
            for one, peer, end in zip((worker, other), (other, worker), ends, strict=True):
                one.send(Joined(peer.name), [end.detach()])
