"""``/api/distributed/…``: the fabric in the format of other distributed Ollama servers.

Every figure is measured; fields whose values are not known here are left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Protocol

from msgspec import UNSET, Meta, Struct

from fabric_server.admin.parameters import not_found
from fabric_server.admin.servers import Gathered, Row, ServerQuery, Servers, States
from fabric_server.mesh.views import Question
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
    servers: States = UNSET


class ClusterNode(Row, frozen=True, kw_only=True):
    id: str
    name: str
    status: Literal["connected", "draining"]


class ClusterNodes(Struct, frozen=True):
    nodes: list[ClusterNode]
    total: int
    servers: States = UNSET


class ClusterModel(Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str
    replicas: Annotated[int, Meta(description="Number of nodes that serve it.")]
    locations: Annotated[list[str], Meta(description="Ids of these nodes.")]
    status: Literal["available", "unavailable"]
    size: Annotated[int, Meta(description="Bytes, if a node reports them.")] = 0


class ClusterModels(Struct, frozen=True):
    models: list[ClusterModel]
    total: int
    servers: States = UNSET


class Replicas(Struct, frozen=True):
    model: str
    replicas: Annotated[list[str], Meta(description="Ids of the nodes that serve it.")]
    count: int
    servers: States = UNSET


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
    inference: Annotated[InferenceFigures, Meta(description="Since the server's start.")]
    servers: States = UNSET


class ClusterRequest(Row, frozen=True, kw_only=True):
    id: str
    model: str
    status: Literal["pending", "executing"]
    start_time: str
    nodes_used: list[str]
    partition_count: Annotated[int, Meta(description="Always 1: requests are not split.")]


class ClusterRequests(Struct, frozen=True):
    active_requests: list[ClusterRequest]
    total: int
    servers: States = UNSET


class ServedModel(Struct, frozen=True):
    """A model as one server has it."""

    name: str
    nodes: list[str]
    available: bool
    loaded: bool
    size: int


class Totals(Struct, frozen=True):
    """Figures that one server has counted."""

    requests: dict[str, int]
    """Requests by outcome."""
    seconds: float
    tokens: int


class Registry(Protocol):
    def nodes(self) -> Sequence[Node]: ...
    def models(self, *, here: bool) -> Mapping[str, Sequence[Engine]]: ...


class ActiveRequests(Protocol):
    def list(self) -> list[RequestRecord]: ...


_FAILED: tuple[Outcome, ...] = ("engine_error", "failed", "incomplete", "timeout")
"""Outcomes for which a node or an engine is the cause."""


class ClusterViews:
    """Views that the handlers gather from all servers; each has these of its own."""

    def __init__(
        self,
        registry: Registry,
        active: ActiveRequests,
        metrics: Metrics,
        servers: Servers,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` has Unix seconds."""
        self._registry = registry
        self._active = active
        self._metrics = metrics
        self._clock = clock
        self.nodes = servers.view("cluster_nodes", ClusterNode, self._own_nodes)
        self.models = servers.view("cluster_models", ServedModel, self._own_models)
        self.totals = servers.view("cluster_totals", Totals, self._own_totals)
        self.requests = servers.view("cluster_requests", ClusterRequest, self._own_requests)

    async def _own_nodes(self, question: Question) -> Iterable[ClusterNode]:
        return (
            ClusterNode(
                id=node.id, name=node.name, status="connected" if node.connected else "draining"
            )
            for node in self._registry.nodes()
        )

    async def _own_models(self, question: Question) -> Iterable[ServedModel]:
        return (
            _served(name, engines) for name, engines in self._registry.models(here=True).items()
        )

    async def _own_totals(self, question: Question) -> Iterable[Totals]:
        metrics, counts = self._metrics, Counter[str]()
        for (_, outcome), count in metrics.requests.items():
            counts[outcome] += count
        seconds = sum(metrics.seconds.values()) - metrics.seconds["refused"]
        return (Totals(dict(counts), seconds, metrics.prompt_tokens + metrics.completion_tokens),)

    async def _own_requests(self, question: Question) -> Iterable[ClusterRequest]:
        ago = self._clock() - asyncio.get_running_loop().time()
        return (_request(record, ago) for record in self._active.list())


