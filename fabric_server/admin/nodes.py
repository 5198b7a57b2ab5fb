"""Nodes: list, show, invite, drain and revoke."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET

from fabric_server.admin.live_nodes import LiveNodes, beat, by_id
from fabric_server.admin.node_views import (
    HeartbeatQuery,
    Invitation,
    LiveNode,
    NewInvitation,
    NodeDetail,
    NodeList,
    NodeQuery,
    NodeView,
    StoredHeartbeat,
)
from fabric_server.admin.parameters import not_found
from fabric_server.auth.keys import Key
from fabric_server.pki.enrolment import Invited
from fabric_server.storage.rows import NodeRow
from ledger.records import HeartbeatRecord
from protocol import join
from runtime.errors import BackendError

log = logging.getLogger("fabric.api")

DAY = 86_400.0


class Store(Protocol):
    async def node(self, id: str) -> NodeRow | None: ...
    async def nodes(self, seen_since: float | None = None) -> list[NodeRow]: ...
    async def revoke_node(self, id: str, at: float) -> NodeRow | None: ...
    async def settle_node(self, id: str) -> NodeRow | None: ...
    async def set_node_draining(self, id: str, draining: bool) -> NodeRow | None: ...
    async def heartbeats(self, node: str, *, limit: int) -> list[HeartbeatRecord]: ...


class ChangeFeed(Protocol):
    async def sync(self) -> None: ...


class Enrolment(Protocol):
    async def invite(self, name: str | None, valid_for: float) -> Invited: ...


class NodeHandlers:
    """Handlers of ``/api/v1/nodes…`` and ``/api/v1/invitations``."""

    def __init__(
        self,
        store: Store,
        live: LiveNodes,
        change_feed: ChangeFeed,
        enrolment: Enrolment,
        clock: Callable[[], float],
        *,
        listed_days: float = 0.0,
    ) -> None:
        """Nodes that are away for longer than ``listed_days`` are not listed; 0: all are."""
        self._store = store
        self._live = live
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
        found = await self._live.list.gather(query.server)
        nodes, missing = by_id(found), found.missing
        try:
            hidden = self._listed_seconds and not query.all
            since = self._clock() - self._listed_seconds if hidden else None
            rows = await self._store.nodes(since)
            views = [view(row, nodes.get(row.id), missing) for row in rows]
        except BackendError as error:
            problem = f"{error}."
            views = list(map(view_from_memory, nodes.values()))
        if query.connected is not None:
            views = [one for one in views if one.connected is query.connected]
        if query.server is not None:
            views = [one for one in views if one.id in nodes]
        return NodeList(views, problem is None, problem, found.states)

    async def show_node(self, id: str, query: HeartbeatQuery) -> NodeDetail:
        """Show one node, its engines' models, and its last heartbeats, newest first.

        While the store is away only a connected node is known: `complete` is false then.
        """
        problem, beats = None, list[HeartbeatRecord]()
        live, missing = await self._live.detail(id)
        node = live.node if live else None
        try:
            row = await self._store.node(id)
            if row is None:
                raise not_found("node", id)
            if query.heartbeats:
                beats = await self._store.heartbeats(id, limit=query.heartbeats)
            shown = view(row, node, missing)
        except BackendError as error:
            if node is None:
                raise
            problem, shown = f"{error}.", view_from_memory(node)
        return NodeDetail(
            node=shown,
            models=live.models if live else {},
            heartbeats=[
                StoredHeartbeat(record.epoch, record.at, beat(record.heartbeat)) for record in beats
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
        return await self._show(row)

    async def revoke_node(self, id: str, by: Key) -> NodeView:
        """Revoke a node: its connections are closed at once, and it can't reconnect.

        To use the machine again, let it join with a new invitation. Revoking twice changes nothing.
        """
        row = await self._store.revoke_node(id, self._clock())
        if row is None:
            raise not_found("node", id)
        await self._change_feed.sync()
        log.info("node revoked", extra={"node": row.id, "by": by.id})
        return await self._show(row)

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
        return await self._show(row)

    async def _show(self, row: NodeRow) -> NodeView:
        live, missing = await self._live.detail(row.id)
        return view(row, live.node if live else None, missing)

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


def view(row: NodeRow, live: LiveNode | None, missing: Sequence[str] = ()) -> NodeView:
    """Describe a node from its row in the store and, while it is connected, its registration.

    Whether one of the ``missing`` servers has it is not known.
    """
    return NodeView(
        server=live.server if live else UNSET,
        age_seconds=live.age_seconds if live else UNSET,
        id=row.id,
        state=row.state,
        name=row.name,
        platform=live.platform if live else row.platform,
        region=(live.region if live else row.region) or None,
        release=live.release if live else row.version,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        last_seen_at=row.last_seen_at,
        epoch=live.epoch if live else row.epoch,
        connected=live is not None,
        connected_at=live.connected_at if live else None,
        draining=row.draining or (live is not None and live.draining),
        problem=_problem(row, live, missing),
        findings=live.findings if live else [],
        contested_at=row.contested_at,
        contested_by=row.contested_by or None,
        tunnels=live.tunnels if live else 0,
        streams=live.streams if live else 0,
        slots=live.slots if live else 0,
        active=live.active if live else 0,
        engines=live.engines if live else [],
        heartbeat=live.heartbeat if live else None,
    )


def view_from_memory(live: LiveNode) -> NodeView:
    """Describe a connected node while its row can't be read."""
    row = NodeRow(live.id, live.name, b"", 0.0, draining=live.drained)
    return msgspec.structs.replace(view(row, live), created_at=None)


def _problem(row: NodeRow, live: LiveNode | None, missing: Sequence[str]) -> str | None:
    """Return why the node gets no requests: the cause to fix first."""
    if row.revoked_at is not None:
        return "revoked by the operator"
    if row.contested_at is not None:
        return "two machines use its key: settle or revoke it"
    if live is None and missing:
        return f"not connected, or to {' or '.join(missing)}, which has not told of all its nodes"
    if live is None:
        return "not connected"
    if row.draining:
        return "drained by the operator"
    return live.problem
