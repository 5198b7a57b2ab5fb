# ruff: noqa: S608 - only column names of ours are put into a text
"""Read the ledger and the heartbeats: single requests, lists of them, and usage by groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from ledger import rollup
from ledger.borders import read_borders
from ledger.records import HeartbeatRecord, LedgerEntry, UsageRow
from ledger.tables import ENTRY, MAX_BIGINT, entry_of
from protocol.messages import Heartbeat
from runtime.errors import StoreError
from sql.database import Database, Row, Value

REPORT_SECONDS = 20.0
"""Longest time that a report may take."""

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
"""Names by which usage can be grouped."""

_decode_heartbeat = msgspec.json.Decoder(Heartbeat).decode


class RequestFilter(Struct, frozen=True):
    """The requests that a list or a sum is restricted to; None: any value."""

    key_id: str | None = None
    node_id: str | None = None
    model: str | None = None
    outcome: str | None = None
    account: str | None = None
    since: float | None = None
    """Arrived then or later; for lists only."""
    failed: bool = False
    """Only those with another outcome than ``ok``."""

    def conditions(self, args: list[Value]) -> list[str]:
        """Return conditions in SQL, but for ``since``; their arguments are added to ``args``."""
        where: list[str] = []
        for column in ("key_id", "node_id", "model", "outcome", "account"):
            value = getattr(self, column)
            if value is not None:
                args.append(value)
                where.append(f"{column} = ${len(args)}")
        if self.failed:
            where.append("outcome <> 'ok'")
        return where


ALL = RequestFilter()


class LedgerReports:
    """Every method raises ``StoreError`` when the database can't, or takes too long."""

    def __init__(self, database: Database, *, report_seconds: float = REPORT_SECONDS) -> None:
        self._database = database
        self._report_seconds = report_seconds
        # A report may walk the whole ledger.  One at a time, so that look-ups always find a reader.
        self._report_lock = asyncio.Semaphore(1)

    async def request(self, request_id: str) -> LedgerEntry | None:
        rows = await self._database.fetch(
            f"SELECT {ENTRY} FROM ledger WHERE request_id = $1", request_id
        )
        return entry_of(rows[0]) if rows else None

    async def requests(
        self,
        filter: RequestFilter = ALL,
        *,
        limit: int = 100,
        before: tuple[float, str] | None = None,
    ) -> list[LedgerEntry]:
        """Return the newest first; ``before`` is (``at``, ``request_id``) of the last one seen.

        A rare filter may make it walk the ledger for too long.
        """
        where: list[str] = []
        args: list[Value] = []
        if before is not None:
            where.append("(at, request_id) < ($1, $2)")
            args += before
        if filter.since is not None:
            args.append(filter.since)
            where.append(f"at >= ${len(args)}")
        where += filter.conditions(args)
        args.append(limit)
        rows = await self._report(
            f"SELECT {ENTRY} FROM ledger"
            f"{' WHERE ' if where else ''}{' AND '.join(where)}"
            f" ORDER BY at DESC, request_id DESC LIMIT ${len(args)}",
            args,
        )
        return [entry_of(row) for row in rows]

    async def usage(
        self,
        since: float,
        until: float,
        by: Sequence[str] = (),
        *,
        limit: int = 10_000,
        filter: RequestFilter = ALL,
    ) -> list[UsageRow]:
        """Sum the entries with ``since <= at < until``, one row for each combination of ``by``.

        ``by`` are names from ``GROUPS``; others raise ``ValueError``.  Without any there is one
        row, the total.  Rows are in the order of ``by``, at most ``limit``.  Where entries are
        deleted, the period begins and ends with the hour, day or month that is summed.
        """
        for name in by:
            if name not in _GROUPS:
                raise ValueError(f"usage can't be grouped by '{name}'; use {', '.join(GROUPS)}")
        groups = ", ".join(_GROUPS[name] for name in by)
        sums = ", ".join(
            f"CAST(COALESCE(SUM({what}), 0) AS BIGINT)"
            for what in (
                "requests",
                "CASE WHEN outcome = 'ok' THEN requests ELSE 0 END",
                *rollup.SUMMED,
            )
        )
        borders = await read_borders(self._database)
        while True:
            args: list[Value] = [*rollup.parts_of(since, until, borders), limit]
            where = " AND ".join(filter.conditions(args))
            rows = await self._report(
                f"SELECT {groups}{', ' if by else ''}{sums} FROM ({rollup.PARTS}) AS parts"
                f"{f' WHERE {where}' if where else ''}"
                f"{f' GROUP BY {groups} ORDER BY {groups}' if by else ''} LIMIT $7",
                args,
            )
            before, borders = borders, await read_borders(self._database)
            if before == borders:  # else entries may have been deleted meanwhile
                break
        n = len(by)
        return [UsageRow(dict(zip(by, row[:n], strict=True)), *row[n:]) for row in rows]

    async def heartbeats(
        self, node: str, *, limit: int = 100, before: tuple[int, int] | None = None
    ) -> list[HeartbeatRecord]:
        """Return a node's newest first; ``before`` is (``epoch``, ``seq``) of the last one seen."""
        rows = await self._report(
            "SELECT node_id, epoch, seq, at, payload FROM heartbeats"
            " WHERE node_id = $1 AND (epoch, seq) < ($2, $3)"
            " ORDER BY epoch DESC, seq DESC LIMIT $4",
            [node, *(before or (MAX_BIGINT, MAX_BIGINT)), limit],
        )
        records = []
        for node_id, epoch, seq, at, payload in rows:
            with suppress(msgspec.ValidationError):  # an older server stored what is refused today
                heartbeat = _decode_heartbeat(payload)
                records.append(HeartbeatRecord(node_id, epoch, seq, at, heartbeat))
        return records

    async def _report(self, sql: str, args: Sequence[Value]) -> Sequence[Row]:
        async with self._report_lock:
            try:
                async with asyncio.timeout(self._report_seconds):
                    return await self._database.fetch(sql, *args)
            except TimeoutError:
                raise StoreError(
                    f"the report took longer than {self._report_seconds:g} s;"
                    " ask for a shorter time or fewer rows"
                ) from None
