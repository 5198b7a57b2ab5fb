"""``/metrics``: the state of the server's parts, read at each scrape of Prometheus.

Label values come from small fixed sets: never a model, a key or a node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fabric_server.net.connection_budget import Budget
from fabric_server.nodes.node import Node
from fabric_server.nodes.registrar import Registrar
from fabric_server.nodes.watch import CODES
from runtime.findings import Finding


class Registry(Protocol):
    findings: dict[str, tuple[Finding, ...]]

    def nodes(self) -> Sequence[Node]: ...
    def models(self) -> Mapping[str, object]: ...


class Port(Protocol):
    accepted: int
    opened: int

    @property
    def refused(self) -> Mapping[str, int]: ...
    @property
    def pending(self) -> int: ...
    @property
    def budget(self) -> Budget: ...


class Tunnels(Protocol):
    refused: int
    resumed: int

    @property
    def count(self) -> int: ...
    @property
    def streams(self) -> int: ...
    def bytes_by_direction(self) -> Mapping[str, float]: ...


class Tasks(Protocol):
    @property
    def failures(self) -> Mapping[str, int]: ...


class Links(Protocol):
    refused: int
    reconnects: int
    registrar: Registrar


class Writer(Protocol):
    written: int
    rejected: int
    problem: str | None


class Bus(Protocol):
    @property
    def waiting(self) -> Mapping[str, int]: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...
    @property
    def full(self) -> bool: ...


class Retention(Protocol):
    failures: int

    @property
    def figures(self) -> Mapping[str, float]: ...


class Memory(Protocol):
    held: int

    @property
    def refused(self) -> Mapping[str, int]: ...


class Throttle(Protocol):
    @property
    def failures(self) -> Mapping[str, int]: ...
    @property
    def held(self) -> Mapping[str, int]: ...


class Backlog(Protocol):
    @property
    def queued(self) -> Mapping[str, int]: ...
    @property
    def webhooks(self) -> int | None: ...
    async def count(self) -> None: ...


class Jobs(Protocol):
    @property
    def backlog(self) -> Backlog: ...
    @property
    def under_way(self) -> Mapping[str, int]: ...
    @property
    def ended(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def deliveries(self) -> Mapping[str, int]: ...


class Seat(Protocol):
    @property
    def name(self) -> str: ...
    def metrics_of_others(self) -> Awaitable[Mapping[str, bytes]]: ...


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The parts of the server whose state is exported."""

    registry: Registry
    ports: Mapping[str, Port]
    tunnels: Tunnels
    links: Links
    writer: Writer
    bus: Bus
    retention: Retention
    jobs: Jobs
    tasks: Tasks
    memory: Memory
    throttle: Throttle
    public_connections: Callable[[], int]
    requests_active: Callable[[], int]
    requests_waiting: Callable[[], int]
    draining: Callable[[], bool]
    backends: Callable[[], Mapping[str, bool]]
    """Whether store, cache and bus are of use."""
    blocked: Mapping[str, int] = field(default_factory=dict)
    """Addresses blocked in the kernel, by result."""
    certificates: Callable[[], Mapping[str, float]] = dict
    """The ends of the certificates in use, in Unix seconds: of the CA, for nodes, for users."""
    orders: Mapping[str, int] = field(default_factory=dict)
    """Orders of certificates at the ACME CA, by result."""
    seat: Seat | None = None
    """The place of this worker; None: this process is the whole server."""


