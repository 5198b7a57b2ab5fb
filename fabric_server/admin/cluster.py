"""``/api/distributed/…``: the fabric in the format of other distributed Ollama servers.

Every figure is measured; fields whose values are not known here are left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Protocol

from msgspec import Meta, Struct

from fabric_server.admin.parameters import not_found
from fabric_server.nodes.node import Engine, Node
from fabric_server.proxy.metrics import Metrics
from fabric_server.proxy.request_record import RequestRecord
from ledger.records import Outcome
from runtime.version import VERSION


class ClusterStatus(Struct, frozen=True):
    node_id: Annotated[str, Meta(description="The first address of this server.")]
    connected_peers: int
    peers: Annotated[list[str], Meta(description="Ids of the nodes connected to this server.")]
    models_loaded: Annotated[
        int, Meta(description="Number of different models in engines' memory.")
    ]
    uptime: Annotated[str, Meta(description="As 1h2m3s.")]
    version: str


class ClusterNode(Struct, frozen=True):
    id: str
    name: str
    status: Literal["connected", "draining"]


class ClusterNodes(Struct, frozen=True):
    nodes: list[ClusterNode]
    total: int


class ClusterModel(Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str
    replicas: Annotated[int, Meta(description="Number of nodes that serve it.")]
    locations: Annotated[list[str], Meta(description="Ids of these nodes.")]
    status: Literal["available", "unavailable"]
    size: Annotated[int, Meta(description="Bytes, if a node reports them.")] = 0


class ClusterModels(Struct, frozen=True):
    models: list[ClusterModel]
    total: int


class Replicas(Struct, frozen=True):
    model: str
    replicas: Annotated[list[str], Meta(description="Ids of the nodes that serve it.")]
    count: int


class InferenceFigures(Struct, frozen=True, omit_defaults=True):
    total_inferences: Annotated[
        int,
        Meta(
            description="Requests that have ended, without those that the fabric refused; those "
            "that the client cancelled are in no other count."
        ),
    ]
    successful_inferences: int
    failed_inferences: Annotated[
        int, Meta(description="Requests that node or engine failed, or answered with an error.")
    ]
    total_tokens_processed: int
    last_updated: str
    average_latency: Annotated[
        str, Meta(description="As 1.234s; left out before the first request.")
    ] = ""


class ClusterMetrics(Struct, frozen=True):
    inference: Annotated[InferenceFigures, Meta(description="Since this server's start.")]


class ClusterRequest(Struct, frozen=True):
    id: str
    model: str
    status: Literal["pending", "executing"]
    start_time: str
    nodes_used: list[str]
    partition_count: Annotated[int, Meta(description="Always 1: requests are not split.")]


class ClusterRequests(Struct, frozen=True):
    active_requests: list[ClusterRequest]
    total: int


class Registry(Protocol):
    def nodes(self) -> Sequence[Node]: ...
    def models(self) -> Mapping[str, Sequence[Engine]]: ...


class ActiveRequests(Protocol):
    def list(self) -> list[RequestRecord]: ...


_FAILED: tuple[Outcome, ...] = ("engine_error", "failed", "incomplete", "timeout")
"""Outcomes for which a node or an engine is the cause."""


class ClusterHandlers:
    """Handlers of ``/api/distributed/…``."""

    def __init__(
        self,
        name: str,
        registry: Registry,
        active: ActiveRequests,
        metrics: Metrics,
        started_at: float,
        clock: Callable[[], float],
    ) -> None:
        """``started_at`` and ``clock`` are Unix seconds."""
        self._name = name
        self._registry = registry
        self._active = active
        self._metrics = metrics
        self._started_at = started_at
        self._clock = clock

    async def show_cluster(self) -> ClusterStatus:
        """Show this server and the nodes that are connected to it."""
        nodes = self._registry.nodes()
        loaded = {
            model.name
            for node in nodes
            for engine in node.engines.values()
            for model in engine.models.values()
            if model.loaded
        }
        return ClusterStatus(
            self._name,
            len(nodes),
            sorted(node.id for node in nodes),
            len(loaded),
            _duration(self._clock() - self._started_at),
            VERSION,
        )

    async def list_cluster_nodes(self) -> ClusterNodes:
        """List the connected nodes; `/api/v1/nodes` lists all, with more details."""
        nodes = [
            ClusterNode(node.id, node.name, "connected" if node.connected else "draining")
            for node in self._registry.nodes()
        ]
        return ClusterNodes(nodes, len(nodes))

    async def list_cluster_models(self) -> ClusterModels:
        """List the models that connected nodes serve, and the nodes of each."""
        models = [
            _model(name, engines) for name, engines in sorted(self._registry.models().items())
        ]
        return ClusterModels(models, len(models))

    async def list_replicas(self, name: str) -> Replicas:
        """List the nodes that serve one model. Percent-encode slashes in its name."""
        engines = self._registry.models().get(name)
        if not engines:
            raise not_found("model", name, param="name")
        where = _where(engines)
        return Replicas(name, where, len(where))

    async def show_cluster_metrics(self) -> ClusterMetrics:
        """Show totals since this server's start; `/metrics` has these and more for Prometheus."""
        metrics = self._metrics
        counts = Counter[str]()
        for (_, outcome), count in metrics.requests.items():
            counts[outcome] += count
        total = counts.total() - counts["refused"]
        seconds = sum(metrics.seconds.values()) - metrics.seconds["refused"]
        latency = f"{seconds / total:.3f}s" if total else ""
        return ClusterMetrics(
            InferenceFigures(
                total,
                counts["ok"],
                sum(counts[outcome] for outcome in _FAILED),
                metrics.prompt_tokens + metrics.completion_tokens,
                _time(self._clock()),
                latency,
            )
        )

    async def list_cluster_requests(self) -> ClusterRequests:
        """List the requests that run on this server, oldest first."""
        ago = self._clock() - asyncio.get_running_loop().time()
        requests = [_request(record, ago) for record in self._active.list()]
        return ClusterRequests(requests, len(requests))


def _model(name: str, engines: Sequence[Engine]) -> ClusterModel:
    where = _where(engines)
    available = any(engine.healthy and engine.node.reachable for engine in engines)
    return ClusterModel(
        name=name,
        replicas=len(where),
        locations=where,
        status="available" if available else "unavailable",
        size=max((engine.models[name].size or 0) for engine in engines),
    )


def _where(engines: Sequence[Engine]) -> list[str]:
    return sorted({engine.node.id for engine in engines})


def _request(record: RequestRecord, ago: float) -> ClusterRequest:
    attempted, choice = record.state != "waiting", record.choice
    return ClusterRequest(
        record.request.id,
        record.parsed.model,
        "executing" if attempted else "pending",
        _time(record.request.arrived + ago),
        [choice.node_id] if attempted and choice is not None else [],
        1,
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return (
        f"{hours}h{minute}m{second}s"
        if hours
        else f"{minute}m{second}s"
        if minute
        else f"{second}s"
    )
