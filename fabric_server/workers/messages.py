"""The messages of parent and workers; each may carry descriptors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from fabric_server.app.introduction import Introduction
from fabric_server.auth.bank import Grant, Need
from fabric_server.config import Config

MAX_LINES = 200
"""Keys of which one message tells."""

# ── parent to worker ──────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Start:
    """The first message, which a worker gets pickled on its standard input."""

    settings: Config
    number: int
    count: int
    """How many workers there are."""
    ports: Mapping[str, int]


class Arrived(Struct, frozen=True, tag=True, array_like=True):
    """Addresses of a connection that is handed over."""

    port: str
    address: str
    """The address of the machine at the other end."""
    client: str = ""
    """The client for whom that machine connects, as a header of the PROXY protocol said."""
    peeked: bool = False
    """Its first bytes were looked at, and such a header was taken from them."""


class Handed(Struct, frozen=True, tag=True):
    """Connections: one descriptor for each."""

    connections: Sequence[Arrived]


OrderKind = Literal["yield_nodes", "keep_nodes", "yield_users", "reload", "stop", "exit", "hurry"]


class Order(Struct, frozen=True, tag=True):
    """Something to do.

    ``exit`` follows ``stop``, when all workers have drained; ``hurry`` cancels what runs.
    """

    what: OrderKind


class States(Struct, frozen=True, tag=True):
    """The state of each worker, by its id, and the nodes of all."""

    states: Mapping[str, str]
    nodes: int


class Joined(Struct, frozen=True, tag=True):
    """A connection to another worker: one descriptor."""

    peer: str


class Granted(Struct, frozen=True, tag=True):
    """Answers to ``Needs``; ``recalls`` are keys of which another worker lacks something."""

    grants: Sequence[Grant]
    recalls: Sequence[str]


# ── worker to parent ──────────────────────────────────────────────────────────────────────────


class Begun(Struct, frozen=True, tag=True):
    """The worker serves."""

    about: Introduction


class Failed(Struct, frozen=True, tag=True):
    """The worker could not start; the text says why, and what to do."""

    reason: str


class Load(Struct, frozen=True):
    """The connections of one port."""

    open: int = 0
    taken: int = 0
    """Connections handed over since the worker's start; ``open`` counts some of them."""


class Report(Struct, frozen=True, tag=True):
    """The worker's state, when it has changed."""

    state: str
    """The status that ``/health/ready`` tells."""
    nodes: int = 0
    """Nodes that requests can be sent to."""
    known: int = 0
    """The same, with those of the other workers that it has been told of."""
    loads: Mapping[str, Load] = {}


class Registered(Struct, frozen=True, tag=True):
    """A node has registered; the parent tells the other workers, which may have its older link."""

    node_id: str
    epoch: int
    instance: str
    address: str


class Needs(Struct, frozen=True, tag=True):
    """The worker's words on its keys' limits: what was used, is given back, and is lacking."""

    needs: Sequence[Need]


class Parted(Struct, frozen=True, tag=True):
    """The connection to another worker is lost."""

    peer: str


class Leaving(Struct, frozen=True, tag=True):
    """A signal or a defect ends the worker: it wants no more connections."""


class Drained(Struct, frozen=True, tag=True):
    """No request runs any more; the worker waits for ``exit``."""


# ── both ways ─────────────────────────────────────────────────────────────────────────────────


Question = Literal["metrics", "reload"]


class Ask(Struct, frozen=True, tag=True):
    """A question; the answer has the same number."""

    number: int
    what: Question


class Answer(Struct, frozen=True, tag=True):
    """The answer to a question: one descriptor, of a file with its bytes."""

    number: int


Message = (
    Handed
    | Order
    | States
    | Joined
    | Begun
    | Failed
    | Report
    | Parted
    | Registered
    | Granted
    | Needs
    | Leaving
    | Drained
    | Ask
    | Answer
)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder[Message](Message).decode
