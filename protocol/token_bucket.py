"""A token bucket: how fast something may be used up, with room for a burst."""

from __future__ import annotations


class TokenBucket:
    """Tokens that are taken by count and come back at a steady rate.  Pure: ``now`` is passed in.

    The bucket starts full.  It may be overdrawn: a negative level is a debt, paid back at the same
    rate.  All times are seconds on one monotonic clock; a clock that goes backwards adds nothing.
    """

    __slots__ = ("_at", "_level", "capacity", "per_second")

    def __init__(self, capacity: float, per_second: float, now: float) -> None:
        self.capacity = self._level = capacity
        self.per_second = per_second
        self._at = now

    def level(self, now: float) -> float:
        """Return the number of tokens left; negative while the bucket is overdrawn."""
        elapsed = now - self._at
        if elapsed > 0:
            self._level = min(self._level + elapsed * self.per_second, self.capacity)
            self._at = now
        return self._level

    def take(self, count: float, now: float) -> float:
        """Take ``count`` tokens, whether or not they are there; return the level afterwards."""
        self._level = level = self.level(now) - count
        return level

    def seconds_until(self, count: float, now: float) -> float:
        """Return after how many seconds the level is at least ``count``; 0 when it is already."""
        return max(0.0, (count - self.level(now)) / self.per_second)
