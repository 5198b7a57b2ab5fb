"""The bus in Kafka, both ends, against a real broker; some tests harm one of their own."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from consumer.group_member import SESSION_SECONDS
from consumer.kafka_source import GROUP, KafkaSource
from fabric_server.storage.kafka import KafkaSink
from fabric_server.storage.memory import MemoryBus
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.kafka_cluster import Cluster
from ledger.records import DEAD_LETTERS, HEARTBEATS, LEDGER, Batch, HeartbeatRecord, LedgerEntry
from runtime.errors import BackendError, RecordError, StoreError, Unreachable
from tests.contracts.samples import beat, entry
from tests.contracts.test_bus import (
    test_a_cancelled_take_loses_nothing,
    test_records_come_in_the_order_they_were_published,
    test_settled_hurries_also_the_take_that_comes_after,
    test_settled_hurries_whoever_waits_for_more,
    test_taking_waits_until_enough_records_wait,
)
from tests.lab.backends import Given
from tests.lab.kafka_server import KafkaServer

__all__ = [  # these also hold for the pair of a sink and a source: see the fixture ``bus``
    "test_a_cancelled_take_loses_nothing",
    "test_records_come_in_the_order_they_were_published",
    "test_settled_hurries_also_the_take_that_comes_after",
    "test_settled_hurries_whoever_waits_for_more",
    "test_taking_waits_until_enough_records_wait",
]


@pytest.fixture
def url(kafka: KafkaServer | Given) -> str:
    """With topics and groups that no other test uses."""
    return f"{kafka.url}?prefix=t{uuid.uuid4().hex[:10]}."


@asynccontextmanager
async def sink_at(url: str) -> AsyncIterator[KafkaSink]:
    sink = await KafkaSink.open(url)
    try:
        yield sink
    finally:
        await sink.close()


@asynccontextmanager
async def source_at(url: str) -> AsyncIterator[KafkaSource]:
    source = await KafkaSource.open(url)
    try:
        yield source
    finally:
        await source.close()


@asynccontextmanager
async def admin_at(url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=Cluster.parse(url).servers)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def working(worker: BatchWriter) -> AsyncIterator[BatchWriter]:
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def make_topic(url: str, name: str, partitions: int = 1, **settings: str) -> None:
    settings = {setting.replace("_", "."): value for setting, value in settings.items()}
    topic = NewTopic(Cluster.parse(url).topic(name), partitions, 1, topic_configs=settings)
    async with admin_at(url) as admin:
        await admin.create_topics([topic])


async def change_topic(url: str, name: str, **settings: str) -> None:
    settings = {setting.replace("_", "."): value for setting, value in settings.items()}
    topic = Cluster.parse(url).topic(name)
    async with admin_at(url) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, settings)])


async def settings_of(url: str, name: str) -> dict[str, str]:
    topic = Cluster.parse(url).topic(name)
    async with admin_at(url) as admin:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        return {name: value for name, value, *_ in answer.resources[0][4]}


async def put(url: str, name: str, *values: bytes | None) -> None:
    """As some other program would."""
    cluster = Cluster.parse(url)
    async with AIOKafkaProducer(bootstrap_servers=cluster.servers, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(cluster.topic(name), value, key=b"theirs")


async def everything_in(url: str, name: str) -> list[ConsumerRecord]:
    cluster = Cluster.parse(url)
    topic = cluster.topic(name)
    async with AIOKafkaConsumer(bootstrap_servers=cluster.servers) as consumer:
        consumer.assign([TopicPartition(topic, n) for n in await partitions_of(url, name)])
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(consumer.assignment())
        found: list[ConsumerRecord] = []
        while len(found) < sum(ends.values()):
            for messages in (await consumer.getmany(timeout_ms=200)).values():
                found += messages
        return found


async def partitions_of(url: str, name: str) -> list[int]:
    async with admin_at(url) as admin:
        (topic,) = await admin.describe_topics([Cluster.parse(url).topic(name)])
        return sorted(partition["partition"] for partition in topic["partitions"])


async def take_all(source: KafkaSource, count: int, seconds: float = 30.0) -> Batch:
    """That many records, done with."""
    beats: list[HeartbeatRecord] = []
    entries: list[LedgerEntry] = []
    async with asyncio.timeout(seconds):
        while len(beats) + len(entries) < count:
            batch = await source.take(count, 5000, 0.2)
            beats += batch.heartbeats
            entries += batch.ledger
            await source.commit()
    return Batch(beats, entries)


def ids(entries: Iterable[LedgerEntry]) -> list[str]:
    return sorted(entry.request_id for entry in entries)


# ── the contract of a bus ─────────────────────────────────────────────────────────────────────


class Pair:
    """Memory, sink and source in a row, as one bus."""

    def __init__(self, memory: MemoryBus, worker: BatchWriter, source: KafkaSource) -> None:
        self._memory = memory
        self._worker = worker
        self.publish = memory.publish
        self.take = source.take
        self.commit = source.commit
        self.reject = source.reject
        self._source = source

    async def flush(self) -> None:
        await self._worker.flush()
        await self._source.flush()


@pytest.fixture
async def bus(url: str) -> AsyncIterator[Pair]:
    for name in (LEDGER, HEARTBEATS):  # with more partitions only records of one key are in order
        await make_topic(url, name)
    memory = MemoryBus()
    async with (
        sink_at(url) as sink,
        source_at(url) as source,
        working(BatchWriter(memory, sink, options=BatchOptions(batch_seconds=0.005))) as worker,
    ):
        await sink.write([beat(0)], [])
        assert (await take_all(source, 1)).size == 1  # and has joined its group by now
        yield Pair(memory, worker, source)


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


# ── both ends ─────────────────────────────────────────────────────────────────────────────────


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
    for name, retention in ((LEDGER, 30 * day), (HEARTBEATS, day), (DEAD_LETTERS, -1)):
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
        with pytest.raises(RecordError, match="larger"):
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
        (kafka_errors.NotEnoughReplicasError(), StoreError, "topic 't' has too few in-sync replicas"),
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


# ── the reading end ───────────────────────────────────────────────────────────────────────────


async def test_what_was_not_done_is_given_again(url: str) -> None:
    entries = [entry(number) for number in range(100)]
    async with sink_at(url) as sink:
        await sink.write([], entries)
    async with source_at(url) as source:
        assert ids((await source.take(100, 100, 10.0)).ledger) == ids(entries)
    async with source_at(url) as source:
        assert ids((await take_all(source, 100)).ledger) == ids(entries)
    async with source_at(url) as source:
        assert (await source.take(1, 100, 1.0)).size == 0


async def test_a_take_cancelled_at_any_time_loses_nothing(url: str) -> None:
    entries = [entry(number) for number in range(3000)]
    found: list[LedgerEntry] = []
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(30):
        for start in range(0, 3000, 100):
            await sink.write([], entries[start : start + 100])
            taking = asyncio.create_task(source.take(10_000, 10_000, 60.0))
            await asyncio.sleep(0.002 * (start // 100))
            taking.cancel()
            await asyncio.wait([taking])
            assert taking.cancelled()
        while len(found) < 3000:
            found += (await source.take(3000, 700, 1.0)).ledger
            await source.commit()
    assert ids(found) == ids(entries)


async def test_members_of_a_group_share_and_take_over(url: str) -> None:
    found: dict[str, list[LedgerEntry]] = {"one": [], "two": []}

    async def drain(name: str, source: KafkaSource) -> None:
        while True:
            found[name] += (await source.take(50, 500, 0.05)).ledger
            await source.commit()

    async with sink_at(url) as sink, source_at(url) as one, asyncio.timeout(40):
        two = await KafkaSource.open(url)
        tasks = [asyncio.create_task(drain(*a)) for a in (("one", one), ("two", two))]
        numbers = 0
        while not (found["one"] and found["two"]):
            await sink.write([], [entry(number) for number in range(numbers, numbers + 50)])
            numbers += 50
            await asyncio.sleep(0.1)
        tasks[1].cancel()
        await asyncio.wait(tasks[1:])
        left = time.monotonic()
        await two.close()
        await sink.write([], [entry(number) for number in range(numbers, numbers + 100)])
        await one.flush()
        assert time.monotonic() - left < SESSION_SECONDS  # it left; it was not found missing
        tasks[0].cancel()
        await asyncio.wait(tasks)
    everything = {one.request_id for entries in found.values() for one in entries}
    assert everything == set(ids(entry(number) for number in range(numbers + 100)))


async def test_done_after_partitions_changed_hands_does_no_harm(url: str) -> None:
    entries = [entry(number) for number in range(300)]
    async with sink_at(url) as sink, source_at(url) as one, asyncio.timeout(30):
        await sink.write([], entries)
        assert (await one.take(300, 300, 10.0)).size == 300
        async with source_at(url) as two:
            again: list[LedgerEntry] = []
            while not again:  # two has its share, before one has done with it
                again += (await two.take(1, 300, 0.2)).ledger
            assert 0 < len(again) < 300
            await one.commit()
            await two.commit()
            both = [*again, *(await take_all(one, 300 - len(again))).ledger]
        assert ids(both) == ids(entries)


async def test_a_member_that_the_group_refuses_tries_again(url: str) -> None:
    cluster = Cluster.parse(url)
    stranger = AIOKafkaConsumer(
        cluster.topic(LEDGER),
        bootstrap_servers=cluster.servers,
        group_id=cluster.topic(GROUP),
        partition_assignment_strategy=[RangePartitionAssignor],
    )
    await make_topic(url, LEDGER)
    await stranger.start()
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(30):
        await sink.write([], [entry(1)])
        while source.problem is None:
            assert (await source.take(1, 10, 0.1)).size == 0
            await source.commit()
        assert "protocol" in source.problem
        await stranger.stop()
        assert (await take_all(source, 1)).ledger == [entry(1)]
        while source.problem is not None:
            await source.take(1, 10, 0.1)


async def test_what_is_no_record_goes_to_the_dead_letters(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = (b"nonsense", b"\xff\xfe", b'{"request_id": 5}', b"[" * 5000, None)
    async with sink_at(url) as sink, source_at(url) as source:
        await put(url, LEDGER, *bad)
        await sink.write([], [entry(1)])
        found: list[LedgerEntry] = []
        async with asyncio.timeout(20):
            settling = asyncio.create_task(source.flush())
            while not settling.done():
                found += (await source.take(6, 10, 1.0)).ledger
                await source.commit()
    assert found == [entry(1)]
    letters = await everything_in(url, DEAD_LETTERS)
    assert sorted(map(str, (letter.value for letter in letters))) == sorted(map(str, bad))
    origins = {message.value: message for message in await everything_in(url, LEDGER)}
    for letter in letters:
        headers = dict(letter.headers)
        origin = origins[letter.value]
        assert letter.key == b"theirs"
        assert headers["topic"].decode() == origin.topic
        assert int(headers["partition"]) == origin.partition
        assert int(headers["offset"]) == origin.offset
        assert b"not a record" in headers["reason"]
    assert [record.message for record in caplog.records].count("record can't be read") == 5
    async with source_at(url) as source:  # and none of it is given again
        assert (await source.take(1, 10, 1.0)).size == 0


async def test_a_rejected_record_goes_to_the_dead_letters_as_it_came(url: str) -> None:
    async with sink_at(url) as sink, source_at(url) as source:
        await sink.write([], [entry(1), entry(2)])
        batch = await source.take(2, 10, 10.0)
        (bad,) = (one for one in batch.ledger if one == entry(2))
        await source.reject(bad, "a NUL in it")
        await source.reject(bad, "a NUL in it")  # the batch was tried again
        await source.commit()
        with pytest.raises(ValueError, match="not in the last take"):
            await source.reject(bad, "too late")
    (letter,) = await everything_in(url, DEAD_LETTERS)
    (origin,) = (m for m in await everything_in(url, LEDGER) if m.key == letter.key)
    assert (letter.key, letter.value) == (b"req_00000002", origin.value)
    assert dict(letter.headers)["reason"] == b"a NUL in it"


async def test_nothing_is_done_with_before_the_dead_letters_are_safe(url: str) -> None:
    await make_topic(url, DEAD_LETTERS, 1, max_message_bytes="10")
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(30):
        await sink.write([], [entry(1)])
        (record,) = (await source.take(1, 10, 10.0)).ledger
        with pytest.raises(StoreError):
            await source.reject(record, "bad")
        await source.commit()
        await put(url, LEDGER, b"nonsense")
        assert (await source.take(1, 10, 10.0)).size == 0
        doing = asyncio.create_task(source.commit())
        await asyncio.sleep(2.5)
        assert not doing.done()
        assert source.problem is not None and "larger" in source.problem
        await change_topic(url, DEAD_LETTERS, max_message_bytes="1000000")
        await doing
    assert [letter.value for letter in await everything_in(url, DEAD_LETTERS)] == [b"nonsense"]


async def test_a_letter_that_is_too_large_with_its_headers_is_kept_without_its_value(
    url: str,
) -> None:
    await make_topic(url, DEAD_LETTERS, 1, max_message_bytes="600")
    async with sink_at(url) as sink, source_at(url) as source:
        await sink.write([], [entry(1, model=secrets.token_hex(500))])
        (record,) = (await source.take(1, 10, 10.0)).ledger
        await source.reject(record, "bad")
        await source.commit()
    (letter,) = await everything_in(url, DEAD_LETTERS)
    headers = dict(letter.headers)
    assert (letter.key, letter.value, headers["left-out"]) == (b"req_00000001", None, b"value")
    assert headers["offset"] == b"0"


# ── when Kafka is away ────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[KafkaServer]:
    """One to harm."""
    server = KafkaServer(tmp_path / "kafka")
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.stop)


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
            assert entry(2) in (await take_all(source, 1)).ledger
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


# ── where it is ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "servers", "prefix"),
    [
        ("kafka://host", ["host:9092"], ""),
        ("kafka://a:1,b,c:65535", ["a:1", "b:9092", "c:65535"], ""),
        ("kafka://a, b:2/", ["a:9092", "b:2"], ""),
        ("kafka://[::1]:93,[fe80::2]", ["[::1]:93", "[fe80::2]:9092"], ""),
        ("kafka://host:1?prefix=blue.", ["host:1"], "blue."),
    ],
)
def test_addresses(url: str, servers: list[str], prefix: str) -> None:
    cluster = Cluster.parse(url)
    assert (cluster.servers, cluster.prefix) == (servers, prefix)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka:host", "must begin with kafka://"),
        ("kafka://", "a host is missing"),
        ("kafka://a,,b", "a host is missing"),
        ("kafka://:9092", "a host is missing"),
        ("kafka://host:", "is not a port"),
        ("kafka://host:0", "is not a port"),
        ("kafka://host:65536", "is not a port"),
        ("kafka://host:x", "is not a port"),
        ("kafka://[::1", "is not host:port"),
        ("kafka://user:secret@host", "not supported yet"),
        ("kafka://host/topic", "'/topic'"),
        ("kafka://host?acks=0", "'acks' is unknown"),
        ("kafka://host?prefix=a%20b", "prefix may have"),
    ],
)
async def test_addresses_that_are_wrong_are_said_to_be(url: str, said: str) -> None:
    for open in (KafkaSink.open, KafkaSource.open):
        with pytest.raises(BackendError, match=said) as told:
            await open(url, setting="bus")
        assert str(told.value).startswith("bus = 'kafka:")
        assert "secret" not in str(told.value)
