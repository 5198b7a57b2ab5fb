"""A member of a consumer group: joins it, replaces a client that failed, checks its health."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import ConsumerStoppedError, KafkaError

from ledger.kafka_cluster import Cluster
from runtime.errors import StoreError

log = logging.getLogger("fabric.kafka")

SESSION_SECONDS = 10.0
"""Time after which the partitions of a consumer that was killed go to others."""
REQUEST_SECONDS = 12.0
"""Longer than a rebalance may take, whose answer comes when it is over."""
SILENCE_SECONDS = 5.0
"""Time without an answer after which the brokers are checked.

They answer every half second, if only that there is nothing.
"""
JOIN_SECONDS = 30.0
"""Longer than it takes to notice that a member was killed."""


class GroupMember:
    def __init__(
        self, cluster: Cluster, group: str, topics: list[str], on_revoked: Callable[[], None]
    ) -> None:
        """``topics`` are full names; ``on_revoked`` is called before partitions change hands."""
        self.broken: str | None = None
        """Why the client must be replaced; ``check`` does that."""
        self._cluster = cluster
        self._group = cluster.prefix + group
        self._topics = topics
        self._on_revoked = on_revoked
        self._client: AIOKafkaConsumer | None = None
        self._usable = asyncio.Event()
        self._joining_since: float | None = None
        self._last_answer = 0.0

    @property
    def client(self) -> AIOKafkaConsumer:
        """The client.  Raises ``ConsumerStoppedError``, a ``KafkaError``, when there is none."""
        if self._client is None:
            raise ConsumerStoppedError
        return self._client

    @property
    def connected(self) -> bool:
        return self._client is not None and self.broken is None

    async def connect(self) -> None:
        """Make the topics if need be, and join the group.  Raises ``StoreError``."""
        cluster = self._cluster
        async with cluster.opening() as servers:
            await cluster.prepare(servers)
            options = cluster.client_options(servers)
            options["request_timeout_ms"] = int(REQUEST_SECONDS * 1000)
            client = AIOKafkaConsumer(
                **options,
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                session_timeout_ms=int(SESSION_SECONDS * 1000),
                heartbeat_interval_ms=1000,  # also how soon a member learns of a new one
                # A member that does not poll waits for its store, and another would wait as well.
                max_poll_interval_ms=24 * 3600 * 1000,
            )
            try:
                await client.start()
            except BaseException:
                await client.stop()
                raise
        # Not before start, which would then wait for the other members to make room.
        client.subscribe(list(self._topics), listener=_Listener(self))
        self._client = client
        self._last_answer, self._joining_since = time.time(), time.monotonic()
        self.broken = None
        self._usable.set()

    async def disconnect(self) -> None:
        """Leave the group, so that others get the partitions at once."""
        self._usable.clear()
        if self._client is not None:
            await self._client.stop()
            self._client = None
            self.on_revoked()

    async def fetch(
        self, limit: int, wait: float
    ) -> dict[TopicPartition, list[ConsumerRecord]] | None:
        """Return up to ``limit`` messages, waiting up to ``wait`` seconds for the first.

        None: the client failed, and must be replaced.
        """
        await self._usable.wait()
        try:
            found: dict[TopicPartition, list[ConsumerRecord]] = await self.client.getmany(
                timeout_ms=int(wait * 1000) + 1 if wait else 0, max_records=limit
            )
        except KafkaError as error:
            # It may have moved on behind records that it did not return.  A new client begins
            # where we have committed.
            self.broken = str(self._cluster.explain(error))
            self._usable.clear()
            return None
        return found

    async def check(self) -> str | None:
        """Replace a client that failed; return why no messages can come, None if they can."""
        if not self.connected:
            await self.disconnect()
            try:
                await self.connect()
            except StoreError as error:
                return str(error)
            return None
        client = self.client
        polls = (client.last_poll_timestamp(place) for place in client.assignment())
        self._last_answer = max(self._last_answer, *(poll / 1000 for poll in polls if poll), 0.0)
        if 0 <= time.time() - self._last_answer < SILENCE_SECONDS:  # else the clock was set back
            return None
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                known = await client.topics()
        except TimeoutError:
            return str(self._cluster.explain(TimeoutError()))
        except KafkaError:
            return f"Kafka at {self._cluster} can't be reached: is it running?"
        missing = sorted(set(self._topics) - known)
        if missing:
            return f"Kafka at {self._cluster}: topic '{missing[0]}' does not exist"
        since = self._joining_since
        if since is not None and time.monotonic() - since > JOIN_SECONDS:
            return f"Kafka at {self._cluster} assigns no partitions to group '{self._group}'"
        return None

    def on_assigned(self) -> None:
        self._joining_since = None

    def on_revoked(self) -> None:
        """All partitions are assigned anew, and read from where they were committed."""
        self._joining_since = time.monotonic()
        self._on_revoked()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, member: GroupMember) -> None:
        self._member = member

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._member.on_revoked()

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._member.on_assigned()
        places = sorted(f"{place.topic}/{place.partition}" for place in assigned)
        log.info("partitions assigned", extra={"partitions": ", ".join(places)})
