"""A gateway and its edge with scripted nodes: tunnels in memory, users by hand, no sockets.

    site = Site()
    node = site.node(["tiny"])
    user = site.user()
    user.send(request("POST", CHAT, ASK, **site.key))
    call = await node.call()              # the request as it arrives at the node
    call.answer(200, b"{}")
    answer = await user.answer()
    [entry] = site.ledger

``site.wait(seconds)`` lets deadlines pass without waiting for them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from msgspec import Struct

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.rate_limits import RateLimits
from fabric_server.edge.edge import Edge, Limits
from fabric_server.edge.router import Router
from fabric_server.gateway.gateway import Gateway
from fabric_server.gateway.media import Media
from fabric_server.gateway.models import ModelCatalog
from fabric_server.net.deadlines import Deadlines
from fabric_server.net.failure_throttle import FailureThrottle
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.clock import Timeouts
from fabric_server.proxy.metrics import Metrics
from fabric_server.proxy.request_record import LedgerWriter
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.admission import Admission
from fabric_server.routing.queues import QueueLimits
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.rows import KeyRow
from ledger.records import LEDGER, LedgerEntry
from protocol.aio.link import LinkDriver
from protocol.aio.memory import MemoryTransport, connect
from protocol.aio.node import NodeStream, NodeTunnel
from protocol.aio.server import ServerTunnel
from protocol.aio.tunnel import Tunnel
from protocol.control.link import LinkClosed
from protocol.errors import Code
from protocol.messages import (
    EngineReport,
    Figures,
    Hello,
    Message,
    ModelReport,
    Register,
    RequestHead,
    ResponseHead,
)
from tests.keys import mint_with
from tests.users import PATIENCE, MemoryUser, request

CHAT = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**ASK, "stream": True}

LIMITS = Limits(
    body=32 * 2**20,
    headers=32 * 2**10,
    header_count=100,
    header_seconds=10.0,
    body_rate=1024,
    keepalive_seconds=60.0,
)
PATIENT = Timeouts(first_byte=300.0, stall=300.0, idle=120.0, slow_reader=30.0, total=7200.0)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chunk(text: str | None, **more: Any) -> bytes:
    """An event of a streamed chat; None is the last one."""
    delta = {} if text is None else {"content": text}
    finish = "stop" if text is None else None
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def usage_chunk(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event({"choices": [], "usage": usage})


DONE = event(b"[DONE]")


ANSWER = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}'


class Keys:
    revision_at_open = 0

    def __init__(self) -> None:
        self.rows: dict[bytes, KeyRow] = {}

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        return self.rows.get(digest)


class Ledger(list[LedgerEntry]):
    """A bus that keeps what it is told."""

    full = False

    def publish(self, topic: str, record: Struct) -> None:
        assert topic == LEDGER
        assert isinstance(record, LedgerEntry)
        self.append(record)


class Site:
    """Everything behind the public port; make it inside a running loop."""

    def __init__(
        self,
        *,
        limits: Limits = LIMITS,
        timeouts: Timeouts = PATIENT,
        queue_length: int = 512,
        queue_length_per_key: int = 128,
        queue_timeout: float = 60.0,
        ledger: Ledger | None = None,
        aliases: dict[str, tuple[str, ...]] | None = None,
        media: Media | None = None,
        memory: MemoryBudget | None = None,
        throttle: FailureThrottle | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = Random(7)
        self.metrics = Metrics()
        self.deadlines = Deadlines()
        self.ledger = Ledger() if ledger is None else ledger
        self.keys = Keys()
        self.registry = Registry()
        self.admission = Admission(
            self.registry,
            rng=self.rng,
            limits=QueueLimits(queue_length, queue_length_per_key, queue_timeout),
        )
        self.authenticator = authenticator = KeyAuthenticator(self.keys, MemoryCache())
        self.upstream = UpstreamContext(
            registry=self.registry,
            admission=self.admission,
            deadlines=self.deadlines,
            metrics=self.metrics,
            ledger=LedgerWriter(
                self.ledger, RateLimits(self.loop.time), self.metrics, self.loop.time
            ),
            timeouts=timeouts,
        )
        self.gateway = Gateway(authenticator, self.upstream, aliases, media)
        self.public = Router(self.metrics.errors, throttle)
        self.gateway.add_to(self.public)
        ModelCatalog(authenticator, self.registry, aliases or {}, self.gateway.complete).add_to(
            self.public
        )
        self.memory = memory or MemoryBudget()
        self.edge = Edge(self.public.handle, limits, self.deadlines, self.rng, memory=self.memory)
        self.key = self.make_key()
        self.nodes: list[ScriptedNode] = []

    def make_key(self, **properties: Any) -> dict[str, str]:
        """The header that a new key makes."""
        new = mint_with("user", now=time.time(), **{"account": "tests", **properties})
        self.keys.rows[new.row.hash] = new.row
        return {"authorization": f"Bearer {new.text}"}

    def user(self) -> MemoryUser:
        return MemoryUser(self.edge)

    def node(
        self,
        models: Sequence[str | ModelReport] | None = None,
        *,
        slots: int = 4,
        kind: str = "vllm",
        paths: Sequence[str] = (),
        region: str = "",
    ) -> ScriptedNode:
        """One more node, here at once."""
        number = len(self.registry.nodes()) + 1
        node = ScriptedNode(self, f"node_{number}", models or ["tiny"], slots, kind, paths, region)
        self.nodes.append(node)
        return node

    def wait(self, seconds: float) -> None:
        """Everything whose deadline is less than so far away expires now."""
        self.deadlines.check(self.loop.time() + seconds)

    async def entry(self) -> LedgerEntry:
        """The one entry, once everything is over."""
        async with asyncio.timeout(PATIENCE):
            await self.gateway.active.wait_idle()
        assert self.gateway.active.count == 0
        [entry] = self.ledger
        return entry

    def taken(self) -> int:
        """Slots taken on all nodes."""
        return sum(node.active for node in self.registry.nodes())

    async def queued(self, count: int) -> None:
        """Wait until so many requests wait for a slot: large bodies are read in slices of time."""
        async with asyncio.timeout(PATIENCE):
            while self.admission.waiting != count:  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)

    async def free(self) -> None:
        """Wait until every slot has been given back."""
        async with asyncio.timeout(PATIENCE):
            while self.taken():  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)


def ask(site: Site, body: Any = ASK, path: str = CHAT, **headers: str) -> MemoryUser:
    """Return a new user who has sent a request."""
    user = site.user()
    user.send(request("POST", path, body, **{**site.key, **headers}))
    return user


async def begin_stream(
    site: Site, node: ScriptedNode, body: Any = STREAM
) -> tuple[MemoryUser, Call]:
    """Ask for a stream, and return when its first event has arrived."""
    user = ask(site, body)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel"))
    await user.until(b"Hel")
    return user, call


async def first_call(nodes: list[ScriptedNode]) -> tuple[Call, ScriptedNode]:
    """Whichever node was chosen, and the call there."""
    tasks = {asyncio.create_task(node.call()): node for node in nodes}
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    [task] = done
    return task.result(), tasks[task]


def assert_ends_with_error(body: bytes, code: str) -> None:
    *_, last, nothing = body.split(b"\n\n")
    assert nothing == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert b"[DONE]" not in body


async def turns(count: int = 10) -> None:
    """Let the event loop go round ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


