"""The writing end of a bus in Kafka: what a server publishes, through its spool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

from ledger.kafka_cluster import cluster_at
from ledger.kafka_publisher import Publisher
from ledger.records import HEARTBEATS, LEDGER, HeartbeatRecord, LedgerEntry
from runtime.errors import RecordError, StoreError

_encode = msgspec.json.Encoder().encode

MAX_FAIR_BYTES = 64 * 1024
"""A topic that rejects a smaller record is configured wrongly; an entry has less than 2 KiB."""


class KafkaSink:
    """A ``ledger.batch_writer.Sink``: all in-sync replicas have what it has written.

    Written again after an error, records may be there twice; readers recognise them by their keys.
    """

    place = "Kafka"

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._lock = asyncio.Lock()
        """One batch at a time: an orphaned spool may be moved beside our own."""

    @classmethod
    async def open(cls, url: str, *, setting: str = "bus") -> Self:
        """Connect to the Kafka at ``url`` (see ``Cluster.parse``), and create missing topics.

        Raises ``StoreError``, ``Unreachable`` when nothing answers there, all within seconds; the
        text names ``setting``.
        """
        publisher = Publisher(cluster_at(url, setting))
        try:
            await publisher.connect()
        except StoreError as error:
            raise type(error)(f"{setting}: {error}") from error
        return cls(publisher)

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        """Write entries keyed by request id, heartbeats keyed by node: those of one node stay in
        order."""
        try:
            async with self._lock:
                await self._publisher.publish(_messages(heartbeats, ledger))
        except RecordError as error:
            single = len(heartbeats) + len(ledger) == 1
            if single and len(_encode((*heartbeats, *ledger)[0])) < MAX_FAIR_BYTES:
                # The topic is at fault: a ledger entry must not be dropped because of a setting.
                raise StoreError(f"{error}; raise the topic's max.message.bytes") from error
            raise

    async def check(self) -> None:
        async with self._lock:
            await self._publisher.check()

    async def close(self) -> None:
        await self._publisher.close()


# Tuples, not Messages: a name for each costs as much as all the rest of this.
_Message = tuple[str, bytes, bytes, list[tuple[str, bytes]]]
_NO_HEADERS: list[tuple[str, bytes]] = []


def _messages(
    heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
) -> Iterator[_Message]:
    for entry in ledger:
        yield LEDGER, entry.request_id.encode(), _encode(entry), _NO_HEADERS
    for beat in heartbeats:
        yield HEARTBEATS, beat.node_id.encode(), _encode(beat), _NO_HEADERS
