"""What a share of the latest measurements did not exceed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric_server.proxy.quantile import MAX_SAMPLES, MIN_SAMPLES, Window

numbers = st.floats(0, 1e6) | st.integers(0, 3).map(float)


@given(st.lists(numbers, max_size=MAX_SAMPLES + 60), st.floats(0.01, 1.0))
def test_it_is_the_smallest_of_the_latest_that_the_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    window = Window()
    for value in values:
        window.add(value)
    latest = sorted(values[-MAX_SAMPLES:])
    assert len(window) == len(latest)
    found = window.quantile(share)
    if len(latest) < MIN_SAMPLES:
        assert found is None
        return
    assert found is not None
    assert found in latest
    within = share * len(latest)
    assert sum(value <= found for value in latest) >= within
    assert sum(value < found for value in latest) < within


def test_of_twenty_the_nineteenth_is_what_95_of_100_do_not_exceed() -> None:
    window = Window()
    for value in range(20, 0, -1):
        window.add(float(value))
    assert window.quantile(0.95) == 19.0
