"""The output files of a batch: one of the lines that succeeded, one of the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from fabric_server.jobs.files import ChunkWriter, Files
from fabric_server.storage.batches import BatchRow
from fabric_server.storage.files import FileRow, FileStore
from fabric_server.storage.jobs import JobRow, JobStore

READ_LINES = 8
"""Lines that are read at once, each with its response."""
_json = msgspec.json.Encoder().encode


class BatchOutput:
    """Writes output files, line by line."""

    def __init__(self, jobs: JobStore, store: FileStore, files: Files) -> None:
        self._jobs = jobs
        self._store = store
        self._files = files

    async def write(
        self,
        batch: BatchRow,
        *,
        good: bool,
        renew: Callable[[], Awaitable[None]],
        usage: Usage | None = None,
    ) -> str:
        """Write the lines that succeeded, or the others; return the file's id, '' for no lines.

        A file that an earlier attempt has written is left as it is.  ``renew`` is awaited now and
        then; the tokens of the answers are added to ``usage``.
        """
        kind = "output" if good else "error"
        id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
        written = await self._store.file(batch.account, id) is not None
        if written and usage is None:
            return id
        file: FileRow | None = None
        writer = ChunkWriter(self._store, id)
        after = 0
        while lines := await self._jobs.lines(batch.id, after, limit=READ_LINES):
            await renew()
            after = lines[-1].line
            for line in lines:
                if (line.state == "done") is not good:
                    continue
                view = _view(line)
                if usage is not None and view["response"] is not None:
                    usage.add(view["response"]["body"])
                if written:
                    continue
                if file is None:
                    name = f"{batch.id}_{kind}.jsonl"
                    seconds = batch.output_seconds
                    file = self._files.new(batch.account, name, "batch_output", id, seconds)
                    await self._store.begin(file)
                await writer.write(_json(view) + b"\n")
        if file is None:
            return id if written else ""
        await writer.flush()
        await self._store.complete(replace(file, size=writer.size))
        return id


class Usage:
    """The tokens of a batch's answers, as engines have told them in each."""

    def __init__(self) -> None:
        self._input = self._cached = self._output = self._reasoning = 0

    def add(self, answer: Any) -> None:
        """Add what an answer of any endpoint tells."""
        usage = _object(answer, "usage")
        self._input += _count(usage, "prompt_tokens", "input_tokens")
        self._output += _count(usage, "completion_tokens", "output_tokens")
        for details in ("prompt_tokens_details", "input_tokens_details"):
            self._cached += _count(_object(usage, details), "cached_tokens")
        for details in ("completion_tokens_details", "output_tokens_details"):
            self._reasoning += _count(_object(usage, details), "reasoning_tokens")

    def encode(self) -> str:
        """Return ``usage`` of OpenAI's batch object, as JSON."""
        return _json(
            {
                "input_tokens": self._input,
                "input_tokens_details": {"cached_tokens": self._cached},
                "output_tokens": self._output,
                "output_tokens_details": {"reasoning_tokens": self._reasoning},
                "total_tokens": self._input + self._output,
            }
        ).decode()


def _object(document: Any, key: str) -> dict[str, Any]:
    """Return the object at ``key``; empty if there is none."""
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}


def _count(document: dict[str, Any], *keys: str) -> int:
    """Return the first of these counts that is one; what engines tell may be anything."""
    for key in keys:
        value = document.get(key)
        if type(value) is int and 0 <= value < 2**40:
            return value
    return 0


def _view(line: JobRow) -> dict[str, Any]:
    """Return a line of an output file, in OpenAI's format."""
    view: dict[str, Any] = {"id": line.id, "custom_id": line.name, "response": None, "error": None}
    if line.state == "cancelled":
        error = msgspec.json.decode(line.answer)["error"]
        view["error"] = {"code": error["code"], "message": error["message"]}
        return view
    try:
        body = msgspec.json.decode(line.answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = {"error": {"message": line.answer.decode("utf-8", "replace")}}
    view["response"] = {
        "status_code": line.status,
        "request_id": line.request_id,
        "body": body,
    }
    return view
