"""Both ends of one tunnel on transports, with owners and handlers that remember their events."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, cast

from protocol.aio.driver import Driver
from protocol.aio.memory import MemoryTransport, connect
from protocol.aio.node import NodeStream, NodeTunnel
from protocol.aio.server import ServerStream, ServerTunnel
from protocol.aio.tunnel import StreamHandler, Tunnel
from protocol.errors import Code
from protocol.messages import Figures, Hello, RequestHead, ResponseHead
from tests.pump import ANSWER, FIGURES, HEAD, SESSION

KIB, MIB = 1024, 1024 * 1024


class Owner:
    """Remembers what it hears of its tunnel."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.hello = asyncio.Event()
        self.closed = asyncio.Event()

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None:
        self.heard.append(f"hello {hello.session!r}")
        self.hello.set()

    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None:
        self.heard.append(f"drain {reason!r} {seconds:g} s")

    def on_silence(self, tunnel: ServerTunnel) -> None: ...
    def on_pong(self, tunnel: ServerTunnel) -> None: ...

    def on_closed(self, tunnel: Tunnel, code: int, reason: str) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.heard.append(f"closed {Code.name_of(code)} {reason!r}")
        self.closed.set()


class Answer:
    """Server's side of a stream: reads at once, unless told to hold back."""

    def __init__(self, *, hold: bool = False) -> None:
        self.heard: list[str] = []
        self.body = bytearray()
        self.over = asyncio.Event()
        self.hold = hold
        self.stream: ServerStream | None = None

    def on_head(self, head: ResponseHead) -> None:
        self.heard.append(f"head {head.status}")

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        if not self.hold:
            assert self.stream is not None
            self.stream.consumed(len(data))

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_end(self, figures: Figures) -> None:
        self.heard.append("end")
        self.over.set()

    def on_reset(self, code: int, reason: str) -> None:
        self.heard.append(f"reset {Code.name_of(code)}")
        self.over.set()


class Echo:
    """Node's side of a stream: gives the question back when it is complete."""

    def __init__(self, stream: NodeStream) -> None:
        self.stream = stream
        self.body = bytearray()
        self.heard: list[str] = []
        self.written: asyncio.Future[None] | None = None

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        self.stream.consumed(len(data))
        if ended:
            self.answer()

    def answer(self) -> None:
        self.stream.send_head(ANSWER)
        if self.body:
            self.stream.send(bytes(self.body))
        self.stream.end(FIGURES)

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_reset(self, code: int, reason: str) -> None:
        self.heard.append(f"reset {Code.name_of(code)}")
        self.stream.confirm_reset()


class Watched(asyncio.Protocol):
    """Passes a loop's calls on to a driver; shows its transport, and when that is gone."""

    transport: asyncio.Transport

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.gone = asyncio.Event()
        self.data_received = driver.data_received  # type: ignore[method-assign]
        self.eof_received = driver.eof_received  # type: ignore[method-assign]
        self.pause_writing = driver.pause_writing  # type: ignore[method-assign]
        self.resume_writing = driver.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self._driver.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._driver.connection_lost(exc)
        self.gone.set()


class Ends:
    """Both ends of one tunnel; what the node accepted stands in ``echoes``."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.echoes: list[Any] = []
        self.server_owner, self.node_owner = Owner(), Owner()
        self.server = ServerTunnel(self.server_owner, loop, rng=Random(1))
        self.node = NodeTunnel(
            self.node_owner, loop, rng=Random(2), accept=lambda *given: self.accept(*given)
        )
        self.server_side, self.node_side = Watched(self.server), Watched(self.node)

    def accept(self, stream: NodeStream, head: RequestHead, ended: bool) -> StreamHandler | None:
        echo = Echo(stream)
        self.echoes.append(echo)
        if ended:
            echo.answer()
            return None
        return echo

    def in_memory(self) -> Ends:
        connect(self.server_side, self.node_side, asyncio.get_running_loop())
        self.node.hello(SESSION)
        return self

    def ask(self, body: bytes = b"", *, hold: bool = False, ended: bool = True) -> Answer:
        answer = Answer(hold=hold)
        answer.stream = self.server.open(HEAD, answer, ended=ended and not body)
        if body:
            answer.stream.send(body, ended)
        return answer


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def within(seconds: float, *events: asyncio.Event) -> None:
    async with asyncio.timeout(seconds):
        for event in events:
            await event.wait()


class Counted(MemoryTransport):
    """Remembers every write."""

    def __init__(self, protocol: asyncio.Protocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(protocol, loop)
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.writes.append(bytes(data))
        super().write(data)


def joined(ends: Ends) -> tuple[Counted, Counted]:
    """Like ``in_memory``, with transports that count."""
    loop = asyncio.get_running_loop()
    left, right = Counted(ends.server_side, loop), Counted(ends.node_side, loop)
    left.join(right)
    ends.server_side.connection_made(left)
    ends.node_side.connection_made(right)
    ends.node.hello(SESSION)
    return left, right
