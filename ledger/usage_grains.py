"""Old usage by the hour becomes usage by day, then by month, then one sum for each account.

The table stays ``usage_by_hour``: the sum of a day is a row whose hour is the day's first.  The
border moves first, so that reports count the day as a whole from then on; each transaction after
that moves rows within the day.  So usage is the same before, meanwhile and afterwards.
"""

from __future__ import annotations

from ledger import rollup
from ledger.borders import DAY, Borders, Grain, move_border, read_borders
from ledger.months import month_of, shifted
from sql.database import Database


class UsageGrains:
    """Makes old sums coarser.  Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make_coarser(self, grain: Grain, limit: int) -> int:
        """Add the sums of one hour, day or month that began before ``limit`` to a coarser one.

        Returns the number of rows, 0 when all are done.  The limit is the beginning of a month;
        what may change still stays as it is.
        """
        borders = await read_borders(self._database)
        before = min(limit, _finer(borders, grain))
        hour = await self._first(grain, _begin(borders, grain), before)
        async with self._database.transaction() as session:
            end = before if hour is None else shifted(month_of(hour), 1)
            await move_border(session, grain, min(end, before))
        if hour is None:
            return 0
        async with self._database.transaction() as session:
            target = _target(grain, hour)
            return await rollup.move(session, hour, target, account_only=grain == "total")

    async def count(self, grain: Grain, limit: int) -> int:
        """Return about how many rows ``make_coarser`` would add to others."""
        borders = await read_borders(self._database)
        begin, before = _begin(borders, grain), min(limit, _finer(borders, grain))
        if await self._first(grain, begin, before) is None:
            return 0
        rows = await self._database.fetch(
            "SELECT COUNT(*) FROM usage_by_hour WHERE hour >= $1 AND hour < $2", begin, before
        )
        return int(rows[0][0])

    async def _first(self, grain: Grain, begin: int, before: int) -> int | None:
        """Return the first hour of which sums are to be moved."""
        while True:
            rows = await self._database.fetch(
                "SELECT MIN(hour) FROM usage_by_hour WHERE hour >= $1 AND hour < $2", begin, before
            )
            hour: int | None = rows[0][0]
            if hour is None or _target(grain, hour) != hour:
                return hour
            begin = hour + 1


def _finer(borders: Borders, grain: Grain) -> int:
    """Return the border before which the sums that this grain is made of are final."""
    return {"day": borders.ledger, "month": borders.day, "total": borders.month}[grain]


def _begin(borders: Borders, grain: Grain) -> int:
    """Return where rows may be left: in the last month before the border, if a run was ended."""
    border = {"day": borders.day, "month": borders.month, "total": borders.total}[grain]
    last = month_of(border - 1)
    return min(last, border)


def _target(grain: Grain, hour: int) -> int:
    if grain == "total":
        return 0
    return month_of(hour) if grain == "month" else hour // DAY * DAY
