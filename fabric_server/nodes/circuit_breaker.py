"""A circuit breaker for each engine and model: keeps requests away from an engine that fails.

    closed --FAILURES in a row--> open --time is up--> half open --the probe succeeds--> closed
                                   ^                          |
                                   +---- for twice as long ---+  the probe fails

What counts is decided by ``proxy.outcome_rules``; how many engines of a model are left out at once,
however many breakers are open, by ``nodes.ejection``.  After Nygard, "Release It!", chapter 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
MAX_BREAKERS = 256
"""Circuit breakers of one engine; the oldest is forgotten."""

Scope = tuple[str, str]
"""A model and a path of it; the path is empty for what concerns all of them."""


class CircuitBreaker:
    """The breaker of one engine and one model.  ``now`` is in event-loop seconds."""

    __slots__ = (
        "_failures",
        "_on_change",
        "_open_until",
        "_probe_until",
        "_seconds",
        "_suspects",
        "reason",
    )

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        """``on_change`` is called when it opens, lets a probe through, or loses the probe."""
        self._on_change = on_change
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

    @property
    def closed(self) -> bool:
        """Return whether it lets everything through; otherwise it is open or half open."""
        return self._open_until is None

    @property
    def allows_at(self) -> float:
        """Return the time from which it lets a request through."""
        return -math.inf if self._open_until is None else max(self._open_until, self._probe_until)

    def allows(self, now: float) -> bool:
        return self._open_until is None or now >= self.allows_at

    def seconds_left(self, now: float) -> float:
        """Return for how long it stays open; 0 when it is closed or half open."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def on_attempt(self, now: float) -> None:
        """Record that a request was let through; in the half-open state it is the only probe."""
        if self._open_until is not None and now >= self._open_until:
            self._probe_until = now + PROBE_SECONDS
            self._changed()

    def release_probe(self) -> None:
        """Record that the request ended without an outcome: the client hung up, say."""
        self._probe_until = 0.0
        self._changed()

    def record_failure(self, now: float, reason: str = "") -> float | None:
        """Record a failure; return for how many seconds the breaker opens, None if it does not."""
        self._failures += 1
        self._probe_until = 0.0
        self.reason = reason[:MAX_REASON]
        if self._open_until is None and self._failures < FAILURES:
            return None
        seconds = None
        if self._open_until is None or now >= self._open_until:
            seconds = self._seconds
            self._open_until = now + seconds
            self._seconds = min(seconds * 2, LONGEST_SECONDS)
        # Otherwise the request was started before the breaker opened, and only counts.
        self._changed()
        return seconds

    def record_suspicion(self, now: float, account: str, reason: str = "") -> float | None:
        """Record a failure that its user may have caused.

        Returns what ``record_failure`` returns, once ``ACCOUNTS`` accounts have failed so.
        """
        if self._probe_until:
            self._probe_until = now + SUSPECT_SECONDS
            self._changed()
        suspects = self._suspects = {
            one: at for one, at in self._suspects.items() if now - at <= ACCOUNT_SECONDS
        }
        suspects[account] = now
        if len(suspects) < ACCOUNTS:
            return None
        suspects.clear()
        self._failures = max(self._failures, FAILURES - 1)
        return self.record_failure(now, reason)

    def _changed(self) -> None:
        if self._on_change is not None and self._open_until is not None:
            self._on_change()


class Breakers(dict[Scope, CircuitBreaker]):
    """The breakers of one engine, by scope: those of what failed lately."""

    __slots__ = ("_on_change",)

    def __init__(self, on_change: Callable[[str], None]) -> None:
        """``on_change`` is called with a model whose breakers have changed, unless all of them are
        closed and were so before."""
        super().__init__()
        self._on_change = on_change

    def of(self, model: str, path: str) -> Iterator[CircuitBreaker]:
        """Yield the breakers that a request for this model and path has to pass: two at most."""
        for scope in ((model, path), (model, "")) if path else ((model, ""),):
            if (breaker := self.get(scope)) is not None:
                yield breaker

    def allow(self, model: str, now: float, path: str) -> bool:
        """Return whether they let a request through."""
        return all(breaker.allows(now) for breaker in self.of(model, path))

    def are_closed(self, model: str) -> bool:
        """Return whether none of the model's breakers is open, or half open, for any path."""
        return all(one.closed for (name, _), one in self.items() if name == model)

    def make(self, scope: Scope) -> CircuitBreaker:
        """Return the breaker of this scope; make it, where nothing failed so far."""
        breaker = self.get(scope)
        if breaker is None:
            breaker = self[scope] = CircuitBreaker(lambda: self._on_change(scope[0]))
            if len(self) > MAX_BREAKERS:
                self._forget(next(iter(self)))
        return breaker

    def close(self, model: str, path: str) -> None:
        """Forget what has failed for this model and path: a request has succeeded."""
        self._forget((model, path))
        self._forget((model, ""))

    def clear(self) -> None:
        for scope in list(self):
            self._forget(scope)

    def _forget(self, scope: Scope) -> None:
        breaker = self.pop(scope, None)
        if breaker is not None and not breaker.closed:
            self._on_change(scope[0])
