"""The clock of leases."""

from __future__ import annotations

import time

import pytest

from fabric_server.jobs.lease_clock import LeaseClock


async def test_leases_follow_the_clock_of_the_store() -> None:
    ahead = 0.0

    async def read() -> float:
        return time.time() + ahead

    clock = LeaseClock(read)
    assert not await clock.refresh()
    ahead = 70 * 86_400.0
    assert clock.now() == pytest.approx(time.time(), abs=1)
    assert await clock.refresh()
    assert clock.now() == pytest.approx(time.time() + ahead, abs=1)
    assert not await clock.refresh()
