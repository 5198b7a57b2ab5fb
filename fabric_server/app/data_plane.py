"""The clients' side of a server: the public port's HTTP, the gateway, and jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

from fabric_server.app.backends import Backends
from fabric_server.app.seat import Seat
from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.leases import Leases
from fabric_server.auth.rate_limits import RateLimits
from fabric_server.config import Config
from fabric_server.edge.cors import Cors
from fabric_server.edge.edge import Edge, Limits
from fabric_server.edge.router import Router
from fabric_server.gateway.gateway import Gateway
from fabric_server.gateway.media import Media
from fabric_server.gateway.models import ModelCatalog
from fabric_server.jobs.context import JobsContext
from fabric_server.jobs.files import OVERHEAD
from fabric_server.jobs.service import Jobs
from fabric_server.mesh.mesh import Mesh
from fabric_server.net.deadlines import Deadlines
from fabric_server.net.egress import ThreadedLookUp, any_address
from fabric_server.net.failure_throttle import FailureThrottle, ThrottleLimits
from fabric_server.net.fetcher import Fetcher
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.net.special_addresses import is_public
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.clock import Timeouts
from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.metrics import Metrics
from fabric_server.proxy.request_record import LedgerWriter
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.admission import Admission
from fabric_server.routing.aliases import parse_aliases
from fabric_server.routing.load_balancer import LoadBalancer
from fabric_server.routing.queues import QueueLimits
from fabric_server.routing.weights import parse_weights
from runtime.background import BackgroundTasks

log = logging.getLogger("fabric.server")

MAX_LOOK_UPS = 16
"""Look-ups of host names of media at once, in threads of their own: clients' names may be slow."""
END_SECONDS = 5.0
"""How long cancelled requests may take to end."""
SHOWN_IDS = 20
"""Requests that a log line names."""


class DataPlane:
    """The path of a request, from a client's connection to an engine of the registry."""

    def __init__(
        self,
        config: Config,
        backends: Backends,
        registry: Registry,
        *,
        rng: Random,
        make_gateway: Callable[..., Gateway] = Gateway,
        seat: Seat | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.memory = MemoryBudget(config.budget_limits())
        self.deadlines = Deadlines()
        self.authenticator = KeyAuthenticator(
            backends.store, backends.cache, cache_outage=backends.outages.cache
        )
        self.throttle = FailureThrottle(ThrottleLimits().of_one(1 if seat is None else seat.count))
        aliases = parse_aliases(config.aliases)
        self.admission = Admission(
            registry,
            rng=rng,
            limits=_queue_limits(config),
            balancer=LoadBalancer(registry.engine, rng, weights=parse_weights(config.weights)),
        )
        clock = asyncio.get_running_loop().time
        self.limits = RateLimits(clock) if seat is None else seat.leases
        self.upstream = UpstreamContext(
            registry=registry,
            admission=self.admission,
            deadlines=self.deadlines,
            metrics=self.metrics,
            ledger=LedgerWriter(backends.bus, self.limits, self.metrics, clock),
            timeouts=_timeouts(config),
            hedging=Hedging(on=config.hedge == "p95"),
        )
        self._names = ThreadPoolExecutor(MAX_LOOK_UPS, thread_name_prefix="media-names")
        allowed = any_address if config.media_private else is_public
        fetcher = Fetcher(ThreadedLookUp(self._names), allowed)
        media = Media(fetcher, config.media, self.metrics.media)
        self.gateway = make_gateway(self.authenticator, self.upstream, aliases, media)
        self.authenticator.on_withdrawn = self.gateway.active.cancel_key
        router = Router(self.metrics.errors, self.throttle)
        self.gateway.add_to(router)
        self.catalog = ModelCatalog(self.authenticator, registry, aliases, self.gateway.complete)
        self.catalog.add_to(router)
        self.edge = Edge(
            router.handle, _limits(config), self.deadlines, rng, self.metrics.errors, self.memory
        )
        self.edge.cors = Cors(config.cors_origins)
        context = JobsContext(
            store=backends.store,
            authenticator=self.authenticator,
            registry=registry,
            admission=self.admission,
            router=router,
            memory=self.memory,
            new_request_id=self.edge.new_id,
            gateway=self.gateway,
            outage=backends.outages.store,
        )
        self.jobs = Jobs(config, context, aliases, rng=rng)
        self.mesh: Mesh | None = None
        """The other servers, if there are any."""

    def configure(self, config: Config) -> None:
        """Apply the settings that can change at run time; running requests keep theirs."""
        self.edge.limits = _limits(config)
        self.edge.cors = Cors(config.cors_origins)
        self.memory.limits = config.budget_limits()
        self.upstream.timeouts = _timeouts(config)
        self.upstream.hedging.on = config.hedge == "p95"
        aliases = parse_aliases(config.aliases)
        self.gateway.aliases = self.catalog.aliases = aliases
        self.gateway.media.configure(config.media)
        self.jobs.set_aliases(aliases)
        self.admission.limits = _queue_limits(config)
        self.admission.balancer.state.weights = parse_weights(config.weights)

    def start_tasks(self, tasks: BackgroundTasks, *, jobs: bool) -> None:
        """Start to check deadlines and, with ``jobs``, to run them, which ``close`` ends."""
        tasks.start("deadlines", self.deadlines.run)
        if isinstance(self.limits, Leases):
            tasks.start("limits", self.limits.run)
        for name, work in self.jobs.parts().items() if jobs else ():
            tasks.start(name, work)

    async def close(self, tasks: BackgroundTasks) -> None:
        """Cut every client's connection, end the jobs, and wait for the requests of both."""
        self.edge.close()
        await tasks.stop(*self.jobs.parts())
        active = self.gateway.active
        if not await active.end_all(END_SECONDS):
            log.error(
                "cancelled requests have not ended, which is a defect; the server stops without "
                "them, and the ledger may lack their entries",
                extra={"count": active.count, "requests": active.ids(SHOWN_IDS)},
            )
        self._names.shutdown(wait=False, cancel_futures=True)


def _timeouts(config: Config) -> Timeouts:
    return Timeouts(
        first_byte=config.first_byte_timeout,
        stall=config.stall_timeout,
        idle=config.idle_timeout,
        slow_reader=config.slow_reader_timeout,
        total=config.stream_limit,
    )


def _limits(config: Config) -> Limits:
    return Limits(
        body=config.body_limit,
        headers=config.headers_limit,
        header_count=config.headers_count,
        header_seconds=config.header_timeout,
        body_rate=config.body_rate,
        keepalive_seconds=config.keepalive_timeout,
        larger=dict.fromkeys(
            ("/v1/files", "/files", "/openai/files", "/openai/v1/files"),
            config.file_limit + OVERHEAD,
        ),
    )


def _queue_limits(config: Config) -> QueueLimits:
    return QueueLimits(config.queue_length, config.queue_length_per_key, config.queue_timeout)
