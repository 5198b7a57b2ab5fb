"""Batches as one server may change them: under a lease, which one server holds at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from fabric_server.jobs.batches import view
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.storage.batches import BatchRow, BatchStore
from runtime.errors import BackendError

LEASE_SECONDS = 60.0


class BatchLeases:
    """The changes of a batch's state, each made only while this server holds the lease."""

    def __init__(
        self,
        store: BatchStore,
        webhooks: Webhooks,
        owner: str,
        lease_clock: Callable[[], float],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``owner`` is the name under which this server holds leases."""
        self._store = store
        self._webhooks = webhooks
        self._owner = owner
        self._lease_clock = lease_clock
        self._clock = clock

    async def unfinished(self) -> Sequence[BatchRow]:
        """Return all unfinished batches, leased or not, the oldest first."""
        return await self._store.open()

    async def claim(self, batch: BatchRow) -> BatchRow | None:
        """Take or renew the lease; None if another server holds it."""
        now = self._lease_clock()
        return await self._store.claim(
            batch.id, self._owner, now=now, lease_until=now + LEASE_SECONDS
        )

    async def renew(self, batch: BatchRow) -> None:
        """Renew the lease.  Raises ``BackendError`` if another server holds it by now."""
        if await self.claim(batch) is None:
            raise BackendError(f"the batch {batch.id} is another server's now")

    async def release(self, batch: BatchRow) -> None:
        """Give the lease back."""
        await self._store.release(batch.id, self._owner)

    async def begin(self, batch: BatchRow, total: int) -> None:
        """Note that all of the batch's ``total`` lines are in the queue."""
        await self._store.begin(batch.id, self._owner, total, self._clock())

    async def finalize(self, batch: BatchRow) -> None:
        """Note that the lines have ended and the output files are being written."""
        await self._store.finalize(batch.id, self._owner, self._clock())

    async def refresh(self, batch: BatchRow) -> BatchRow:
        """Read the batch again."""
        return await self._store.batch(batch.account, batch.id) or batch

    async def finish(self, batch: BatchRow, state: str, **changes: str) -> None:
        """End the batch, and store the webhook about it with the same transaction."""
        now = self._clock()
        ended = replace(batch, state=state, finished_at=now, **changes)
        webhook = self._webhooks.of_batch(batch, view(ended), now)
        await self._store.finish(ended, webhook)
