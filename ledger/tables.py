"""The tables ``ledger`` and ``heartbeats``: rows written in batches, old ones deleted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from ledger import partitions, rollup
from ledger.borders import CLOSING, read_borders
from ledger.records import HeartbeatRecord, LedgerEntry
from runtime.errors import RecordError, StoreError
from sql.database import Database, Many, Row, Session, Value, insertion

_TEXT, _BIGINT, _DOUBLE, _BOOLEAN = "TEXT", "BIGINT", "DOUBLE PRECISION", "BOOLEAN"

LEDGER_COLUMNS = {
    "request_id": _TEXT,
    "at": _DOUBLE,
    "account": _TEXT,
    "key_id": _TEXT,
    "node_id": _TEXT,
    "engine": _TEXT,
    "model": _TEXT,
    "path": _TEXT,
    "stream": _BOOLEAN,
    "status": _BIGINT,
    "outcome": _TEXT,
    "error": _TEXT,
    "attempts": _BIGINT,
    "prompt_tokens": _BIGINT,
    "completion_tokens": _BIGINT,
    "queue_ms": _DOUBLE,
    "first_byte_ms": _DOUBLE,
    "total_ms": _DOUBLE,
    "bytes_in": _BIGINT,
    "bytes_out": _BIGINT,
    "route": _TEXT,
    "continued": _BIGINT,
    "usage_implausible": _BOOLEAN,
    "estimated": _BOOLEAN,
}
"""Names and SQL types, in the order of ``LedgerEntry``'s fields."""
assert tuple(LEDGER_COLUMNS) == LedgerEntry.__struct_fields__
ENTRY = ", ".join(LEDGER_COLUMNS)
"""The columns to select for ``entry_of``."""
_BOOLEANS = [
    LedgerEntry.__struct_fields__.index(one) for one in ("stream", "usage_implausible", "estimated")
]

OPEN_SECONDS = 50 * 86_400.0
"""Entries that arrived within this time are in no closed month: two months, at least, are open."""

_HEARTBEAT_COLUMNS = {
    "node_id": _TEXT,
    "epoch": _BIGINT,
    "seq": _BIGINT,
    "at": _DOUBLE,
    "cpu_percent": _DOUBLE,
    "memory_percent": _DOUBLE,
    "active": _BIGINT,
    "slots": _BIGINT,
    "payload": _TEXT,
}

MAX_BIGINT = 2**63 - 1

_ADD_ENTRIES = insertion("ledger", LEDGER_COLUMNS, returning=("request_id",))
_ADD_HEARTBEATS = insertion("heartbeats", _HEARTBEAT_COLUMNS)
_UPDATE_LAST_SEEN = Many(
    "WITH given (id, at) AS (given)"
    " UPDATE nodes SET last_seen_at = given.at, online = TRUE FROM given"
    " WHERE nodes.id = given.id AND (last_seen_at IS NULL OR last_seen_at < given.at)",
    (_TEXT, _DOUBLE),
)

_FLOATS = ("at", "cpu_percent", "network_in_bytes_per_second", "network_out_bytes_per_second")


class LedgerTables:
    """A ``batch_writer.Sink`` and ``housekeeping.Tables``.

    Every method raises ``StoreError`` when the database can't.
    """

    place = "the store"

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        """Write all of it in one transaction; leave alone rows that exist.

        Raises ``RecordError`` when a record can't be held: also an entry of a closed month, for it
        may have been summed and deleted before.
        """
        async with self._database.transaction() as session:
            if ledger:
                oldest = min(entry.at for entry in ledger)
                if oldest < self._clock() - OPEN_SECONDS:
                    await _refuse_closed(session, oldest)
                # Sorted, so that two writers never deadlock.
                entries = sorted(ledger, key=attrgetter("request_id"))
                rows = list(map(msgspec.structs.astuple, entries))
                new = {row[0] for row in await session.many(_ADD_ENTRIES, rows)}
                await rollup.add(session, entries, new)
            if heartbeats:
                beats = sorted(heartbeats, key=attrgetter("node_id", "epoch", "seq"))
                await session.many(_ADD_HEARTBEATS, list(map(_heartbeat_values, beats)))
                await session.many(_UPDATE_LAST_SEEN, _last_seen(beats))

    async def check(self) -> None:
        """Raise ``StoreError`` if records could not be written now."""
        if not await self._database.writable():
            raise StoreError("the store is read-only: make it writable, or name the primary")

    async def delete_heartbeats(self, before: float, now: float, limit: int) -> bool:
        """Delete heartbeats that arrived before that time; True if there may be more.

        At most ``limit`` rows, or whole days where the table is partitioned.
        """
        if self._database.partitioned:
            await partitions.maintain(self._database, before, now)
            return False
        async with self._database.transaction() as session:
            deleted = await session.execute(
                "DELETE FROM heartbeats WHERE (node_id, epoch, seq) IN"
                " (SELECT node_id, epoch, seq FROM heartbeats WHERE at < $1 ORDER BY at LIMIT $2)",
                before,
                limit,
            )
            return deleted == limit

    async def mark_offline(self, unseen_since: float) -> list[str]:
        """Mark nodes without a heartbeat since then offline; return their ids."""
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "UPDATE nodes SET online = FALSE"
                " WHERE online AND (last_seen_at IS NULL OR last_seen_at < $1) RETURNING id",
                unseen_since,
            )
            return [str(row[0]) for row in rows]


def entry_of(row: Row) -> LedgerEntry:
    """Return the entry in a row of the columns ``ENTRY``."""
    values: list[Any] = list(row)
    for at in _BOOLEANS:
        values[at] = bool(values[at])  # SQLite has no truth values of its own
    return LedgerEntry(*values)


async def _refuse_closed(session: Session, oldest: float) -> None:
    await session.alone(CLOSING)  # the border stays where it is until this transaction ends
    border = (await read_borders(session)).ledger
    if oldest < border:
        raise RecordError(
            f"it arrived at {oldest:.0f}, and the ledger is closed before {border}: such entries"
            " were summed and deleted"
        )


def _heartbeat_values(record: HeartbeatRecord) -> tuple[Value, ...]:
    """Return the row; numbers are bounded, because a node may send any that fits its message."""
    beat = record.heartbeat
    for name in _FLOATS:
        if not math.isfinite(getattr(beat, name)):
            beat = msgspec.structs.replace(beat, **{name: 0.0})
    percent = 100.0 * beat.memory_used_bytes / beat.memory_bytes if beat.memory_bytes else 0.0
    return (
        record.node_id,
        record.epoch,
        min(record.seq, MAX_BIGINT),
        record.at,
        beat.cpu_percent,
        percent,
        min(beat.active, MAX_BIGINT),
        min(beat.slots, MAX_BIGINT),
        msgspec.json.encode(beat).decode(),
    )


def _last_seen(beats: Iterable[HeartbeatRecord]) -> list[tuple[str, float]]:
    latest: dict[str, float] = {}
    for beat in beats:
        latest[beat.node_id] = max(beat.at, latest.get(beat.node_id, 0.0))
    return sorted(latest.items())
