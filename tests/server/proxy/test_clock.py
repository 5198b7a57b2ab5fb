"""Which deadline of an attempt applies, and whether it has passed: without a loop and without
waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric_server.proxy.clock import CHECKS_PER_IDLE, AttemptClock, Timeouts

TIMEOUTS = Timeouts(first_byte=60.0, stall=10.0, idle=20.0, slow_reader=5.0, total=300.0)
BEGAN = 1000.0


def make_clock(**changes: float) -> AttemptClock:
    return AttemptClock(replace(TIMEOUTS, **changes), BEGAN)


@pytest.mark.parametrize(
    ("seconds", "first_byte", "total"),
    [(1000.0, 60.0, 300.0), (300.0, 60.0, 300.0), (100.0, 60.0, 100.0), (30.0, 30.0, 30.0)],
)
def test_a_request_s_own_time_shortens_first_byte_and_total_alone(
    seconds: float, first_byte: float, total: float
) -> None:
    assert TIMEOUTS.within(seconds) == replace(TIMEOUTS, first_byte=first_byte, total=total)


def test_a_request_whose_time_is_over_has_no_time_at_all_but_a_positive_one() -> None:
    timeouts = TIMEOUTS.within(-1.0)
    assert 0 < timeouts.first_byte == timeouts.total < 0.01


def test_before_the_first_byte_it_is_checked_at_each_stall_and_at_the_first_byte_s_limit() -> None:
    clock = make_clock(first_byte=25.0)
    checks = [clock.next_stall_check(BEGAN)]
    while not clock.first_byte_overdue(checks[-1]):
        checks.append(clock.next_stall_check(checks[-1]))
    assert checks == [BEGAN + 10, BEGAN + 20, BEGAN + 25]


def test_a_first_byte_that_is_due_before_a_stall_is_checked_then() -> None:
    assert make_clock(stall=99.0).next_stall_check(BEGAN) == BEGAN + 60


def test_an_upload_restarts_the_first_byte_s_time_within_the_total() -> None:
    clock = make_clock()
    assert clock.restart_first_byte(BEGAN + 50) == BEGAN + 110
    assert not clock.first_byte_overdue(BEGAN + 109)
    assert clock.first_byte_overdue(BEGAN + 110)
    assert clock.restart_first_byte(BEGAN + 290) == BEGAN + 300


def test_silence_is_checked_several_times_per_idle_timeout() -> None:
    clock = make_clock()
    assert clock.on_progress(BEGAN + 1, 10) == BEGAN + 1 + 20 / CHECKS_PER_IDLE
    assert clock.next_idle_check(BEGAN + 299) == BEGAN + 300


def test_an_answer_is_silent_only_when_no_byte_has_come_for_the_idle_timeout() -> None:
    clock = make_clock()
    clock.on_progress(BEGAN, 10)
    assert clock.check(BEGAN + 19.9, 10) is None
    assert clock.check(BEGAN + 19.95, 11) is None
    assert clock.check(BEGAN + 39.9, 11) is None
    assert clock.check(BEGAN + 39.95, 11) == "the engine sent nothing for 20 s"


def test_an_answer_that_goes_on_ends_at_the_total_all_the_same() -> None:
    clock = make_clock()
    clock.on_progress(BEGAN, 0)
    assert clock.check(BEGAN + 299.9, 1) is None
    assert clock.check(BEGAN + 300.0, 2) == "the answer took longer than its time limit, 300 s"
