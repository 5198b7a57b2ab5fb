"""The hours in which a node answers: ``mon-fri 18:00-08:00, sat-sun 00:00-24:00``.

    schedule = window *("," window)
    window   = [days " "] from "-" to          no days: every day
    days     = day ["-" day]                   mon tue wed thu fri sat sun; fri-mon goes round
    from, to = HH:MM                           24:00 is the day's end

A window that ends before it begins goes on into the next morning, and belongs to the day on which
it begins: ``fri 22:00-08:00`` ends on Saturday.  Only what the clock on the wall shows counts, so
that an hour which summer time skips is skipped, and one that it repeats counts twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

DAY = 24 * 60
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([a-z]+)(?: *- *([a-z]+))? +)?(\d\d?):(\d\d) *- *(\d\d?):(\d\d)")


class ScheduleError(ValueError):
    """The text is no schedule; ``str()`` is a sentence."""


class Window(NamedTuple):
    days: frozenset[int]
    """Weekdays on which it begins; Monday is 0."""
    start: int
    """Minutes since midnight, as ``end``, which differs."""
    end: int

    def contains(self, weekday: int, minute: int) -> bool:
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        this_evening = weekday in self.days and minute >= self.start
        since_yesterday = (weekday - 1) % 7 in self.days and minute < self.end
        return this_evening or since_yesterday


class Schedule(NamedTuple):
    """Made by ``parse_schedule``."""

    windows: Sequence[Window]
    """None at all is always open."""
    text: str
    """The windows as the owner wrote them."""

    def is_open(self, wall: datetime) -> bool:
        """Return whether the node answers; ``wall`` is local time, as clocks on the wall show."""
        minute = wall.hour * 60 + wall.minute
        windows = self.windows
        return not windows or any(one.contains(wall.weekday(), minute) for one in windows)

    def opens_at(self, wall: datetime) -> datetime:
        """Return the local time at which it opens next; ``wall`` is one at which it is closed."""
        midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        starts = (
            (midnight + timedelta(days=days, minutes=one.start)).replace(fold=wall.fold)
            for days in range(8)
            for one in self.windows
            if (wall.weekday() + days) % 7 in one.days
        )
        return min(start for start in starts if start > wall)


def parse_schedule(windows: Iterable[str]) -> Schedule:
    """Parse texts of one window each.  Raises ``ScheduleError``."""
    texts = list(windows)
    return Schedule([_parse_window(text) for text in texts], ", ".join(texts))


def _parse_window(text: str) -> Window:
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise ScheduleError(
            f"schedule has '{text}': write it like 22:00-08:00 or mon-fri 18:00-08:00."
        )
    first, last, *times = match.groups()
    start = _minute(text, times[0], times[1])
    end = _minute(text, times[2], times[3])
    if start == DAY:
        raise ScheduleError(f"schedule has '{text}': a day begins at 00:00, 24:00 is its end.")
    if start == end:
        raise ScheduleError(f"schedule has '{text}', which is empty: the whole day is 00:00-24:00.")
    return Window(_days(text, first, last), start, end)


def _minute(text: str, hour: str, minute: str) -> int:
    of_day = int(hour) * 60 + int(minute)
    if int(minute) > 59 or of_day > DAY:
        raise ScheduleError(f"schedule has '{text}': there is no time {hour}:{minute}.")
    return of_day


def _days(text: str, first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    for name in (first, last):
        if name is not None and name not in _DAYS:
            raise ScheduleError(
                f"schedule has '{text}': days are {', '.join(_DAYS)}, not '{name}'."
            )
    begin = _DAYS.index(first)
    length = 1 if last is None else (_DAYS.index(last) - begin) % 7 + 1
    return frozenset((begin + day) % 7 for day in range(length))
