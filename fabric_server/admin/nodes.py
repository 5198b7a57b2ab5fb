"""Nodes: list, show, invite, drain and revoke."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from fabric_server.admin.node_views import (
    EjectionView,
    EngineView,
    FindingView,
    HeartbeatQuery,
    HeartbeatView,
    Invitation,
    NewInvitation,
    NodeDetail,
    NodeList,
    NodeQuery,
    NodeView,
    StoredHeartbeat,
)
from fabric_server.admin.parameters import not_found
from fabric_server.auth.keys import Key
from fabric_server.nodes.circuit_breaker import CircuitBreaker
from fabric_server.nodes.node import Engine, Node
from fabric_server.pki.enrolment import Invited
from fabric_server.storage.rows import NodeRow
from ledger.records import HeartbeatRecord
from protocol import join
from protocol.messages import Heartbeat
from runtime.errors import BackendError
from runtime.findings import Finding

log = logging.getLogger("fabric.api")

DAY = 86_400.0


class Store(Protocol):
    async def node(self, id: str) -> NodeRow | None: ...
    async def nodes(self, seen_since: float | None = None) -> list[NodeRow]: ...
    async def revoke_node(self, id: str, at: float) -> NodeRow | None: ...
    async def settle_node(self, id: str) -> NodeRow | None: ...
    async def set_node_draining(self, id: str, draining: bool) -> NodeRow | None: ...
    async def heartbeats(self, node: str, *, limit: int) -> list[HeartbeatRecord]: ...


class Registry(Protocol):
    findings: dict[str, tuple[Finding, ...]]

    def node(self, id: str) -> Node | None: ...
    def problem(self, node: Node) -> str: ...
    def ejections(
        self, engine: Engine, now: float
    ) -> Iterable[tuple[tuple[str, str], CircuitBreaker]]: ...
    def nodes(self) -> Sequence[Node]: ...


class ChangeFeed(Protocol):
    async def sync(self) -> None: ...


class Enrolment(Protocol):
    async def invite(self, name: str | None, valid_for: float) -> Invited: ...


class NodeHandlers:
    """Handlers of ``/api/v1/nodes…`` and ``/api/v1/invitations``."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        change_feed: ChangeFeed,
        enrolment: Enrolment,
        clock: Callable[[], float],
        *,
        listed_days: float = 0.0,
    ) -> None:
        """Nodes that are away for longer than ``listed_days`` are not listed; 0: all are."""
        self._store = store
        self._registry = registry
        self._change_feed = change_feed
        self._enrolment = enrolment
        self._clock = clock
        self._listed_seconds = listed_days * DAY

    async def list_nodes(self, query: NodeQuery) -> NodeList:
        """List the nodes that joined, oldest first, with the reports of connected ones.

        Those that are away for `keep_nodes_days` are listed with `all=true` only.
        While the store is away only connected nodes are known: `complete` is false then.
        """
        problem = None
        try:
            hidden = self._listed_seconds and not query.all
            since = self._clock() - self._listed_seconds if hidden else None
            views = [view(row, self._registry) for row in await self._store.nodes(since)]
        except BackendError as error:
            problem = f"{error}."
            views = [view_from_memory(node, self._registry) for node in self._registry.nodes()]
        if query.connected is not None:
            views = [one for one in views if one.connected is query.connected]
        return NodeList(views, problem is None, problem)

    async def show_node(self, id: str, query: HeartbeatQuery) -> NodeDetail:
        """Show one node, its engines' models, and its last heartbeats, newest first.

        While the store is away only a connected node is known: `complete` is false then.
        """
        problem, beats = None, list[HeartbeatRecord]()
        try:
            row = await self._store.node(id)
            if row is None:
                raise not_found("node", id)
            if query.heartbeats:
                beats = await self._store.heartbeats(id, limit=query.heartbeats)
            shown = view(row, self._registry)
        except BackendError as error:
            live = self._registry.node(id)
            if live is None:
                raise
            problem, shown = f"{error}.", view_from_memory(live, self._registry)
        live = self._registry.node(id)
        engines = live.engines.values() if live else ()
        return NodeDetail(
            node=shown,
            models={engine.name: list(engine.models.values()) for engine in engines},
            heartbeats=[
                StoredHeartbeat(record.epoch, record.at, _beat(record.heartbeat))
                for record in beats
            ],
            complete=problem is None,
            problem=problem,
        )

    async def drain_node(self, id: str, by: Key) -> NodeView:
        """Send a node no new requests; running ones finish.

        The node stays drained until it is undrained, also across restarts.
        """
        return await self._set_draining(id, True, by)

    async def undrain_node(self, id: str, by: Key) -> NodeView:
        """Send requests to a drained node again."""
        return await self._set_draining(id, False, by)

    async def _set_draining(self, id: str, draining: bool, by: Key) -> NodeView:
        row = await self._store.set_node_draining(id, draining)
        if row is None:
            raise not_found("node", id)
        await self._change_feed.sync()
        event = "node drained by" if draining else "node undrained by"
        log.info(event, extra={"node": row.id, "by": by.id})
        return view(row, self._registry)

    async def revoke_node(self, id: str, by: Key) -> NodeView:
        """Revoke a node: its connections are closed at once, and it can't reconnect.

        To use the machine again, let it join with a new invitation. Revoking twice changes nothing.
        """
        row = await self._store.revoke_node(id, self._clock())
        if row is None:
            raise not_found("node", id)
        await self._change_feed.sync()
        log.info("node revoked", extra={"node": row.id, "by": by.id})
        return view(row, self._registry)

    async def settle_node(self, id: str, by: Key) -> NodeView:
        """Admit a contested node again, once only one machine uses its key.

        If the key was stolen, revoke the node instead. Settling an uncontested node changes
        nothing.
        """
        row = await self._store.settle_node(id)
        if row is None:
            raise not_found("node", id)
        await self._change_feed.sync()
        log.info("node settled", extra={"node": row.id, "by": by.id})
        return view(row, self._registry)

    async def invite_node(self, body: NewInvitation, by: Key) -> Invitation:
        """Create a join token, with which one machine can join once. It is not shown again.

        On that machine: fabric-client join TOKEN
        """
        token, row = await self._enrolment.invite(body.name, body.valid_seconds)
        log.info("node invited", extra={"invitation": row.id, "by": by.id})
        parts = join.parse(token)
        return Invitation(
            id=row.id,
            token=token,
            name=row.name,
            host=parts.host,
            api_port=parts.api_port,
            ca_sha256=parts.ca_sha256.hex(),
            expires_at=row.expires_at,
        )


