"""A network that fails on command: a TCP proxy between nodes and their server.

It listens on another address of loopback, with the server's own port numbers, so that a node whose
invitation names that address dials it for everything; nobody else knows that it is there.  The
bytes that pass through it are TLS, which it can lose, hold back and spoil, but not read.

    async with FaultProxy("127.0.0.2", {"api": 18081, "control": 17000, "proxy": 17001}) as proxy:
        token = redirected(token, proxy.host)
        ...                                    # a node joins with it, and runs
        [link] = proxy.links
        link.black_hole()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from msgspec import structs

from protocol import join

CHUNK = 64 * 1024
NOW_AND_RST = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for no time: closing sends RST, and forgets what was not sent."""

TO_SERVER, TO_NODE = "to_server", "to_node"


def redirected(token: str, host: str) -> str:
    """The same invitation, for a node that reaches the server by this address."""
    return join.encode(structs.replace(join.parse(token), host=host))


class Direction:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self.drops = False
        """Data is read and thrown away."""
        self.dribbles = False
        self.corrupts = False
        """One bit of the next chunk is changed."""
        self.delay = 0.0
        self.count = 0
        """Bytes passed on so far."""

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(CHUNK)
            await self.flows.wait()
            if not data:
                break
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.corrupts:
                self.corrupts = False
                data = data[:-1] + bytes([data[-1] ^ 1])
            for piece in self._pieces(data):
                await self.flows.wait()
                if self.drops:
                    break
                writer.write(piece)
                await writer.drain()
                self.count += len(piece)
        if not self.drops and not writer.is_closing():
            writer.write_eof()

    def _pieces(self, data: bytes) -> list[bytes]:
        return [data[at : at + 1] for at in range(len(data))] if self.dribbles else [data]


class Connection:
    """One connection of a node, in two halves.  Each fault lasts until ``heal``, or the end."""

    def __init__(
        self,
        port: str,
        node: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.port = port
        self.directions = {TO_SERVER: Direction(), TO_NODE: Direction()}
        self._node = node
        self._server = server
        self._task: asyncio.Task[None] | None = None
        self._reset = False

    def __repr__(self) -> str:
        counts = {name: one.count for name, one in self.directions.items()}
        return f"<Connection {self.port} {counts}>"

    @property
    def seen_as(self) -> str:
        """The peer's address in the server's eyes."""
        host, port = self._server[1].get_extra_info("sockname")
        return f"{host}:{port}"

    @property
    def faulty(self) -> bool:
        return any(
            not one.flows.is_set() or one.drops or one.dribbles or one.corrupts or one.delay
            for one in self.directions.values()
        )

    # ── faults ────────────────────────────────────────────────────────────────────────────────

    def cut(self) -> None:
        """Send both sides an orderly end (FIN)."""
        for direction in self.directions.values():
            direction.drops = True
            direction.flows.set()
        for _, writer in (self._node, self._server):
            if not writer.is_closing():
                writer.write_eof()

    def reset(self) -> None:
        """Send both sides RST."""
        self._reset = True
        if self._task is not None:
            self._task.cancel()

    def reset_node(self) -> None:
        """Send the node RST; the server gets nothing any more."""
        self.black_hole()
        _, writer = self._node
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW_AND_RST)
        writer.transport.abort()

    def black_hole(self) -> None:
        """Pass nothing on any more, in silence."""
        for direction in self.directions.values():
            direction.flows.clear()

    def stall(self, direction: str) -> None:
        """Pass nothing on in one direction."""
        self.directions[direction].flows.clear()

    def dribble(self) -> None:
        """Write byte by byte."""
        for direction in self.directions.values():
            direction.dribbles = True

    def delay(self, seconds: float) -> None:
        """Delay everything by so much, or up to twice that."""
        for direction in self.directions.values():
            direction.delay = seconds

    def corrupt(self, direction: str = TO_SERVER) -> None:
        """Change one bit of the next chunk."""
        self.directions[direction].corrupts = True

    def heal(self) -> None:
        """End all faults: deliver what was held back; what was dropped stays lost."""
        for direction in self.directions.values():
            direction.dribbles = direction.corrupts = False
            direction.delay = 0.0
            direction.flows.set()

    # ── life ──────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.directions[TO_SERVER].relay(self._node[0], self._server[1]))
                group.create_task(self.directions[TO_NODE].relay(self._server[0], self._node[1]))
        except* OSError:
            self._reset = True  # one side has reset the connection: reset the other
        finally:
            await _close(self._node[1], self._server[1], reset=self._reset)


class FaultProxy:
    """``host`` is an address of loopback that the server does not listen on."""

    def __init__(self, host: str, ports: Mapping[str, int], *, server: str = "127.0.0.1") -> None:
        self.host = host
        self.connections: list[Connection] = []
        self.dark = False
        """New connections are accepted, and pass nothing on."""
        self._server = server
        self._ports = ports
        self._listening: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def links(self) -> list[Connection]:
        return [one for one in self.connections if one.port == "control"]

    @property
    def tunnels(self) -> list[Connection]:
        return [one for one in self.connections if one.port == "proxy"]

    def each(self, do: Callable[[Connection], None]) -> None:
        for connection in list(self.connections):
            do(connection)

    async def __aenter__(self) -> Self:
        for name, number in self._ports.items():
            serve = partial(self._serve, name)
            self._listening.append(await asyncio.start_server(serve, self.host, number))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for listening in self._listening:
            listening.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._listening:
            await listening.wait_closed()

    async def _serve(
        self, port: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A cancelled task is how this ends; asyncio's streams would report it as a defect.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                server = await asyncio.open_connection(self._server, self._ports[port])
            except OSError:
                await _close(writer, reset=True)
                return
            except asyncio.CancelledError:
                await _close(writer, reset=True)
                raise
            connection = Connection(port, (reader, writer), server)
            if self.dark:
                connection.black_hole()
            self.connections.append(connection)
            try:
                await connection.run()
            finally:
                self.connections.remove(connection)


async def _close(*writers: asyncio.StreamWriter, reset: bool) -> None:
    """Close at once with ``reset`` or when cancelled; otherwise after what is still to be sent."""
    try:
        for writer in writers:
            if reset and not writer.is_closing():
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW_AND_RST)
                writer.transport.abort()
            writer.close()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    finally:
        for writer in writers:
            writer.transport.abort()
