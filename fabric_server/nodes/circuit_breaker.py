"""A circuit breaker for each engine and model: keeps requests away from an engine that fails.

    closed --FAILURES in a row--> open --time is up--> half open --the probe succeeds--> closed
                                   ^                          |
                                   +---- for twice as long ---+  the probe fails

Only faults of the engine or the node count as failures; an answer to a client error (4xx) counts as
a success, and a 5xx that no other engine could be tried for as neither.  After Nygard, "Release
It!", chapter 5.
"""

from __future__ import annotations

FAILURES = 3
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 120.0
PROBE_SECONDS = 60.0
"""A probe without an outcome for so long is forgotten, and the next request is the probe."""


class CircuitBreaker:
    """The breaker of one engine and one model.  ``now`` is in event-loop seconds."""

    __slots__ = ("_failures", "_open_until", "_probe_until", "_seconds")

    def __init__(self) -> None:
        self._failures = 0
        self._open_until: float | None = None
        self._probe_until = 0.0
        self._seconds = FIRST_SECONDS

    def __repr__(self) -> str:
        state = "closed" if self._open_until is None else f"open until {self._open_until:.1f}"
        return f"<CircuitBreaker {state} failures={self._failures}>"

    def allows(self, now: float) -> bool:
        if self._open_until is None:
            return True
        return now >= self._open_until and now >= self._probe_until

    def on_attempt(self, now: float) -> None:
        """Record that a request was let through; in the half-open state it is the only probe."""
        if self._open_until is not None:
            self._probe_until = now + PROBE_SECONDS

    def record_success(self) -> None:
        self._failures = 0
        self._open_until = None
        self._probe_until = 0.0
        self._seconds = FIRST_SECONDS

    def release_probe(self) -> None:
        """Record that the request ended without an outcome: the client hung up, say."""
        self._probe_until = 0.0

    def record_failure(self, now: float) -> float | None:
        """Record a failure; return for how many seconds the breaker opens, None if it does not."""
        self._failures += 1
        self._probe_until = 0.0
        if self._open_until is None and self._failures < FAILURES:
            return None
        if self._open_until is not None and now < self._open_until:
            return None  # the request was started before the breaker opened
        seconds = self._seconds
        self._open_until = now + seconds
        self._seconds = min(seconds * 2, LONGEST_SECONDS)
        return seconds
