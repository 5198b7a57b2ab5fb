"""What a change of the network does to whoever waits for the server."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest

from fabric_client.registration.backoff import BASE_SECONDS
from fabric_client.registration.pace import NetworkSignal, Pace
from tests.loops import on_both_loops

LONG = 60.0


class Nothing(Random):
    """Always draws the least."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Longest(Random):
    """Always draws the most."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@on_both_loops
async def test_a_change_ends_waits_and_attempts() -> None:
    signal = NetworkSignal()

    async def attempt() -> None:
        async with signal.interrupts():
            await asyncio.sleep(LONG)

    loop = asyncio.get_running_loop()
    attempts = [loop.create_task(attempt()) for _ in range(2)]
    waiting = loop.create_task(Pace(Nothing(), signal).sleep(LONG))
    await turns()
    signal.changed()
    signal.changed()  # a second one in the same turn harms nobody
    async with asyncio.timeout(LONG / 2):
        await waiting
        for one in attempts:
            with pytest.raises(TimeoutError, match="the network has changed"):
                await one


@on_both_loops
async def test_the_waits_begin_anew_after_a_change_and_nodes_stay_spread() -> None:
    signal = NetworkSignal()
    pace = Pace(Longest(), signal)
    for _ in range(10):
        longest = pace.next_wait(0.0)
    assert longest == 30.0
    loop = asyncio.get_running_loop()
    waiting = loop.create_task(pace.sleep(longest))
    await turns()
    began = loop.time()
    signal.changed()
    await waiting
    assert BASE_SECONDS * 0.9 <= loop.time() - began < LONG / 2
    assert pace.next_wait(0.0) == 2 * BASE_SECONDS


@on_both_loops
async def test_a_change_during_an_attempt_counts_for_the_wait_after_it() -> None:
    signal = NetworkSignal()
    pace = Pace(Longest(), signal)
    for _ in range(10):
        pace.next_wait(0.0)
    signal.changed()
    assert pace.next_wait(0.0) == BASE_SECONDS


@on_both_loops
async def test_a_block_that_fails_by_itself_is_not_taken_for_a_change() -> None:
    signal = NetworkSignal()
    with pytest.raises(TimeoutError, match="its own"):
        async with signal.interrupts():
            raise TimeoutError("its own")
    signal.changed()  # nobody waits any more
    async with signal.interrupts():
        pass


@on_both_loops
async def test_an_outage_is_told_once_and_again_when_its_reason_is_another() -> None:
    pace = Pace(Random(1), NetworkSignal())
    levels = [pace.log_level("no network", 0.1) for _ in range(3)]
    assert levels == [logging.WARNING, logging.DEBUG, logging.DEBUG]
    assert pace.log_level("refused", 0.1) == logging.WARNING
    assert pace.log_level("refused", 0.1) == logging.DEBUG
    assert pace.log_level("refused", 600.0) == logging.WARNING, "it was connected meanwhile"
    assert pace.log_level("the network has changed", 0.1) == logging.DEBUG, "that is logged itself"
