"""A cache and a bus inside this process: nothing to install, gone when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from msgspec import Struct

from fabric_server.storage.waiters import Waiting, is_settled
from ledger.records import HEARTBEATS, LEDGER, Batch, HeartbeatRecord, LedgerEntry

log = logging.getLogger("fabric.bus")

R = TypeVar("R")


class MemoryCache:
    """At most ``most`` values; the ones set longest ago make room."""

    def __init__(self, most: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._told = asyncio.Event()

    def __len__(self) -> int:
        return len(self._values)

    async def get(self, name: str) -> bytes | None:
        found = self._values.get(name)
        if found is None:
            return None
        value, until = found
        if self._clock() >= until:
            del self._values[name]
            return None
        return value

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        self._values[name] = (value, self._clock() + seconds)
        self._values.move_to_end(name)
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    async def tell(self) -> None:
        self._told.set()

    async def heard(self) -> None:
        await self._told.wait()
        self._told.clear()

    async def close(self) -> None:
        self._values.clear()


class _Queue(Generic[R]):
    """Records of one topic, in order.  Positions count what was ever published."""

    def __init__(self, topic: str, most: int) -> None:
        self.topic = topic
        self.records: deque[R] = deque()
        self.dropped = 0
        self._most = most
        self._dropping_since = 0
        self._ended = 0  # position up to which all is dropped or taken
        self.settled = 0

    @property
    def published(self) -> int:
        return self._ended + len(self.records)

    def make_room(self) -> None:
        """Drops the oldest record."""
        if self.dropped == self._dropping_since:
            log.error("records are being dropped", extra={"topic": self.topic, "held": self._most})
        self.dropped += 1
        self.records.popleft()
        self._ended += 1

    def full(self) -> bool:
        return len(self.records) >= self._most

    def take(self, most: int) -> list[R]:
        if self.dropped != self._dropping_since:
            count = self.dropped - self._dropping_since
            log.warning("records were dropped", extra={"topic": self.topic, "count": count})
            self._dropping_since = self.dropped
        records = self.records
        if len(records) <= most:
            taken = list(records)
            records.clear()
        else:
            taken = [records.popleft() for _ in range(most)]
        self._ended += len(taken)
        return taken

    def settle(self) -> None:
        self.settled = self._ended


class MemoryBus:
    """Both ends of a bus, for the event loop of one thread.

    When the store is away for long, the oldest heartbeats make room for new ones, counted and
    logged.  Ledger entries are never dropped: at a far larger bound (some 540 bytes each) the bus
    is ``full``, and whoever makes more of them is to stop.
    """

    def __init__(self, *, most_heartbeats: int = 10_000, most_ledger: int = 200_000) -> None:
        self._ledger: _Queue[LedgerEntry] = _Queue(LEDGER, most_ledger)
        self._heartbeats: _Queue[HeartbeatRecord] = _Queue(HEARTBEATS, most_heartbeats)
        self._queues: dict[str, _Queue[Any]] = {LEDGER: self._ledger, HEARTBEATS: self._heartbeats}
        self._waiting = Waiting()
        self.problem: str | None = None
        """Never: memory does not fail."""

    def __repr__(self) -> str:
        return f"<MemoryBus waiting={self.waiting} dropped={self.dropped}>"

    @property
    def waiting(self) -> dict[str, int]:
        """Records published and not yet taken, by topic."""
        return {topic: len(queue.records) for topic, queue in self._queues.items()}

    @property
    def dropped(self) -> dict[str, int]:
        """Records lost for want of room since the start, by topic."""
        return {topic: queue.dropped for topic, queue in self._queues.items()}

    @property
    def full(self) -> bool:
        """No more requests should be let in: their entries could not be held."""
        return self._ledger.full()

    def publish(self, topic: str, record: Struct) -> None:
        queue = self._queues[topic]
        if queue is self._heartbeats and queue.full():
            queue.make_room()
        queue.records.append(record)
        self._waiting.arrived()

    async def take(self, enough: int, most: int, wait: float) -> Batch:
        ledger, heartbeats = self._ledger, self._heartbeats
        missing = enough - len(ledger.records) - len(heartbeats.records)
        if wait > 0 and missing > 0 and not self._waiting.hurried:
            await self._waiting.for_records(missing, wait)
        self._waiting.hurried = False
        return Batch(heartbeats.take(most), ledger.take(most))

    async def done(self) -> None:
        self._ledger.settle()
        self._heartbeats.settle()
        self._waiting.settle((self._ledger.settled, self._heartbeats.settled))

    async def reject(self, record: Struct, reason: str) -> None:
        """There is no place to put it but the log, where the worker writes it in full."""

    async def settled(self) -> None:
        published = self._ledger.published, self._heartbeats.published
        if not is_settled(published, (self._ledger.settled, self._heartbeats.settled)):
            await self._waiting.until(published)

    async def close(self) -> None:
        """Whoever waits in ``settled`` waits no longer."""
        self._waiting.close()
