"""The life of a batch: its input file is checked and queued line by line, the lines run as jobs,
and their responses are written into output files.

One server at a time works on a batch; each step can be repeated from its beginning by another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from fabric_server.jobs.batch_input import BatchInput, LineProblem
from fabric_server.jobs.batch_leases import BatchLeases
from fabric_server.jobs.batch_lines import BatchLines
from fabric_server.jobs.batch_output import BatchOutput, Usage
from fabric_server.jobs.outage import OutageLog
from fabric_server.jobs.retention import Retention
from fabric_server.storage.batches import BatchRow
from runtime.errors import BackendError, RecordError
from runtime.outage import Outage

log = logging.getLogger("fabric.batches")

POLL_SECONDS = 1.0
_json = msgspec.json.Encoder().encode


class BatchRunner:
    """Takes each unfinished batch one step on, again and again."""

    def __init__(
        self,
        batches: BatchLeases,
        lines: BatchLines,
        input: BatchInput,
        output: BatchOutput,
        retention: Retention,
        *,
        outage: Outage | None = None,
    ) -> None:
        self._batches = batches
        self._lines = lines
        self._input = input
        self._output = output
        self._retention = retention
        self._wake = asyncio.Event()
        self._draining = False
        self._outage = OutageLog(log, "batches wait for the store", outage)
        self.on_lines_added: Callable[[], None] = lambda: None
        """Called when lines were added to the queue of jobs."""

    def wake(self) -> None:
        """Look at the batches now: one has changed."""
        self._wake.set()

    def drain(self) -> None:
        """Begin no more steps."""
        self._draining = True

    async def run(self) -> None:
        """Work on the batches until cancelled."""
        while True:
            self._wake.clear()
            try:
                if not self._draining:
                    unfinished = await self._batches.unfinished()
                    self._lines.forget_others({batch.id for batch in unfinished})
                    for batch in unfinished:
                        await self._advance(batch)
                    await self._retention.run_if_due()
                self._outage.recovered()
            except BackendError as error:
                self._outage.failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()

    async def _advance(self, batch: BatchRow) -> None:
        """Take one batch a step on, if no other server holds its lease."""
        over = batch.state == "cancelling" or time.time() >= batch.expires_at
        queued = batch.in_progress_at is not None
        if queued and not over and batch.completed + batch.failed < batch.total:
            if await self._lines.limit_responses(batch):
                self.wake()
            return  # its lines run
        leased = await self._batches.claim(batch)
        if leased is None:
            return
        batch = leased
        try:
            if batch.in_progress_at is None and not over:
                await self._queue(batch)
            elif batch.in_progress_at is None:  # none of its lines has run
                state = "expired" if batch.state != "cancelling" else "cancelled"
                await self._batches.finish(batch, state)
            elif not over or not await self._lines.cancel(batch):
                await self._write_output(batch, expired=over)
        except Exception as error:
            if isinstance(error, BackendError) and not isinstance(error, RecordError):
                raise
            # Don't raise: it would end this server, and each server that claims the batch next.
            log.exception("batch failed", extra={"batch": batch.id})
            await self._fail(
                batch, [LineProblem("internal_error", "The server failed.").view(None)]
            )
        finally:
            await self._batches.release(batch)

    async def _queue(self, batch: BatchRow) -> None:
        """Check the input file and add its lines to the queue, or end the batch with its errors.

        The file is read twice, so that no line of a file with an error is stored.
        """
        count, problems = await self._input.check(batch)
        if problems:
            await self._fail(batch, problems)
            return
        renew = partial(self._batches.renew, batch)
        await renew()
        try:
            complete = await self._lines.add(self._input.jobs(batch), renew) == count
        except LineProblem:
            complete = False
        if not complete:
            message = "The input file was deleted while it was read."
            await self._fail(batch, [LineProblem("file_not_found", message).view(None)])
            return
        await self._batches.begin(batch, count)
        self.on_lines_added()

    async def _write_output(self, batch: BatchRow, *, expired: bool) -> None:
        """Write the output files, and end the batch."""
        renew = partial(self._batches.renew, batch)
        await self._batches.finalize(batch)
        usage = Usage()
        output = await self._output.write(batch, good=True, renew=renew, usage=usage)
        errors = await self._output.write(batch, good=False, renew=renew)
        batch = await self._batches.refresh(batch)
        if batch.state == "cancelling":
            state = "cancelled"
        else:
            state = "expired" if expired else "completed"
        files = {"output_file": output, "error_file": errors}
        await self._batches.finish(batch, state, **files, usage=usage.encode())

    async def _fail(self, batch: BatchRow, problems: list[dict[str, Any]]) -> None:
        await self._batches.finish(batch, "failed", errors=_json(problems).decode())
