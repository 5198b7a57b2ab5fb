# ruff: noqa: S608 - only a condition of ours is put into a text
"""The table ``retention``: which server deletes, and how the last run ended."""

from __future__ import annotations

from msgspec import Struct

from fabric_server.storage.leases import lease_has_ended
from sql.database import Database

LEASE_SECONDS = 120.0
MAX_GAP = 86_400.0
"""A longer time in which no server looked is one in which nodes could not come back, or the clock
was set."""


class RetentionRow(Struct, frozen=True):
    watched_since: float
    """Since when servers have looked at the clock without a long gap; Unix seconds, as all."""
    finished_at: float | None
    removed: int
    """Rows that the last run deleted, or added to other sums."""
    problem: str
    """Why the last run failed; empty when it did not."""


class RetentionState:
    """Every method raises ``StoreError`` when the database can't; times are the database's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def watch(self, now: float) -> RetentionRow:
        """Note that a server looks at the clock; return the state."""
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "UPDATE retention SET watched_since = CASE WHEN $1 - watched_at > $2"
                " OR watched_at - $1 > $2 THEN $1 ELSE watched_since END, watched_at = $1"
                " RETURNING watched_since, finished_at, removed, problem",
                now,
                MAX_GAP,
            )
        return RetentionRow(*rows[0])

    async def read(self) -> RetentionRow:
        rows = await self._database.fetch(
            "SELECT watched_since, finished_at, removed, problem FROM retention"
        )
        return RetentionRow(*rows[0])

    async def claim(self, owner: str, now: float) -> bool:
        """Take the lease, or renew it; False while another server has it."""
        async with self._database.transaction() as session:
            return bool(
                await session.execute(
                    "UPDATE retention SET owner = $1, lease_until = $2"
                    f" WHERE owner = $1 OR {lease_has_ended('$3')}",
                    owner,
                    now + LEASE_SECONDS,
                    now,
                )
            )

    async def end(self, owner: str, now: float, removed: int, problem: str) -> None:
        """Store the result, if this server has the lease still, and give the lease back.

        A run that failed leaves the time of the last good one.
        """
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE retention SET owner = '', lease_until = 0, removed = $1, problem = $2,"
                " finished_at = CASE WHEN $2 = '' THEN $3 ELSE finished_at END WHERE owner = $4",
                removed,
                problem,
                now,
                owner,
            )
