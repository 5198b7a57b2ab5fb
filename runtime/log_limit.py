"""A limit on log lines that repeat, so that nobody can fill the disk through the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

MAX_LINES = 120
"""Lines of one event in one window."""
WINDOW_SECONDS = 60.0
MAX_EVENTS = 2_000
"""Events that are counted; beyond, all windows begin anew."""


class _Window:
    __slots__ = ("began", "left_out", "lines")

    def __init__(self, began: float) -> None:
        self.began = began
        self.lines = 0
        self.left_out = 0


class RepeatLimit(logging.Filter):
    """Leaves out lines of an event once there were ``MAX_LINES`` of it within a minute.

    The last of them has the field ``repeats``, and the first of a later minute ``left_out``, the
    number of lines that are missing.  What an operator did, which lines with the field ``by``
    tell, is never left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[tuple[str, str], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "by"):
            return True
        now = self._clock()
        window = self._window((record.name, str(record.msg)), now)
        if now - window.began >= WINDOW_SECONDS:
            if window.left_out:
                record.left_out = window.left_out
            window.began, window.lines, window.left_out = now, 0, 0
        window.lines += 1
        if window.lines > MAX_LINES:
            window.left_out += 1
            return False
        if window.lines == MAX_LINES:
            record.repeats = "more lines of this event are left out for up to a minute"
        return True

    def _window(self, event: tuple[str, str], now: float) -> _Window:
        window = self._windows.get(event)
        if window is None:
            if len(self._windows) >= MAX_EVENTS:
                self._windows.clear()
            window = self._windows[event] = _Window(now)
        return window
