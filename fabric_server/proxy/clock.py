"""The deadlines of one attempt.  Pure: ``now`` is passed in, in event-loop seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace

CHECKS_PER_IDLE = 4
"""Checks per idle timeout: to read the clock costs more than to pass most chunks on, so silence is
measured from the check that last saw progress, not from the last byte."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that each part of an answer may take."""

    first_byte: float
    stall: float
    """Seconds without a first byte after which another node is asked, if one has room."""
    idle: float
    """Silence in the middle of an answer; noticed up to a quarter later."""
    slow_reader: float
    """Time for a client that does not read."""
    total: float

    def within(self, seconds: float) -> Timeouts:
        """Return the timeouts of a request that has no more than ``seconds`` left."""
        if seconds >= self.total:
            return self
        seconds = max(seconds, 0.001)
        return replace(self, first_byte=min(self.first_byte, seconds), total=seconds)


class AttemptClock:
    """The deadlines of an attempt: which one applies, and whether it has passed.

    Methods that return a float return the time of the next check.
    """

    __slots__ = (
        "_ends_at",
        "_first_byte_by",
        "_progress_at",
        "_progress_bytes",
        "began_at",
        "overdue",
        "throttled",
        "timeouts",
    )

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self.timeouts = timeouts
        self.began_at = now
        self.overdue = ""
        """The reason why an answer that had begun has timed out."""
        self.throttled = False
        """The client was slower than the engine, which had to wait for it."""
        self._ends_at = now + timeouts.total
        self._first_byte_by = now + timeouts.first_byte
        self._progress_at = now
        self._progress_bytes = 0

    # ── before the first byte ─────────────────────────────────────────────────────────────────

    def restart_first_byte(self, now: float) -> float:
        """Count the first byte's time from ``now``: the request's body is still being sent."""
        self._first_byte_by = min(now + self.timeouts.first_byte, self._ends_at)
        return self._first_byte_by

    def ended(self, now: float) -> bool:
        """Return whether the whole request's time is over, which says nothing of the engine."""
        return now >= self._ends_at

    def first_byte_overdue(self, now: float) -> bool:
        return now >= self._first_byte_by

    def next_stall_check(self, now: float) -> float:
        return min(now + self.timeouts.stall, self._first_byte_by)

    # ── after it ──────────────────────────────────────────────────────────────────────────────

    def on_progress(self, now: float, bytes_received: int) -> float:
        """Note that the answer goes on."""
        self._progress_at = now
        self._progress_bytes = bytes_received
        return self.next_idle_check(now)

    def check(self, now: float, bytes_received: int) -> str | None:
        """Return the reason why the answer has timed out; None when it may go on."""
        if now >= self._ends_at:
            self.overdue = f"the answer took longer than its time limit, {self.timeouts.total:g} s"
        if bytes_received != self._progress_bytes:
            self._progress_at = now
            self._progress_bytes = bytes_received
        elif now - self._progress_at >= self.timeouts.idle:
            self.overdue = f"the engine sent nothing for {self.timeouts.idle:g} s"
        return self.overdue or None

    def next_idle_check(self, now: float) -> float:
        return min(now + self.timeouts.idle / CHECKS_PER_IDLE, self._ends_at)
