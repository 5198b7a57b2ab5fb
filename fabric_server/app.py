"""A whole server: everything is made here, once, and handed to who needs it."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable
from random import Random
from typing import Any, Literal

from aiohttp import web

from fabric_server import admin as api
from fabric_server.auth.keys import Accounts
from fabric_server.config import Config
from fabric_server.edge.connection import Edge, Limits
from fabric_server.edge.router import Router
from fabric_server.gateway.gateway import Gateway
from fabric_server.gateway.models import ModelCatalog
from fabric_server.jobs.files import OVERHEAD
from fabric_server.jobs.service import Jobs
from fabric_server.net.deadlines import Deadlines
from fabric_server.net.listener import Listener, Port
from fabric_server.net.takeover import Predecessor, TakeoverProblem
from fabric_server.nodes.links import BUSY_TUNNEL, Links
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.tunnels import Tunnels
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.enrolment import Enrolment
from fabric_server.pki.tls_contexts import TlsContexts
from fabric_server.proxy.attempt import Timeouts
from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.metrics import Metrics
from fabric_server.routing.admission import Admission
from fabric_server.routing.aliases import parse_aliases
from fabric_server.routing.load_balancer import LoadBalancer
from fabric_server.routing.weights import parse_weights
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.connect import open_bus, open_cache, open_store
from fabric_server.storage.orphaned_spools import move_orphaned_spools
from fabric_server.storage.rows import Changes
from fabric_server.storage.store import SqlStore
from ledger.batch_writer import BatchOptions, BatchWriter, Source
from ledger.housekeeping import Housekeeper
from protocol.names import CONTROL_ALPN, TUNNEL_ALPN
from runtime.waiting import reached

log = logging.getLogger("fabric.server")

ONWARD = BatchOptions(batch_size=5_000, batch_seconds=0.5)
"""Batches for Kafka: its broker spends more on each batch than on the records in it."""
OFFLINE_HEARTBEATS = 4
"""After so many were missed, a node counts as offline."""

LOAD_SECONDS = 0.25
"""How often busy nodes are looked for that could do with one tunnel more."""

NODE_PORTS = ("control", "proxy")
USER_PORTS = ("public", "api")
NODES_COME_SECONDS = 5.0
"""After so long without one more, those nodes that are still missing are not waited for."""
LINGER_SECONDS = 1.0
"""How long idle connections of users are answered on while draining."""
LINGER_AFTER_SUCCESSION = 10.0
"""The same when nobody waits for the end of it."""

GC_THRESHOLD = (10_000, 20, 50)
"""Requests leave no cycles behind, so that looking for some more rarely costs little memory."""
KNOWN_SECONDS = 30 * 86_400.0
"""Models of nodes that were here in this time are called unavailable rather than unknown."""


class App:
    """Use ``start``, then ``run`` until a stop is wanted, then ``stop``."""

    make_gateway = Gateway

    def __init__(self, config: Config, *, rng: Random) -> None:
        self.config = config
        self.rng = rng
        self.metrics = Metrics()
        self.deadlines = Deadlines()
        self.draining = False
        self.succeeded = asyncio.Event()
        """Set when another server has taken over."""
        self._predecessor: Predecessor | None = None
        self.started_at = time.time()
        self.listeners: dict[str, Listener] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.store: SqlStore

    # ── starting ──────────────────────────────────────────────────────────────────────────────

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Open what is needed, the four ports last.

        With a predecessor the ports are those that it still listens on: ``take_over`` then.
        Raises CertificateProblem, BackendError or PortProblem; each says what to do.
        """
        config = self.config
        self._predecessor = predecessor
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = time.time()
        self.certificates = Certificates.open(config.data / "certs", config.names(), now=now)
        self.contexts = TlsContexts(self.certificates, config.public_certificate, config.public_key)
        await self._open_back_ends()
        self.accounts = Accounts(self.store, self.cache)
        known = await self.store.known_models(now - KNOWN_SECONDS)
        self.registry = Registry(known)
        self.admission = Admission(
            self.registry,
            rng=self.rng,
            queue_length=config.queue_length,
            queue_length_per_key=config.queue_length_per_key,
            queue_timeout=config.queue_timeout,
            router=LoadBalancer(
                self.registry.engine, self.rng, weights=parse_weights(config.weights)
            ),
        )
        self.gateway = self._gateway()
        self.accounts.on_cut = self.gateway.cut
        public = self._public()
        self.edge = Edge(
            public.handle, self.limits(), self.deadlines, self.rng, self.metrics.errors
        )
        self.tunnels = Tunnels(self.registry, self.rng)
        self.enrolment = self._enrolment()
        listeners = [self.accounts.changed, self._on_changes]
        self.watch = ChangeFeed(self.store, listeners, self.cache)
        await self._open_ports()
        self._jobs_run = self._begin(self.jobs.run())
        self._begin(self.worker.run())
        if self.way.spool is not None:
            self._begin(
                move_orphaned_spools(self.way.spool, config.spool_limit, self._leftovers_worker)
            )
        self._begin(self.watch.run())
        self._begin(self.deadlines.run())
        self._begin(self.contexts.watch(time.time))
        self._begin(self._look_for_load())
        gc.collect()
        gc.freeze()  # what exists now lives as long as the server
        gc.set_threshold(*GC_THRESHOLD)

    async def _open_back_ends(self) -> None:
        config, wait = self.config, self.config.wait_for_backends
        self.store = await reached(lambda: open_store(config.store_url), wait=wait)
        self.cache = await reached(lambda: open_cache(config.cache), wait=wait)
        self.way = await reached(
            lambda: open_bus(
                config.bus,
                directory=config.data / "spool",
                limit=config.spool_limit,
                takeover=config.takeover,  # also when only a draining one is left
            ),
            wait=wait,
        )
        self.bus = self.way.bus
        if self.way.sink is None:
            offline = OFFLINE_HEARTBEATS * config.heartbeat_seconds
            housekeeper = Housekeeper(self.store, offline_seconds=offline)
            self.worker = BatchWriter(self.bus, self.store, housekeeper)
        else:  # the store is written, and kept in order, by fabric-consumer
            self.worker = BatchWriter(self.bus, self.way.sink, options=ONWARD)

    def _leftovers_worker(self, source: Source) -> BatchWriter:
        options = BatchOptions(batch_size=ONWARD.batch_size)
        return BatchWriter(source, self.way.sink or self.store, options=options)

    def _gateway(self) -> Gateway:
        config = self.config
        return self.make_gateway(
            accounts=self.accounts,
            registry=self.registry,
            admission=self.admission,
            deadlines=self.deadlines,
            bus=self.bus,
            metrics=self.metrics,
            timeouts=self.timeouts(),
            aliases=parse_aliases(config.aliases),
            hedging=Hedging(on=config.hedge == "p95"),
        )

    def timeouts(self) -> Timeouts:
        config = self.config
        return Timeouts(
            first_byte=config.first_byte_timeout,
            stall=config.stall_timeout,
            idle=config.idle_timeout,
            slow_reader=config.slow_reader_timeout,
            total=config.stream_limit,
        )

    def _public(self) -> Router:
        public = Router(self.metrics.errors)
        self.gateway.add_to(public)
        aliases = parse_aliases(self.config.aliases)
        complete = self.gateway.complete
        self.catalogue = ModelCatalog(self.accounts, self.registry, aliases, complete)
        self.catalogue.add_to(public)
        self.jobs = Jobs(
            self.config,
            self.store,
            self.accounts,
            self.registry,
            self.admission,
            public,
            aliases,
            new_id=lambda: self.edge.new_id(),
            must_wait=self.gateway.limits.must_wait,
            rng=self.rng,
        )
        return public

    def _enrolment(self) -> Enrolment:
        return Enrolment(
            self.store,
            self.certificates,
            host=self.config.names()[0],
            port=lambda name: self.listeners[name].port,
            lifetime=self.certificate_seconds(),
        )

    def certificate_seconds(self) -> float:
        return self.config.node_certificate_days * 86_400.0

    def limits(self) -> Limits:
        config = self.config
        return Limits(
            body=config.body_limit,
            headers=config.headers_limit,
            header_count=config.headers_count,
            header_seconds=config.header_timeout,
            body_rate=config.body_rate,
            keepalive_seconds=config.keepalive_timeout,
            larger={"/v1/files": config.file_limit + OVERHEAD},
        )

    async def _open_ports(self) -> None:
        """The numbers of the node ports must be known before a node can be told them."""
        config, contexts = self.config, self.contexts
        proxy = self._listen("proxy", config.proxy_port, self.tunnels, contexts.tunnel, TUNNEL_ALPN)
        self.links = Links(
            registry=self.registry,
            store=self.store,
            renewals=self.enrolment,
            bus=self.bus,
            rng=self.rng,
            proxy_port=proxy.port,
            tunnels=config.tunnels,
            tunnels_most=config.tunnels_most,
            heartbeat_seconds=config.heartbeat_seconds,
        )
        self._listen("control", config.control_port, self.links, contexts.control, CONTROL_ALPN)
        self._listen("public", config.public_port, self.edge, contexts.public)
        self._api = web.AppRunner(api.make(self), handle_signals=False, shutdown_timeout=5.0)
        await self._api.setup()
        assert self._api.server is not None
        self._listen("api", config.api_port, api.protocol(self._api.server), contexts.public)

    def _listen(
        self,
        name: str,
        number: int,
        protocol: Callable[[], asyncio.BaseProtocol],
        context: Callable[[], ssl.SSLContext],
        alpn: str | None = None,
    ) -> Listener:
        plaintext: Literal["loopback", "never"] = "never" if alpn else "loopback"
        listener = Listener(
            Port(name, self.config.host, number, protocol, context, plaintext, alpn)
        )
        older = self._predecessor
        listener.open(older.sockets(name, self.config.host, number) if older is not None else ())
        self.listeners[name] = listener
        return listener

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    # ── from one server to the next ───────────────────────────────────────────────────────────

    async def take_over(self, predecessor: Predecessor) -> None:
        """Make before break: first the nodes, then the users.

        Should the predecessor die meanwhile, its nodes come by themselves.  Raises
        ``TakeoverProblem`` when it has some and none comes: then it had better go on.
        """
        count = await predecessor.yield_nodes()
        self._accept(NODE_PORTS)
        came = await self._nodes_come(count)
        log.info("nodes have come over", extra={"nodes": came, "of": count})
        if count and not came:
            raise TakeoverProblem(
                f"none of the {count} nodes of the running server has come over, so that it goes "
                "on: are store and certificates the same? If so, stop it and start this one."
            )
        self._accept(USER_PORTS)
        await predecessor.yield_users()

    async def _nodes_come(self, count: int) -> int:
        """Until so many are here, or none has come for a while."""
        came, since = 0, time.monotonic()
        while came < count and time.monotonic() - since < NODES_COME_SECONDS:
            await asyncio.sleep(0.05)
            here = sum(node.reachable for node in self.registry.nodes())
            if here != came:
                came, since = here, time.monotonic()
        return came

    def yield_nodes(self) -> int:
        """To a successor that listens already: tell the nodes to register there.  They serve this
        server until it has finished.  Returns how many there are."""
        for name in NODE_PORTS:
            self.listeners[name].rest()
        self.links.drain(self.config.drain_seconds)
        return sum(node.reachable for node in self.registry.nodes())

    def keep_nodes(self) -> None:
        """The successor has failed: take back what was yielded."""
        if self.draining:
            return
        self.links.stay()
        self._accept(NODE_PORTS)

    def yield_users(self) -> None:
        """To a successor that has nodes: it takes all that is new, and ``run`` ends."""
        for name in USER_PORTS:
            self.listeners[name].rest()
        self.succeeded.set()

    def _accept(self, names: Iterable[str]) -> None:
        for name in names:
            self.listeners[name].begin()

    # ── running ───────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set or a successor has taken over.  A part that fails is a defect and
        ends the server."""
        loop = asyncio.get_running_loop()
        ends = [loop.create_task(event.wait()) for event in (stop, self.succeeded)]
        try:
            done, _ = await asyncio.wait((*ends, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for end in ends:
                end.cancel()

    async def _look_for_load(self) -> None:
        while True:
            await asyncio.sleep(LOAD_SECONDS)
            if self.gateway.active > BUSY_TUNNEL:  # fewer can't fill any node's tunnels
                self.links.look_for_load()

    def _on_changes(self, changes: Changes) -> None:
        """Nodes that another process has revoked or drained, or a restored store never knew."""
        lasting = {node.id for node in changes.nodes if node.revoked_at is None}
        gone = {node.id for node in changes.nodes if node.revoked_at is not None}
        if changes.everything:
            gone |= {node.id for node in self.registry.nodes()} - lasting
        for node_id in gone:
            self.links.revoked(node_id)
        for node in changes.nodes:
            self.links.drained(node.id, node.draining)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────

    async def drain(self) -> None:
        """Stop accepting, let what runs finish, at most for ``drain_seconds``."""
        self.draining = True
        seconds = self.config.drain_seconds
        succeeded = self.succeeded.is_set()
        log.info(
            "draining",
            extra={"requests": self.gateway.active, "seconds": seconds, "succeeded": succeeded},
        )
        for name in (*NODE_PORTS, *USER_PORTS) if succeeded else (*NODE_PORTS, "public"):
            self.listeners[name].stop_accepting()
        self.jobs.drain()
        if not self.links.draining:
            self.links.drain(seconds)
        if succeeded and self._api.server is not None:
            # Or who keeps a connection to ask whether this server is ready is told that it is not,
            # though the one that answers there now is.
            for connection in self._api.server.connections:
                connection.close()
        self.edge.drain(LINGER_AFTER_SUCCESSION if succeeded else LINGER_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self.listeners["public"].welcomed()
                await self.gateway.idle()
                await self.edge.empty()
        except TimeoutError:
            if self.gateway.active:
                log.warning("requests broken off", extra={"count": self.gateway.active})

    async def stop(self) -> None:
        """Close everything, the store last; what the ledger still holds is written."""
        self.draining = True
        for listener in self.listeners.values():
            await listener.close()
        if "proxy" in self.listeners:
            self.edge.close()
            if hasattr(self, "_jobs_run"):  # what it runs is under way at the gateway
                self._jobs_run.cancel()
                await asyncio.wait([self._jobs_run])
            await self.gateway.idle()
            self.tunnels.close()
            self.links.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_api"):
            await self._api.cleanup()
        for name in ("way", "cache", "store"):  # the start may have failed between them
            if hasattr(self, name):
                await getattr(self, name).close()
