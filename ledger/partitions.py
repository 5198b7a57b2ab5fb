# ruff: noqa: S608 - only digits of ours are put into a text
"""Partitions of the table of heartbeats, one for each day: PostgreSQL only.

They are named ``heartbeats_20260131`` and hold one day of UTC.  They are made ahead and dropped
whole; rows of other days are in ``heartbeats_rest``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sql.database import Database, Session

DAY = 86_400
AHEAD = 2
"""Days made beyond today: housekeeping may be missed for so long."""

_NAME = re.compile(r"heartbeats_(\d{8})")


async def maintain(database: Database, since: float, now: float) -> int:
    """Drop the days that ended before ``since``, make those to come; return how many were dropped.

    Times are Unix seconds.  Several processes may do this at once.
    """
    async with database.transaction() as session:
        await session.alone("heartbeats by day")
        rows = await session.fetch(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = CAST('heartbeats' AS regclass)"
        )
        there = {int(m[1]) for row in rows if (m := _NAME.fullmatch(row[0]))}
        first, last = _day(since), _day(now) + AHEAD * DAY
        wanted = {_stamp(start): start for start in range(_day(now), last + 1, DAY)}
        for stamp, start in wanted.items():
            if stamp not in there:
                await _make(session, stamp, start)
        old = sorted(stamp for stamp in there if stamp < _stamp(first))
        for stamp in old:
            await session.execute(f"DROP TABLE heartbeats_{stamp}")
        await session.execute("DELETE FROM heartbeats_rest WHERE at < $1", since)
        return len(old)


async def _make(session: Session, stamp: int, start: int) -> None:
    # Rows of that day in the rest would prevent the attachment: move them.
    await session.execute(f"CREATE TABLE heartbeats_{stamp} (LIKE heartbeats INCLUDING ALL)")
    await session.execute(
        "WITH moved AS (DELETE FROM heartbeats_rest WHERE at >= $1 AND at < $2 RETURNING *)"
        f" INSERT INTO heartbeats_{stamp} SELECT * FROM moved",
        float(start),
        float(start + DAY),
    )
    await session.execute(
        f"ALTER TABLE heartbeats ATTACH PARTITION heartbeats_{stamp}"
        f" FOR VALUES FROM ({start}) TO ({start + DAY})"
    )


def _day(at: float) -> int:
    return int(at // DAY) * DAY


def _stamp(start: int) -> int:
    return int(datetime.fromtimestamp(start, UTC).strftime("%Y%m%d"))
