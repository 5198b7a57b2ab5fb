"""The input file of a batch: JSON lines, each a request, which become jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from fabric_server.dialects.body import MAX_MODEL
from fabric_server.dialects.errors import ApiError
from fabric_server.routing.criteria import Priority
from fabric_server.routing.variants import WantedVariant
from fabric_server.storage.batches import BatchRow
from fabric_server.storage.files import FileStore
from fabric_server.storage.jobs import JobRow

MAX_LINES = 50_000
MAX_LINE = 4 * 2**20
MAX_ERRORS = 100
"""Errors in an input file after which the rest of it is not checked."""
LINES_PER_TURN = 100
"""Lines that are read before others have their turn."""


class _Model(Struct):
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL)]
    stream: bool | None = None


class _Line(Struct):
    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: Raw


class LineProblem(Exception):
    """A line that is no valid request; ``str()`` is the error message."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    def view(self, line: int | None) -> dict[str, Any]:
        """Return the error as in OpenAI's batch object; ``line`` counts from 1."""
        return {"code": self.code, "message": str(self), "param": self.param, "line": line}


class BatchInput:
    """Reads and checks the input files of batches."""

    def __init__(
        self,
        files: FileStore,
        is_known: Callable[[str], Awaitable[bool]],
        check_variant: Callable[[str, WantedVariant], None] = lambda model, wanted: None,
    ) -> None:
        """``is_known`` tells whether there is a model of that name; ``check_variant`` raises
        ApiError when it is not served in these weights."""
        self._files = files
        self._is_known = is_known
        self._check_variant = check_variant

    async def check(self, batch: BatchRow) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of requests, and the errors in them."""
        problems: list[dict[str, Any]] = []
        names: dict[str, int] = {}
        async for number, text in self._numbered(batch):
            try:
                await self._check_line(batch, number, text, names)
            except LineProblem as problem:
                problems.append(problem.view(number))
            if number > MAX_LINES:
                message = f"A batch may have {MAX_LINES} requests at most."
                problems.append(LineProblem("too_many_requests", message).view(None))
            if len(problems) >= MAX_ERRORS or number > MAX_LINES:
                break
        if not names and not problems:
            message = "The input file has no requests."
            problems.append(LineProblem("empty_file", message).view(None))
        return len(names), problems

    async def _check_line(
        self, batch: BatchRow, number: int, text: bytes, names: dict[str, int]
    ) -> None:
        job = read_line(batch, number, text)
        if not await self._is_known(job.model):
            message = f"The model '{job.model}' does not exist here."
            raise LineProblem("model_not_found", message, "body.model")
        try:
            self._check_variant(
                job.model, WantedVariant(job.variant_quantization, job.variant_digest)
            )
        except ApiError as error:
            raise LineProblem(error.code, error.message, "body.model") from None
        first = names.setdefault(job.name, number)
        if first != number:
            message = f"custom_id '{job.name}' is used in line {first} already."
            raise LineProblem("duplicate_custom_id", message, "custom_id")

    async def jobs(self, batch: BatchRow) -> AsyncIterator[JobRow]:
        """Read the lines as jobs.  Raises ``LineProblem`` if the file has changed."""
        async for number, text in self._numbered(batch):
            yield read_line(batch, number, text)

    async def _numbered(self, batch: BatchRow) -> AsyncIterator[tuple[int, bytes]]:
        """Read the lines that are not blank; numbers count from 1 and include blank lines."""
        rest, number = bytearray(), 0
        async for chunk in self._files.chunks(batch.input_file):
            rest += chunk
            if b"\n" not in chunk and len(rest) <= MAX_LINE:
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                number += 1
                if number % LINES_PER_TURN == 0:
                    await asyncio.sleep(0)
                if line.strip():
                    yield number, line
            if len(rest) > MAX_LINE:  # read_line reports it; later lines have no known number
                break
        if rest.strip():
            yield number + 1, bytes(rest)


def read_line(batch: BatchRow, number: int, text: bytes) -> JobRow:
    """Parse a line of the input file as a job.  Raises ``LineProblem``."""
    if len(text) > MAX_LINE:
        raise LineProblem("line_too_long", f"A line may have {MAX_LINE} bytes at most.")
    try:
        line = msgspec.json.decode(text, type=_Line)
        body = msgspec.json.decode(line.body, type=_Model)
    except msgspec.ValidationError as error:
        raise LineProblem("invalid_request", f"{error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineProblem("invalid_json_line", f"The line is not JSON: {error}.") from None
    if line.url != batch.endpoint:
        message = f"The url must be the batch's endpoint, {batch.endpoint}."
        raise LineProblem("mismatched_endpoint", message, "url")
    if body.stream:
        message = "Batches don't stream: leave 'stream' out."
        raise LineProblem("invalid_request", message, "body.stream")
    if "\x00" in line.custom_id:
        raise LineProblem("invalid_request", "A custom_id can't contain NUL.", "custom_id")
    return JobRow(
        id=f"batch_req_{batch.id.removeprefix('batch_')}_{number:06d}",
        account=batch.account,
        key_id=batch.key_id,
        batch=batch.id,
        line=number,
        name=line.custom_id,
        path=line.url,
        model=body.model,
        body=bytes(line.body),
        digest=sha256(text).digest(),
        priority=Priority.LOW,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        variant_quantization=batch.variant_quantization,
        variant_digest=batch.variant_digest,
    )
