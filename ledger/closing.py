# ruff: noqa: S608 - only column names of ours are put into a text
"""The ledger is closed, compared with its sums, and deleted month by month, the oldest first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from msgspec import Struct

from ledger import rollup
from ledger.borders import CLOSING, move_border, read_borders
from ledger.months import month_of, name_of, shifted
from ledger.records import LedgerEntry
from ledger.tables import ENTRY, entry_of
from runtime.errors import StoreError
from sql.database import Database

HOUR = 3600
EARLIEST = -float(2**53)
PAGE = 1_000
"""Entries read at once for the archive."""

_SUMS = ", ".join(
    f"CAST(COALESCE(SUM({name}), 0) AS BIGINT)" for name in ("requests", *rollup.SUMMED)
)


class LedgerMonth(Struct, frozen=True):
    """A month that was compared with its sums, and may be deleted."""

    month: int
    entries: int
    archive: str
    """The name of the file; empty when there is none."""
    sha256: str
    checked_at: float
    deleted_at: float | None = None


class SumsDiffer(StoreError):
    """The ledger has more than the sums: deleting would lose what is billed."""


class LedgerClosing:
    """Closes and deletes old months.  Every method raises ``StoreError`` when the database can't.

    The beginning of a closed month is where opening balances belong: what came before is final.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def close(self, before: int) -> None:
        """Close what arrived before that month: from now on such entries are refused."""
        if before > (await read_borders(self._database)).ledger:
            async with self._database.transaction(durable=True) as session:
                await session.alone(CLOSING)
                await move_border(session, "ledger", before)

    async def oldest(self, since: float = EARLIEST) -> float | None:
        """Return when the oldest entry arrived; there is none before ``since``."""
        rows = await self._database.fetch("SELECT MIN(at) FROM ledger WHERE at >= $1", since)
        return None if rows[0][0] is None else float(rows[0][0])

    async def next_month(self, limit: int, since: float = EARLIEST) -> int | None:
        """Return the oldest closed month before ``limit`` that has entries still.

        There is none before ``since``.  PostgreSQL would walk over all deleted ones without it.
        """
        border = min((await read_borders(self._database)).ledger, limit)
        oldest = await self.oldest(since)
        return None if oldest is None or oldest >= border else month_of(oldest)

    async def months(self) -> list[LedgerMonth]:
        """Return the months that were compared, the newest first."""
        rows = await self._database.fetch(
            "SELECT month, entries, archive, sha256, checked_at, deleted_at FROM ledger_months"
            " ORDER BY month DESC"
        )
        return [LedgerMonth(*row) for row in rows]

    async def is_checked(self, month: int) -> bool:
        found = "SELECT 1 FROM ledger_months WHERE month = $1"
        return bool(await self._database.fetch(found, month))

    async def checked(self, month: LedgerMonth) -> None:
        """Note that a month was compared, and archived if so set: it may be deleted."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "INSERT INTO ledger_months (month, entries, archive, sha256, checked_at)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (month) DO NOTHING",
                month.month,
                month.entries,
                month.archive,
                month.sha256,
                month.checked_at,
            )

    async def deleted(self, month: int, at: float) -> None:
        """Note that no entry of the month is left."""
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE ledger_months SET deleted_at = $1 WHERE month = $2", at, month
            )

    async def hours(self, month: int) -> AsyncIterator[int]:
        """Compare each hour that has entries with its sums; yield the number of entries.

        Raises ``SumsDiffer`` for the first that has more than its sums.
        """
        until, since = shifted(month, 1), EARLIEST
        while True:
            rows = await self._database.fetch(
                "SELECT MIN(at) FROM ledger WHERE at >= $1 AND at < $2", since, float(until)
            )
            if rows[0][0] is None:
                return
            hour = int(rows[0][0] // HOUR) * HOUR
            since = float(hour + HOUR)
            yield await self._compare(month, hour)

    async def _compare(self, month: int, hour: int) -> int:
        kept = await self._database.fetch(
            f"SELECT {_SUMS} FROM ({rollup.FROM_LEDGER} WHERE at >= $1 AND at < $2) AS entries",
            float(hour),
            float(hour + HOUR),
        )
        sums = await self._database.fetch(
            f"SELECT {_SUMS} FROM usage_by_hour WHERE hour = $1", hour
        )
        if any(entries > summed for entries, summed in zip(kept[0], sums[0], strict=True)):
            raise SumsDiffer(
                f"the ledger's month {name_of(month)} was not deleted: in the hour that began at"
                f" {hour} it has {kept[0][0]} requests, and usage_by_hour {sums[0][0]}, or fewer"
                " tokens or bytes: restore these sums from a backup"
            )
        return int(kept[0][0])

    async def pages(self, month: int) -> AsyncIterator[Sequence[LedgerEntry]]:
        """Read the entries up to the end of a month, the oldest first."""
        until = float(shifted(month, 1))
        at, id = EARLIEST, ""
        while True:
            rows = await self._database.fetch(
                f"SELECT {ENTRY} FROM ledger WHERE (at, request_id) > ($1, $2) AND at < $3"
                f" ORDER BY at, request_id LIMIT {PAGE}",
                at,
                id,
                until,
            )
            if not rows:
                return
            entries = [entry_of(row) for row in rows]
            at, id = entries[-1].at, entries[-1].request_id
            yield entries

    async def delete(self, month: int, since: float, limit: int) -> list[float]:
        """Delete the oldest entries up to the end of a checked month; return when they arrived.

        There is none before ``since``.
        """
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "DELETE FROM ledger WHERE request_id IN (SELECT request_id FROM ledger"
                " WHERE at >= $1 AND at < $2 ORDER BY at, request_id LIMIT $3) RETURNING at",
                since,
                float(shifted(month, 1)),
                limit,
            )
            return [float(row[0]) for row in rows]

    async def count(self, before: int) -> int:
        """Return how many entries arrived before that time."""
        counted = "SELECT COUNT(*) FROM ledger WHERE at < $1"
        rows = await self._database.fetch(counted, float(before))
        return int(rows[0][0])
