"""Structs that describe nodes and invitations, for ``nodes``."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct

from fabric_server.admin.servers import Row, States
from fabric_server.storage.rows import NodeState
from protocol.messages import Gpu, ModelReport

DAY = 86_400.0
MONTH = 31 * DAY

Measured = Annotated[float | None, Meta(description="null: the node reported no finite number.")]


class NodeQuery(Struct, frozen=True, forbid_unknown_fields=True):
    connected: Annotated[
        bool | None, Meta(description="true: only connected nodes. false: only the others.")
    ] = None
    all: Annotated[bool, Meta(description="true: also those that are away for long.")] = False
    server: Annotated[
        str | None,
        Meta(description="Only those connected to this server or worker; w1, for example."),
    ] = None


class HeartbeatQuery(Struct, frozen=True, forbid_unknown_fields=True):
    heartbeats: Annotated[
        int, Meta(ge=0, le=1000, description="Number of heartbeats, at most.")
    ] = 20


class NewInvitation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: (
        Annotated[
            str, Meta(max_length=256, description="Name of the node, unless its owner names it.")
        ]
        | None
    ) = None
    valid_seconds: Annotated[float, Meta(gt=0, le=MONTH)] = DAY


class Invitation(Struct, frozen=True, kw_only=True):
    id: str
    token: Annotated[str, Meta(description="For 'fabric-client join'. It is not shown again.")]
    name: str | None
    host: Annotated[
        str, Meta(description="The address at which the machine will look for this server.")
    ]
    api_port: int
    ca_sha256: str
    expires_at: float


class EjectionView(Struct, frozen=True, kw_only=True):
    """Requests that an engine does not get, because it failed."""

    model: str
    path: Annotated[str | None, Meta(description="null: all paths of the model.")]
    until: Annotated[float, Meta(description="Then one request probes it.")]
    reason: Annotated[str, Meta(description="Its last failure.")]


class EngineView(Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    healthy: bool
    problem: str | None
    slots: Annotated[int, Meta(description="Number of requests it serves at once.")]
    reported_slots: Annotated[
        int, Meta(description="More than slots, while it answers that it has too much to do.")
    ]
    active: Annotated[int, Meta(description="Slots in use now.")]
    models: list[str]
    loaded: Annotated[list[str], Meta(description="The models that are in memory now.")]
    ejected: list[EjectionView]
    implausible_usage: Annotated[
        int, Meta(description="Answers since it connected whose token counts were not plausible.")
    ]


class HeartbeatView(Struct, frozen=True, kw_only=True):
    """A node's measurements of its machine."""

    seq: int
    at: Annotated[float | None, Meta(description="By the node's clock.")]
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


class FindingView(Struct, frozen=True, kw_only=True):
    """A problem, in the words of fabric-server doctor."""

    check: str
    level: Literal["ok", "warn", "FAIL"]
    code: Annotated[str, Meta(description="Its name: no_tunnels or clock_differs.")]
    what: str
    remedy: str


class LiveNode(Row, frozen=True, kw_only=True):
    """A connected node, as the server that holds its registration knows it."""

    id: str
    name: str
    platform: str
    region: str
    release: str
    epoch: int
    connected_at: float
    drained: bool
    draining: bool
    problem: str | None
    findings: list[FindingView]
    tunnels: int
    streams: int
    slots: int
    active: int
    engines: list[EngineView]
    heartbeat: HeartbeatView | None


class LiveDetail(Struct, frozen=True):
    """A connected node and its engines' models, by the engine's name."""

    node: LiveNode
    models: dict[str, list[ModelReport]]


class NodeView(Row, frozen=True, kw_only=True):
    id: str
    state: Annotated[
        NodeState, Meta(description="The operator's decision: drained or revoked, for example.")
    ]
    name: str
    platform: str
    region: Annotated[str | None, Meta(description="As reported by the node.")]
    release: str
    created_at: Annotated[
        float | None,
        Meta(description="When the node joined; null: not known while the store is away."),
    ]
    revoked_at: float | None
    last_seen_at: Annotated[float | None, Meta(description="Time of the last stored heartbeat.")]
    epoch: Annotated[int, Meta(description="Number of its registrations.")]
    connected: bool
    connected_at: float | None
    draining: Annotated[
        bool, Meta(description="true: it finishes its running requests and gets no new ones.")
    ]
    problem: Annotated[
        str | None, Meta(description="Why it gets no requests now; null: it can get some.")
    ]
    findings: Annotated[
        list[FindingView],
        Meta(description="Problems found of it while connected, also those that stop no request."),
    ]
    contested_at: Annotated[
        float | None,
        Meta(
            description="When two machines were noticed that use its key: it is refused until it "
            "is settled or revoked."
        ),
    ]
    contested_by: Annotated[
        str | None, Meta(description="The addresses of these machines, joined by 'and'.")
    ]
    tunnels: int
    streams: int
    slots: int
    active: int
    engines: list[EngineView]
    heartbeat: Annotated[
        HeartbeatView | None, Meta(description="The last heartbeat, while connected.")
    ]


Complete = Annotated[
    bool,
    Meta(
        description="false: the store is away, so only what this server has in memory is shown: "
        "the nodes connected to it, without their history."
    ),
]
StoreProblem = Annotated[
    str | None, Meta(description="Why the store can't be asked; null: it was asked.")
]


class NodeList(Struct, frozen=True):
    data: list[NodeView]
    complete: Complete = True
    problem: StoreProblem = None
    servers: States = UNSET


class StoredHeartbeat(Struct, frozen=True):
    epoch: int
    arrived_at: float
    heartbeat: HeartbeatView


class NodeDetail(Struct, frozen=True, kw_only=True):
    node: NodeView
    models: Annotated[
        dict[str, list[ModelReport]],
        Meta(description="Models by the name of the engine that serves them."),
    ]
    heartbeats: list[StoredHeartbeat]
    complete: Complete = True
    problem: StoreProblem = None