class NoLink:
    """Owns a link that was never connected."""

    def on_message(self, link: LinkDriver, message: Message) -> None: ...
    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None: ...


class ScriptedNode:
    """Both ends of one tunnel: the server's in the registry, the node's in a test's hands."""

    def __init__(
        self,
        site: Site,
        id: str,
        models: Sequence[str | ModelReport],
        slots: int,
        kind: str,
        paths: Sequence[str] = (),
        region: str = "",
    ) -> None:
        self._site = site
        loop, rng = site.loop, site.rng
        self.kind = kind
        self.paths = list(paths)
        reports = [self.report(models, slots=slots)]
        register = Register(1, "0", id, "test", reports, region)
        self.node = Node(id, 1, register, LinkDriver(NoLink(), loop, rng=rng), time.time())
        site.registry.add(self.node)
        site.registry.report(self.node, reports)
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self.refuses: int | None = None
        """A code with which every request is refused."""
        self.takes_bodies = True
        self._wires: list[MemoryTransport] = []
        self.add_tunnel()

    def report(
        self, models: Sequence[str | ModelReport], *, slots: int = 4, healthy: bool = True
    ) -> EngineReport:
        cards = [one if isinstance(one, ModelReport) else ModelReport(one) for one in models]
        return EngineReport("engine", self.kind, healthy, slots, cards, paths=self.paths)

    def add_tunnel(self) -> None:
        """Usable at once: HELLO has been said."""
        site = self._site
        server = ServerTunnel(self, site.loop, rng=site.rng)
        end = NodeTunnel(self, site.loop, rng=site.rng, accept=self._accept)
        end.hello(self.node.session)
        _, wire = connect(server, end, site.loop)
        server.data_received(b"".join(end.connection.data_to_send()))
        self._wires.append(wire)

    @property
    def engine(self) -> Engine:
        return self.node.engines["engine"]

    async def call(self, *, timeouts: float | None = PATIENCE) -> Call:
        """The next request, as soon as its head is here."""
        async with asyncio.timeout(timeouts):
            return await self._calls.get()

    def put_back(self, call: Call) -> None:
        """Have ``call`` return it once more."""
        self._calls.put_nowait(call)

    @property
    def idle(self) -> bool:
        """No request has come that ``call`` did not return."""
        return self._calls.empty()

    def vanish(self) -> None:
        """The network takes every tunnel."""
        wires, self._wires = self._wires, []
        for wire in wires:
            wire.abort()

    def cut(self, number: int) -> None:
        """The network takes one tunnel, counted from 0."""
        self._wires[number].abort()

    def leave(self) -> None:
        self._site.registry.remove(self.node)

    # ── what the tunnels tell their owner ─────────────────────────────────────────────────────

    def _accept(self, stream: NodeStream, head: RequestHead, ended: bool) -> Call | None:
        if self.refuses is not None:
            stream.reset(self.refuses, "scripted")
            return None
        call = Call(stream, head, ended, self.takes_bodies)
        self._calls.put_nowait(call)
        return call

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None:
        self.node.tunnels.append(tunnel)
        self._site.registry.room(self.node)

    def on_silence(self, tunnel: ServerTunnel) -> None: ...

    def on_pong(self, tunnel: ServerTunnel) -> None: ...

    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None: ...

    def on_closed(self, tunnel: Tunnel, code: int, reason: str) -> None:
        if tunnel in self.node.tunnels:
            self.node.tunnels.remove(tunnel)


