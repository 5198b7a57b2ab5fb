# ruff: noqa: S608 - only column names of ours are put into a text
"""The measured part of the store: the ledger and the heartbeats, written in batches and summed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from ledger import partitions, rollup
from ledger.records import HeartbeatRecord, LedgerEntry, UsageRow
from protocol.messages import Heartbeat
from runtime.errors import StoreError
from sql.database import Database, Many, Row, Value, insertion

_TEXT, _BIGINT, _DOUBLE, _BOOLEAN = "TEXT", "BIGINT", "DOUBLE PRECISION", "BOOLEAN"

_LEDGER = {
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
}
assert tuple(_LEDGER) == LedgerEntry.__struct_fields__
_STREAM = LedgerEntry.__struct_fields__.index("stream")
_ENTRY = ", ".join(_LEDGER)

_HEARTBEAT = {
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

_ADD_ENTRIES = insertion("ledger", _LEDGER, returning=("request_id",))
_ADD_HEARTBEATS = insertion("heartbeats", _HEARTBEAT)
_SEEN = Many(
    "WITH given (id, at) AS (given)"
    " UPDATE nodes SET last_seen_at = given.at, online = TRUE FROM given"
    " WHERE nodes.id = given.id AND (last_seen_at IS NULL OR last_seen_at < given.at)",
    (_TEXT, _DOUBLE),
)

_GROUPS = {
    "account": "account",
    "key": "key_id",
    "model": "model",
    "node": "NULLIF(node_id, '')",
    "engine": "NULLIF(engine, '')",
    "path": "path",
    "outcome": "outcome",
    "hour": "hour",
    "day": "hour / 86400 * 86400",
}
GROUPS = tuple(_GROUPS)
"""What usage can be summed by."""

_FLOATS = ("at", "cpu_percent", "network_in_bytes_per_second", "network_out_bytes_per_second")
_MOST = 2**63 - 1  # BIGINT

_heartbeats = msgspec.json.Decoder(Heartbeat)


class Measured:
    def __init__(self, database: Database, *, report_seconds: float = 20.0) -> None:
        self._database = database
        self._report_seconds = report_seconds
        # A report may walk the whole ledger.  One at a time, so that look-ups always find a reader.
        self._report_turn = asyncio.Semaphore(1)

    # ── written by consumer.Worker ────────────────────────────────────────────────────────────

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        """All in one transaction; rows that are there already are left alone."""
        async with self._database.transaction() as session:
            if ledger:
                # Sorted, so that two writers never wait for each other crosswise.
                entries = sorted(ledger, key=attrgetter("request_id"))
                rows = list(map(msgspec.structs.astuple, entries))
                new = {row[0] for row in await session.many(_ADD_ENTRIES, rows)}
                await rollup.add(session, entries, new)
            if heartbeats:
                beats = sorted(heartbeats, key=attrgetter("node_id", "epoch", "seq"))
                await session.many(_ADD_HEARTBEATS, list(map(_heartbeat_values, beats)))
                await session.many(_SEEN, _last_seen(beats))

    async def forget_heartbeats(self, before: float, now: float, most: int) -> bool:
        """Deletes some of those that arrived before; whether there may be more to delete."""
        if self._database.partitioned:
            await partitions.keep(self._database, before, now)
            return False
        async with self._database.transaction() as session:
            gone = await session.execute(
                "DELETE FROM heartbeats WHERE (node_id, epoch, seq) IN"
                " (SELECT node_id, epoch, seq FROM heartbeats WHERE at < $1 ORDER BY at LIMIT $2)",
                before,
                most,
            )
            return gone == most

    async def mark_offline(self, unseen_since: float) -> list[str]:
        """Nodes of which nothing was heard since are offline from now on; returns their ids."""
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "UPDATE nodes SET online = FALSE"
                " WHERE online AND (last_seen_at IS NULL OR last_seen_at < $1) RETURNING id",
                unseen_since,
            )
            return [str(row[0]) for row in rows]

    # ── read by the API ───────────────────────────────────────────────────────────────────────

    async def request(self, request_id: str) -> LedgerEntry | None:
        rows = await self._database.fetch(
            f"SELECT {_ENTRY} FROM ledger WHERE request_id = $1", request_id
        )
        return _entry(rows[0]) if rows else None

    async def requests(
        self,
        *,
        limit: int = 100,
        before: tuple[float, str] | None = None,
        key: str | None = None,
        node: str | None = None,
        model: str | None = None,
        outcome: str | None = None,
        account: str | None = None,
    ) -> list[LedgerEntry]:
        """The newest first.  ``before`` is (``at``, ``request_id``) of the last one already seen.

        Raises ``StoreError`` when a rare filter makes it walk the ledger for too long.
        """
        where: list[str] = []
        args: list[Value] = []
        if before is not None:
            where.append("(at, request_id) < ($1, $2)")
            args += before
        filters = {
            "key_id": key,
            "node_id": node,
            "model": model,
            "outcome": outcome,
            "account": account,
        }
        for column, value in filters.items():
            if value is not None:
                args.append(value)
                where.append(f"{column} = ${len(args)}")
        args.append(limit)
        rows = await self._report(
            f"SELECT {_ENTRY} FROM ledger"
            f"{' WHERE ' if where else ''}{' AND '.join(where)}"
            f" ORDER BY at DESC, request_id DESC LIMIT ${len(args)}",
            args,
        )
        return [_entry(row) for row in rows]

    async def usage(
        self, since: float, until: float, by: Sequence[str] = (), *, limit: int = 10_000
    ) -> list[UsageRow]:
        """Sums of the entries with ``since <= at < until``, one for each combination of ``by``.

        ``by`` are names from ``GROUPS``; others raise ``ValueError``.  Without any there is one
        row, the total.  In the order of ``by``, at most ``limit`` rows.
        """
        for name in by:
            if name not in _GROUPS:
                raise ValueError(f"usage is not kept by '{name}'; it is by {', '.join(GROUPS)}")
        groups = ", ".join(_GROUPS[name] for name in by)
        sums = ", ".join(
            f"CAST(COALESCE(SUM({what}), 0) AS BIGINT)"
            for what in (
                "requests",
                "CASE WHEN outcome = 'ok' THEN requests ELSE 0 END",
                *rollup.SUMMED,
            )
        )
        rows = await self._report(
            f"SELECT {groups}{', ' if by else ''}{sums} FROM ({rollup.PARTS}) AS parts"
            f"{f' GROUP BY {groups} ORDER BY {groups}' if by else ''} LIMIT $7",
            [*rollup.parts_of(since, until), limit],
        )
        n = len(by)
        return [UsageRow(dict(zip(by, row[:n], strict=True)), *row[n:]) for row in rows]

    async def heartbeats(
        self, node: str, *, limit: int = 100, before: tuple[int, int] | None = None
    ) -> list[HeartbeatRecord]:
        """The newest first.  ``before`` is (``epoch``, ``seq``) of the last one already seen."""
        rows = await self._report(
            "SELECT node_id, epoch, seq, at, payload FROM heartbeats"
            " WHERE node_id = $1 AND (epoch, seq) < ($2, $3)"
            " ORDER BY epoch DESC, seq DESC LIMIT $4",
            [node, *(before or (_MOST, _MOST)), limit],
        )
        return [
            HeartbeatRecord(node_id, epoch, seq, at, _heartbeats.decode(payload))
            for node_id, epoch, seq, at, payload in rows
        ]

    async def _report(self, sql: str, args: Sequence[Value]) -> Sequence[Row]:
        async with self._report_turn:
            try:
                async with asyncio.timeout(self._report_seconds):
                    return await self._database.fetch(sql, *args)
            except TimeoutError:
                raise StoreError(
                    f"the report took longer than {self._report_seconds:g} s;"
                    " ask for a shorter time or fewer rows"
                ) from None


def _entry(row: Row) -> LedgerEntry:
    values: list[Any] = list(row)
    values[_STREAM] = bool(values[_STREAM])  # SQLite has no truth values of its own
    return LedgerEntry(*values)


def _heartbeat_values(record: HeartbeatRecord) -> tuple[Value, ...]:
    """A node may send any number that fits its message; a column must be able to hold it."""
    beat = record.heartbeat
    for name in _FLOATS:
        if not math.isfinite(getattr(beat, name)):
            beat = msgspec.structs.replace(beat, **{name: 0.0})
    percent = 100.0 * beat.memory_used_bytes / beat.memory_bytes if beat.memory_bytes else 0.0
    return (
        record.node_id,
        record.epoch,
        min(record.seq, _MOST),
        record.at,
        beat.cpu_percent,
        percent,
        min(beat.active, _MOST),
        min(beat.slots, _MOST),
        msgspec.json.encode(beat).decode(),
    )


def _last_seen(beats: Iterable[HeartbeatRecord]) -> list[tuple[str, float]]:
    latest: dict[str, float] = {}
    for beat in beats:
        latest[beat.node_id] = max(beat.at, latest.get(beat.node_id, 0.0))
    return sorted(latest.items())
