"""Records arrive as they were, in topics with the right settings; errors are in plain words."""

from __future__ import annotations

import asyncio
import logging
import secrets

import pytest
from aiokafka import errors as kafka_errors

from fabric_server.storage.memory import MemoryBus
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.kafka_cluster import Cluster
from ledger.records import DEAD_LETTERS, HEARTBEATS, LEDGER
from runtime.errors import RecordError, StoreError, Unreachable
from tests.contracts.kafka.ends import (
    admin_at,
    change_topic,
    everything_in,
    ids,
    make_topic,
    partitions_of,
    settings_of,
    sink_at,
    source_at,
    take_all,
    working,
)
from tests.contracts.samples import beat, entry


async def test_records_arrive_as_they_were(url: str) -> None:
    beats = [beat(number, node=f"node_{number % 7}") for number in range(300)]
    entries = [entry(number, model="größer/模型") for number in range(2000)]
    async with sink_at(url) as sink, source_at(url) as source:
        await sink.write(beats, entries)
        found = await take_all(source, 2300)
        assert sorted(found.heartbeats, key=lambda one: one.seq) == beats
        assert sorted(found.ledger, key=lambda one: one.request_id) == entries
        assert await source.lag() == {LEDGER: 0, HEARTBEATS: 0}
    keys = {message.key for message in await everything_in(url, HEARTBEATS)}
    assert keys == {f"node_{number}".encode() for number in range(7)}


async def test_heartbeats_of_a_node_stay_in_order(url: str) -> None:
    nodes = [f"node_{number}" for number in range(20)]
    async with sink_at(url) as sink, source_at(url) as source:
        # More than a batch for each partition, too.
        for start in range(0, 600, 200):
            numbers = range(start, start + 200)
            await sink.write([beat(n, node=node) for n in numbers for node in nodes], [])
        found = (await take_all(source, 12_000)).heartbeats
    for node in nodes:
        assert [one.seq for one in found if one.node_id == node] == list(range(600))
    partitions = {message.partition for message in await everything_in(url, HEARTBEATS)}
    assert len(partitions) > 2


async def test_topics_are_made_with_what_they_need(url: str) -> None:
    async with sink_at(url):
        pass
    day = 86_400_000
    for name, retention in ((LEDGER, 30 * day), (HEARTBEATS, day), (DEAD_LETTERS, 90 * day)):
        settings = await settings_of(url, name)
        assert settings["retention.ms"] == str(retention)
        assert settings["min.insync.replicas"] == "1"  # of one broker
        assert settings["compression.type"] == "producer"
        assert await partitions_of(url, name) == list(range(6))


async def test_topics_that_are_there_are_taken_as_they_are(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await make_topic(url, LEDGER, 2, retention_ms="3600000")
    async with sink_at(url) as sink, source_at(url) as source:
        await sink.write([], [entry(1)])
        assert (await take_all(source, 1)).ledger == [entry(1)]
    assert await partitions_of(url, LEDGER) == [0, 1]
    assert {record.message for record in caplog.records if record.levelno > logging.INFO} == {
        "retention of the ledger's topic is too short"
    }


async def test_a_record_that_is_too_large_is_refused_and_the_others_arrive(url: str) -> None:
    await make_topic(url, LEDGER, 1, max_message_bytes="30000")
    large = entry(5, model=secrets.token_hex(60_000))
    memory = MemoryBus()
    async with sink_at(url) as sink, source_at(url) as source:
        with pytest.raises(RecordError, match="too large"):
            await sink.write([], [large])
        async with working(BatchWriter(memory, sink)) as worker, asyncio.timeout(20):
            for number in range(10):
                memory.publish(LEDGER, large if number == 5 else entry(number))
            await worker.flush()
            assert (worker.rejected, worker.problem) == (1, None)
        found = ids((await take_all(source, 9)).ledger)
    assert set(found) == set(ids(entry(number) for number in range(10) if number != 5))


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            kafka_errors.NotEnoughReplicasError(),
            StoreError,
            "topic 't' has too few in-sync replicas",
        ),
        (kafka_errors.NotEnoughReplicasAfterAppendError(), StoreError, "too few in-sync replicas"),
        (kafka_errors.TopicAuthorizationFailedError(), StoreError, "'t' may not be used by us"),
        (kafka_errors.UnknownTopicOrPartitionError(), StoreError, "'t' does not exist"),
        (kafka_errors.MessageSizeTooLargeError(), RecordError, "too large"),
        (kafka_errors.RecordListTooLargeError(), RecordError, "too large"),
        (kafka_errors.KafkaConnectionError("x"), Unreachable, "can't be reached"),
        (kafka_errors.RequestTimedOutError(), Unreachable, "does not answer"),
        (kafka_errors.ProducerClosed(), StoreError, "ProducerClosed"),
        (kafka_errors.InvalidRequiredAcksError(), StoreError, "requiredAcks"),
    ],
)
def test_each_error_says_whose_fault_it_is(error: Exception, kind: type, said: str) -> None:
    told = Cluster.parse("kafka://host").explain(error, "t")
    assert type(told) is kind
    assert str(told).startswith("Kafka at kafka://host:9092")
    assert said in str(told)
    assert "\n" not in str(told)


async def test_a_topic_that_takes_not_even_an_entry_is_told_and_costs_none(url: str) -> None:
    await make_topic(url, LEDGER, max_message_bytes="100")
    bus = MemoryBus()
    async with sink_at(url) as sink, source_at(url) as source:
        async with working(
            BatchWriter(bus, sink, options=BatchOptions(retry_seconds=(0.05, 0.2)))
        ) as worker:
            bus.publish(LEDGER, entry(1))
            bus.publish(LEDGER, entry(2))
            async with asyncio.timeout(30):
                while worker.problem is None:  # noqa: ASYNC110 - it is told to nobody
                    await asyncio.sleep(0.01)
            assert "raise the topic's max.message.bytes" in worker.problem
            await change_topic(url, LEDGER, max_message_bytes="1000000")
            await worker.flush()
            assert worker.rejected == 0
        assert ids((await take_all(source, 2)).ledger) == ["req_00000001", "req_00000002"]


async def test_a_topic_that_was_deleted_is_made_again(url: str) -> None:
    topic = Cluster.parse(url).topic(LEDGER)
    async with sink_at(url) as sink:
        async with admin_at(url) as admin, asyncio.timeout(30):
            await admin.delete_topics([topic])
            while topic in await admin.list_topics():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)
        failed = 0
        async with asyncio.timeout(60):
            while True:  # the broker may still be at it, for all that it tells of the topic
                try:
                    await sink.write([], [entry(1)])
                    break
                except StoreError:
                    failed += 1
        assert failed, "the topic was not there"
    assert len(await everything_in(url, LEDGER)) >= 1
