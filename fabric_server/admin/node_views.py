"""What is told of nodes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from fabric_server.storage.rows import NodeState
from protocol.messages import Gpu, ModelReport

DAY = 86_400.0
MONTH = 31 * DAY

Measured = Annotated[float | None, Meta(description="null: the node sent something impossible.")]


class NodeQuery(Struct, frozen=True, forbid_unknown_fields=True):
    connected: Annotated[
        bool | None, Meta(description="Only those that are connected now, or only the others.")
    ] = None


class HeartbeatQuery(Struct, frozen=True, forbid_unknown_fields=True):
    heartbeats: Annotated[int, Meta(ge=0, le=1000, description="How many, at most.")] = 20


class NewInvitation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=256, description="For whom it is.")] | None = None
    valid_seconds: Annotated[float, Meta(gt=0, le=MONTH)] = DAY


class Invitation(Struct, frozen=True, kw_only=True):
    id: str
    token: Annotated[str, Meta(description="For 'fabric-client join'. It can't be had again.")]
    name: str | None
    host: Annotated[str, Meta(description="Where the machine will look for this server.")]
    api_port: int
    ca_sha256: str
    expires_at: float


class EngineView(Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    healthy: bool
    problem: str | None
    slots: Annotated[int, Meta(description="Requests that it answers at once.")]
    active: Annotated[int, Meta(description="Slots taken now.")]
    models: list[str]
    loaded: Annotated[list[str], Meta(description="Of these, those in its memory now.")]


class HeartbeatView(Struct, frozen=True, kw_only=True):
    """What a node measured of its machine."""

    seq: int
    at: Annotated[float | None, Meta(description="The node's own clock.")]
    cpu_percent: Measured
    memory_bytes: int
    memory_used_bytes: int
    disk_bytes: int
    disk_used_bytes: int
    network_in_bytes_per_second: Measured
    network_out_bytes_per_second: Measured
    slots: int
    active: int
    engines_healthy: int
    engines: int
    loaded_models: list[str]
    gpus: list[Gpu]


class NodeView(Struct, frozen=True, kw_only=True):
    id: str
    state: Annotated[NodeState, Meta(description="What the operator has made of it.")]
    name: str
    platform: str
    region: Annotated[str | None, Meta(description="Where it says it is.")]
    release: str
    created_at: Annotated[float, Meta(description="When it joined.")]
    revoked_at: float | None
    last_seen_at: Annotated[float | None, Meta(description="Its last stored heartbeat.")]
    epoch: Annotated[int, Meta(description="Counts its registrations.")]
    connected: bool
    connected_at: float | None
    draining: Annotated[bool, Meta(description="It finishes what runs, and takes nothing new.")]
    problem: Annotated[
        str | None, Meta(description="Why it gets no requests now. null: it may get some.")
    ]
    tunnels: int
    streams: int
    slots: int
    active: int
    engines: list[EngineView]
    heartbeat: Annotated[HeartbeatView | None, Meta(description="The last one, while connected.")]


class NodeList(Struct, frozen=True):
    data: list[NodeView]


class StoredHeartbeat(Struct, frozen=True):
    epoch: int
    arrived_at: float
    heartbeat: HeartbeatView


class NodeDetail(Struct, frozen=True, kw_only=True):
    node: NodeView
    models: Annotated[
        dict[str, list[ModelReport]], Meta(description="By the engine that serves them.")
    ]
    heartbeats: list[StoredHeartbeat]
