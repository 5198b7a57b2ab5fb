"""Fixtures of the tests of Kafka."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consumer.kafka_source import KafkaSource
from fabric_server.storage.memory import MemoryBus
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.records import HEARTBEATS, LEDGER
from tests.contracts.kafka.ends import (
    make_topic,
    sink_at,
    source_at,
    take_all,
    working,
)
from tests.contracts.samples import beat
from tests.lab.backends import Given
from tests.lab.kafka_server import KafkaServer


@pytest.fixture
def url(kafka: KafkaServer | Given) -> str:
    """With topics and groups that no other test uses."""
    return f"{kafka.url}?prefix=t{uuid.uuid4().hex[:10]}."


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


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[KafkaServer]:
    """One to harm."""
    server = KafkaServer(tmp_path / "kafka")
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.stop)
