"""The reading end of a bus in Kafka."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple, Self

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
    UnknownTopicOrPartitionError,
)
from msgspec import Struct

from ledger.kafka_cluster import Cluster, Message, Publisher, cluster_at, headers_of
from ledger.records import DEAD_LETTERS, HEARTBEATS, LEDGER, Batch, HeartbeatRecord, LedgerEntry
from runtime.errors import RecordError, StoreError

log = logging.getLogger("fabric.kafka")

GROUP = "fabric-consumer"
SESSION_SECONDS = 10.0
"""After this, the partitions of a consumer that was killed go to others."""
REQUEST_SECONDS = 12.0
"""Longer than a rebalance may take, which is answered when it is over."""
SILENCE_SECONDS = 5.0
"""Brokers answer every half second, if only that there is nothing; after this they are asked."""
JOIN_SECONDS = 30.0
"""Longer than it takes to miss a member that was killed."""
WATCH_SECONDS = 1.0
COMMIT_SECONDS = 5.0
SETTLE_SECONDS = 0.2
LETTER_RETRY_SECONDS = (0.5, 10.0)
REASON_LENGTH = 1000

_decode = {
    LEDGER: msgspec.json.Decoder(LedgerEntry).decode,
    HEARTBEATS: msgspec.json.Decoder(HeartbeatRecord).decode,
}


class _Given(NamedTuple):
    """What the last ``take`` gave: records, and the messages they came in."""

    assignment: int
    messages: list[ConsumerRecord]
    records: list[Struct | None]
    poison: list[tuple[ConsumerRecord, str]]


class KafkaSource:
    """A ``ledger.batch_writer.Source``: each of a group's members gets its share of the partitions.

    What was given and not ``done`` when the process ends, or when partitions change hands, is given
    again, here or to another member.  While Kafka is away ``take`` gives nothing, and ``problem``
    says why.
    """

    def __init__(self, cluster: Cluster, group: str) -> None:
        self._cluster = cluster
        self._group = cluster.prefix + group
        self._names = {cluster.topic(name): name for name in _decode}
        self._letters = Publisher(cluster)
        self._consumer: AIOKafkaConsumer | None = None
        self._broken: str | None = None  # why the consumer is not used any more
        self._whole = asyncio.Event()
        self._stuck: str | None = None  # why a dead letter can't be put aside
        self._watcher: asyncio.Task[None] | None = None
        self._waiting: dict[str, deque[ConsumerRecord]] = {name: deque() for name in _decode}
        self._given = _Given(0, [], [], [])
        self._rejected: set[int] = set()
        self._assignment = 0  # how often partitions were given to us
        self._joining_since: float | None = None
        self._heard = 0.0
        self._uncommitted: dict[TopicPartition, int] = {}
        self._stored: dict[TopicPartition, int] = {}
        self._alarm: asyncio.Timeout | None = None  # ends the wait in take
        self._settling: set[asyncio.Future[None]] = set()
        self.problem: str | None = None
        """Why nothing can be read at the moment."""

    def __repr__(self) -> str:
        waiting = {name: len(queue) for name, queue in self._waiting.items()}
        return f"<KafkaSource {self._cluster} waiting={waiting} problem={self.problem!r}>"

    @classmethod
    async def open(cls, url: str, *, group: str = GROUP, setting: str = "bus") -> Self:
        """Reads the Kafka at ``url`` (see ``Cluster.parse``) as a member of ``group``; makes the
        topics if need be.

        Raises ``StoreError``, ``Unreachable`` when nobody answers there, all within seconds; the
        text names ``setting``.
        """
        source = cls(cluster_at(url, setting), group)
        try:
            await source._connect()
        except StoreError as error:
            raise type(error)(f"{setting}: {error}") from error
        source._watcher = asyncio.create_task(source._watch())
        return source

    async def close(self) -> None:
        """Leaves the group, so that others get its partitions at once.  Whoever waits in
        ``settled`` waits no longer."""
        for future in self._settling:
            future.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._disconnect()
        await self._letters.close()

    # ── what BatchWriter calls ────────────────────────────────────────────────────────────────

    async def take(self, enough: int, most: int, wait: float) -> Batch:
        """See ``Source``.  Records of one key come in the order they were published."""
        deadline = asyncio.get_running_loop().time() + wait
        try:
            async with asyncio.timeout_at(deadline) as self._alarm:
                await self._collect(enough, most, deadline)
        except TimeoutError:
            pass
        finally:
            self._alarm = None
        messages = [
            queue.popleft()
            for queue in self._waiting.values()
            for _ in range(min(most, len(queue)))
        ]
        self._given = given = _Given(self._assignment, messages, [], [])
        self._rejected.clear()
        for message in messages:
            given.records.append(self._record(message, given.poison))
        heartbeats: list[HeartbeatRecord] = []
        ledger: list[LedgerEntry] = []
        for record in given.records:
            if isinstance(record, LedgerEntry):
                ledger.append(record)
            elif isinstance(record, HeartbeatRecord):
                heartbeats.append(record)
        return Batch(heartbeats, ledger)

    async def commit(self) -> None:
        """Puts aside what could not be read, for as long as that takes, and commits the rest; a
        commit that fails is made up for by the next one."""
        given = self._given
        await self._bury_poison(given.poison)
        reached: dict[TopicPartition, int] = {}
        for message in given.messages:  # in order within a partition
            reached[TopicPartition(message.topic, message.partition)] = message.offset + 1
        for place, offset in reached.items():
            self._stored[place] = max(offset, self._stored.get(place, 0))
        if given.assignment == self._assignment:
            self._uncommitted.update(reached)
        # Otherwise partitions have changed hands since: others may have come further, and those
        # that are ours again are read from where they were committed.
        self._given = _Given(0, [], [], [])
        await self._commit()
        for future in self._settling:
            if not future.done():
                future.set_result(None)

    async def reject(self, record: Struct, reason: str) -> None:
        """It goes to ``dead-letters`` as it came.  Raises ``StoreError``, and can be repeated."""
        for message, given in zip(self._given.messages, self._given.records, strict=True):
            if given is record:
                if id(record) not in self._rejected:  # a batch is tried again as a whole
                    await self._bury(message, reason)
                    self._rejected.add(id(record))
                return
        raise ValueError("that record was not in the last take")

    async def flush(self) -> None:
        """Returns when all that was published before this call is stored, by whichever member."""
        ends: dict[TopicPartition, int] | None = None
        future: asyncio.Future[None]
        while True:
            future = asyncio.get_running_loop().create_future()
            self._settling.add(future)
            self._hurry()
            try:
                with suppress(KafkaError):
                    ends = await self._unsettled(await self._ends() if ends is None else ends)
                    if not ends:
                        return
                await asyncio.wait([future], timeout=SETTLE_SECONDS)
                if future.cancelled():
                    raise asyncio.CancelledError  # closed
            finally:
                self._settling.discard(future)

    # ── what metrics ask ──────────────────────────────────────────────────────────────────────

    async def lag(self) -> dict[str, int]:
        """Records not yet stored, by topic (without prefix), in the partitions of this member.

        As of the latest answer of the brokers: no more than half a second old when all is well.
        """
        lag = dict.fromkeys(_decode, 0)
        if self._consumer is None or self._broken:
            return lag
        for name, queue in self._waiting.items():
            lag[name] += len(queue)
        for message in self._given.messages:
            lag[self._names[message.topic]] += 1
        with suppress(TimeoutError, KafkaError):  # those that are just changing hands do not count
            async with asyncio.timeout(SETTLE_SECONDS):
                for place in self._consumer.assignment():
                    end = self._consumer.highwater(place)
                    if end is not None:
                        ahead = end - await self._consumer.position(place)
                        lag[self._names[place.topic]] += max(0, ahead)
        return lag

    # ── fetching ──────────────────────────────────────────────────────────────────────────────

    async def _collect(self, enough: int, most: int, deadline: float) -> None:
        """Returns when ``enough`` wait.  Cancelled, it leaves all that it fetched in ``_waiting``:
        between the library's own buffer and ours nothing is awaited."""
        loop = asyncio.get_running_loop()
        wait = 0.0  # first what is there already
        while True:
            waiting = sum(map(len, self._waiting.values()))
            if waiting < max(enough, most):
                await self._fetch(max(enough, most), wait)
                waiting = sum(map(len, self._waiting.values()))
            if waiting >= (1 if self._settling else enough):
                return
            wait = deadline - loop.time()
            if wait <= 0:
                return

    async def _fetch(self, most: int, wait: float) -> None:
        await self._whole.wait()
        try:
            found = await self._reader.getmany(
                timeout_ms=int(wait * 1000) + 1 if wait else 0, max_records=most
            )
        except KafkaError as error:
            # It may have moved on behind records that it did not give us.  A new one begins where
            # we have committed.
            self._broken = str(self._cluster.explained(error))
            self._whole.clear()
            return
        for place, messages in found.items():
            self._waiting[self._names[place.topic]].extend(messages)

    def _record(
        self, message: ConsumerRecord, poison: list[tuple[ConsumerRecord, str]]
    ) -> Struct | None:
        try:
            return _decode[self._names[message.topic]](message.value)
        except Exception as error:  # anybody may have written anything there
            poison.append((message, f"not a record of this topic: {error}"))
            return None

    def _hurry(self) -> None:
        if any(self._waiting.values()) and self._alarm is not None and not self._alarm.expired():
            self._alarm.reschedule(asyncio.get_running_loop().time())

    def assigned(self) -> None:
        self._joining_since = None

    def revoked(self) -> None:
        """All partitions are given anew, and read from where they were committed."""
        self._assignment += 1
        self._joining_since = time.time()
        self._uncommitted.clear()
        for queue in self._waiting.values():
            queue.clear()

    # ── settling ──────────────────────────────────────────────────────────────────────────────

    async def _commit(self) -> None:
        if not self._uncommitted:
            return
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._reader.commit(self._uncommitted)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("partitions have changed hands", extra={"reason": str(error)})
        except (KafkaError, TimeoutError) as error:
            reason = str(self._cluster.explained(error))
            log.warning("what is stored could not be committed", extra={"reason": reason})
            return  # next time
        self._uncommitted.clear()

    async def _ends(self) -> dict[TopicPartition, int]:
        """Where what is published now will go, of partitions that hold anything."""
        reader = self._reader
        places = []
        for topic in self._names:
            partitions = reader.partitions_for_topic(topic)
            if partitions is None:
                raise UnknownTopicOrPartitionError  # or not known yet
            places += [TopicPartition(topic, partition) for partition in partitions]
        begins = await reader.beginning_offsets(places)
        ends = await reader.end_offsets(places)
        return {place: end for place, end in ends.items() if end > begins[place]}

    async def _unsettled(self, ends: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        still = {}
        for place, end in ends.items():
            if (
                self._stored.get(place, 0) < end
                and (await self._reader.committed(place) or 0) < end  # by another member
            ):
                still[place] = end
        return still

    # ── dead letters ──────────────────────────────────────────────────────────────────────────

    async def _bury_poison(self, poison: list[tuple[ConsumerRecord, str]]) -> None:
        delay, longest = LETTER_RETRY_SECONDS
        while poison:
            message, reason = poison[0]
            try:
                await self._bury(message, reason)
            except StoreError as error:
                self._stuck = str(error)
                self._problem_is(self._stuck)
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
            else:
                self._stuck = None
                place = {"topic": message.topic, "partition": message.partition}
                at = place | {"offset": message.offset, "reason": reason}
                log.error("record can't be read", extra=at)
                poison.pop(0)

    async def _bury(self, message: ConsumerRecord, reason: str) -> None:
        headers = headers_of(
            {
                "reason": reason[:REASON_LENGTH],
                "topic": message.topic,
                "partition": message.partition,
                "offset": message.offset,
            }
        )
        try:
            await self._letters.publish(
                [Message(DEAD_LETTERS, message.key, message.value, headers)]
            )
        except RecordError:
            # With its headers it is too large.  It can still be found where it came from.
            headers += headers_of({"left-out": "value"})
            try:
                await self._letters.publish([Message(DEAD_LETTERS, message.key, None, headers)])
            except RecordError as error:  # that is the topic's fault
                raise StoreError(str(error)) from error

    # ── the connection ────────────────────────────────────────────────────────────────────────

    @property
    def _reader(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise ConsumerStoppedError
        return self._consumer

    async def _connect(self) -> None:
        cluster = self._cluster
        async with cluster.opening() as servers:
            await cluster.prepare(servers)
            options = cluster.client(servers)
            options["request_timeout_ms"] = int(REQUEST_SECONDS * 1000)
            consumer = AIOKafkaConsumer(
                **options,
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                session_timeout_ms=int(SESSION_SECONDS * 1000),
                heartbeat_interval_ms=1000,  # also how soon a member hears of a new one
                # A member that does not ask for more waits for its store, and so would another.
                max_poll_interval_ms=24 * 3600 * 1000,
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
        # Not before start, which would then wait for the other members to make room.
        consumer.subscribe(list(self._names), listener=_Listener(self))
        self._consumer = consumer
        self._heard = self._joining_since = time.time()
        self._broken = None
        self._whole.set()

    async def _disconnect(self) -> None:
        self._whole.clear()
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
            self.revoked()

    async def _watch(self) -> None:
        """Keeps ``problem`` true, and replaces a consumer that failed."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self._problem_is(await self._ailment() or self._stuck)
            except Exception as error:  # whatever it is, without this nothing would mend it
                log.exception("a defect")
                self._problem_is(repr(error))

    async def _ailment(self) -> str | None:
        if self._broken is not None or self._consumer is None:
            self._problem_is(self._broken)
            await self._disconnect()
            try:
                await self._connect()
            except StoreError as error:
                return str(error)
            return None
        consumer = self._consumer
        polls = (consumer.last_poll_timestamp(place) for place in consumer.assignment())
        self._heard = max(self._heard, *(poll / 1000 for poll in polls if poll), 0.0)
        if time.time() - self._heard < SILENCE_SECONDS:
            return None
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                known = await consumer.topics()
        except TimeoutError:
            return str(self._cluster.explained(TimeoutError()))
        except KafkaError:
            return f"Kafka at {self._cluster} can't be reached: is it running?"
        missing = sorted(set(self._names) - known)
        if missing:
            return f"Kafka at {self._cluster}: topic '{missing[0]}' does not exist"
        since = self._joining_since
        if since is not None and time.time() - since > JOIN_SECONDS:
            return f"Kafka at {self._cluster} gives group '{self._group}' no partitions"
        return None

    def _problem_is(self, problem: str | None) -> None:
        if problem is not None and self.problem is None:
            log.error("the bus gives no records", extra={"reason": problem})
        elif problem is None and self.problem is not None:
            log.info("the bus gives records again")
        self.problem = problem


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._source.revoked()

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._source.assigned()
        places = sorted(f"{place.topic}/{place.partition}" for place in assigned)
        log.info("partitions assigned", extra={"partitions": ", ".join(places)})
