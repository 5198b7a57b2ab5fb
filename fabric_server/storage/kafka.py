"""The writing end of a bus in Kafka: what a server publishes, by way of its spool."""

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

FAIR_BYTES = 64 * 1024
"""A topic that does not take a record of less is set wrongly; an entry has less than 2 KiB."""


class KafkaSink:
    """A ``ledger.batch_writer.Sink``: what it has written is with all brokers that must have it.

    Written again after an error, records may be there twice; whoever reads them knows them by their
    own keys.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._turn = asyncio.Lock()
        """One batch at a time: beside our own there may be what another server left."""

    @classmethod
    async def open(cls, url: str, *, setting: str = "bus") -> Self:
        """The Kafka at ``url`` (see ``Cluster.parse``), with the topics it must have.

        Raises ``StoreError``, ``Unreachable`` when nobody answers there, all within seconds; the
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
        """Entries go by the id of their request, heartbeats by their node: those of one node stay
        in order."""
        try:
            async with self._turn:
                await self._publisher.publish(_messages(heartbeats, ledger))
        except RecordError as error:
            single = len(heartbeats) + len(ledger) == 1
            if single and len(_encode((*heartbeats, *ledger)[0])) < FAIR_BYTES:
                # The fault is the topic's: a ledger entry must not be given up for a setting.
                raise StoreError(f"{error}: raise max.message.bytes there") from error
            raise

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
