"""Both ends of a bus in Kafka, and topics as other programs see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from consumer.kafka_source import KafkaSource
from fabric_server.storage.kafka import KafkaSink
from ledger.batch_writer import BatchWriter
from ledger.kafka_cluster import Cluster
from ledger.records import Batch, HeartbeatRecord, LedgerEntry


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
