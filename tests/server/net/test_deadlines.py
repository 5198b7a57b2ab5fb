"""One tick looks after everything that may take too long."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fabric_server.net.deadlines import NEVER, TICK_SECONDS, Deadlines


class Waiting:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired: list[float] = []

    def expire(self, now: float) -> None:
        self.expired.append(now)


def test_what_is_late_is_told_once_and_what_is_not_is_left_alone() -> None:
    deadlines = Deadlines()
    late, exact, early, never = Waiting(1.0), Waiting(2.0), Waiting(3.0), Waiting(NEVER)
    for waiting in (late, exact, early, never):
        deadlines.add(waiting)
    deadlines.check(2.0)
    deadlines.check(2.5)
    assert [w.expired for w in (late, exact, early, never)] == [[2.0], [2.0], [], []]
    assert late.deadline == NEVER


def test_a_new_deadline_counts_from_when_it_is_set() -> None:
    deadlines = Deadlines()
    waiting = Waiting(1.0)
    deadlines.add(waiting)
    deadlines.check(1.0)
    waiting.deadline = 5.0
    deadlines.check(4.9)
    deadlines.check(5.0)
    assert waiting.expired == [1.0, 5.0]


def test_what_is_discarded_is_looked_at_no_more() -> None:
    deadlines = Deadlines()
    waiting = Waiting(1.0)
    deadlines.add(waiting)
    deadlines.discard(waiting)
    deadlines.discard(waiting)
    deadlines.check(9.0)
    assert waiting.expired == []


def test_one_that_fails_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Waiting):
        def expire(self, now: float) -> None:
            raise RuntimeError("scripted")

    deadlines = Deadlines()
    others = [Waiting(1.0) for _ in range(5)]
    for waiting in (Broken(1.0), *others, Broken(1.0)):
        deadlines.add(waiting)
    deadlines.check(1.0)
    assert all(waiting.expired for waiting in others)
    assert "scripted" in caplog.text


def test_handlers_may_add_and_discard() -> None:
    deadlines = Deadlines()
    first, second = Waiting(1.0), Waiting(1.0)

    class Changing(Waiting):
        def expire(self, now: float) -> None:
            deadlines.discard(self)
            deadlines.add(second)

    deadlines.add(first)
    deadlines.add(Changing(1.0))
    deadlines.check(1.0)
    deadlines.check(1.0)
    assert first.expired == [1.0]
    assert second.expired == [1.0]


async def test_it_runs_until_cancelled() -> None:
    deadlines = Deadlines()
    done = asyncio.Event()

    class Telling(Waiting):
        def expire(self, now: float) -> None:
            done.set()

    loop = asyncio.get_running_loop()
    deadlines.add(Telling(loop.time()))
    task = loop.create_task(deadlines.run())
    await asyncio.wait_for(done.wait(), 20 * TICK_SECONDS)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
