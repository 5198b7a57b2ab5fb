"""The topic ``dead-letters``: messages that can't be read or stored, for a person to look at."""

from __future__ import annotations

from aiokafka import ConsumerRecord

from ledger.kafka_cluster import Cluster
from ledger.kafka_publisher import Message, Publisher, encode_headers
from ledger.records import DEAD_LETTERS
from runtime.errors import RecordError, StoreError

REASON_LENGTH = 1000
"""Characters of a reason that are kept."""


class DeadLetters:
    def __init__(self, cluster: Cluster) -> None:
        self._publisher = Publisher(cluster)

    async def put(self, message: ConsumerRecord, reason: str) -> None:
        """Copy a message, with its origin and the reason as headers.

        Raises ``StoreError``; it can be repeated.
        """
        headers = encode_headers(
            {
                "reason": reason[:REASON_LENGTH],
                "topic": message.topic,
                "partition": message.partition,
                "offset": message.offset,
            }
        )
        try:
            await self._publisher.publish(
                [Message(DEAD_LETTERS, message.key, message.value, headers)]
            )
        except RecordError:
            # With its headers it is too large.  It can still be found at its origin.
            headers += encode_headers({"left-out": "value"})
            try:
                await self._publisher.publish([Message(DEAD_LETTERS, message.key, None, headers)])
            except RecordError as error:  # the topic's limit is too small for headers alone
                raise StoreError(str(error)) from error

    async def close(self) -> None:
        await self._publisher.close()
