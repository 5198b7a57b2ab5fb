"""A whole server: its parts are built, started and stopped here, and handed over to a successor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from random import Random

from fabric_server.acme.renewal import NO_ORDERS, AcmeRenewal
from fabric_server.admin.context import AdminContext
from fabric_server.admin.health import Sources as HealthSources
from fabric_server.admin.health import backends_available
from fabric_server.admin.metrics import Sources as MetricsSources
from fabric_server.admin.server import AdminServer
from fabric_server.admin.servers import Servers
from fabric_server.app.backends import Backends
from fabric_server.app.certificates import open_tls
from fabric_server.app.change_log import ChangeLog
from fabric_server.app.clock_watch import ClockWatch
from fabric_server.app.control_plane import ControlPlane
from fabric_server.app.data_plane import SHOWN_IDS, DataPlane
from fabric_server.app.introduction import Introduction, list_missing
from fabric_server.app.listeners import NODE_PORTS, USER_PORTS, Listeners
from fabric_server.app.seat import Seat
from fabric_server.app.succession import take_over, wait_for_end
from fabric_server.config import Config
from fabric_server.gateway.gateway import Gateway
from fabric_server.mesh.mesh import Mesh
from fabric_server.net.memory_guard import MemoryGuard
from fabric_server.net.takeover import Predecessor, WorkerStatus
from fabric_server.nodes.registry import Registry
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.tls_contexts import TlsContexts
from fabric_server.storage.change_feed import ChangeFeed
from protocol.names import ALL_WORKERS, CONTROL_ALPN, TUNNEL_ALPN
from runtime import garbage
from runtime.background import BackgroundTasks

log = logging.getLogger("fabric.server")

LINGER_SECONDS = 1.0
"""Time for which idle connections of clients still get responses while the server drains."""
LINGER_AFTER_TAKEOVER = 10.0
"""LINGER_SECONDS after a takeover, when nothing waits for this server to end."""

KNOWN_SECONDS = 30 * 86_400.0
"""Models of nodes seen within this time are reported as unavailable rather than unknown."""


class App:
    """A server; call ``start``, then ``run`` until a stop is wanted, ``drain``, and ``stop``.

    ``start`` builds the parts in the order of their dependencies; ``stop`` closes them in the
    reverse order, however far the start has come.
    """

    make_gateway = Gateway

    backends: Backends
    tls: TlsContexts
    acme: AcmeRenewal | None
    control_plane: ControlPlane
    data_plane: DataPlane
    change_feed: ChangeFeed
    admin: AdminServer

    def __init__(self, config: Config, *, rng: Random, seat: Seat | None = None) -> None:
        """``seat`` is that of a worker; None: this process is the whole server."""
        self.config = config
        self.seat = seat
        self.draining = False
        self.succeeded = asyncio.Event()
        """Set when another server has taken over."""
        self.listeners = Listeners(config, None if seat is None else seat.ports)
        self._rng = rng
        self.tasks = BackgroundTasks(rng)
        self._opened = AsyncExitStack()

    @property
    def first(self) -> bool:
        """Return whether this process does what only one does: jobs, deletion, orders."""
        return self.seat is None or self.seat.first

    # ── starting ──────────────────────────────────────────────────────────────────────────────

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Open the certificates and the back ends, build the rest, and open the ports last.

        With a predecessor, the ports are those that it still accepts on: call ``take_over`` next.
        Raises ``CertificateProblem``, ``BackendError`` or ``PortProblem``; each says what to do.
        """
        config = self.config
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = time.time()
        names = config.names() if self.seat is None else (*config.names(), ALL_WORKERS)
        certificates = Certificates.open(config.data / "certs", names, now=now)
        self.backends = await Backends.open(
            config, first=self.first, beside_others=config.takeover or self.seat is not None
        )
        self._opened.push_async_callback(self.backends.close)
        self.tls, self.acme = open_tls(config, certificates, self.backends, self._rng, self.seat)
        known = await self.backends.store.known_models(now - KNOWN_SECONDS)
        self._build(Registry(known), certificates)
        # Both planes need the tasks and the API port shows both, so these close after the planes.
        self._opened.push_async_callback(self.admin.close)
        self._opened.push_async_callback(self.tasks.stop)
        if self.acme is not None:
            self._opened.push_async_callback(self.acme.close, self.tasks)
        self._opened.callback(self.control_plane.close)
        self._opened.push_async_callback(self.data_plane.close, self.tasks)
        self._opened.push_async_callback(self.listeners.close)
        self._log_plan()
        await self._open_ports(predecessor)
        self._start_tasks()
        garbage.collect_rarely()

    def _log_plan(self) -> None:
        plan = self.listeners.plan
        for setting in plan.cut:
            log.warning(
                "a setting asks for more connections than there are file descriptors: raise the "
                "limit of open files (ulimit -n), or lower the setting",
                extra={"setting": setting, "limit": plan.limit, "got": plan.settings[setting]},
            )
        log.debug("connections", extra={"open_files": plan.limit, **plan.settings})

    def _build(self, registry: Registry, certificates: Certificates) -> None:
        config, backends, rng = self.config, self.backends, self._rng
        self.data_plane = DataPlane(
            config,
            backends,
            registry,
            rng=rng,
            make_gateway=self.make_gateway,
            seat=self.seat,
        )
        self.control_plane = ControlPlane(
            config,
            backends,
            registry,
            certificates,
            port=self.listeners.number_for_nodes,
            rng=rng,
        )
        notified = [
            self.data_plane.authenticator.on_changes,
            self.control_plane.on_changes,
            backends.revocations.on_changes,
        ]
        if self.first:
            notified.append(ChangeLog().on_changes)
        self.change_feed = ChangeFeed(
            backends.store,
            notified,
            backends.cache,
            outages=backends.outages,
        )
        self.admin = AdminServer(self._admin_context())

    async def _open_ports(self, predecessor: Predecessor | None) -> None:
        """Open all ports in one turn of the loop: nobody is served before all are open."""
        config, tls, nodes = self.config, self.tls, self.control_plane
        admin, listeners = await self.admin.start(), self.listeners
        if config.one_port is not None and self.seat is None:
            listeners.open_one(config.one_port, predecessor)
        opened = partial(listeners.open, predecessor=predecessor)
        opened("public", config.public_port, self.data_plane.edge, tls.public)
        opened("api", config.api_port, admin, tls.public)
        opened("proxy", config.proxy_port, nodes.tunnels, tls.tunnel, alpn=TUNNEL_ALPN)
        opened("control", config.control_port, nodes.links, tls.control, alpn=CONTROL_ALPN)
        nodes.links.settings = replace(
            nodes.links.settings,
            control_port=listeners.number_for_nodes("control"),
            proxy_port=listeners.number_for_nodes("proxy"),
            api_port=listeners.number_for_nodes("api"),
            server_name="" if self.seat is None else self.seat.server_name,
        )

    def _start_tasks(self) -> None:
        tasks, requests, nodes = self.tasks, self.data_plane, self.control_plane
        requests.start_tasks(tasks, jobs=self.first)
        self.backends.start_tasks(tasks)
        tasks.start("kernel_blocklist", self.listeners.blocklist.run)
        tasks.start("wrong_keys", requests.throttle.run)
        tasks.start("change_feed", self.change_feed.run)
        check_cache = self.backends.cache.check
        tasks.start("cache", lambda: requests.authenticator.watch_cache(check_cache))
        tasks.start("certificates", lambda: self.tls.watch(time.time))
        if self.acme is not None:
            self.acme.start_tasks(tasks)
        tasks.start("memory", MemoryGuard(requests.memory, self.config.memory()).run)
        tasks.start("clock", ClockWatch([requests.authenticator.clear]).run)
        tasks.start("nodes", nodes.watch_nodes)
        tasks.start("tunnels", lambda: nodes.add_tunnels(lambda: requests.gateway.active.count))

    def _admin_context(self) -> AdminContext:
        backends, nodes, requests = self.backends, self.control_plane, self.data_plane
        health = HealthSources(
            change_feed=self.change_feed,
            authenticator=requests.authenticator,
            writer=backends.writer,
            bus=backends.bus,
            registry=nodes.registry,
            ports=self.listeners,
            tasks=self.tasks,
            draining=lambda: self.draining,
            acme=self.acme,
            seat=self.seat,
        )
        return AdminContext(
            server_name=self.config.names()[0],
            started_at=time.time(),
            store=backends.store,
            authenticator=requests.authenticator,
            throttle=requests.throttle,
            change_feed=self.change_feed,
            registry=nodes.registry,
            node_days=self.config.keep_nodes_days,
            enrolment=nodes.enrolment,
            active_requests=requests.gateway.active,
            admission=requests.admission,
            servers=Servers(lambda: {} if self.seat is None else self.seat.states),
            request_metrics=requests.metrics,
            health=health,
            metrics=MetricsSources(
                registry=nodes.registry,
                ports=self.listeners,
                tunnels=nodes.tunnels,
                links=nodes.links,
                writer=backends.writer,
                bus=backends.bus,
                retention=backends.retention,
                jobs=requests.jobs,
                tasks=self.tasks,
                memory=requests.memory,
                throttle=requests.throttle,
                public_connections=lambda: requests.edge.connections,
                requests_active=lambda: requests.gateway.active.count,
                requests_waiting=lambda: requests.admission.waiting,
                blocked=self.listeners.blocklist.results,
                certificates=lambda: self.tls.ends,
                orders=NO_ORDERS if self.acme is None else self.acme.orders,
                draining=lambda: self.draining,
                backends=lambda: backends_available(health),
                seat=self.seat,
            ),
        )

    # ── other servers ─────────────────────────────────────────────────────────────────────────

    def open_mesh(self, name: str, on_lost: Callable[[str], None]) -> Mesh:
        """Return this server's place among others, to ``connect`` it to them; call after ``start``.

        ``name`` is this server's; ``on_lost`` gets that of one whose connection is lost.
        """
        servers = self.admin.context.servers
        mesh = Mesh(
            name, self.data_plane.upstream, rng=self._rng, answer=servers.answer, on_lost=on_lost
        )
        self.data_plane.mesh = servers.mesh = mesh
        self.tasks.start("mesh", mesh.run)
        self._opened.callback(mesh.close)
        return mesh

    # ── takeover ──────────────────────────────────────────────────────────────────────────────

    async def take_over(self, predecessor: Predecessor) -> None:
        """Take the predecessor's nodes and clients: see ``succession.take_over``."""
        await take_over(predecessor, self.listeners, self.control_plane.count_reachable)

    def yield_nodes(self) -> int:
        """Send the nodes to a successor, and return how many there are.

        The successor listens already.  The nodes serve this server, too, until it has finished.
        """
        self.listeners.pause(NODE_PORTS)
        self.control_plane.links.drain(self.config.drain_seconds)
        return self.control_plane.count_reachable()

    def keep_nodes(self) -> None:
        """Undo ``yield_nodes``: the successor has failed."""
        if self.draining:
            return
        self.control_plane.links.cancel_drain()
        self.listeners.resume(NODE_PORTS)

    def yield_users(self) -> None:
        """Leave new connections to a successor that has nodes; ``run`` returns."""
        self.listeners.pause(USER_PORTS)
        self.succeeded.set()

    async def introduce(self) -> Introduction:
        """Describe this server, which has started."""
        missing = await list_missing(self.backends.store)
        return Introduction(self.tls.certificates.fingerprint.hex(), missing)

    def status(self) -> list[WorkerStatus]:
        """Return no workers: this process is the whole server."""
        return []

    # ── running ───────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Wait until ``stop`` is set or a successor has taken over."""
        await wait_for_end(stop, self.succeeded)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────

    async def drain(self, *, with_others: bool = False) -> None:
        """Stop accepting, and let running requests finish, for at most ``drain_seconds``.

        ``with_others``: the servers of the mesh end together, and their last requests may go to
        the nodes of this one until ``stop``.
        """
        self.draining = True
        seconds = self.config.drain_seconds
        succeeded = self.succeeded.is_set()
        edge, gateway, links = (
            self.data_plane.edge,
            self.data_plane.gateway,
            self.control_plane.links,
        )
        log.info(
            "draining",
            extra={"requests": gateway.active.count, "seconds": seconds, "succeeded": succeeded},
        )
        # Without a successor the API port stays open: it shows that the server drains.
        self.listeners.stop_accepting((*NODE_PORTS, *(USER_PORTS if succeeded else ("public",))))
        self.data_plane.jobs.drain()
        if not links.draining:
            links.drain(seconds)
        if succeeded:
            # A health check on a kept connection would hear that this server is not ready,
            # although the successor on the same port is.
            self.admin.close_connections()
        mesh = self.data_plane.mesh
        if mesh is not None and not with_others:
            mesh.drain(seconds)
        edge.drain(LINGER_AFTER_TAKEOVER if succeeded else LINGER_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self.listeners.handshakes_done()
                await gateway.active.wait_idle()
                await edge.empty()
                if mesh is not None:
                    await mesh.wait_idle()
        except TimeoutError:
            if gateway.active.count:
                log.warning(
                    "requests cancelled after drain_seconds",
                    extra={
                        "count": gateway.active.count,
                        "requests": gateway.active.ids(SHOWN_IDS),
                    },
                )

    async def stop(self) -> None:
        """Close everything, the store last; the ledger entries that are left are written."""
        self.draining = True
        await self._opened.aclose()
