"""Keeps requests away from an engine that fails for a model, and finds out when it does no more.

    closed --FAILURES in a row--> open --its time is up--> half open --the probe succeeds--> closed
                                   ^                          |
                                   +---- for twice as long ---+  the probe fails

Only what is the engine's or the node's fault counts; an answer to the user's own mistake (4xx)
counts as a success, and a 5xx with nobody else to ask as neither.  After Nygard, "Release It!",
chapter 5.
"""

from __future__ import annotations

FAILURES = 3
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 120.0
PROBE_SECONDS = 60.0
"""A probe of which nothing is heard for so long is forgotten, and the next request is one."""


class CircuitBreaker:
    """Of one engine and one model.  ``now`` is in event-loop seconds."""

    __slots__ = ("_failures", "_open_until", "_probe_until", "_seconds")

    def __init__(self) -> None:
        self._failures = 0
        self._open_until: float | None = None
        self._probe_until = 0.0
        self._seconds = FIRST_SECONDS

    def __repr__(self) -> str:
        state = "closed" if self._open_until is None else f"open until {self._open_until:.1f}"
        return f"<Breaker {state} failures={self._failures}>"

    def allows(self, now: float) -> bool:
        if self._open_until is None:
            return True
        return now >= self._open_until and now >= self._probe_until

    def begun(self, now: float) -> None:
        """A request was let through; half open, it is the probe and no other is."""
        if self._open_until is not None:
            self._probe_until = now + PROBE_SECONDS

    def succeeded(self) -> None:
        self._failures = 0
        self._open_until = None
        self._probe_until = 0.0
        self._seconds = FIRST_SECONDS

    def let_go(self) -> None:
        """The request ended without telling anything: the user hung up, say."""
        self._probe_until = 0.0

    def failed(self, now: float) -> float | None:
        """Returns for how many seconds it is open from now on, if that is new."""
        self._failures += 1
        self._probe_until = 0.0
        if self._open_until is None and self._failures < FAILURES:
            return None
        if self._open_until is not None and now < self._open_until:
            return None  # begun before it opened
        seconds = self._seconds
        self._open_until = now + seconds
        self._seconds = min(seconds * 2, LONGEST_SECONDS)
        return seconds
