"""Move heartbeats and ledger entries from a bus into a sink: in batches, losing none.

A batch is taken, written in one transaction, and only then committed at the bus.  A batch that is
interrupted is written again; the rows' own keys make that harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Struct

from ledger.housekeeping import Housekeeper
from ledger.records import Batch, HeartbeatRecord, LedgerEntry
from runtime.background import in_own_task, is_cancelled
from runtime.errors import RecordError, StoreError
from runtime.outage import Outage

log = logging.getLogger("fabric.worker")


class Source(Protocol):
    """The reading end of a bus."""

    async def take(self, enough: int, limit: int, wait: float) -> Batch:
        """Return up to ``limit`` records of each kind, perhaps none.

        Waits until ``enough`` records are there, at most ``wait`` seconds.
        """

    async def commit(self) -> None:
        """Mark the records of the last ``take`` as stored; they are not delivered again."""

    async def reject(self, record: Struct, reason: str) -> None:
        """Set aside for a person a record of the last ``take`` that the store can't hold."""

    async def flush(self) -> None:
        """Return when all that was published before this call is stored, as soon as possible."""


class Sink(Protocol):
    """The part of the store, or of the next bus, that is written here."""

    place: str = "the store"
    """What takes the records, in words for the log."""

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        """Write all of it in one transaction; leave alone rows that exist.

        Raises ``StoreError`` if it may succeed later, ``RecordError`` if a record can't be held.
        """

    async def check(self) -> None:
        """Raise ``StoreError`` if records could not be written now."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Sizes and times of batches.

    A batch is written when ``batch_size`` records wait or ``batch_seconds`` have passed; under
    load it grows to ``max_batch``, because a transaction costs the same for many rows as for few.
    """

    batch_size: int = 500
    max_batch: int = 5_000
    """Records of each kind."""
    batch_seconds: float = 1.0
    retry_seconds: tuple[float, float] = (0.5, 10.0)
    """First and longest pause between attempts to write; each is twice the one before."""
    check_seconds: float = 2.0
    """Time without records after which the sink is checked."""
    drain_seconds: float = 5.0
    """Longest time to go on writing after ``run`` was cancelled."""
    leave_rest: bool = False
    """End with the batch in hand: the source keeps the rest for the next process."""


class BatchWriter:
    """``run`` moves records until it is cancelled, then writes what is left and ends."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        housekeeper: Housekeeper | None = None,
        options: BatchOptions | None = None,
        outage: Outage | None = None,
        part: str = "records",
    ) -> None:
        """``outage`` is that of the sink, and ``part`` the name of this writer in it."""
        self._outage = outage or Outage(sink.place)
        self._part = part
        self._source = source
        self._sink = sink
        self._housekeeper = housekeeper
        self._options = options or BatchOptions()
        self._batch: Batch | None = None  # taken and not yet committed
        self.written = 0
        """Records stored since the start, those included that were there already."""
        self.rejected = 0
        """Records that the store can't hold; each is in the log in full."""
        self.problem: str | None = None
        """Why nothing can be written at the moment."""
        self.on_written: Callable[[int, float], None] = lambda records, seconds: None
        """Called after each batch: number of records, duration of the last attempt in seconds."""

    def __repr__(self) -> str:
        size = self._batch.size if self._batch else 0
        return f"<BatchWriter written={self.written} held={size} problem={self.problem!r}>"

    async def run(self) -> None:
        housekeeper = self._housekeeper
        checked_at = time.monotonic()
        try:
            if self._batch is not None:  # in hand when ``run`` failed
                await self._finish(self._batch)
            while True:
                moved = await self._move(self._options.batch_seconds)
                if moved:
                    checked_at = time.monotonic()
                elif time.monotonic() - checked_at >= self._options.check_seconds:
                    await self._check()
                    checked_at = time.monotonic()
                if housekeeper is not None:
                    await housekeeper.delete_old_heartbeats()
                    if moved < self._options.batch_size:  # else heartbeats in time may still wait
                        await housekeeper.mark_silent_nodes_offline()
        finally:
            await in_own_task(self._drain())

    def leave(self) -> None:
        """Take no part in the outage of the sink any more; call it when ``run`` has ended for
        good, and others go on writing there."""
        self._outage.left(self._part)

    async def flush(self) -> None:
        """Return when all that was published before this call is in the store."""
        await self._source.flush()

    async def _move(self, wait: float) -> int:
        """Move one batch; return its number of records."""
        options = self._options
        self._batch = await self._source.take(options.batch_size, options.max_batch, wait)
        return await self._finish(self._batch)

    async def _finish(self, batch: Batch) -> int:
        if batch.size:
            await self._write_until_done(batch)
            self.written += batch.size
        await self._source.commit()
        self._batch = None
        return batch.size

    async def _write_until_done(self, batch: Batch) -> None:
        delay, longest = self._options.retry_seconds
        while True:
            began = time.perf_counter()
            try:
                await self._write(batch)
            except StoreError as error:
                self._on_failure(str(error), None)
            except Exception as error:  # a defect of ours: billing must still not lose the batch
                self._on_failure(repr(error), error)
            else:
                self._on_success()
                self.on_written(batch.size, time.perf_counter() - began)
                return
            if is_cancelled():  # the sink failed as it was cancelled: ``run`` drains
                raise asyncio.CancelledError
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)

    async def _check(self) -> None:
        """Find out whether records would be taken, although there are none."""
        try:
            await self._sink.check()
        except StoreError as error:
            self._on_failure(str(error), None)
        else:
            self._on_success()

    async def _write(self, batch: Batch) -> None:
        try:
            await self._sink.write(batch.heartbeats, batch.ledger)
        except RecordError as error:
            if batch.size == 1:
                await self._reject(batch, error)
                return
            # One record fails the transaction for all: halve the batch until it stands alone.
            for half in batch.halves():
                await self._write(half)

    async def _reject(self, batch: Batch, error: RecordError) -> None:
        record = (*batch.heartbeats, *batch.ledger)[0]
        text = msgspec.json.encode(record).decode()
        await self._source.reject(record, str(error))
        self.rejected += 1
        log.error("record can't be stored", extra={"record": text, "reason": str(error)})

    def _on_failure(self, problem: str, defect: Exception | None) -> None:
        if defect is None:
            self._outage.failed(self._part, problem)
        else:
            self._outage.worked(self._part)  # the sink is there: the records are the trouble
            if problem != self.problem:
                log.error("records can't be written", extra={"reason": problem}, exc_info=defect)
        self.problem = problem

    def _on_success(self) -> None:
        self._outage.worked(self._part)
        self.problem = None

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._options.drain_seconds):
                if self._batch is not None:
                    await self._finish(self._batch)
                while not self._options.leave_rest and await self._move(0.0):
                    pass
        except TimeoutError:
            size = self._batch.size if self._batch else 0
            log.error("records were left behind", extra={"held": size, "reason": self.problem})
