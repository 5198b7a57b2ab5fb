"""What becomes of a batch: its file is checked and made into jobs, these are run, and what came of
them is written into files.

Each step is done by one server at a time, and can be done again by another from its beginning.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import replace

from fabric_server.dialects.body import MAX_MODEL
from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.batches import view
from fabric_server.jobs.files import ChunkWriter, Files
from fabric_server.jobs.internal_request import refused
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.routing.criteria import Priority
from fabric_server.storage.batches import BatchRow, BatchStore
from fabric_server.storage.files import FileRow, FileStore
from fabric_server.storage.jobs import JobRow, JobStore
from runtime.errors import BackendError, RecordError

log = logging.getLogger("fabric.batches")

POLL_SECONDS = 1.0
LEASE_SECONDS = 60.0
MAX_LINES = 50_000
MAX_LINE = 4 * 2**20
MAX_ERRORS = 100
"""Wrong lines that are told before the rest of a file is not looked at any more."""
LOOK_SECONDS = 5.0
"""How often a batch's answers are counted."""
LINES_AT_ONCE = 200
LINE_BYTES_AT_ONCE = 4 * 2**20
FORGET_SECONDS = 60.0
MAX_KEPT = 10_000
"""Ended jobs of an account, whatever their age."""
UPLOAD_SECONDS = 3600.0
BATCH_DAYS = 30.0
_json = msgspec.json.Encoder().encode


class _Model(Struct):
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL)]
    stream: bool | None = None


class _Line(Struct):
    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: Raw


