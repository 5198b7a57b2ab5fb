"""The parent's ports: strangers take few descriptors there, and end no node's connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fabric_server.config import Config
from fabric_server.net.client_hello import ClientHello
from fabric_server.workers.doors import MAX_LOOKED_AT, MIN_LOOKED_AT, Doors
from fabric_server.workers.messages import Arrived
from runtime.descriptors import open_files_limit
from tests.loops import on_both_loops

TOTAL = min(max(open_files_limit() // 8, MIN_LOOKED_AT), MAX_LOOKED_AT)


class Workers:
    """One worker, for which nodes wait until ``serves`` is set."""

    def __init__(self) -> None:
        self.serves = asyncio.Event()
        self.asked = asyncio.Semaphore(0)
        self.handed: list[socket.socket] = []
        self.has = asyncio.Event()

    def hand(self, arrived: Arrived, sock: socket.socket) -> None:
        self.handed.append(socket.socket(fileno=sock.detach()))
        self.has.set()

    def for_user(self, port: str) -> Workers:
        return self

    async def for_node(self, port: str, hello: ClientHello | None) -> Workers:
        self.asked.release()
        await self.serves.wait()
        return self


@asynccontextmanager
async def opened(data: Path) -> AsyncIterator[tuple[Doors, Workers]]:
    config = Config(
        data=data, host=("127.0.0.1",), control_port=0, proxy_port=0, public_port=0, api_port=0
    )
    workers = Workers()
    doors = Doors(config, workers)
    doors.open_all(config, None)
    try:
        yield doors, workers
    finally:
        await doors.close()
        for sock in workers.handed:
            sock.close()


def arrive(exits: ExitStack, doors: Doors, address: str) -> socket.socket:
    """Have a connection arrive from an address, and return its other end."""
    listening = exits.enter_context(socket.create_server(("127.0.0.1", 0)))
    ours = exits.enter_context(socket.create_connection(listening.getsockname()))
    theirs, _ = listening.accept()
    listening.close()
    theirs.setblocking(False)
    doors["control"].admit(theirs, address)
    return ours


@on_both_loops
async def test_one_stranger_has_a_quarter_of_a_ports_places_and_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as (doors, _):
        with ExitStack() as exits:
            for _ in range(TOTAL // 4 + 5):
                arrive(exits, doors, "192.0.2.7")
            arrive(exits, doors, "192.0.2.8")
            assert doors["control"].budget.used == TOTAL // 4 + 1
            assert doors["control"].refused["shed_address"] == 5


@on_both_loops
async def test_a_flood_ends_no_connection_that_waits_for_its_worker(tmp_path: Path) -> None:
    async with opened(tmp_path) as (doors, workers):
        with ExitStack() as exits:
            node = arrive(exits, doors, "192.0.2.7")
            node.sendall(b"a node")
            async with asyncio.timeout(10):
                await workers.asked.acquire()
            for number in range(TOTAL + 1):
                arrive(exits, doors, f"198.18.{number // 250}.{number % 250}")
            assert doors["control"].refused["shed"] == 1, "one of the flood has made room"
            workers.serves.set()
            async with asyncio.timeout(10):
                await workers.has.wait()
            assert workers.handed[0].recv(16) == b"a node"


@on_both_loops
async def test_connections_that_wait_for_their_worker_are_closed_with_the_ports(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (doors, workers):
        with ExitStack() as exits:
            node = arrive(exits, doors, "192.0.2.7")
            node.sendall(b"a node")
            async with asyncio.timeout(10):
                await workers.asked.acquire()
            await doors.close()
            node.settimeout(10)
            with pytest.raises(ConnectionResetError):  # its bytes were not read
                node.recv(16)