class Call:
    """One request at a node (``protocol.aio.tunnel.StreamHandler``)."""

    def __init__(
        self, stream: NodeStream, request: RequestHead, ended: bool, takes_body: bool
    ) -> None:
        self.stream = stream
        self.request = request
        self.takes_body = takes_body
        self.body = bytearray()
        self.reset: Code | None = None
        """Why the server wants this stopped; ``confirm`` tells it that it is."""
        self._ended = asyncio.Event()
        self._stopped = asyncio.Event()
        self._writable = asyncio.Event()
        if ended:
            self._ended.set()

    # ── what a test does ──────────────────────────────────────────────────────────────────────

    async def whole_body(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            await self._ended.wait()
        return bytes(self.body)

    async def stopped(self, *, timeouts: float | None = PATIENCE) -> Code:
        async with asyncio.timeout(timeouts):
            await self._stopped.wait()
        assert self.reset is not None
        return self.reset

    def head(self, status: int = 200, *headers: tuple[str, str]) -> None:
        self.stream.send_head(ResponseHead(status, list(headers)))

    def begin_stream(self) -> None:
        self.head(200, ("content-type", "text/event-stream"))

    def data(self, data: bytes) -> bool:
        return self.stream.send(data)

    async def all_data(self, data: bytes) -> None:
        """In pieces, as the server takes them."""
        for at in range(0, len(data), 16_000):
            if not self.stream.send(data[at : at + 16_000]):
                self._writable.clear()
                async with asyncio.timeout(PATIENCE):
                    await self._writable.wait()

    def end(self) -> None:
        self.stream.end(Figures(1.0, 2.0, 3))

    def answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.head(status, ("content-type", content_type), ("content-length", str(len(body))))
        self.data(body)
        self.end()

    def stream_all(self, *events: bytes) -> None:
        self.begin_stream()
        self.data(b"".join(events))
        self.end()

    def fail(self, code: Code, reason: str = "scripted") -> None:
        self.stream.reset(code, reason)

    def confirm(self) -> None:
        self.stream.confirm_reset()

    def take_body(self) -> None:
        """From now on, and what has come already."""
        self.takes_body = True
        self.stream.consumed(len(self.body))

    # ── what the stream tells ─────────────────────────────────────────────────────────────────

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        if self.takes_body:
            self.stream.consumed(len(data))
        if ended:
            self._ended.set()

    def on_writable(self) -> None:
        self._writable.set()

    def on_reset(self, code: int, reason: str) -> None:
        self.reset = Code(code)
        self._stopped.set()
