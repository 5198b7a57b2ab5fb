"""How much a peer may make us do for nothing: an account that fills up by itself."""

from __future__ import annotations


class FloodGuard:
    """So many at once at most, and so many a second."""

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = self._left = burst
        self._per_second = per_second
        self._at = now

    def spend(self, now: float) -> bool:
        """Take one off.  False: the peer has gone too far."""
        earned = (now - self._at) * self._per_second
        self._left = min(self._burst, self._left + earned) - 1
        self._at = now
        return self._left >= 0
