"""Publishing to topics of a Kafka cluster."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from ledger.kafka_cluster import RETENTION_MS, Cluster
from runtime.errors import RecordError, StoreError

PUBLISH_SECONDS = 10.0
"""Longest time for one ``publish``."""

BATCH_BYTES = 128 * 1024
"""Before compression, which holds up the event loop: for one batch of each partition, 3 ms."""
RECORDS_PER_TURN = 250
"""Records after which other tasks get their turn on the event loop: about a millisecond."""


class Message(NamedTuple):
    topic: str
    """Without prefix."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Publisher:
    """Writes to topics, for one caller at a time; connects when it first has to.

    The producer is not idempotent: aiokafka's idempotent one retries a batch for ever and can
    neither be stopped nor closed while Kafka is away.  It would save duplicates only during one
    connection; the spool before this and the rows behind it handle duplicates anyway.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: AIOKafkaProducer | None = None

    async def connect(self) -> None:
        """Connect, and create missing topics.  Raises ``StoreError``."""
        if self._producer is not None:
            return
        cluster = self._cluster
        async with cluster.opening() as servers:
            await cluster.prepare(servers)
            producer = AIOKafkaProducer(
                **cluster.client_options(servers),
                acks="all",
                # The cheapest here (µs for a record of 450 bytes, times smaller; 2026-11-21): zstd
                # 0.8 and 5.4; lz4, of which aiokafka takes the slow kind, 4.5 and 3.6.
                compression_type="zstd",
                max_batch_size=BATCH_BYTES,
            )
            try:
                await producer.start()
                for name in RETENTION_MS:
                    await producer.partitions_for(cluster.topic(name))
            except BaseException:
                await producer.stop()
                raise
        self._producer = producer

    async def publish(self, messages: Iterable[Message | tuple[Any, ...]]) -> None:
        """Return when all in-sync replicas have the messages; those of one key stay in order.

        Raises ``StoreError`` when that is not possible now, ``RecordError`` when one is too large.
        Then some may have been written all the same; publish them all again.
        """
        await self.connect()
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._publish(messages)
        except TimeoutError as error:
            # The producer itself gives up what is still being sent: close waits for that.
            raise self._cluster.explain(error) from None
        except RecordError:
            raise
        except StoreError:
            # A new one begins with what the URL says, and with no memory of what went wrong.
            await self.close()
            raise

    async def check(self) -> None:
        """Raise ``StoreError`` if no broker answers."""
        await self.connect()
        assert self._producer is not None
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._producer.client.fetch_all_metadata()
        except (TimeoutError, KafkaError) as error:
            await self.close()
            await self._cluster.reach()  # its error says more than the library's
            raise self._cluster.explain(error) from error

    async def close(self) -> None:
        """Disconnect; what a cancelled ``publish`` left is tried for ``REQUEST_SECONDS``."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def _publish(self, messages: Iterable[Message | tuple[Any, ...]]) -> None:
        producer = self._producer
        assert producer is not None
        now = int(time.time() * 1000)  # not the record's own time: retention is counted from this
        sent: list[tuple[str, asyncio.Future[Any]]] = []
        partitions: dict[str, int] = {}
        batches: dict[tuple[str, int], Any] = {}

        async def send(topic: str, partition: int, batch: Any) -> None:
            future = await producer.send_batch(batch, topic, partition=partition)
            future.add_done_callback(_mark_retrieved)
            sent.append((topic, future))

        topic = None
        try:
            for count, (name, key, value, headers) in enumerate(messages, 1):
                topic = self._cluster.topic(name)
                if topic not in partitions:
                    partitions[topic] = len(await producer.partitions_for(topic))
                # Kafka's own murmur2 takes 4.2 µs in Python, this 0.1.  Another producer would
                # choose other partitions, but there is no other.
                place = topic, zlib.crc32(key or b"") % partitions[topic]
                batch = batches.get(place)
                if batch is None or (
                    batch.append(timestamp=now, key=key, value=value, headers=headers) is None
                ):
                    if batch is not None:  # it is full
                        await send(*place, batch)
                    batch = batches[place] = producer.create_batch()
                    batch.append(timestamp=now, key=key, value=value, headers=headers)
                if not count % RECORDS_PER_TURN:
                    await asyncio.sleep(0)
            for (topic, partition), batch in batches.items():
                await send(topic, partition, batch)
        except KafkaError as error:
            raise self._cluster.explain(error, topic) from error
        if sent:
            # Not gather, which when cancelled cancels these: then the exception of a batch would
            # never be retrieved, and asyncio complains.
            await asyncio.wait([future for _, future in sent])
        self._check(sent)

    def _check(self, sent: Iterable[tuple[str, asyncio.Future[Any]]]) -> None:
        problems = [
            self._cluster.explain(error, topic)
            for topic, future in sent
            if (error := future.exception()) is not None
        ]
        # Whether a record is too large is certain only if nothing else is wrong.
        for problem in sorted(problems, key=lambda one: isinstance(one, RecordError)):
            raise problem


def _mark_retrieved(future: asyncio.Future[Any]) -> None:
    """Mark the exception as retrieved, although the caller of ``publish`` was cancelled."""
    if not future.cancelled():
        future.exception()


def encode_headers(values: Mapping[str, str | int]) -> list[tuple[str, bytes]]:
    return [(name, str(value).encode()) for name, value in values.items()]
