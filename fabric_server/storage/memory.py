"""A cache and a bus inside this process: nothing to install, gone when it ends."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct

from fabric_server.storage.drops import DropCounter
from fabric_server.storage.interfaces import MAX_REVOKED
from fabric_server.storage.waiters import Waiters, is_committed
from ledger.records import HEARTBEATS, LEDGER, Batch, HeartbeatRecord, LedgerEntry

log = logging.getLogger("fabric.bus")

R = TypeVar("R")


class MemoryCache:
    """A cache of ``max_values`` values; those set longest ago are evicted."""

    max_revoked = MAX_REVOKED

    def __init__(
        self, max_values: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_values = max_values
        self._clock = clock
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._revoked: dict[str, float] = {}
        self._noticed = asyncio.Event()

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
        if len(self._values) > self._max_values:
            self._values.popitem(last=False)

    async def revoked(self) -> dict[str, float]:
        return dict(self._revoked)

    async def add_revoked(self, revoked: Mapping[str, float]) -> None:
        together = self._revoked | dict(revoked)
        newest = heapq.nlargest(self.max_revoked, together.items(), key=lambda one: one[1])
        self._revoked = dict(newest)

    async def check(self) -> None:
        """Do nothing: memory does not go away."""

    async def notify(self) -> None:
        self._noticed.set()

    async def wait_for_notice(self) -> None:
        await self._noticed.wait()
        self._noticed.clear()

    async def close(self) -> None:
        self._values.clear()


class _Queue(Generic[R]):
    """Records of one topic, in order.  Positions count the records ever published."""

    def __init__(self, topic: str, max_records: int) -> None:
        self.records: deque[R] = deque()
        self.drops = DropCounter(topic, log)
        self._max_records = max_records
        self._taken = 0  # position up to which all is dropped or taken
        self.committed = 0

    @property
    def published(self) -> int:
        return self._taken + len(self.records)

    def drop_oldest(self) -> None:
        self.drops.add(1, held=self._max_records)
        self.records.popleft()
        self._taken += 1

    def full(self) -> bool:
        return len(self.records) >= self._max_records

    def take(self, limit: int) -> list[R]:
        self.drops.log_run()
        records = self.records
        if len(records) <= limit:
            taken = list(records)
            records.clear()
        else:
            taken = [records.popleft() for _ in range(limit)]
        self._taken += len(taken)
        return taken

    def commit(self) -> None:
        self.committed = self._taken


class MemoryBus:
    """Both ends of a bus, for the event loop of one thread.

    When the store is away for long, the oldest heartbeats are dropped in favour of new ones,
    counted and logged.  Ledger entries are never dropped: at a far larger bound (some 540 bytes
    each) the bus is ``full``, and no more of them should be caused.
    """

    def __init__(self, *, max_heartbeats: int = 10_000, max_ledger: int = 200_000) -> None:
        self._ledger: _Queue[LedgerEntry] = _Queue(LEDGER, max_ledger)
        self._heartbeats: _Queue[HeartbeatRecord] = _Queue(HEARTBEATS, max_heartbeats)
        self._queues: dict[str, _Queue[Any]] = {LEDGER: self._ledger, HEARTBEATS: self._heartbeats}
        self._waiters = Waiters()
        self.problem: str | None = None
        """Always None: memory does not fail."""

    def __repr__(self) -> str:
        return f"<MemoryBus waiting={self.waiting} dropped={self.dropped}>"

    @property
    def waiting(self) -> dict[str, int]:
        """Records published and not yet taken, by topic."""
        return {topic: len(queue.records) for topic, queue in self._queues.items()}

    @property
    def dropped(self) -> dict[str, int]:
        """Records lost for lack of space since the start, by topic."""
        return {topic: queue.drops.count for topic, queue in self._queues.items()}

    @property
    def full(self) -> bool:
        """Accept no more requests: there is no space for their entries."""
        return self._ledger.full()

    def publish(self, topic: str, record: Struct) -> None:
        queue = self._queues[topic]
        if queue is self._heartbeats and queue.full():
            queue.drop_oldest()
        queue.records.append(record)
        self._waiters.on_record()

    async def take(self, enough: int, limit: int, wait: float) -> Batch:
        ledger, heartbeats = self._ledger, self._heartbeats
        missing = enough - len(ledger.records) - len(heartbeats.records)
        if wait > 0 and missing > 0 and not self._waiters.flushing:
            await self._waiters.records(missing, wait)
        self._waiters.flushing = False
        return Batch(heartbeats.take(limit), ledger.take(limit))

    async def commit(self) -> None:
        self._ledger.commit()
        self._heartbeats.commit()
        self._waiters.on_commit((self._ledger.committed, self._heartbeats.committed))

    async def reject(self, record: Struct, reason: str) -> None:
        """Do nothing: the batch writer logs the record in full, and there is no other place."""

    async def flush(self) -> None:
        published = self._ledger.published, self._heartbeats.published
        if not is_committed(published, (self._ledger.committed, self._heartbeats.committed)):
            await self._waiters.committed(published)

    async def close(self) -> None:
        """Cancel callers of ``flush``."""
        self._waiters.close()
