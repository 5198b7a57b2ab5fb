"""The lines of a batch in the queue of jobs: added, and cancelled when the batch ends early."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Awaitable, Callable, Collection

from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.internal_request import error_response
from fabric_server.storage.batches import BatchRow
from fabric_server.storage.jobs import JobRow, JobStore

SIZE_SECONDS = 5.0
"""Interval of the checks of the size of a batch's responses."""
CHUNK_LINES = 200
CHUNK_BYTES = 4 * 2**20
"""Lines, and bytes of their bodies, that are stored in one transaction."""


class BatchLines:
    """Adds and cancels lines."""

    def __init__(
        self,
        store: JobStore,
        *,
        max_response_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``max_response_bytes`` limits the responses of one batch, together."""
        self._store = store
        self._max_response_bytes = max_response_bytes
        self._clock = clock
        self._check_at: dict[str, float] = {}
        """Times of the next checks of responses, by the ids of batches."""

    def forget_others(self, batches: Collection[str]) -> None:
        """Forget all batches but these."""
        self._check_at = {id: at for id, at in self._check_at.items() if id in batches}

    async def add(self, jobs: AsyncIterable[JobRow], renew: Callable[[], Awaitable[None]]) -> int:
        """Store lines that are not stored yet; return how many there are.

        ``renew`` is awaited after each transaction.
        """
        lines: list[JobRow] = []
        size, count = 0, 0
        async for job in jobs:
            lines.append(job)
            count += 1
            size += len(job.body)
            if len(lines) >= CHUNK_LINES or size >= CHUNK_BYTES:
                await self._store.add_lines(lines)
                await renew()
                lines, size = [], 0
        if lines:
            await self._store.add_lines(lines)
        return count

    async def limit_responses(self, batch: BatchRow) -> bool:
        """Cancel the lines not yet begun when responses are too large; return True if so."""
        now = self._clock()
        if now < self._check_at.get(batch.id, 0.0):
            return False
        self._check_at[batch.id] = now + SIZE_SECONDS
        if await self._store.result_bytes(batch.id) < self._max_response_bytes:
            return False
        text = (
            f"This line was not run: the batch's responses have {self._max_response_bytes} bytes"
            " already."
        )
        error = error_response(ApiError(413, "answers_too_large", text))
        await self._store.cancel_lines(batch.id, now, error.body)
        return True

    async def cancel(self, batch: BatchRow) -> int:
        """Cancel the lines that have not begun; return how many still run."""
        code = "batch_cancelled" if batch.state == "cancelling" else "batch_expired"
        error = error_response(ApiError(499, code, "This line was not run before its batch ended."))
        return await self._store.cancel_lines(batch.id, self._clock(), error.body)
