"""What keeps requests from engines that fail."""

from __future__ import annotations

from fabric_server.nodes.circuit_breaker import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    PROBE_SECONDS,
    CircuitBreaker,
)


def failing(breaker: CircuitBreaker, times: int, now: float = 0.0) -> float | None:
    """What the last of so many failures says."""
    said = None
    for _ in range(times):
        said = breaker.record_failure(now)
    return said


def test_it_opens_at_the_third_failure_in_a_row() -> None:
    breaker = CircuitBreaker()
    assert failing(breaker, 2) is None
    assert breaker.allows(0.0)
    assert failing(breaker, 1) == FIRST_SECONDS
    assert not breaker.allows(0.0)
    assert not breaker.allows(FIRST_SECONDS - 0.1)


def test_half_open_it_lets_one_probe_through() -> None:
    breaker = CircuitBreaker()
    failing(breaker, 3)
    assert breaker.allows(FIRST_SECONDS)
    breaker.on_attempt(FIRST_SECONDS)
    assert not breaker.allows(FIRST_SECONDS + 1.0)


def test_a_probe_that_fails_closes_the_way_for_twice_as_long() -> None:
    breaker, now, expected = CircuitBreaker(), 0.0, FIRST_SECONDS
    failing(breaker, 3)
    for _ in range(10):
        now += expected
        assert breaker.allows(now)
        breaker.on_attempt(now)
        expected = min(expected * 2, LONGEST_SECONDS)
        assert breaker.record_failure(now) == expected
        assert not breaker.allows(now + expected - 0.1)


def test_a_probe_that_tells_nothing_is_followed_by_another() -> None:
    breaker = CircuitBreaker()
    failing(breaker, 3)
    breaker.on_attempt(FIRST_SECONDS)
    breaker.release_probe()
    assert breaker.allows(FIRST_SECONDS)
    breaker.on_attempt(FIRST_SECONDS)
    assert breaker.allows(FIRST_SECONDS + PROBE_SECONDS)


def test_what_was_begun_before_it_opened_does_not_open_it_for_longer() -> None:
    breaker = CircuitBreaker()
    failing(breaker, 3)
    assert failing(breaker, 20, 1.0) is None
    assert breaker.allows(FIRST_SECONDS)
