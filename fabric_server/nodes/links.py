"""Port 17000: nodes register, report, renew their certificates, and get instructions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from random import Random
from time import monotonic, time
from typing import Any, Protocol

from fabric_server.dialects.errors import ApiError
from fabric_server.net.connection_budget import Peer
from fabric_server.nodes import registrar
from fabric_server.nodes.link_settings import LinkSettings
from fabric_server.nodes.node import Node
from fabric_server.nodes.registrar import (
    CONTESTED,
    Presented,
    Refusal,
    Registrar,
    key_sha256_of,
    node_id_of,
)
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.served_models import Variants, variants_of
from fabric_server.nodes.watch import NodeWatch
from fabric_server.storage.rows import NodeRow
from ledger.records import HEARTBEATS, HeartbeatRecord
from protocol.aio.link import LinkDriver
from protocol.control.link import LinkClosed
from protocol.engine_changes import EngineChanges
from protocol.errors import Code
from protocol.messages import (
    EngineReport,
    Engines,
    Heartbeat,
    Leaving,
    Message,
    Register,
    Renew,
    Renewed,
    Tunnels,
)
from protocol.token_bucket import TokenBucket
from runtime.background import log_failure
from runtime.errors import BackendError
from runtime.outage import Outage

log = logging.getLogger("fabric.links")

BUSY_TUNNEL = 32
"""Streams per tunnel above which a node is asked for one more tunnel."""
PLANNED_STREAMS = 192
"""A node opens one tunnel for so many slots, before they are needed.  A tunnel has more streams, so
that the others can take over what a lost one carried."""
MOST_TUNNELS = 16
"""Limit of the protocol."""


def tunnels_for(engines: Sequence[EngineReport]) -> int:
    """Return how many tunnels these engines' slots need when all are taken."""
    slots = sum(engine.slots for engine in engines)
    return min(MOST_TUNNELS, -(-slots // PLANNED_STREAMS))


HEARTBEAT_BURST = 10.0
"""Heartbeats of one registration that are stored at once; then twice as many as were asked for."""
RENEWALS, RENEWALS_PER_SECOND = 10.0, 0.1
"""Renewals of one registration: a token bucket."""
PROBLEM_SECONDS = 1.0
"""Least time between two writes of a node's problem."""


class Store(registrar.Store, Protocol):
    async def mark_node_online(
        self, id: str, at: float, *, platform: str, version: str, region: str
    ) -> None: ...
    async def add_served_models(
        self, node_id: str, models: Sequence[str], at: float, variants: Variants
    ) -> None: ...
    async def set_node_problem(self, id: str, epoch: int, problem: str) -> None: ...


class Renewals(Protocol):
    async def renew(self, node_id: str, csr: str) -> str: ...


class Bus(Protocol):
    def publish(self, topic: str, record: HeartbeatRecord) -> None: ...


class Links:
    """Makes links for the listener, and keeps the registry up to date."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: Store,
        renewals: Renewals,
        bus: Bus,
        rng: Random,
        settings: LinkSettings,
    ) -> None:
        self.outage = Outage("the store")
        """The store's outage; whoever builds the server sets its own."""
        self.registry = registry
        self.store = store
        self.renewals = renewals
        self.bus = bus
        self.settings = settings
        self.registrar = Registrar(store)
        self.watch = NodeWatch(registry)
        self.refused = 0
        self.reconnects = 0
        self._rng = rng
        self._open: set[NodeLink] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: Leaving | None = None
        self._drained: dict[str, bool] = {}

    def __call__(self, peer: Peer) -> LinkDriver:
        driver = LinkDriver(NodeLink(self, peer), asyncio.get_running_loop(), rng=self._rng)
        driver.on_lost = peer.release
        if peer.proxied:
            driver.peer = str(peer.ip)
        return driver

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the work that a message asks for; it ends with the server at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)

    def opened(self, link: NodeLink) -> None:
        self._open.add(link)

    def closed(self, link: NodeLink) -> None:
        self._open.discard(link)

    def disconnect(self, node_id: str, reason: str) -> None:
        """Close a node's link, for which it may come again; what runs on it may finish."""
        node = self.registry.node(node_id)
        if node is not None and node.link is not None:
            node.link.close(Code.UNAUTHORISED, reason)

    def on_registered_elsewhere(
        self, node_id: str, epoch: int, instance: str, address: str
    ) -> None:
        """End the link of a node that has registered as ``epoch`` with another worker."""
        self.registrar.note_elsewhere(node_id, instance, address)
        node = self.registry.node(node_id)
        if node is not None and node.epoch < epoch:
            _supersede(node)

    def revoke(self, node_id: str) -> None:
        """Disconnect a node that the operator revoked, at once, whatever runs on it."""
        node = self.registry.node(node_id)
        if node is not None:
            for tunnel in list(node.tunnels):
                tunnel.close(Code.UNAUTHORISED, "this node was revoked")
            if node.link is not None:
                node.link.close(Code.UNAUTHORISED, "this node was revoked", again=False)
        self.registry.departures.forget(node_id)

    def set_drained(self, node_id: str, drained: bool) -> None:
        """Apply what the store says: whether the node is to get no new requests.

        Running requests finish.
        """
        self._drained[node_id] = drained
        node = self.registry.node(node_id)
        if node is not None and node.drained is not drained:
            node.drained = drained
            log.info("node drained" if drained else "node undrained", extra={"node": node_id})
            if not drained:
                self.registry.room(node)

    def is_drained(self, row: NodeRow) -> bool:
        """Return whether a node that registers is drained.

        A change notice that arrived while ``row`` was being read goes before the row: it may be
        newer, and if it is older, a newer notice is still to come.
        """
        return self._drained.get(row.id, row.draining)

    def request_more_tunnels(self) -> None:
        """Ask busy nodes for one more tunnel; called periodically."""
        for node in self.registry.nodes():
            count = len(node.tunnels)
            streams = sum(tunnel.connection.active for tunnel in node.tunnels)
            busy = 0 < count < self.settings.max_tunnels and streams > BUSY_TUNNEL * count
            if busy and node.link is not None:
                node.link.send(Tunnels(count + 1))

    def check_nodes(self) -> None:
        """Look for problems that nodes don't report; called periodically."""
        self.watch.check(monotonic(), self.settings.proxy_port)
        for link in self._open:
            link.check_problem()

    def drain(self, seconds: float) -> None:
        """Announce to every node that this server is leaving, and refuse new registrations.

        The nodes register with the successor, if there is one, and serve this server until
        ``close``.
        """
        self._draining = Leaving("the server is shutting down", seconds)
        for link in list(self._open):
            if link.driver is not None:
                link.driver.send(self._draining)

    def cancel_drain(self) -> None:
        """Take back ``drain``: nodes may register again, and those that were notified will."""
        self._draining = None

    @property
    def draining(self) -> bool:
        return self._draining is not None

    def close(self) -> None:
        for link in list(self._open):
            if link.driver is not None:
                link.driver.close(Code.DRAINING, "the server is shutting down")
        for task in self._tasks:
            task.cancel()


def _supersede(older: Node) -> None:
    if older.link is not None:
        # One that says which process it is comes back if it still runs: then two hold a key.
        reason = "this node has registered again, perhaps on another machine"
        older.link.close(Code.SUPERSEDED, reason, again=bool(older.instance))


class NodeLink:
    """The server's end of one link (``protocol.aio.link.LinkOwner``)."""

    def __init__(self, links: Links, peer: Peer) -> None:
        self._peer = peer
        self.driver: LinkDriver | None = None
        self._links = links
        self._node: Node | None = None
        self._registering = False
        self._tunnels = 0
        """Tunnels that the node was told to keep."""
        self._heartbeats = self._renewals = TokenBucket(0.0, 1.0, 0.0)
        self._stored_problem: str | None = None
        self._storing = False
        self._changes = EngineChanges()

    # ── callbacks of the link ─────────────────────────────────────────────────────────────────

    def on_message(self, link: LinkDriver, message: Message) -> None:
        self.driver = link
        node = self._node
        if isinstance(message, Register):
            if self._registering:
                link.close(Code.PROTOCOL, "already registered", again=False)
                return
            self._registering = True
            self._links.opened(self)
            self._links.spawn(self._register(link, message))
        elif node is None:
            if not self._registering:
                link.close(Code.PROTOCOL, "the first message must be 'register'", again=False)
        elif isinstance(message, Heartbeat):
            self._on_heartbeat(node, message)
        elif isinstance(message, Engines):
            self._report(node, message.engines)
        elif isinstance(message, Renew):
            self._links.spawn(self._renew(link, node, message))
        elif isinstance(message, Leaving):
            node.draining = True
            log.info("node is leaving", extra={"node": node.id, "reason": message.reason})
        else:
            link.close(Code.PROTOCOL, f"{type(message).__name__} from a node", again=False)

    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None:
        self._links.closed(self)
        node = self._node
        if node is None:
            self._links.refused += 1
            log.info("link refused", extra={"peer": link.peer, "reason": closed.reason})
            return
        current = self._links.registry.remove(node)
        for tunnel in node.tunnels:  # what runs may finish; nothing new begins
            tunnel.drain("the node's link is closed", 60.0)
        log.info(
            "node left",
            extra={
                "node": node.id,
                "epoch": node.epoch,
                "reason": closed.reason,
                "superseded": not current,
            },
        )

    # ── work ──────────────────────────────────────────────────────────────────────────────────

    async def _register(self, link: LinkDriver, register: Register) -> None:
        links, certificate = self._links, link.peer_certificate()
        presented = Presented(
            node_id_of(certificate),
            certificate,
            key_sha256_of(link.peer_certificate_der()),
            link.peer.rpartition(":")[0],
        )
        try:
            admitted = await links.registrar.admit(presented, register)
        except BackendError as error:
            node_id = presented.node_id
            links.outage.note(log, "node not registered", node=node_id, reason=str(error))
            return link.close(Code.INTERNAL, "the server can't reach its store")
        if isinstance(admitted, Refusal):
            if admitted.reason == CONTESTED:
                links.disconnect(presented.node_id, CONTESTED)
            return link.close(admitted.code, admitted.reason, again=admitted.again)
        if link.link.closed:
            return None
        if links.draining:  # the next attempt may reach a successor
            return link.close(Code.DRAINING, "the server is shutting down")
        row, epoch = admitted
        node = Node(row.id, epoch, register, link, time())
        node.drained = links.is_drained(row)
        self._node = node
        self._peer.recognise()
        older = links.registry.add(node)
        if older is not None:
            _supersede(older)
        links.registrar.on_registered(row.id, epoch, register.instance, presented.address)
        links.reconnects += older is not None
        settings = links.settings
        self._tunnels = max(settings.tunnels, tunnels_for(register.engines))
        link.send(settings.registered(node, self._tunnels))
        now = monotonic()
        self._heartbeats = TokenBucket(HEARTBEAT_BURST, 2 / settings.heartbeat_seconds, now)
        self._renewals = TokenBucket(RENEWALS, RENEWALS_PER_SECOND, now)
        links.spawn(self._store_seen(node))
        self._report(node, register.engines)
        log.info(
            "node registered",
            extra={
                "node": node.id,
                "label": node.name,
                "epoch": epoch,
                "peer": link.peer,
                "models": sum(len(engine.models) for engine in node.engines.values()),
                "slots": node.slots,
            },
        )
        return None

    def _report(self, node: Node, engines: Sequence[EngineReport]) -> None:
        for message, about in self._changes.compare(engines):
            log.info(message, extra={"node": node.id, **about})
        needed = tunnels_for(engines)
        if needed > self._tunnels and node.link is not None:
            self._tunnels = needed
            node.link.send(Tunnels(needed))
        new = self._links.registry.report(node, engines)
        if new:
            self._links.spawn(self._store_models(node, new, variants_of(engines)))
        self._note_problem(node)

    def check_problem(self) -> None:
        """Store the problem of the node anew if it has changed without a report."""
        if self._node is not None:
            self._note_problem(self._node)

    def _note_problem(self, node: Node) -> None:
        if not self._storing and self._links.registry.problem(node) != self._stored_problem:
            self._storing = True
            self._links.spawn(self._store_problem(node))

    async def _store_problem(self, node: Node) -> None:
        """Store the node's problem, one write at a time, so that the last report is stored last."""
        try:
            while (problem := self._links.registry.problem(node)) != self._stored_problem:
                await self._links.store.set_node_problem(node.id, node.epoch, problem)
                self._stored_problem = problem
                await asyncio.sleep(PROBLEM_SECONDS)
        except BackendError as error:  # stored with the next report that differs
            self._links.outage.note(
                log, "the problem of a node was not stored", node=node.id, reason=str(error)
            )
        finally:
            self._storing = False

    async def _store_models(self, node: Node, models: Sequence[str], variants: Variants) -> None:
        try:
            await self._links.store.add_served_models(node.id, models, time(), variants)
        except BackendError as error:  # forgotten after a restart; nothing else is lost
            self._links.outage.note(
                log, "the models of a node were not stored", node=node.id, reason=str(error)
            )

    async def _store_seen(self, node: Node) -> None:
        try:
            await self._links.store.mark_node_online(
                node.id,
                time(),
                platform=node.platform,
                version=node.release,
                region=node.region,
            )
        except BackendError as error:
            self._links.outage.note(
                log, "the state of a node was not stored", node=node.id, reason=str(error)
            )

    async def _renew(self, link: LinkDriver, node: Node, renew: Renew) -> None:
        if self._renewals.take(1, monotonic()) < 0:
            return  # the node asks again, less often
        try:
            certificate = await self._links.renewals.renew(node.id, renew.request)
        except ApiError as error:
            log.warning("renewal refused", extra={"node": node.id, "reason": error.message})
            return
        link.send(Renewed(certificate))
        log.info("certificate renewed", extra={"node": node.id})

    def _on_heartbeat(self, node: Node, heartbeat: Heartbeat) -> None:
        node.heartbeat = heartbeat
        self._links.watch.heartbeat(node, heartbeat.at - time())
        if self._heartbeats.level(monotonic()) < 1:
            return  # too many: the latest is shown, and the store gets as many as were asked for
        self._heartbeats.take(1, monotonic())
        now = time()
        links = self._links
        links.bus.publish(
            HEARTBEATS, HeartbeatRecord(node.id, node.epoch, heartbeat.seq, now, heartbeat)
        )
