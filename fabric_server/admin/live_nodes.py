"""Nodes while they are connected, as the server that holds their registration knows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from fabric_server.admin.node_views import (
    EjectionView,
    EngineView,
    FindingView,
    HeartbeatView,
    LiveDetail,
    LiveNode,
)
from fabric_server.admin.servers import Gathered, LiveView, Servers
from fabric_server.mesh.views import Question
from fabric_server.nodes.circuit_breaker import CircuitBreaker
from fabric_server.nodes.node import Engine, Node
from protocol.messages import Heartbeat
from runtime.findings import Finding


class Registry(Protocol):
    findings: dict[str, tuple[Finding, ...]]

    def node(self, id: str) -> Node | None: ...
    def problem(self, node: Node) -> str: ...
    def ejections(
        self, engine: Engine, now: float
    ) -> Iterable[tuple[tuple[str, str], CircuitBreaker]]: ...
    def nodes(self) -> Sequence[Node]: ...


class LiveNodes:
    """The connected nodes, of this server and of the others."""

    def __init__(self, registry: Registry, servers: Servers) -> None:
        self._registry = registry
        self.list: LiveView[LiveNode] = servers.view("nodes", LiveNode, self._own)
        self._details = servers.view("node", LiveDetail, self._own_detail)

    async def detail(self, id: str) -> tuple[LiveDetail | None, Sequence[str]]:
        """Return a node, None when it is not connected, and the servers that have not answered."""
        found, gathered = await self._details.find(id)
        if found is None:
            return None, gathered.missing
        (part,) = [part for part in gathered.parts if part.rows]
        node = msgspec.structs.replace(found.node, server=part.server, age_seconds=part.age)
        return msgspec.structs.replace(found, node=node), ()

    async def _own(self, question: Question) -> Iterable[LiveNode]:
        return (live(node, self._registry) for node in self._registry.nodes())

    async def _own_detail(self, question: Question) -> Iterable[LiveDetail]:
        node = self._registry.node(question.about)
        if node is None or node.remote:
            return ()
        models = {engine.name: list(engine.models.values()) for engine in node.engines.values()}
        return (LiveDetail(live(node, self._registry), models),)


def by_id(found: Gathered[LiveNode]) -> Mapping[str, LiveNode]:
    """Return the nodes by id; one that moves between servers by its newest registration."""
    nodes = dict[str, LiveNode]()
    for one in found.marked():
        known = nodes.get(one.id)
        if known is None or known.epoch < one.epoch:
            nodes[one.id] = one
    return nodes


def live(node: Node, registry: Registry) -> LiveNode:
    """Describe a registration."""
    return LiveNode(
        id=node.id,
        name=node.name,
        platform=node.platform,
        region=node.region,
        release=node.release,
        epoch=node.epoch,
        connected_at=node.connected_at,
        drained=node.drained,
        draining=node.draining,
        problem=_problem(node, registry),
        findings=[
            msgspec.convert(one, FindingView, from_attributes=True)
            for one in registry.findings.get(node.id, ())
        ],
        tunnels=len(node.tunnels),
        streams=sum(tunnel.connection.active for tunnel in node.tunnels),
        slots=node.slots,
        active=node.active,
        engines=[_engine(engine, registry) for engine in node.engines.values()],
        heartbeat=beat(node.heartbeat) if node.heartbeat else None,
    )


def _problem(node: Node, registry: Registry) -> str | None:
    """Return why the node gets no requests, unless it is the operator's decision."""
    if node.draining:
        return "leaving"
    if node.reachable and not node.problem:
        return None
    if problem := registry.problem(node):
        return problem
    return "its tunnels are silent or full" if node.tunnels else "no tunnel"


def _engine(engine: Engine, registry: Registry) -> EngineView:
    now = asyncio.get_running_loop().time()
    return EngineView(
        name=engine.name,
        kind=engine.kind,
        healthy=engine.healthy,
        problem=engine.problem,
        slots=engine.slots,
        reported_slots=engine.reported_slots,
        active=engine.active,
        models=list(engine.models),
        loaded=[model.name for model in engine.models.values() if model.loaded],
        implausible_usage=engine.implausible_usage,
        ejected=[
            EjectionView(
                model=model,
                path=path or None,
                until=time.time() + breaker.seconds_left(now),
                reason=breaker.reason,
            )
            for (model, path), breaker in registry.ejections(engine, now)
        ],
    )


def beat(heartbeat: Heartbeat) -> HeartbeatView:
    return msgspec.convert(heartbeat, HeartbeatView, from_attributes=True)
