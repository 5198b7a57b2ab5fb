"""Moves heartbeats and ledger entries from the bus into the store: in batches, losing none.

A batch is taken, written in one transaction, and only then settled with the bus.  Whatever is
interrupted between is written again; the rows' own keys make that harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from ledger.records import Batch, HeartbeatRecord, LedgerEntry
from runtime.errors import RecordError, StoreError

log = logging.getLogger("fabric.worker")

DAY = 86_400.0
HOUSEKEEPING_SECONDS = 60.0


class Source(Protocol):
    """The reading end of a bus."""

    async def take(self, enough: int, most: int, wait: float) -> Batch:
        """Returns as soon as ``enough`` records wait, or after ``wait`` seconds: up to ``most`` of
        each kind, perhaps none."""

    async def done(self) -> None:
        """What the last ``take`` gave is stored and need not be given again."""

    async def reject(self, record: Struct, reason: str) -> None:
        """The store can't take this record of the last ``take``: put it aside, for a person."""

    async def settled(self) -> None:
        """Returns when all that was published before this call is stored, and hurries that on."""


class Sink(Protocol):
    """The part of the store that is written here."""

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        """All of it in one transaction; rows that are there already are left alone.  Raises
        ``StoreError`` when it may succeed later, ``RecordError`` when a record is impossible."""


class Housekeeping(Protocol):
    """What is to be done to a store from time to time, by whoever writes it."""

    async def forget_heartbeats(self, before: float, now: float, most: int) -> bool:
        """Deletes some that arrived before that time; whether there may be more to delete."""

    async def mark_offline(self, unseen_since: float) -> list[str]:
        """Nodes of which nothing was heard since are offline from now on; returns their ids."""


class BatchWriter:
    """``run`` moves records until it is cancelled, then writes what is left and ends.

    With ``leave_rest`` it ends with the batch in hand: the source keeps the rest for the next one.

    A batch is written when ``batch_size`` records wait or ``batch_seconds`` have passed; under
    load it grows to ``most``, because a transaction costs the same for many rows as for few.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        house: Housekeeping | None = None,
        *,
        batch_size: int = 500,
        most: int = 5_000,
        batch_seconds: float = 1.0,
        retry_seconds: tuple[float, float] = (0.5, 10.0),
        drain_seconds: float = 5.0,
        leave_rest: bool = False,
        keep_heartbeats_days: float = 7.0,
        offline_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._sink = sink
        self._house = house
        self._batch_size = batch_size
        self._most = most
        self._batch_seconds = batch_seconds
        self._retry_seconds = retry_seconds
        self._drain_seconds = drain_seconds
        self._leave_rest = leave_rest
        self._keep_seconds = keep_heartbeats_days * DAY
        self._clock = clock
        self._held: Batch | None = None  # taken and not yet settled
        self._offline_seconds = offline_seconds
        self._forget_at = self._sweep_at = clock()
        self.written = 0
        """Records stored since the start; those that were there already count too."""
        self.rejected = 0
        """Records that the store can't take; each is in the log in full."""
        self.problem: str | None = None
        """Why nothing is being written at the moment."""
        self.on_written: Callable[[int, float], None] = lambda records, seconds: None
        """Told of each batch: how many records, and how long the last attempt at it took."""

    def __repr__(self) -> str:
        held = self._held.size if self._held else 0
        return f"<BatchWriter written={self.written} held={held} problem={self.problem!r}>"

    async def run(self) -> None:
        try:
            while True:
                moved = await self._move(self._batch_seconds)
                if self._house is not None:
                    await self._forget_old_heartbeats(self._house)
                    if moved < self._batch_size:  # otherwise some that came in time still wait
                        await self._mark_offline(self._house)
        finally:
            await self._drain()

    async def flushed(self) -> None:
        """Returns when all that was published before this call is in the store."""
        await self._source.settled()

    async def _move(self, wait: float) -> int:
        self._held = await self._source.take(self._batch_size, self._most, wait)
        size = self._held.size
        if size:
            await self._write_until_done(self._held)
            self.written += size
        await self._source.done()
        self._held = None
        return size

    async def _write_until_done(self, batch: Batch) -> None:
        delay, longest = self._retry_seconds
        while True:
            began = time.perf_counter()
            try:
                await self._write(batch)
            except StoreError as error:
                self._failing(str(error), None)
            except Exception as error:  # a defect of ours: billing must still not lose the batch
                self._failing(repr(error), error)
            else:
                self._well()
                self.on_written(batch.size, time.perf_counter() - began)
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)

    async def _write(self, batch: Batch) -> None:
        try:
            await self._sink.write(batch.heartbeats, batch.ledger)
        except RecordError as error:
            if batch.size == 1:
                await self._reject(batch, error)
                return
            # One record spoils the transaction for all: halve until it stands alone.
            for half in batch.halves():
                await self._write(half)

    async def _reject(self, batch: Batch, error: RecordError) -> None:
        record = (*batch.heartbeats, *batch.ledger)[0]
        text = msgspec.json.encode(record).decode()
        await self._source.reject(record, str(error))
        self.rejected += 1
        log.error("record can't be stored", extra={"record": text, "reason": str(error)})

    def _failing(self, problem: str, defect: Exception | None) -> None:
        if self.problem is None:
            log.error("the store takes no records", extra={"reason": problem}, exc_info=defect)
        self.problem = problem

    def _well(self) -> None:
        if self.problem is not None:
            log.info("the store takes records again")
        self.problem = None

    async def _forget_old_heartbeats(self, house: Housekeeping) -> None:
        now = self._clock()
        if now < self._forget_at:
            return
        try:
            more = await house.forget_heartbeats(now - self._keep_seconds, now, self._most)
        except StoreError as error:
            log.warning("old heartbeats were not deleted", extra={"reason": str(error)})
            more = False
        # When there is more, go on after the next batch, not before it.
        self._forget_at = now if more else now + HOUSEKEEPING_SECONDS

    async def _mark_offline(self, house: Housekeeping) -> None:
        now = self._clock()
        if now < self._sweep_at:
            return
        try:
            nodes = await house.mark_offline(now - self._offline_seconds)
        except StoreError as error:
            log.warning("nodes were not marked offline", extra={"reason": str(error)})
        else:
            for node_id in nodes:
                log.info("node offline", extra={"node": node_id})
        self._sweep_at = now + self._offline_seconds / 4

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_seconds):
                if self._held is not None:
                    await self._write_until_done(self._held)
                    await self._source.done()
                    self._held = None
                while not self._leave_rest and await self._move(0.0):
                    pass
        except TimeoutError:
            held = self._held.size if self._held else 0
            log.error("records were left behind", extra={"held": held, "reason": self.problem})
