"""Records that travel on the bus and are written to the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from protocol.messages import Heartbeat

LEDGER = "request-ledger"
HEARTBEATS = "client-heartbeats"
DEAD_LETTERS = "dead-letters"
"""Topics of the bus; the last is for records that the store can't hold."""

Outcome = Literal[
    "ok",
    "refused",  # by the fabric itself, before any engine got it
    "engine_error",  # the engine's own 4xx or 5xx, passed on
    "failed",  # node or engine lost, with nothing or part of an answer sent
    "incomplete",  # the stream ended without its terminal marker
    "cancelled",  # the client closed the connection
    "timeout",
]


class LedgerEntry(Struct, frozen=True, gc=False):
    """One request, as it is billed.

    ``request_id`` identifies it for ever: the same entry written twice is stored once.  It should
    begin with the time (sql/README.md says why).  The fields are the columns of the table, in
    order.
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
    """The status that the client got, or would have got had it stayed."""
    outcome: str
    """One of ``Outcome``."""
    error: str | None
    """The error code; never text from a client or an engine."""
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
    """Why the last engine was chosen, as in ``x-fabric-route``."""
    continued: int = 0
    """How many times the answer went on at another node."""
    usage_implausible: bool = False
    """The node reported more tokens than there can have been; the most plausible is charged."""
    estimated: bool = False
    """The engine did not tell all the tokens; the others are estimates."""


class HeartbeatRecord(Struct, frozen=True):
    """A node's report of itself; (``node_id``, ``epoch``, ``seq``) identifies it for ever."""

    node_id: str
    epoch: int
    seq: int
    at: float
    """Time of arrival by the server's clock; the node's own is ``heartbeat.at``."""
    heartbeat: Heartbeat


class Batch(NamedTuple):
    """The records of one transaction."""

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
    """Their common values, by group name; hours and days by their first second."""
    requests: int
    succeeded: int
    """Requests with outcome ``ok``."""
    prompt_tokens: int
    completion_tokens: int
    bytes_in: int
    bytes_out: int
    estimated: int = 0
    """Requests of which some tokens are estimates."""
