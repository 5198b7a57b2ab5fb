"""The reading end of a bus in Kafka."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import NamedTuple, Self

import msgspec
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from msgspec import Struct

from consumer.dead_letters import DeadLetters
from consumer.group_member import GroupMember
from consumer.offsets import Offsets, OffsetTracker
from ledger.kafka_cluster import Cluster, cluster_at
from ledger.records import HEARTBEATS, LEDGER, Batch, HeartbeatRecord, LedgerEntry
from runtime.background import is_cancelled
from runtime.errors import StoreError

log = logging.getLogger("fabric.kafka")

GROUP = "fabric-consumer"
CHECK_SECONDS = 1.0
FLUSH_SECONDS = 0.2
"""Time between two looks at what other members have committed."""
LETTER_RETRY_SECONDS = (0.5, 10.0)

_decode = {
    LEDGER: msgspec.json.Decoder(LedgerEntry).decode,
    HEARTBEATS: msgspec.json.Decoder(HeartbeatRecord).decode,
}


class _Taken(NamedTuple):
    """The messages of the last ``take``."""

    assignment: int
    messages: list[ConsumerRecord]
    records: list[Struct | None]
    """The record of each message; None if it can't be read."""
    unreadable: list[tuple[ConsumerRecord, str]]
    """Messages to be set aside, with the reason."""


