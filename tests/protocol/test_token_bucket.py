"""Token buckets: bursts, debts, and clocks that jump."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.token_bucket import TokenBucket


def test_a_full_bucket_serves_a_burst_and_a_debt_is_paid_back_at_the_rate() -> None:
    bucket = TokenBucket(100, 100, now=0)

    def take(count: int, now: float) -> float:
        bucket.take(count, now)
        return bucket.seconds_until(0, now)

    assert take(60, 0) == 0
    assert take(40, 0) == 0
    assert take(50, 0) == 0.5
    assert bucket.seconds_until(0, 0.5) == 0
    assert take(100, 100) == 0  # it never holds more than its capacity
    assert take(100, 100) == 1


def test_a_clock_that_goes_backwards_neither_adds_nor_takes() -> None:
    bucket = TokenBucket(10, 1, now=100)
    assert bucket.take(4, 100) == 6
    assert bucket.level(50) == 6
    assert bucket.level(101) == 7


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 3)), max_size=50))
def test_a_sender_that_waits_as_told_never_exceeds_the_rate(
    steps: list[tuple[int, float]],
) -> None:
    bucket, now, sent = TokenBucket(1000, 1000, now=0), 0.0, 0
    for count, idle in steps:
        now += idle
        before = sent
        bucket.take(count, now)
        wait = bucket.seconds_until(0, now)
        sent += count
        assert before <= 1000 + now * 1000 + 1e-6
        now += wait
