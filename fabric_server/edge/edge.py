"""The public port: what its connections share, and how they are drained."""

from __future__ import annotations

import asyncio
from collections import Counter
from email.utils import formatdate
from random import Random
from time import time

from fabric_server.edge.connection import Connection, Handler, Limits
from fabric_server.edge.cors import Cors
from fabric_server.edge.slices import UnwantedBytes
from fabric_server.net.connection_budget import Peer
from fabric_server.net.deadlines import Deadlines
from fabric_server.net.memory_budget import MemoryBudget

__all__ = ["Edge", "Limits"]


class Edge:
    """Makes the connections of the public port, and drains them when the server leaves."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        deadlines: Deadlines,
        rng: Random,
        refused: Counter[str] | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        """``refused`` counts requests that could not be read, by the error's code."""
        self.handler = handler
        self.limits = limits
        self.cors = Cors()
        self._deadlines = deadlines
        self._rng = rng
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        self.linger = 0.0
        """Seconds that a connection may be idle before it is closed, while draining."""
        self.memory = MemoryBudget() if memory is None else memory
        self.unwanted = UnwantedBytes()
        self.refused: Counter[str] = Counter() if refused is None else refused
        self._date_second = 0
        self._date_line = b""

    def __call__(self, peer: Peer | None = None) -> Connection:
        """Make the connection of ``peer``; without one, the transport tells the address."""
        return Connection(self, asyncio.get_running_loop(), peer)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._empty.clear()
        self._deadlines.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
        self._deadlines.discard(connection)

    def drain(self, linger: float = 0.0) -> None:
        """Let every connection finish its requests, then close.

        An idle one still answers a request that comes within ``linger`` seconds, with
        ``connection: close``.
        """
        self.draining, self.linger = True, linger
        for connection in list(self._connections):
            connection.drain()

    async def empty(self) -> None:
        """Wait until no connection is left."""
        await self._empty.wait()

    def close(self) -> None:
        """Cut every connection; requests under way are cancelled."""
        for connection in list(self._connections):
            connection.abort()

    def new_id(self) -> str:
        """Return an id that begins with the time, so that ledger rows lie in order of arrival."""
        number = int(time() * 1000) << 52 | self._rng.getrandbits(52)
        return "req_" + number.to_bytes(12, "big").hex()

    def date(self) -> bytes:
        second = int(time())
        if second != self._date_second:
            self._date_second = second
            self._date_line = f"date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._date_line