class KafkaSource:
    """A ``ledger.batch_writer.Source``: members of a group share the partitions.

    Records that were taken and not committed when the process ends, or when partitions change
    hands, are delivered again, here or to another member.  While Kafka is away ``take`` returns
    nothing, and ``problem`` says why.
    """

    def __init__(self, cluster: Cluster, group: str) -> None:
        self._cluster = cluster
        self._names = {cluster.topic(name): name for name in _decode}
        topics = list(self._names)
        self._member = GroupMember(cluster, group, topics, self._on_revoked)
        self._offsets = OffsetTracker(cluster, self._member, topics)
        self._letters = DeadLetters(cluster)
        self._letters_problem: str | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._queues: dict[str, deque[ConsumerRecord]] = {name: deque() for name in _decode}
        self._taken = _Taken(0, [], [], [])
        self._rejected: set[int] = set()
        self._assignment = 0  # how often partitions were assigned to us
        self._timeout: asyncio.Timeout | None = None  # ends the wait in take
        self._flushing: set[asyncio.Future[None]] = set()
        self.problem: str | None = None
        """Why nothing can be read at the moment."""

    def __repr__(self) -> str:
        waiting = {name: len(queue) for name, queue in self._queues.items()}
        return f"<KafkaSource {self._cluster} waiting={waiting} problem={self.problem!r}>"

    @classmethod
    async def open(cls, url: str, *, group: str = GROUP, setting: str = "bus") -> Self:
        """Join ``group`` at the Kafka at ``url`` (see ``Cluster.parse``); make missing topics.

        Raises ``StoreError``, ``Unreachable`` when nothing answers there, all within seconds; the
        text names ``setting``.
        """
        source = cls(cluster_at(url, setting), group)
        try:
            await source._member.connect()
        except StoreError as error:
            raise type(error)(f"{setting}: {error}") from error
        source._watcher = asyncio.create_task(source._watch())
        return source

    async def close(self) -> None:
        """Leave the group, so that others get its partitions at once; cancel ``flush``."""
        for future in self._flushing:
            future.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._member.disconnect()
        await self._letters.close()

    # ── called by BatchWriter ─────────────────────────────────────────────────────────────────

    async def take(self, enough: int, limit: int, wait: float) -> Batch:
        """See ``Source``.  Records of one key come in the order they were published."""
        deadline = asyncio.get_running_loop().time() + wait
        try:
            async with asyncio.timeout_at(deadline) as self._timeout:
                await self._collect(enough, limit, deadline)
        except TimeoutError:
            pass
        finally:
            self._timeout = None
        messages = [
            queue.popleft()
            for queue in self._queues.values()
            for _ in range(min(limit, len(queue)))
        ]
        self._taken = taken = _Taken(self._assignment, messages, [], [])
        self._rejected.clear()
        for message in messages:
            taken.records.append(self._record(message, taken.unreadable))
        heartbeats: list[HeartbeatRecord] = []
        ledger: list[LedgerEntry] = []
        for record in taken.records:
            if isinstance(record, LedgerEntry):
                ledger.append(record)
            elif isinstance(record, HeartbeatRecord):
                heartbeats.append(record)
        return Batch(heartbeats, ledger)

    async def commit(self) -> None:
        """Set aside unreadable messages, for as long as that takes, and commit the batch."""
        taken = self._taken
        await self._set_aside(taken.unreadable)
        self._offsets.on_stored(taken.messages, assigned=taken.assignment == self._assignment)
        self._taken = _Taken(0, [], [], [])
        await self._offsets.commit()
        for future in self._flushing:
            if not future.done():
                future.set_result(None)

    async def reject(self, record: Struct, reason: str) -> None:
        """Copy the record's message to ``dead-letters``.

        Raises ``StoreError``, and can be repeated.
        """
        for message, taken in zip(self._taken.messages, self._taken.records, strict=True):
            if taken is record:
                if id(record) not in self._rejected:  # a batch is tried again as a whole
                    await self._letters.put(message, reason)
                    self._rejected.add(id(record))
                return
        raise ValueError("that record was not in the last take")

    async def flush(self) -> None:
        """Return when all that was published before this call is stored, by whichever member."""
        ends: Offsets | None = None
        future: asyncio.Future[None]
        while True:
            future = asyncio.get_running_loop().create_future()
            self._flushing.add(future)
            self._end_wait()
            try:
                with suppress(KafkaError):
                    if ends is None:
                        ends = await self._offsets.ends()
                    ends = await self._offsets.not_reached(ends)
                    if not ends:
                        return
                await asyncio.wait([future], timeout=FLUSH_SECONDS)
                if future.cancelled():
                    raise asyncio.CancelledError  # closed
            finally:
                self._flushing.discard(future)

    # ── read by metrics ───────────────────────────────────────────────────────────────────────

    async def lag(self) -> dict[str, int]:
        """Return records not yet stored, by topic (without prefix), in this member's partitions.

        As of the latest answer of the brokers: no more than half a second old when all is well.
        """
        lag = dict.fromkeys(_decode, 0)
        if not self._member.connected:
            return lag
        for name, queue in self._queues.items():
            lag[name] += len(queue)
        for message in self._taken.messages:
            lag[self._names[message.topic]] += 1
        client = self._member.client
        with suppress(TimeoutError, KafkaError):  # those that are just changing hands do not count
            async with asyncio.timeout(FLUSH_SECONDS):
                for place in client.assignment():
                    end = client.highwater(place)
                    if end is not None:
                        ahead = end - await client.position(place)
                        lag[self._names[place.topic]] += max(0, ahead)
        return lag

    # ── inside ────────────────────────────────────────────────────────────────────────────────

    async def _collect(self, enough: int, limit: int, deadline: float) -> None:
        """Return when ``enough`` messages wait.

        Cancelled, it leaves all that it fetched in ``_queues``: between the library's own buffer
        and ours nothing is awaited.
        """
        loop = asyncio.get_running_loop()
        wait = 0.0  # first what is there already
        while True:
            waiting = sum(map(len, self._queues.values()))
            if waiting < max(enough, limit):
                await self._fetch(max(enough, limit), wait)
                waiting = sum(map(len, self._queues.values()))
            if waiting >= (1 if self._flushing else enough):
                return
            wait = deadline - loop.time()
            if wait <= 0:
                return

    async def _fetch(self, limit: int, wait: float) -> None:
        found = await self._member.fetch(limit, wait)
        for place, messages in (found or {}).items():
            self._queues[self._names[place.topic]].extend(messages)

    def _record(
        self, message: ConsumerRecord, unreadable: list[tuple[ConsumerRecord, str]]
    ) -> Struct | None:
        try:
            return _decode[self._names[message.topic]](message.value)
        except Exception as error:  # other programs may have written anything there
            unreadable.append((message, f"not a record of this topic: {error}"))
            return None

    def _end_wait(self) -> None:
        """Have ``take`` return now, if it has anything."""
        timeout = self._timeout
        if any(self._queues.values()) and timeout is not None and not timeout.expired():
            timeout.reschedule(asyncio.get_running_loop().time())

    def _on_revoked(self) -> None:
        self._assignment += 1
        self._offsets.on_revoked()
        for queue in self._queues.values():
            queue.clear()

    async def _set_aside(self, unreadable: list[tuple[ConsumerRecord, str]]) -> None:
        delay, longest = LETTER_RETRY_SECONDS
        while unreadable:
            message, reason = unreadable[0]
            try:
                await self._letters.put(message, reason)
            except StoreError as error:
                self._letters_problem = str(error)
                self._set_problem(self._letters_problem)
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
            else:
                self._letters_problem = None
                place = {"topic": message.topic, "partition": message.partition}
                about = {**place, "offset": message.offset, "reason": reason}
                log.error("record can't be read", extra=about)
                unreadable.pop(0)

    async def _watch(self) -> None:
        """Keep ``problem`` up to date, and replace a client that failed."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                if self._member.broken is not None:
                    self._set_problem(self._member.broken)
                self._set_problem(await self._member.check() or self._letters_problem)
            except Exception as error:  # whatever it is, this task must go on repairing
                if is_cancelled():
                    raise
                log.exception("a defect")
                self._set_problem(repr(error))

    def _set_problem(self, problem: str | None) -> None:
        if problem is not None and self.problem is None:
            log.error("can't take records from the bus", extra={"reason": problem})
        elif problem is None and self.problem is not None:
            log.info("records can be taken from the bus again")
        self.problem = problem
