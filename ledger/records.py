"""What travels on the bus and is written to the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from protocol.messages import Heartbeat

LEDGER = "request-ledger"
HEARTBEATS = "client-heartbeats"
DEAD_LETTERS = "dead-letters"
"""Topics of the bus; the last is for what the store can't take."""

Outcome = Literal[
    "ok",
    "refused",  # by the fabric itself: nothing was asked of an engine
    "engine_error",  # the engine's own 4xx or 5xx, passed on
    "failed",  # node or engine lost, with nothing or part of an answer sent
    "incomplete",  # the stream ended without its terminal marker
    "cancelled",  # the user hung up
    "timeout",
]


class LedgerEntry(Struct, frozen=True, gc=False):
    """One request, as it is billed.

    ``request_id`` names it for ever: the same entry told twice is stored once.  It should begin
    with the time (sql/README.md says why).  The fields are the columns of the table, in order.
    """

    request_id: str
    at: float
    """When the request arrived, Unix seconds."""
    account: str
    key_id: str
    node_id: str | None
    engine: str | None
    model: str
    path: str
    stream: bool
    status: int
    """What the user got, or would have got had they stayed."""
    outcome: str
    """One of ``Outcome``."""
    error: str | None
    """The code of a refusal or failure; never text from a user or an engine."""
    attempts: int
    prompt_tokens: int | None
    completion_tokens: int | None
    queue_ms: float
    first_byte_ms: float | None
    """From arrival to the first byte of the answer's body."""
    total_ms: float
    bytes_in: int
    bytes_out: int
    route: str = ""
    """Why the last engine asked was chosen, as ``x-fabric-route`` says it."""
    continued: int = 0
    """How many times the answer went on at another node."""


class HeartbeatRecord(Struct, frozen=True):
    """What a node said of itself; (``node_id``, ``epoch``, ``seq``) names it for ever."""

    node_id: str
    epoch: int
    seq: int
    at: float
    """When it arrived, by the server's clock; the node's own is ``heartbeat.at``."""
    heartbeat: Heartbeat


class Batch(NamedTuple):
    """What is written in one transaction."""

    heartbeats: Sequence[HeartbeatRecord]
    ledger: Sequence[LedgerEntry]

    @property
    def size(self) -> int:
        return len(self.heartbeats) + len(self.ledger)

    def halves(self) -> tuple[Batch, Batch]:
        h, n = len(self.heartbeats) // 2, len(self.ledger) // 2
        if self.size == 2 and h == n == 0:  # one of each: a kind for each half
            return Batch(self.heartbeats, ()), Batch((), self.ledger)
        return (
            Batch(self.heartbeats[:h], self.ledger[:n]),
            Batch(self.heartbeats[h:], self.ledger[n:]),
        )


class UsageRow(Struct, frozen=True):
    """The sum of some ledger entries."""

    group: dict[str, str | int | None]
    """What they have in common, by the names asked for; hours and days by their first second."""
    requests: int
    succeeded: int
    """Those with outcome ``ok``."""
    prompt_tokens: int
    completion_tokens: int
    bytes_in: int
    bytes_out: int
