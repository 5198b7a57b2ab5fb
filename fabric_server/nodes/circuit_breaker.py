"""A circuit breaker for each engine and model: keeps requests away from an engine that fails.

    closed --FAILURES in a row--> open --time is up--> half open --the probe succeeds--> closed
                                   ^                          |
                                   +---- for twice as long ---+  the probe fails

What counts is decided by ``proxy.outcome_rules``; how many engines of a model are left out at once,
however many breakers are open, by ``Registry.available``.  After Nygard, "Release It!", chapter 5.
"""

from __future__ import annotations

FAILURES = 3
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 120.0
PROBE_SECONDS = 60.0
"""A probe without an outcome for so long is forgotten, and the next request is the probe."""
ACCOUNTS = 3
"""Accounts whose requests must fail before failures count that one user could have caused."""
ACCOUNT_SECONDS = 60.0
"""Time in which they must fail."""
SUSPECT_SECONDS = 5.0
"""Time for another engine to answer the request of a probe that may have failed by its user."""
MAX_REASON = 200


class CircuitBreaker:
    """The breaker of one engine and one model.  ``now`` is in event-loop seconds."""

    __slots__ = ("_failures", "_open_until", "_probe_until", "_seconds", "_suspects", "reason")

    def __init__(self) -> None:
        self._failures = 0
        self._open_until: float | None = None
        self._probe_until = 0.0
        self._seconds = FIRST_SECONDS
        self._suspects: dict[str, float] = {}
        """When a request failed that its user may have caused, by account; fewer than
        ``ACCOUNTS``."""
        self.reason = ""
        """The last failure, in words."""

    def __repr__(self) -> str:
        state = "closed" if self._open_until is None else f"open until {self._open_until:.1f}"
        return f"<CircuitBreaker {state} failures={self._failures}>"

    @property
    def badness(self) -> tuple[int, float]:
        """Return what breakers are compared by: the worst engine has the greatest."""
        return self._failures, self._seconds

    def allows(self, now: float) -> bool:
        if self._open_until is None:
            return True
        return now >= self._open_until and now >= self._probe_until

    def seconds_left(self, now: float) -> float:
        """Return for how long it stays open; 0 when it is closed or half open."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def on_attempt(self, now: float) -> None:
        """Record that a request was let through; in the half-open state it is the only probe."""
        if self._open_until is not None and now >= self._open_until:
            self._probe_until = now + PROBE_SECONDS

    def release_probe(self) -> None:
        """Record that the request ended without an outcome: the client hung up, say."""
        self._probe_until = 0.0

    def record_failure(self, now: float, reason: str = "") -> float | None:
        """Record a failure; return for how many seconds the breaker opens, None if it does not."""
        self._failures += 1
        self._probe_until = 0.0
        self.reason = reason[:MAX_REASON]
        if self._open_until is None and self._failures < FAILURES:
            return None
        if self._open_until is not None and now < self._open_until:
            return None  # the request was started before the breaker opened
        seconds = self._seconds
        self._open_until = now + seconds
        self._seconds = min(seconds * 2, LONGEST_SECONDS)
        return seconds

    def record_suspicion(self, now: float, account: str, reason: str = "") -> float | None:
        """Record a failure that its user may have caused.

        Returns what ``record_failure`` returns, once ``ACCOUNTS`` accounts have failed so.
        """
        if self._probe_until:
            self._probe_until = now + SUSPECT_SECONDS
        suspects = self._suspects = {
            one: at for one, at in self._suspects.items() if now - at <= ACCOUNT_SECONDS
        }
        suspects[account] = now
        if len(suspects) < ACCOUNTS:
            return None
        suspects.clear()
        self._failures = max(self._failures, FAILURES - 1)
        return self.record_failure(now, reason)
