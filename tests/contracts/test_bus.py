"""What every bus does, and what the one in memory does when it is full."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fabric_server.storage.interfaces import Bus
from fabric_server.storage.memory import MemoryBus
from ledger.records import HEARTBEATS, LEDGER
from tests.contracts.samples import beat, entry


async def test_records_come_in_the_order_they_were_published(bus: Bus) -> None:
    entries = [entry(number) for number in range(20)]
    beats = [beat(number) for number in range(20)]
    for pair in zip(entries, beats, strict=True):
        bus.publish(LEDGER, pair[0])
        bus.publish(HEARTBEATS, pair[1])
    async with asyncio.timeout(5):
        first = await bus.take(40, 15, 5.0)
        await bus.commit()
        second = await bus.take(1, 15, 5.0)
        await bus.commit()
    assert [*first.ledger, *second.ledger] == entries
    assert [*first.heartbeats, *second.heartbeats] == beats


async def test_taking_waits_until_enough_records_wait(bus: Bus) -> None:
    taking = asyncio.create_task(bus.take(3, 10, 60.0))
    await asyncio.sleep(0)
    bus.publish(LEDGER, entry(1))
    bus.publish(LEDGER, entry(2))
    await asyncio.sleep(0)
    assert not taking.done()
    bus.publish(HEARTBEATS, beat(1))
    async with asyncio.timeout(5):
        batch = await taking
    assert (len(batch.ledger), len(batch.heartbeats)) == (2, 1)


async def test_taking_waits_no_longer_than_it_was_told(bus: Bus) -> None:
    async with asyncio.timeout(5):
        assert (await bus.take(1, 10, 0.01)).size == 0
        assert (await bus.take(1, 10, 0.0)).size == 0
        bus.publish(LEDGER, entry(1))
        assert (await bus.take(100, 10, 0.01)).ledger == [entry(1)]


async def test_a_cancelled_take_loses_nothing(bus: Bus) -> None:
    taking = asyncio.create_task(bus.take(10, 10, 60.0))
    await asyncio.sleep(0)
    bus.publish(LEDGER, entry(1))
    taking.cancel()
    await asyncio.wait([taking])
    assert (await bus.take(1, 10, 1.0)).ledger == [entry(1)]


async def test_settled_returns_when_all_published_before_is_done(bus: Bus) -> None:
    async with asyncio.timeout(5):
        await bus.flush()  # nothing was published
        bus.publish(LEDGER, entry(1))
        bus.publish(HEARTBEATS, beat(1))
        settling = asyncio.create_task(bus.flush())
        await asyncio.sleep(0)
        bus.publish(LEDGER, entry(2))
        await bus.take(1, 1, 1.0)
        await asyncio.sleep(0)
        assert not settling.done()  # taken, and not yet stored
        await bus.commit()
        await settling


async def test_settled_hurries_whoever_waits_for_more(bus: Bus) -> None:
    bus.publish(LEDGER, entry(1))
    taking = asyncio.create_task(bus.take(500, 500, 60.0))
    await asyncio.sleep(0)
    settling = asyncio.create_task(bus.flush())
    async with asyncio.timeout(5):
        assert (await taking).ledger == [entry(1)]
        await bus.commit()
        await settling


async def test_settled_hurries_also_the_take_that_comes_after(bus: Bus) -> None:
    bus.publish(LEDGER, entry(1))
    bus.publish(LEDGER, entry(2))
    settling = asyncio.create_task(bus.flush())
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
        assert (await bus.take(500, 1, 60.0)).ledger == [entry(1)]
        await bus.commit()
        assert (await bus.take(500, 1, 60.0)).ledger == [entry(2)]
        await bus.commit()
        await settling


async def test_a_full_memory_drops_old_heartbeats_and_counts_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = MemoryBus(max_heartbeats=3, max_ledger=100)
    for number in range(10):
        bus.publish(HEARTBEATS, beat(number))
        bus.publish(LEDGER, entry(number))
    assert bus.dropped == {LEDGER: 0, HEARTBEATS: 7}
    assert bus.waiting == {LEDGER: 10, HEARTBEATS: 3}
    batch = await bus.take(1, 100, 0)
    assert [record.seq for record in batch.heartbeats] == [7, 8, 9]
    assert len(batch.ledger) == 10
    assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.WARNING]


async def test_a_memory_full_of_ledger_entries_says_so_and_keeps_them_all() -> None:
    bus = MemoryBus(max_heartbeats=3, max_ledger=5)
    for number in range(8):
        assert bus.full is (number >= 5)
        bus.publish(LEDGER, entry(number))
    assert bus.dropped[LEDGER] == 0
    batch = await bus.take(1, 6, 0)
    assert batch.ledger == [entry(number) for number in range(6)]
    assert not bus.full


async def test_dropped_records_do_not_keep_settled_waiting() -> None:
    bus = MemoryBus(max_heartbeats=2)
    bus.publish(HEARTBEATS, beat(1))
    await bus.take(1, 10, 0)
    bus.publish(HEARTBEATS, beat(2))
    settling = asyncio.create_task(bus.flush())
    await asyncio.sleep(0)
    for number in range(3, 9):
        bus.publish(HEARTBEATS, beat(number))
    await bus.commit()  # of the first one
    await bus.take(1, 10, 0)
    await bus.commit()
    async with asyncio.timeout(5):
        await settling


async def test_closing_ends_the_wait_for_what_will_never_be_stored() -> None:
    bus = MemoryBus()
    bus.publish(LEDGER, entry(1))
    settling = asyncio.create_task(bus.flush())
    await asyncio.sleep(0)
    await bus.close()
    async with asyncio.timeout(5):
        await asyncio.wait([settling])
    assert settling.cancelled()
