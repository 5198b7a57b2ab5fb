"""Months of UTC, named by their first second in Unix time."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_EARLIEST = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LATEST = int(datetime(9999, 12, 1, tzinfo=UTC).timestamp())


def month_of(at: float) -> int:
    """Return the month that a time is in; times before year 1 or after 9999 count to its ends."""
    moment = datetime.fromtimestamp(math.floor(min(max(at, _EARLIEST), _LATEST)), UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp())


def shifted(month: int, by: int) -> int:
    """Return the month that is ``by`` months later, or earlier for a negative number."""
    moment = datetime.fromtimestamp(month, UTC)
    number = min(max(moment.year * 12 + moment.month - 1 + by, 12), 9999 * 12 + 11)
    return int(datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp())


def name_of(month: int) -> str:
    """Return the name of a month, such as ``2026-01``."""
    return datetime.fromtimestamp(month, UTC).strftime("%Y-%m")
