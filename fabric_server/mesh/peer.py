"""One other server: what it holds, the requests that go to it, and those that come from it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from time import time

from fabric_server.mesh.digest import Digest, DigestSender
from fabric_server.mesh.forwarded import ForwardedBody, ForwardedWork
from fabric_server.mesh.tunnels import AnsweringTunnel, OpeningTunnel
from fabric_server.mesh.views import Answer, Question, Questions
from fabric_server.mesh.waiting import PeerLost, Waiting, WaitingElsewhere
from fabric_server.nodes.home import Forwarded, HomeNode
from fabric_server.nodes.node import Engine
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import (
    Choice,
    forward,
    forwarded_head,
    forwarded_requirements,
)
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.load_balancer import choose_waited_for
from protocol import mesh
from protocol.aio.node import NodeStream
from protocol.aio.server import AnswerHandler, ServerStream
from protocol.aio.tunnel import StreamHandler
from protocol.errors import Code
from protocol.mesh import (
    DigestUpdate,
    ForwardedRequest,
    HomeEngine,
    QueueLoad,
    Unpacker,
    View,
)
from protocol.messages import UNREADABLE, Figures, RequestHead, ResponseHead

log = logging.getLogger("fabric.mesh")

STALE_SECONDS = 3.0
"""Silence after which it gets no requests."""
MAX_REGIONS = 64


class Peer:
    """Another server (``nodes.home.Peer``), while it is connected."""

    def __init__(
        self,
        name: str,
        upstream: UpstreamContext,
        digest: Digest,
        on_idle: Callable[[], None],
        answer: Answer,
    ) -> None:
        """``on_idle`` is called when the last of its requests here has ended; ``answer`` says what
        this server shows to others."""
        self.name = name
        self.held = Counter[str]()
        """The slots that its requests hold here, by the names of the rows to which it counts them:
        an engine may be in another row when they end."""
        self.homes: dict[str, HomeNode] = {}
        """The other server's engines, as nodes, by region."""
        self.opening: OpeningTunnel | None = None
        self.answering: AnsweringTunnel | None = None
        self.queues: dict[str, QueueLoad] = {}
        """Its queues that are not empty, by model."""
        self.nodes = 0
        """Its nodes that requests can be sent to."""
        self.told_at = upstream.loop.time()
        self._upstream = upstream
        self._digest = digest
        self._on_idle = on_idle
        self._questions = Questions(upstream.loop, answer)
        self.tells: list[DigestSender] = []
        """The stream in which it is told what is here; none before it has asked."""
        self._elsewhere: dict[str, WaitingElsewhere] = {}
        """Requests of this server that wait there."""
        self._waiting: dict[str, Waiting] = {}
        """Its requests that wait here, or have got a slot and not come yet."""

    def __repr__(self) -> str:
        return f"<Peer {self.name} {self.opening!r}>"

    # ── requests of this server that go there ─────────────────────────────────────────────────

    @property
    def usable(self) -> bool:
        return self.opening is not None and self.opening.connection.usable

    def open(
        self,
        head: ForwardedRequest,
        handler: AnswerHandler,
        forwarded: Forwarded,
        body: bytes,
        *,
        ended: bool,
    ) -> ServerStream:
        assert self.opening is not None
        return self.opening.forward(head, handler, forwarded, body, ended=ended)

    async def wait(self, requirements: Requirements, deadline: float, request_id: str) -> Choice:
        """Wait in its queue, and return the slot.  Raises ``ApiError`` or ``PeerLost``."""
        if not self.usable:
            raise PeerLost("it is not connected")
        assert self.opening is not None
        loop, registry = self._upstream.loop, self._upstream.registry
        milliseconds = max(1, int((deadline - loop.time()) * 1000))
        head = RequestHead(request_id, "", "POST", requirements.path, [], 0, milliseconds)
        handler = WaitingElsewhere(loop)
        opened = forwarded_head(head, requirements, purpose=mesh.WAIT)
        handler.stream = self.opening.forward(opened, handler, None, ended=True)
        self._elsewhere[request_id] = handler
        try:
            row = await handler.granted
        except BaseException:
            handler.stream.reset(Code.CANCELLED, "the request is not waiting any more")
            raise
        finally:
            del self._elsewhere[request_id]
        engine = self._engine(row, requirements.model)
        if engine is None:
            handler.stream.reset(Code.CANCELLED, "what it serves has changed")
            raise PeerLost("what it serves has changed")
        registry.take(engine, requirements.key_id, loop.time())
        return forward(choose_waited_for(engine, requirements), requirements, granted=True)

    def position(self, request_id: str) -> int | None:
        waiting = self._elsewhere.get(request_id)
        return None if waiting is None else waiting.position

    def _engine(self, row: str, model: str) -> Engine | None:
        """Return the engine of that row, or another one there that serves the model."""
        other = None
        for home in self.homes.values():
            for engine in home.engines.values():
                if engine.name == row:
                    return engine
                if engine.serves(model):
                    other = engine
        return other

    # ── questions of this server ──────────────────────────────────────────────────────────────

    async def ask(self, question: Question, seconds: float) -> View:
        """Return its view.  Raises ``PeerLost`` with the reason if there is none in time."""
        return await self._questions.ask(self.opening, question, seconds)

    # ── what it tells ─────────────────────────────────────────────────────────────────────────

    def ask_for_digest(self) -> None:
        """Have it tell what it serves, from now on."""
        assert self.opening is not None
        reader = _DigestReader(self)
        head = ForwardedRequest("digest", "", "GET", "", [], 0, 0, purpose=mesh.DIGEST)
        reader.stream = self.opening.forward(head, reader, None, ended=True)

    def on_digest(self, update: DigestUpdate) -> None:
        registry, self.told_at = self._upstream.registry, self._upstream.loop.time()
        self.queues = {queue.model: queue for queue in update.queues}
        self.nodes = update.nodes
        roomy = {home for home in self.homes.values() if not home.fresh}
        for home in roomy:
            home.fresh = True
        if update.rows is not None:
            self._take_rows(update.rows)
        for load in update.load:
            for home in self.homes.values():
                engine = home.engines.get(load.row)
                if engine is not None:
                    engine.elsewhere = load.elsewhere
                    engine.refresh()
                    roomy.add(home)
        for home in self.homes.values():  # some may be gone with their rows
            if home in roomy:
                registry.on_room(home)

    def _take_rows(self, rows: list[HomeEngine]) -> None:
        registry, regions = self._upstream.registry, dict[str, list[HomeEngine]]()
        for row in rows:
            if row.region in regions or len(regions) < MAX_REGIONS:
                regions.setdefault(row.region, []).append(row)
        for region in self.homes.keys() - regions.keys():
            registry.remove(self.homes.pop(region))
        for region, its_rows in regions.items():
            home = self.homes.get(region)
            if home is None:
                id = f"{self.name}/{region}" if region else self.name
                home = self.homes[region] = HomeNode(id, region, self, time())
                if self.opening is not None:
                    home.tunnels.append(self.opening)
                registry.add(home)
            registry.report(home, its_rows)

    def check(self, now: float) -> None:
        """Send it no requests while it is silent."""
        if now - self.told_at > STALE_SECONDS:
            for home in self.homes.values():
                home.fresh = False

    # ── its requests, which come here ─────────────────────────────────────────────────────────

    def accept(self, stream: NodeStream, head: RequestHead, ended: bool) -> StreamHandler | None:
        """Take a stream that it has opened."""
        assert isinstance(head, ForwardedRequest)
        if head.purpose == mesh.DIGEST:
            if self.tells:
                self.tells.pop().stop()
            sender = DigestSender(stream, self.held)
            self.tells.append(sender)
            self.tell(self._upstream.loop.time())
            return sender
        if head.purpose == mesh.ASK:
            return self._questions.accept(stream, head)
        if head.purpose == mesh.WAIT:
            if head.request_id in self._waiting:
                stream.reset(Code.PROTOCOL, "this request waits already")
                return None
            waiting = self._waiting[head.request_id] = Waiting(
                self._upstream,
                stream,
                head,
                lambda engine: self._digest.row_of.get(engine, ""),
                self._count,
                self._forget_waiting,
            )
            return waiting
        return self._begin(stream, head, ended)

    def _begin(
        self, stream: NodeStream, head: ForwardedRequest, ended: bool
    ) -> StreamHandler | None:
        upstream, now = self._upstream, self._upstream.loop.time()
        requirements, choice = forwarded_requirements(head), None
        waiting = self._waiting.get(head.request_id) if head.granted else None
        if waiting is not None:
            choice = waiting.take()
        if choice is None:
            choice = upstream.admission.admit_now(requirements, now)
        opener = None if choice is None else choice.opener(now)
        if choice is None or opener is None:
            if choice is not None:
                upstream.registry.release(choice.engine, choice.key_id)
            stream.reset(Code.REFUSED, "no slot is free")
            for sender in self.tells:
                sender.repeat()
            return None
        row = head.engine
        self._count(row, 1)
        work = ForwardedWork(
            upstream, stream, requirements, choice, lambda engine: self._count(row, -1)
        )
        work.begin(opener, head, ended=ended)
        return ForwardedBody(work)

    def _forget_waiting(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def _count(self, row: str, change: int) -> None:
        count = self.held[row] = self.held[row] + change
        if not count:
            del self.held[row]
            if not self.held:
                self._on_idle()

    def tell(self, now: float) -> None:
        """Tell it what has changed here."""
        waiting: Mapping[str, tuple[int, float]] = self._upstream.admission.waiting_by_model()
        for sender in self.tells:
            sender.send(self._digest, waiting, now)

    # ── the end ───────────────────────────────────────────────────────────────────────────────

    def close(self, code: Code, reason: str) -> None:
        """Close both tunnels; what runs on them is lost."""
        for tunnel in (self.opening, self.answering):
            if tunnel is not None:
                tunnel.close(code, reason)

    def drain(self, reason: str, seconds: float) -> None:
        """Take no new requests from it; those that run may finish."""
        if self.answering is not None:
            self.answering.drain(reason, seconds)
        while self.tells:
            self.tells.pop().finish()

    def leave(self) -> None:
        """Take what it holds out of the registry."""
        for home in self.homes.values():
            self._upstream.registry.remove(home)
        self.homes.clear()
        self.nodes = 0

    @property
    def active(self) -> int:
        """Return how many of its requests run here."""
        return sum(self.held.values())


class _DigestReader:
    """The handler of the stream in which the other server tells what it serves."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.stream: ServerStream
        self._unpacker = Unpacker[DigestUpdate](DigestUpdate)

    def on_head(self, head: ResponseHead) -> None:
        """Do nothing: messages follow."""

    def on_data(self, data: bytes, ended: bool) -> None:
        self.stream.consumed(len(data))
        try:
            for update in self._unpacker.feed(data):
                self._peer.on_digest(update)
        except UNREADABLE as error:
            self._peer.close(Code.PROTOCOL, f"a digest can't be read: {error}")

    def on_end(self, figures: Figures) -> None:
        """Do nothing: the other server leaves, and has told so."""

    def on_reset(self, code: int, reason: str) -> None:
        self._peer.close(Code.PROTOCOL, "the digests have ended")

    def on_stuck(self) -> None:
        """Do nothing: it is lost if the other server stays silent."""

    def on_writable(self) -> None:
        """Do nothing: it says nothing."""