class StateCollector:
    """A Prometheus collector of the parts' state; ``proxy.metrics.Metrics`` collects requests."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.lag = 0.0
        """Seconds by which the event loop was late at the last measurement."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._nodes()
        yield from self._ports()
        yield from self._tunnels()
        yield from self._records()
        yield from self._retention()
        yield from self._jobs()
        sources = self._sources
        memory = sources.memory
        yield _gauge("memory_held_bytes", "Bytes that requests under way hold.", value=memory.held)
        yield _counter(
            "memory_refusals",
            "Requests and answers refused memory, by the bound.",
            "bound",
            memory.refused,
        )
        yield from self._failures()
        yield _gauge(
            "certificate_ends_timestamp_seconds",
            "When a certificate in use ends, in Unix seconds.",
            "of",
            sources.certificates(),
        )
        yield _counter(
            "acme_orders", "Orders of certificates at the ACME CA.", "result", sources.orders
        )
        yield _gauge(
            "public_connections", "Connections of clients.", value=sources.public_connections()
        )
        yield _gauge("requests_active", "Requests under way.", value=sources.requests_active())
        yield _gauge(
            "requests_waiting", "Requests waiting for a slot.", value=sources.requests_waiting()
        )
        yield _gauge("draining", "1 while the server drains.", value=sources.draining())
        yield _gauge(
            "event_loop_lag_seconds", "How late a timer fired at this scrape.", value=self.lag
        )

    def _nodes(self) -> Iterator[Metric]:
        nodes = self._sources.registry.nodes()
        engines = [engine for node in nodes for engine in node.engines.values()]
        yield _gauge("nodes_connected", "Nodes with a link.", value=len(nodes))
        yield _gauge(
            "nodes_draining",
            "Of these, leaving or drained by the operator.",
            value=sum(node.draining or node.drained for node in nodes),
        )
        found = [one.code for of in self._sources.registry.findings.values() for one in of]
        counts = {code: found.count(code) for code in CODES}
        yield _gauge("node_problems", "Nodes that have a problem, by its code.", "code", counts)
        healthy = sum(engine.healthy for engine in engines)
        by_state = {"healthy": healthy, "failing": len(engines) - healthy}
        yield _gauge("engines", "Engines of connected nodes.", "state", by_state)
        now = asyncio.get_running_loop().time()
        yield _gauge(
            "breakers_open",
            "Open circuit breakers: an engine that fails for a model.",
            value=sum(
                not one.allows(now) for engine in engines for one in engine.breakers.values()
            ),
        )
        slots = sum(engine.slots for engine in engines if engine.healthy)
        yield _gauge("slots", "Slots of healthy engines.", value=slots)
        active = sum(engine.active for engine in engines)
        yield _gauge("slots_active", "Slots in use.", value=active)
        count = len(self._sources.registry.models())
        yield _gauge("models", "Models served now.", value=count)

    def _ports(self) -> Iterator[Metric]:
        ports = self._sources.ports
        accepted = {name: port.accepted for name, port in ports.items()}
        yield _counter(
            "connections_accepted", "Connections accepted from the kernel.", "port", accepted
        )
        opened = {name: port.opened for name, port in ports.items()}
        yield _counter(
            "connections_opened",
            "Of these, handed to the port after the handshake.",
            "port",
            opened,
        )
        pending = {name: port.pending for name, port in ports.items()}
        yield _gauge("connections_pending", "Connections in the handshake.", "port", pending)
        used = {name: port.budget.used for name, port in ports.items()}
        yield _gauge("connections_open", "Connections that have a place.", "port", used)
        strangers = {name: port.budget.strangers for name, port in ports.items()}
        yield _gauge(
            "connections_strange",
            "Of these, without a valid key or registration: closed when places are scarce.",
            "port",
            strangers,
        )
        places = {name: port.budget.places.total for name, port in ports.items()}
        yield _gauge("connections_limit", "Places for connections.", "port", places)
        refused = CounterMetricFamily(
            "fabric_connections_refused", "Connections refused.", labels=["port", "reason"]
        )
        for name, port in ports.items():
            for reason, count in port.refused.items():
                refused.add_metric([name, reason], count)
        yield refused
        yield _counter(
            "kernel_blocks",
            "Addresses that were to be blocked in the kernel.",
            "result",
            self._sources.blocked,
        )

    def _failures(self) -> Iterator[Metric]:
        throttle = self._sources.throttle
        yield _counter(
            "authentication_failures",
            "Requests refused because of a wrong or missing key or invitation.",
            "secret",
            throttle.failures,
        )
        yield _counter(
            "authentication_failures_held",
            "Of these, answered late, because there were many from their address or in all.",
            "secret",
            throttle.held,
        )

    def _tunnels(self) -> Iterator[Metric]:
        tunnels, links = self._sources.tunnels, self._sources.links
        yield _gauge("tunnels", "Tunnels of connected nodes.", value=tunnels.count)
        yield _gauge("streams", "Requests inside tunnels.", value=tunnels.streams)
        yield _counter("tunnels_refused", "Tunnels refused.", value=tunnels.refused)
        yield _counter("resumed", "Streams resumed on another tunnel.", value=tunnels.resumed)
        moved = tunnels.bytes_by_direction()
        yield _counter("tunnel_bytes", "Bytes of tunnel frames.", "direction", moved)
        yield _counter("links_refused", "Links that never registered.", value=links.refused)
        yield _counter(
            "node_reconnects", "Registrations that superseded another.", value=links.reconnects
        )
        yield _counter(
            "nodes_contested",
            "Times that two machines were noticed with one node's key.",
            value=links.registrar.conflicts,
        )
        yield _counter(
            "node_keys_replaced",
            "Registrations refused because a newer key has replaced theirs.",
            value=links.registrar.replaced_keys,
        )

    def _records(self) -> Iterator[Metric]:
        writer, bus = self._sources.writer, self._sources.bus
        yield _counter(
            "records_written",
            "Ledger entries and heartbeats written to the store or Kafka.",
            value=writer.written,
        )
        yield _counter(
            "records_rejected", "Records that the store or Kafka rejected.", value=writer.rejected
        )
        yield _gauge(
            "backend_available",
            "1 while the back end is of use, as /health/ready says.",
            "backend",
            self._sources.backends(),
        )
        tasks = self._sources.tasks
        yield _counter(
            "background_failures", "Failures of background tasks.", "task", tasks.failures
        )
        failing = writer.problem is not None
        yield _gauge("records_failing", "1 while the store or Kafka accepts none.", value=failing)
        yield _gauge("bus_waiting", "Records not written yet.", "topic", bus.waiting)
        yield _counter(
            "bus_dropped", "Records dropped because the bus was full.", "topic", bus.dropped
        )
        yield _gauge(
            "bus_full", "1 while the bus is full and requests are refused.", value=bus.full
        )

    def _retention(self) -> Iterator[Metric]:
        retention = self._sources.retention
        yield _counter(
            "retention_failures",
            "Runs of this server that did not delete what is old.",
            value=retention.failures,
        )
        known = retention.figures
        yield _gauge("store_bytes", "Bytes of the store on its disk.", value=known["bytes"])
        yield _gauge(
            "ledger_oldest_timestamp_seconds",
            "When the ledger's oldest request arrived; NaN: there is none.",
            value=known["oldest"],
        )
        yield _gauge(
            "retention_last_timestamp_seconds",
            "When all that was old had last been deleted, by any server; NaN: never.",
            value=known["finished"],
        )

    def _jobs(self) -> Iterator[Metric]:
        jobs = self._sources.jobs
        yield _gauge(
            "jobs_running", "Jobs and batch lines running on this server.", "kind", jobs.under_way
        )
        ended = CounterMetricFamily(
            "fabric_jobs_ended",
            "Jobs and batch lines ended on this server.",
            labels=["kind", "outcome"],
        )
        for kind, outcome in product(("job", "line"), ("done", "failed", "cancelled")):
            ended.add_metric([kind, outcome], jobs.ended.get((kind, outcome), 0))
        yield ended
        tries = dict.fromkeys(("delivered", "failed", "given_up"), 0) | dict(jobs.deliveries)
        yield _counter(
            "webhooks", "Webhook attempts by result, and deliveries given up.", "result", tries
        )
        queued, waiting = jobs.backlog.queued, jobs.backlog.webhooks
        if queued:  # empty while the store is away
            yield _gauge(
                "jobs_queued", "Jobs and batch lines in the queue of all servers.", "kind", queued
            )
        if waiting is not None:
            yield _gauge("webhooks_waiting", "Webhook deliveries still to be made.", value=waiting)


def _gauge(
    name: str,
    documentation: str,
    label: str | None = None,
    values: Mapping[str, float] | None = None,
    *,
    value: float | None = None,
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"fabric_{name}", documentation, value, label and [label])
    for text, figure in (values or {}).items():
        family.add_metric([text], figure)
    return family


def _counter(
    name: str,
    documentation: str,
    label: str | None = None,
    values: Mapping[str, float] | None = None,
    *,
    value: float | None = None,
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"fabric_{name}", documentation, value, label and [label])
    for text, figure in (values or {}).items():
        family.add_metric([text], figure)
    return family
