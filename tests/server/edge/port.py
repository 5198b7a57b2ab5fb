"""An edge whose handler does what the path says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

from fabric_server.dialects import errors
from fabric_server.edge.edge import Edge, Limits
from fabric_server.edge.request import Request
from fabric_server.net.deadlines import Deadlines
from tests.users import MemoryUser, SocketUser, request

LIMITS = Limits(
    body=100_000,
    headers=8_192,
    header_count=20,
    header_seconds=10.0,
    body_rate=1_000,
    keepalive_seconds=60.0,
)


GET = request("GET", "/")


BIG = b"x" * 3_000_000


class Port:
    """An edge whose handler does what the path says, and what it was asked."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines()
        self.edge = Edge(self.handle, limits, self.deadlines, Random(1))
        self.asked: list[Request] = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.number = 0

    async def handle(self, asked: Request) -> None:
        self.asked.append(asked)
        self.entered.set()
        does: Callable[[Request], Awaitable[None]]
        does = getattr(self, asked.path.strip("/") or "greet", self.nothing)
        try:
            await does(asked)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def nothing(self, asked: Request) -> None:
        raise errors.unknown_path(asked.path)

    async def greet(self, asked: Request) -> None:
        asked.respond(200, b'"hello"')

    async def echo(self, asked: Request) -> None:
        data = b""
        while not asked.body.complete:
            await asked.body.more()
            data += asked.body.take()
        asked.respond(200, data + asked.body.take())

    async def slow_echo(self, asked: Request) -> None:
        await self.gate.wait()
        await self.echo(asked)

    async def early(self, asked: Request) -> None:
        raise errors.wrong_key()

    async def stream(self, asked: Request) -> None:
        asked.start_response(200, [(b"content-type", b"text/event-stream")], None)
        for number in range(3):
            asked.response.write(b"data: %d\n\n" % number)
            await asyncio.sleep(0)
        asked.response.finish()

    async def flood(self, asked: Request) -> None:
        """As much as the user reads."""
        drained = asyncio.Event()
        asked.response.on_drained = drained.set
        asked.start_response(200, [], len(BIG))
        for at in range(0, len(BIG), 10_000):
            asked.response.write(BIG[at : at + 10_000])
            self.number = at
            while asked.response.paused:
                drained.clear()
                await drained.wait()
        asked.response.finish()

    async def broken(self, asked: Request) -> None:
        raise RuntimeError("scripted")

    async def broken_late(self, asked: Request) -> None:
        asked.start_response(200, [], 100)
        asked.response.write(b"half")
        raise RuntimeError("scripted")

    async def refused_late(self, asked: Request) -> None:
        asked.start_response(200, [], 100)
        raise errors.wrong_key()

    async def silent(self, asked: Request) -> None:
        pass

    def wait(self, seconds: float) -> None:
        """Everything whose deadline is less than so far away expires now."""
        self.deadlines.check(self.loop.time() + seconds)

    def user(self) -> MemoryUser:
        return MemoryUser(self.edge)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await self.loop.create_server(self.edge, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            self.edge.close()
        while self.edge.connections:  # noqa: ASYNC110 - some turns of the loop
            await asyncio.sleep(0)


@asynccontextmanager
async def a_user(limits: Limits = LIMITS) -> AsyncIterator[tuple[Port, SocketUser]]:
    port = Port(limits)
    async with port.listening() as number, SocketUser(number) as user:
        yield port, user


# ── everything else: the same connection, with a user in memory ───────────────────────────────


def limits_with(**changed: Any) -> Limits:
    return replace(LIMITS, **changed)
