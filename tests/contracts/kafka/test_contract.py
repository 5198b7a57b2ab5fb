"""A sink and a source in Kafka, with memory before them, behave as one bus."""

from __future__ import annotations

import asyncio
import time

from consumer.kafka_source import KafkaSource
from tests.contracts.kafka.ends import (
    sink_at,
    source_at,
)
from tests.contracts.samples import beat, entry
from tests.contracts.test_bus import (
    test_a_cancelled_take_loses_nothing,
    test_records_come_in_the_order_they_were_published,
    test_settled_hurries_also_the_take_that_comes_after,
    test_settled_hurries_whoever_waits_for_more,
    test_taking_waits_until_enough_records_wait,
)

__all__ = [  # these also hold for the pair of a sink and a source: see the fixture ``bus``
    "test_a_cancelled_take_loses_nothing",
    "test_records_come_in_the_order_they_were_published",
    "test_settled_hurries_also_the_take_that_comes_after",
    "test_settled_hurries_whoever_waits_for_more",
    "test_taking_waits_until_enough_records_wait",
]


async def test_settled_returns_when_all_published_before_is_done(url: str) -> None:
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(20):
        await source.flush()  # nothing was published
        await sink.write([beat(1)], [entry(1)])
        settling = asyncio.create_task(source.flush())
        await source.take(2, 10, 10.0)
        await asyncio.sleep(0.3)
        assert not settling.done()  # taken, and not yet stored
        await source.commit()
        await settling
        await source.flush()


async def test_settled_also_knows_what_other_members_stored(url: str) -> None:
    async with sink_at(url) as sink, source_at(url) as one, source_at(url) as two:
        await sink.write([], [entry(number) for number in range(100)])
        async with asyncio.timeout(20):
            settling = asyncio.create_task(one.flush())
            while not settling.done():
                for source in (one, two):
                    await source.take(10, 100, 0.1)
                    await source.commit()


async def test_taking_waits_no_longer_than_it_was_told(url: str) -> None:
    async with source_at(url) as source:
        for wait in (0.0, 0.05, 0.3):
            begin = time.monotonic()
            assert (await source.take(1, 10, wait)).size == 0
            assert 0.9 * wait <= time.monotonic() - begin < wait + 10.0
            await source.commit()


async def test_closing_ends_the_wait_for_what_will_never_be_stored(url: str) -> None:
    async with sink_at(url) as sink:
        await sink.write([], [entry(1)])
        source = await KafkaSource.open(url)
        settling = asyncio.create_task(source.flush())
        await source.take(1, 1, 10.0)
        await source.close()
        async with asyncio.timeout(5):
            await asyncio.wait([settling])
        assert settling.cancelled()
