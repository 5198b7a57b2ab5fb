"""A node without a server: its forwarder at one end of a tunnel, a test at the other.

    async with NodeAlone(engine.url) as node:
        answer = await node.ask("/api/chat", {"model": "tiny", "messages": []})
        answer.status, answer.json

The engine is a real one or a scripted one, asked over real sockets; the tunnel is in memory.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Self

import aiohttp

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine, EngineSettings
from fabric_client.engines.engine_key import EngineKey
from fabric_client.offer.patterns import EVERYTHING, Offer
from fabric_client.proxy.forwarder import Forwarder
from protocol.aio.memory import connect
from protocol.aio.node import NodeTunnel
from protocol.aio.server import ServerStream, ServerTunnel
from protocol.aio.tunnel import Tunnel
from protocol.errors import Code
from protocol.messages import Figures, Hello, RequestHead, ResponseHead

Json = dict[str, Any]


class RecordedAnswer:
    """The server's side of one stream.  Consumes what comes at once, unless ``reads`` is False."""

    stream: ServerStream

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.figures: Figures | None = None
        self.reset: tuple[int, str] | None = None
        self._changed = asyncio.Event()

    @property
    def status(self) -> int:
        assert self.head is not None, self.reset
        return self.head.status

    @property
    def headers(self) -> dict[str, str]:
        assert self.head is not None
        return dict(self.head.headers)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.body)
        return found

    @property
    def lines(self) -> list[Json]:
        assert not self.body or self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.splitlines()]

    def on_head(self, head: ResponseHead) -> None:
        self.head = head
        self._changed.set()

    def on_data(self, data: bytes, ended: bool) -> None:
        self.pieces.append(data)
        if self.reads:
            self.stream.consumed(len(data))
        self._changed.set()

    def on_writable(self) -> None:
        pass

    def on_end(self, figures: Figures) -> None:
        self.figures = figures
        self._changed.set()

    def on_reset(self, code: int, reason: str) -> None:
        self.reset = code, reason
        self._changed.set()

    async def over(self) -> Self:
        await self._until(lambda: self.figures is not None or self.reset is not None)
        return self

    async def received(self, text: bytes) -> None:
        """Wait until the body has this text."""
        await self._until(lambda: text in self.body)

    async def _until(self, holds: Any) -> None:
        async with asyncio.timeout(60):  # of a machine that has much else to do
            while not holds():
                self._changed.clear()
                await self._changed.wait()


class NodeAlone:
    def __init__(
        self,
        url: str,
        offer: Offer = EVERYTHING,
        *,
        key: EngineKey | None = None,
        max_num_ctx: int | None = None,
        **settings: Any,
    ) -> None:
        """Make a node with one engine; ``settings`` are ``Forwarder``'s."""
        self._url = url
        self._key = key
        self._max_num_ctx = max_num_ctx
        self._offer = offer
        self._settings = settings
        self.engine: Engine
        self.forwarder: Forwarder
        self._session: aiohttp.ClientSession
        self._tunnels: list[Tunnel] = []
        self._greeted = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession()
        address = parse_address(self._url)
        keys = {} if self._key is None else {address: self._key}
        settings = EngineSettings(offer=self._offer, max_num_ctx=self._max_num_ctx, keys=keys)
        self.engine = Engine(self._session, address, settings)
        report = await self.engine.probe()
        assert report.healthy, report.problem

        def find(name: str) -> Engine | None:
            return self.engine if name == self.engine.name else None

        self.forwarder = Forwarder(find, **self._settings)
        accept = partial(self.forwarder.accept, self.forwarder.slots.register(lambda: None))
        server = ServerTunnel(self, loop, rng=Random(1))
        node = NodeTunnel(self, loop, rng=Random(2), accept=accept)
        self._tunnels = [server, node]
        connect(server, node, loop)
        node.hello(b"session")
        await self._greeted.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.forwarder.close()
        for tunnel in self._tunnels:
            tunnel.close(Code.NONE, "the test is over")
        await asyncio.sleep(0)
        await self._session.close()

    def open(
        self,
        path: str,
        body: Json | bytes | None = None,
        *,
        headers: list[tuple[str, str]] | None = None,
        reads: bool = True,
        size: int | None = None,
    ) -> RecordedAnswer:
        """Open a stream.  Without ``body`` the test sends it, by ``stream.send``."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        size = len(data) if data is not None else size
        sent = headers or [("content-type", "application/json")]
        head = RequestHead("req_1", self.engine.name, "POST", path, sent, size, 60_000)
        asked = RecordedAnswer(reads=reads)
        asked.stream = self._tunnels[0].open(head, asked, ended=False)
        if data is not None:
            asked.stream.send(data, True)
        return asked

    async def ask(self, path: str, body: Json | bytes, **options: Any) -> RecordedAnswer:
        return await self.open(path, body, **options).over()

    # ── called by the tunnels ─────────────────────────────────────────────────────────────────

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None:
        self._greeted.set()

    def on_silence(self, tunnel: ServerTunnel) -> None: ...
    def on_pong(self, tunnel: ServerTunnel) -> None: ...
    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None: ...
    def on_closed(self, tunnel: Tunnel, code: int, reason: str) -> None: ...
