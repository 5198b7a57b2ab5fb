"""The watch for a clock that is set."""

from __future__ import annotations

import time

import pytest

from fabric_server.app.clock_watch import ClockWatch


@pytest.mark.parametrize("jump", [-70 * 86_400.0, -6.0, 6.0, 70 * 86_400.0])
def test_a_clock_that_is_set_is_noticed_once(jump: float) -> None:
    ahead, calls = [0.0], []
    watch = ClockWatch([lambda: calls.append(1)], clock=lambda: time.time() + ahead[0])
    assert not watch.check()
    ahead[0] = jump
    assert watch.check()
    assert not watch.check()
    assert calls == [1]


def test_the_small_steps_of_a_time_service_are_nothing() -> None:
    ahead = [0.0]
    watch = ClockWatch([lambda: pytest.fail("called")], clock=lambda: time.time() + ahead[0])
    ahead[0] = 2.0
    assert not watch.check()