def view(row: NodeRow, registry: Registry) -> NodeView:
    """Describe a node from its row in the store and, while it is connected, its registration."""
    node = registry.node(row.id)
    engines: Sequence[Engine] = tuple(node.engines.values()) if node else ()
    return NodeView(
        id=row.id,
        state=row.state,
        name=row.name,
        platform=node.platform if node else row.platform,
        region=(node.region if node else row.region) or None,
        release=node.release if node else row.version,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        last_seen_at=row.last_seen_at,
        epoch=node.epoch if node else row.epoch,
        connected=node is not None,
        connected_at=node.connected_at if node else None,
        draining=row.draining or (node is not None and node.draining),
        problem=_problem(row, node, registry),
        findings=[
            msgspec.convert(one, FindingView, from_attributes=True)
            for one in (registry.findings.get(row.id, ()) if node else ())
        ],
        contested_at=row.contested_at,
        contested_by=row.contested_by or None,
        tunnels=len(node.tunnels) if node else 0,
        streams=sum(tunnel.connection.active for tunnel in node.tunnels) if node else 0,
        slots=node.slots if node else 0,
        active=node.active if node else 0,
        engines=[_engine(engine, registry) for engine in engines],
        heartbeat=_beat(node.heartbeat) if node and node.heartbeat else None,
    )


def view_from_memory(node: Node, registry: Registry) -> NodeView:
    """Describe a connected node while its row can't be read."""
    row = NodeRow(node.id, node.name, b"", 0.0, draining=node.drained)
    return msgspec.structs.replace(view(row, registry), created_at=None)


def _problem(row: NodeRow, node: Node | None, registry: Registry) -> str | None:
    """Return why the node gets no requests: the cause to fix first."""
    if row.revoked_at is not None:
        return "revoked by the operator"
    if row.contested_at is not None:
        return "two machines use its key: settle or revoke it"
    if node is None:
        return "not connected"
    if row.draining:
        return "drained by the operator"
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


def _beat(heartbeat: Heartbeat) -> HeartbeatView:
    return msgspec.convert(heartbeat, HeartbeatView, from_attributes=True)
