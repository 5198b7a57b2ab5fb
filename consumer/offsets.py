"""Offsets of messages that are stored: by this process, and as committed at the brokers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    UnknownTopicOrPartitionError,
)

from consumer.group_member import GroupMember
from ledger.kafka_cluster import Cluster

log = logging.getLogger("fabric.kafka")

COMMIT_SECONDS = 5.0

Offsets = dict[TopicPartition, int]


class OffsetTracker:
    def __init__(self, cluster: Cluster, member: GroupMember, topics: list[str]) -> None:
        self._cluster = cluster
        self._member = member
        self._topics = topics
        self._uncommitted: Offsets = {}
        self._stored: Offsets = {}

    def on_stored(self, messages: Iterable[ConsumerRecord], *, assigned: bool) -> None:
        """Note that these messages are stored.

        ``assigned``: their partitions are still ours.  Otherwise another member may have come
        further, and partitions that are ours again are read from where they were committed.
        """
        reached: Offsets = {}
        for message in messages:  # in order within a partition
            reached[TopicPartition(message.topic, message.partition)] = message.offset + 1
        for place, offset in reached.items():
            self._stored[place] = max(offset, self._stored.get(place, 0))
        if assigned:
            self._uncommitted.update(reached)

    def on_revoked(self) -> None:
        self._uncommitted.clear()

    async def commit(self) -> None:
        """Commit what is stored; a commit that fails is made up for by the next one."""
        if not self._uncommitted:
            return
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._member.client.commit(self._uncommitted)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("partitions were reassigned", extra={"reason": str(error)})
        except (KafkaError, TimeoutError) as error:
            reason = str(self._cluster.explain(error))
            log.warning("could not commit offsets; will retry", extra={"reason": reason})
            return
        self._uncommitted.clear()

    async def ends(self) -> Offsets:
        """Return where the next messages will go, of partitions that hold any.

        Raises ``KafkaError``.
        """
        client = self._member.client
        places = []
        for topic in self._topics:
            partitions = client.partitions_for_topic(topic)
            if partitions is None:
                raise UnknownTopicOrPartitionError  # or not known yet
            places += [TopicPartition(topic, partition) for partition in partitions]
        begins = await client.beginning_offsets(places)
        ends = await client.end_offsets(places)
        return {place: end for place, end in ends.items() if end > begins[place]}

    async def not_reached(self, ends: Offsets) -> Offsets:
        """Return those of ``ends`` up to which not all is stored.  Raises ``KafkaError``."""
        still = {}
        for place, end in ends.items():
            if (
                self._stored.get(place, 0) < end
                and (await self._member.client.committed(place) or 0) < end  # by another member
            ):
                still[place] = end
        return still