class ClusterHandlers:
    """Handlers of ``/api/distributed/…``."""

    def __init__(
        self, name: str, views: ClusterViews, started_at: float, clock: Callable[[], float]
    ) -> None:
        """``started_at`` and ``clock`` are Unix seconds."""
        self._name = name
        self._views = views
        self._started_at = started_at
        self._clock = clock

    async def show_cluster(self, query: ServerQuery) -> ClusterStatus:
        """Show the server and the nodes that are connected to it."""
        nodes, models = await asyncio.gather(
            self._views.nodes.gather(query.server), self._views.models.gather(query.server)
        )
        connected = sorted({node.id for node in nodes})
        return ClusterStatus(
            self._name,
            len(connected),
            connected,
            len({model.name for model in models if model.loaded}),
            _duration(self._clock() - self._started_at),
            VERSION,
            nodes.states,
        )

    async def list_cluster_nodes(self, query: ServerQuery) -> ClusterNodes:
        """List the connected nodes; `/api/v1/nodes` lists all, with more details."""
        found = await self._views.nodes.gather(query.server)
        nodes = list(found.marked())
        return ClusterNodes(nodes, len(nodes), found.states)

    async def list_cluster_models(self, query: ServerQuery) -> ClusterModels:
        """List the models that connected nodes serve, and the nodes of each."""
        found = await self._views.models.gather(query.server)
        models = [_model(name, parts) for name, parts in sorted(_by_name(found).items())]
        return ClusterModels(models, len(models), found.states)

    async def list_replicas(self, name: str, query: ServerQuery) -> Replicas:
        """List the nodes that serve one model. Percent-encode slashes in its name."""
        found = await self._views.models.gather(query.server)
        parts = _by_name(found).get(name)
        if not parts:
            raise not_found("model", name, param="name")
        where = _where(parts)
        return Replicas(name, where, len(where), found.states)

    async def show_cluster_metrics(self, query: ServerQuery) -> ClusterMetrics:
        """Show totals since the server's start; `/metrics` has these and more for Prometheus."""
        found = await self._views.totals.gather(query.server)
        counts, seconds, tokens = Counter[str](), 0.0, 0
        for part in found:
            counts.update(part.requests)
            seconds += part.seconds
            tokens += part.tokens
        total = counts.total() - counts["refused"]
        inference = InferenceFigures(
            total,
            counts["ok"],
            sum(counts[outcome] for outcome in _FAILED),
            tokens,
            _time(self._clock()),
            f"{seconds / total:.3f}s" if total else "",
        )
        return ClusterMetrics(inference, found.states)

    async def list_cluster_requests(self, query: ServerQuery) -> ClusterRequests:
        """List the requests that run now, oldest first."""
        found = await self._views.requests.gather(query.server)
        requests = sorted(found.marked(), key=lambda row: row.start_time)
        return ClusterRequests(requests, len(requests), found.states)


def _served(name: str, engines: Sequence[Engine]) -> ServedModel:
    return ServedModel(
        name,
        sorted({engine.node.id for engine in engines}),
        any(engine.healthy and engine.node.reachable for engine in engines),
        any(bool(engine.models[name].loaded) for engine in engines),
        max((engine.models[name].size or 0) for engine in engines),
    )


def _by_name(found: Gathered[ServedModel]) -> dict[str, list[ServedModel]]:
    """Group what several servers have by the model."""
    models = dict[str, list[ServedModel]]()
    for part in found:
        models.setdefault(part.name, []).append(part)
    return models


def _model(name: str, parts: Sequence[ServedModel]) -> ClusterModel:
    where = _where(parts)
    return ClusterModel(
        name=name,
        replicas=len(where),
        locations=where,
        status="available" if any(part.available for part in parts) else "unavailable",
        size=max(part.size for part in parts),
    )


def _where(parts: Sequence[ServedModel]) -> list[str]:
    return sorted({node for part in parts for node in part.nodes})


def _request(record: RequestRecord, ago: float) -> ClusterRequest:
    attempted, choice = record.state != "waiting", record.choice
    return ClusterRequest(
        id=record.request.id,
        model=record.parsed.model,
        status="executing" if attempted else "pending",
        start_time=_time(record.request.arrived + ago),
        nodes_used=[choice.node_id] if attempted and choice and choice.engine_name else [],
        partition_count=1,
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