class LineProblem(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class BatchRunner:
    def __init__(
        self,
        batches: BatchStore,
        jobs: JobStore,
        store: FileStore,
        files: Files,
        webhooks: Webhooks,
        *,
        owner: str,
        wake_jobs: Callable[[], None],
        known: Callable[[str], Awaitable[bool]],
        results_seconds: float,
        most_answered: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._batches = batches
        self._jobs = jobs
        self._store = store
        self._files = files
        self._webhooks = webhooks
        self._owner = owner
        self._wake_jobs = wake_jobs
        self._known = known
        self._results_seconds = results_seconds
        self._most_answered = most_answered
        self._look_at: dict[str, float] = {}
        self._clock = clock
        self._wake = asyncio.Event()
        self._draining = False
        self._problem = ""
        self._forget_at = 0.0

    def wake(self) -> None:
        self._wake.set()

    def drain(self) -> None:
        self._draining = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            try:
                if not self._draining:
                    unfinished = await self._batches.open()
                    self._look_at = {
                        one.id: self._look_at[one.id]
                        for one in unfinished
                        if one.id in self._look_at
                    }
                    for batch in unfinished:
                        await self._advance(batch)
                    await self._forget()
                self._problem = ""
            except BackendError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.warning("batches wait for the store", extra={"reason": self._problem})
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()

    # ── a batch's story ───────────────────────────────────────────────────────────────────────

    async def _advance(self, batch: BatchRow) -> None:
        now = self._clock()
        over = batch.state == "cancelling" or now >= batch.expires_at
        begun = batch.in_progress_at is not None
        if begun and not over and batch.completed + batch.failed < batch.total:
            await self._hold_to_size(batch, now)
            return  # its lines are being run
        claimed = await self._batches.claim(
            batch.id, self._owner, now=now, lease_until=now + LEASE_SECONDS
        )
        if claimed is None:
            return
        batch = claimed
        try:
            if batch.in_progress_at is None and not over:
                await self._validate(batch)
            elif batch.in_progress_at is None:  # what of its lines is there was never begun
                await self._end(batch, "expired" if batch.state != "cancelling" else "cancelled")
            elif not over or not await self._still_run(batch):
                await self._finish(batch, expired=over)
        except Exception as error:
            if isinstance(error, BackendError) and not isinstance(error, RecordError):
                raise
            # Or it would end this server, and the next one that takes it up.
            log.exception("batch failed", extra={"batch": batch.id})
            told = {"code": "internal_error", "message": "The server failed.", "param": None}
            await self._end(batch, "failed", errors=_json([{**told, "line": None}]).decode())
        finally:
            await self._batches.release(batch.id, self._owner)

    async def _hold_to_size(self, batch: BatchRow, now: float) -> None:
        """Once its answers are more than an account's files may be, the rest is not begun."""
        if now < self._look_at.get(batch.id, 0.0):
            return
        self._look_at[batch.id] = now + LOOK_SECONDS
        if await self._jobs.result_bytes(batch.id) < self._most_answered:
            return
        words = f"This line was not begun: the answers have {self._most_answered} bytes already."
        await self._jobs.cancel_lines(
            batch.id, now, refused(ApiError(413, "answers_too_large", words)).body
        )
        self.wake()

    async def _still_run(self, batch: BatchRow) -> int:
        code = "batch_cancelled" if batch.state == "cancelling" else "batch_expired"
        ended = refused(ApiError(499, code, "This line was not begun before its batch ended."))
        return await self._jobs.cancel_lines(batch.id, self._clock(), ended.body)

    async def _keep(self, batch: BatchRow) -> None:
        """Raises BackendError when the batch is another server's by now."""
        now = self._clock()
        held = await self._batches.claim(
            batch.id, self._owner, now=now, lease_until=now + LEASE_SECONDS
        )
        if held is None:
            raise BackendError(f"the batch {batch.id} is another server's now")

    # ── checking ──────────────────────────────────────────────────────────────────────────────

    async def _validate(self, batch: BatchRow) -> None:
        problems: list[dict[str, Any]] = []
        names: dict[str, int] = {}
        number = 0

        def wrong(problem: LineProblem, line: int | None) -> None:
            told = {"code": problem.code, "message": str(problem), "param": problem.param}
            problems.append({**told, "line": line})

        # Read twice, so that nothing is stored of a file with a wrong line.
        async for number, text in self._numbered(batch):
            try:
                job = _read_line(batch, number, text)
                if not await self._known(job.model):
                    words = f"The model '{job.model}' does not exist here."
                    raise LineProblem("model_not_found", words, "body.model")
                if names.setdefault(job.name, number) != number:
                    first = names[job.name]
                    words = f"custom_id '{job.name}' is that of line {first} already."
                    raise LineProblem("duplicate_custom_id", words, "custom_id")
            except LineProblem as problem:
                wrong(problem, number)
            if number > MAX_LINES:
                words = f"A batch may have {MAX_LINES} requests."
                wrong(LineProblem("too_many_requests", words), None)
            if len(problems) >= MAX_ERRORS or number > MAX_LINES:
                break
        if not names and not problems:
            wrong(LineProblem("empty_file", "The input file has no requests."), None)
        if problems:
            await self._end(batch, "failed", errors=_json(problems).decode())
            return
        await self._keep(batch)
        try:
            whole = await self._add_lines(batch) == len(names)
        except LineProblem:
            whole = False
        if not whole:
            wrong(LineProblem("file_not_found", "The input file was deleted meanwhile."), None)
            await self._end(batch, "failed", errors=_json(problems).decode())
            return
        await self._batches.begin(batch.id, self._owner, len(names), self._clock())
        self._wake_jobs()

    async def _add_lines(self, batch: BatchRow) -> int:
        """How many there are."""
        lines: list[JobRow] = []
        size, count = 0, 0
        async for number, text in self._numbered(batch):
            lines.append(_read_line(batch, number, text))
            count += 1
            size += len(text)
            if len(lines) >= LINES_AT_ONCE or size >= LINE_BYTES_AT_ONCE:
                await self._jobs.add_lines(lines)
                await self._keep(batch)
                lines, size = [], 0
        if lines:
            await self._jobs.add_lines(lines)
        return count

    async def _numbered(self, batch: BatchRow) -> AsyncIterator[tuple[int, bytes]]:
        """The lines of the input file that are not blank, counted from 1 with those that are."""
        rest, number = bytearray(), 0
        async for chunk in self._store.chunks(batch.input_file):
            rest += chunk
            if b"\n" not in chunk and len(rest) <= MAX_LINE:
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                number += 1
                if line.strip():
                    yield number, line
            if len(rest) > MAX_LINE:  # told by _read_line; what follows can't be counted
                break
        if rest.strip():
            yield number + 1, bytes(rest)

    # ── its end ───────────────────────────────────────────────────────────────────────────────

    async def _finish(self, batch: BatchRow, *, expired: bool) -> None:
        await self._batches.finalize(batch.id, self._owner, self._clock())
        output = await self._write(batch, good=True)
        errors = await self._write(batch, good=False)
        batch = await self._batches.batch(batch.account, batch.id) or batch
        if batch.state == "cancelling":
            state = "cancelled"
        else:
            state = "expired" if expired else "completed"
        await self._end(batch, state, output_file=output, error_file=errors)

    async def _end(self, batch: BatchRow, state: str, **told: str) -> None:
        now = self._clock()
        ended = replace(batch, state=state, finished_at=now, **told)
        webhook = self._webhooks.of_batch(batch, view(ended), now)
        await self._batches.finish(ended, webhook)

    async def _write(self, batch: BatchRow, *, good: bool) -> str:
        """A file of the lines that succeeded, or of those that did not; its id, '' for none."""
        kind = "output" if good else "error"
        id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
        if await self._store.file(batch.account, id) is not None:
            return id  # an earlier attempt at ending this batch has got so far
        file: FileRow | None = None
        writer = ChunkWriter(self._store, id)
        after = 0
        while lines := await self._jobs.lines(batch.id, after, limit=8):
            await self._keep(batch)
            after = lines[-1].line
            for line in lines:
                if (line.state == "done") is not good:
                    continue
                if file is None:
                    name = f"{batch.id}_{kind}.jsonl"
                    file = self._files.new(batch.account, name, "batch_output", id)
                    await self._store.begin(file)
                await writer.write(_json(_told(line)) + b"\n")
        if file is None:
            return ""
        await writer.flush()
        await self._store.complete(replace(file, size=writer.size))
        return id

    # ── forgetting ────────────────────────────────────────────────────────────────────────────

    async def _forget(self) -> None:
        now = self._clock()
        if now < self._forget_at:
            return
        for id in await self._store.expired(now, now - UPLOAD_SECONDS):
            await self._store.delete(id)
        await self._batches.delete_old(now - BATCH_DAYS * 86_400.0)
        if not await self._jobs.delete_old(
            now - self._results_seconds, keep=MAX_KEPT, size=self._most_answered
        ):
            self._forget_at = now + FORGET_SECONDS


def _read_line(batch: BatchRow, number: int, text: bytes) -> JobRow:
    """Raises LineProblem."""
    if len(text) > MAX_LINE:
        raise LineProblem("line_too_long", f"A line may have {MAX_LINE} bytes.")
    try:
        line = msgspec.json.decode(text, type=_Line)
        asked = msgspec.json.decode(line.body, type=_Model)
    except msgspec.ValidationError as error:
        raise LineProblem("invalid_request", f"{error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineProblem("invalid_json_line", f"This is no JSON: {error}.") from None
    if line.url != batch.endpoint:
        words = f"The url must be the batch's endpoint, {batch.endpoint}."
        raise LineProblem("mismatched_endpoint", words, "url")
    if asked.stream:
        raise LineProblem("invalid_request", "A line's answer can't be a stream.", "body.stream")
    if "\x00" in line.custom_id:
        raise LineProblem("invalid_request", "A custom_id has no NUL.", "custom_id")
    return JobRow(
        id=f"batch_req_{batch.id.removeprefix('batch_')}_{number:06d}",
        account=batch.account,
        key_id=batch.key_id,
        batch=batch.id,
        line=number,
        name=line.custom_id,
        path=line.url,
        model=asked.model,
        body=bytes(line.body),
        digest=sha256(text).digest(),
        priority=Priority.LOW,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
    )


def _told(line: JobRow) -> dict[str, Any]:
    told: dict[str, Any] = {"id": line.id, "custom_id": line.name, "response": None, "error": None}
    if line.state == "cancelled":
        error = msgspec.json.decode(line.answer)["error"]
        told["error"] = {"code": error["code"], "message": error["message"]}
        return told
    try:
        body = msgspec.json.decode(line.answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = {"error": {"message": line.answer.decode("utf-8", "replace")}}
    told["response"] = {
        "status_code": line.status,
        "request_id": line.request_id,
        "body": body,
    }
    return told
