"""The table ``borders``: times before which rows of the ledger and of the usage are final."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from ledger.months import month_of
from sql.database import Database, Session

DAY = 86_400
CLOSING = "closing of the ledger"
"""The lock that is held while the ledger's border moves, and while old entries are written."""

Grain = Literal["day", "month", "total"]


class Borders(Struct, frozen=True):
    """Unix seconds, each the beginning of a month; a later one is never after an earlier one."""

    ledger: int
    """Entries that arrived earlier are no longer written, and are deleted."""
    day: int
    """Usage before is summed by day, in rows whose hour is the day's first."""
    month: int
    """Usage before is summed by month."""
    total: int
    """Usage before is one sum for each account, in rows whose hour is 0."""

    def aligned(self, at: float) -> float:
        """Return the beginning of the smallest sum that the time is in, or the time itself.

        Periods that follow each other do so afterwards, too, and count everything once.
        """
        if at >= self.ledger:
            return at
        if at < self.total:
            return min(at, 0)
        if at < self.month:
            return min(at, month_of(at))
        grain = DAY if at < self.day else 3600
        return math.floor(at / grain) * grain


async def read_borders(where: Database | Session) -> Borders:
    rows = await where.fetch("SELECT name, before FROM borders")
    return Borders(**{str(name): int(before) for name, before in rows})


async def move_border(session: Session, name: Literal["ledger"] | Grain, before: int) -> None:
    """Move a border forward; one that is there or further on stays."""
    await session.execute(
        "UPDATE borders SET before = $1 WHERE name = $2 AND before < $1", before, name
    )
