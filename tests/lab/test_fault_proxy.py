"""The failing network itself: each fault is what its name says, on plain TCP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults import TO_NODE, TO_SERVER, Connection, FaultProxy

HOST = "127.0.6.1"
PATIENCE = 5.0


class Ends:
    """Both ends of one connection through the proxy."""

    def __init__(self, proxy: FaultProxy, listening: asyncio.Server) -> None:
        self.proxy = proxy
        self.listening = listening
        self.node: tuple[asyncio.StreamReader, asyncio.StreamWriter]
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter]

    @property
    def connection(self) -> Connection:
        [connection] = self.proxy.tunnels
        return connection

    async def passes(self, data: bytes = b"x") -> None:
        for writer, reader in (self.node[1], self.server[0]), (self.server[1], self.node[0]):
            writer.write(data)
            async with asyncio.timeout(PATIENCE):
                assert await reader.readexactly(len(data)) == data

    async def is_silent(self, reader: asyncio.StreamReader) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.put_nowait((reader, writer))

    server = await asyncio.start_server(arrive, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(HOST, {"proxy": port}) as proxy:
        ends = Ends(proxy, server)
        ends.node = await asyncio.open_connection(HOST, port)
        ends.server = await arrived.get()
        await ends.passes()
        yield ends
    for _, writer in (ends.node, ends.server):
        writer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_what_is_not_hurt_passes_and_so_does_its_end(ends: Ends) -> None:
    await ends.passes(b"y" * 300_000)
    ends.node[1].write(b"last")
    ends.node[1].write_eof()
    assert await ends.server[0].read() == b"last"
    ends.server[1].write(b"word")
    ends.server[1].write_eof()
    assert await ends.node[0].read() == b"word"


async def test_a_cut_is_an_orderly_end_that_nobody_said(ends: Ends) -> None:
    ends.connection.cut()
    for reader, _ in (ends.node, ends.server):
        assert await reader.read() == b""


async def test_a_reset_is_one(ends: Ends) -> None:
    ends.connection.reset()
    for reader, _ in (ends.node, ends.server):
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_black_hole_swallows_all_until_it_is_healed_or_reset(ends: Ends) -> None:
    ends.connection.black_hole()
    ends.node[1].write(b"a")
    ends.server[1].write(b"b")
    await ends.is_silent(ends.server[0])
    await ends.is_silent(ends.node[0])
    ends.connection.heal()
    assert await ends.server[0].read(10) == b"a"
    assert await ends.node[0].read(10) == b"b"
    ends.connection.black_hole()
    ends.connection.reset()
    with pytest.raises(ConnectionResetError):
        await ends.node[0].read()


async def test_an_end_does_not_come_out_of_a_black_hole(ends: Ends) -> None:
    ends.connection.black_hole()
    ends.node[1].close()
    await ends.is_silent(ends.server[0])
    ends.connection.cut()
    assert await ends.server[0].read() == b""


@pytest.mark.parametrize("direction", [TO_SERVER, TO_NODE])
async def test_a_stall_holds_one_direction(ends: Ends, direction: str) -> None:
    ends.connection.stall(direction)
    ways = {TO_SERVER: (ends.node[1], ends.server[0]), TO_NODE: (ends.server[1], ends.node[0])}
    for name, (writer, reader) in ways.items():
        writer.write(b"a")
        if name == direction:
            await ends.is_silent(reader)
        else:
            assert await reader.read(10) == b"a"


async def test_dribbling_loses_nothing(ends: Ends) -> None:
    ends.connection.dribble()
    await ends.passes(bytes(range(256)) * 4)


async def test_a_delay_is_as_long_as_it_says(ends: Ends) -> None:
    ends.connection.delay(0.1)
    began = time.monotonic()
    await ends.passes()
    assert time.monotonic() - began >= 0.2


async def test_corruption_changes_one_bit_of_one_chunk(ends: Ends) -> None:
    ends.connection.corrupt(TO_SERVER)
    ends.node[1].write(b"abc")
    assert await ends.server[0].read(10) == b"abb"
    await ends.passes(b"abc")


async def test_a_server_that_is_away_is_away_through_the_proxy(ends: Ends) -> None:
    ends.listening.close()
    _, number = ends.node[1].get_extra_info("peername")
    reader, writer = await asyncio.open_connection(HOST, number)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
