"""Kafka is killed, hangs, or never answers; some tests harm a broker of their own."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

import pytest

from consumer.kafka_source import KafkaSource
from fabric_server.storage.kafka import KafkaSink
from fabric_server.storage.memory import MemoryBus
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.records import LEDGER
from runtime.errors import StoreError, Unreachable
from tests.contracts.kafka.ends import (
    everything_in,
    ids,
    sink_at,
    source_at,
    take_all,
    working,
)
from tests.contracts.samples import entry
from tests.lab.kafka_server import KafkaServer


async def test_a_killed_broker_that_comes_back_costs_no_record(broker: KafkaServer) -> None:
    memory = MemoryBus()
    numbers = 0

    async def publish() -> None:
        nonlocal numbers
        while True:
            memory.publish(LEDGER, entry(numbers))
            numbers += 1
            await asyncio.sleep(0.002)

    async with sink_at(broker.url) as sink, source_at(broker.url) as source:
        worker = BatchWriter(
            memory, sink, options=BatchOptions(batch_seconds=0.01, retry_seconds=(0.1, 0.5))
        )
        async with working(worker), asyncio.timeout(60):
            publishing = asyncio.create_task(publish())
            assert (await take_all(source, 100)).size >= 100
            await asyncio.to_thread(broker.kill)
            while worker.problem is None or source.problem is None:
                begin = time.monotonic()
                assert (await source.take(1, 10, 0.1)).size == 0 or source.problem is None
                assert time.monotonic() - begin < 5.0
                await source.commit()
            assert "can't be reached" in source.problem
            await asyncio.to_thread(broker.start)
            while worker.problem is not None or source.problem is not None:
                await source.take(1, 10, 0.1)
                await source.commit()
            publishing.cancel()
            await worker.flush()
    stored = {message.key.decode() for message in await everything_in(broker.url, LEDGER)}
    assert stored == set(ids(entry(number) for number in range(numbers)))


async def test_a_killed_broker_is_noticed_while_there_are_no_records(
    broker: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fabric")
    async with sink_at(broker.url) as sink:
        worker = BatchWriter(
            MemoryBus(), sink, options=BatchOptions(batch_seconds=0.01, check_seconds=0.1)
        )
        async with working(worker), asyncio.timeout(60):
            for _ in range(2):
                await asyncio.to_thread(broker.kill)
                while worker.problem is None:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
                assert "can't be reached" in worker.problem
                await asyncio.to_thread(broker.start)
                while worker.problem is not None:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
    said = [record.message for record in caplog.records if record.name == "fabric.backends"]
    assert said == 2 * ["Kafka is away", "Kafka is back"]
    assert not any(record.exc_info for record in caplog.records)


async def test_a_broker_that_hangs_is_an_error_in_time_and_nobody_else_waits(
    broker: KafkaServer,
) -> None:
    async with sink_at(broker.url) as sink, source_at(broker.url) as source:
        await sink.write([], [entry(1)])
        assert (await take_all(source, 1)).size == 1
        broker.pause()
        begin = time.monotonic()
        writing = asyncio.create_task(sink.write([], [entry(n) for n in range(2, 5000)]))
        slowest = 0.0
        while not writing.done():
            turn = time.monotonic()
            await asyncio.sleep(0.01)
            slowest = max(slowest, time.monotonic() - turn)
        assert isinstance(writing.exception(), StoreError)
        assert time.monotonic() - begin < 40  # 10 s on an idle machine
        assert slowest < 3.0  # 0.02 s there
        async with asyncio.timeout(10):
            while source.problem is None:
                assert (await source.take(1, 10, 0.1)).size == 0
                await source.commit()
        broker.resume()
        async with asyncio.timeout(30):
            while True:
                with suppress(StoreError):
                    await sink.write([], [entry(2)])
                    break
            while entry(2) not in (await take_all(source, 1)).ledger:
                pass  # what was written before the broker hung comes first
            while source.problem is not None:
                await source.take(1, 10, 0.1)


async def test_a_cancelled_write_leaves_nothing_behind(broker: KafkaServer) -> None:
    others = asyncio.all_tasks()
    async with sink_at(broker.url) as sink:
        broker.pause()
        writing = asyncio.create_task(sink.write([], [entry(1)]))
        await asyncio.sleep(0.5)
        begin = time.monotonic()
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        assert time.monotonic() - begin < 5.0
    assert time.monotonic() - begin < 40
    assert asyncio.all_tasks() == others


@pytest.mark.parametrize("open", [KafkaSink.open, KafkaSource.open])
async def test_nobody_there_is_said_at_once(open: Any) -> None:
    begin = time.monotonic()
    with pytest.raises(Unreachable) as told:
        await open("kafka://127.0.0.1:1")
    assert str(told.value) == (
        "bus: Kafka at kafka://127.0.0.1:1 can't be reached (connection refused): is it running?"
    )
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("open", [KafkaSink.open, KafkaSource.open])
async def test_somebody_who_never_answers_is_given_up(open: Any) -> None:
    callers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, caller: callers.append(caller), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(Unreachable, match="accepts connections but does not answer"):
        await open(f"kafka://127.0.0.1:{port}", setting="the bus")
    assert time.monotonic() - begin < 30
    silent.close()
    for caller in callers:
        caller.close()


async def test_one_broker_of_several_is_enough_to_find_the_others(url: str) -> None:
    async with sink_at(url.replace("kafka://", "kafka://127.0.0.1:1,")) as sink:
        await sink.write([], [entry(1)])
