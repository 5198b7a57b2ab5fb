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
        self, batch: BatchRow, *, good: bool, renew: Callable[[], Awaitable[None]]
    ) -> str:
        """Write the lines that succeeded, or the others; return the file's id, '' for no lines.

        A file that an earlier attempt has written is left as it is.  ``renew`` is awaited now and
        then.
        """
        kind = "output" if good else "error"
        id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
        if await self._store.file(batch.account, id) is not None:
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
                if file is None:
                    name = f"{batch.id}_{kind}.jsonl"
                    file = self._files.new(batch.account, name, "batch_output", id)
                    await self._store.begin(file)
                await writer.write(_json(_view(line)) + b"\n")
        if file is None:
            return ""
        await writer.flush()
        await self._store.complete(replace(file, size=writer.size))
        return id


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
