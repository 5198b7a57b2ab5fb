"""``/v1/files``: input and output files of batches, as in OpenAI's API."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec.structs import replace

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.jobs.multipart import FileBegun, Multipart, MultipartError, boundary_of
from fabric_server.jobs.paging import page, read_limit
from fabric_server.jobs.routes import JobRoutes
from fabric_server.storage.files import CHUNK, FileRow, FileStore

PURPOSES = ("batch",)
DAY = 86_400.0
MIN_EXPIRY = 3600
MAX_EXPIRY = 2_592_000
"""Seconds that a file may be kept, as in OpenAI's API; the server keeps none longer than its own
setting says."""
OVERHEAD = 64 * 1024
"""Bytes of a multipart body that are not its file."""
READER_SECONDS = 30.0
"""Timeout for a client that stops reading a file."""
MAX_UPLOADS = 4
"""Uploads of one account at once."""
_json = msgspec.json.Encoder().encode


class Files:
    """Handlers of ``/v1/files…``."""

    def __init__(
        self,
        store: FileStore,
        *,
        max_bytes: int,
        max_account_bytes: int,
        days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``max_bytes`` limits one file, ``max_account_bytes`` all files of an account."""
        self._store = store
        self._max_bytes = max_bytes
        self._max_account_bytes = max_account_bytes
        self._days = days
        self._clock = clock
        self._uploads: dict[str, int] = {}
        """Uploads under way, by account."""

    def add_to(self, routes: JobRoutes) -> None:
        """Add the handlers to the public port."""
        routes.add("POST", "/v1/files", self.upload)
        routes.add("GET", "/v1/files", self.list_files)
        routes.add("GET", "/v1/files/*", self.show)
        routes.add("DELETE", "/v1/files/*", self.delete)

    def new(self, account: str, name: str, purpose: str, id: str = "", seconds: int = 0) -> FileRow:
        """Return a file that is kept for ``seconds``, at most as long as the setting says."""
        now, most = self._clock(), self._days * DAY
        return FileRow(
            id=id or f"file-{int(now * 1000):011x}{secrets.token_hex(6)}",
            account=account,
            name=name,
            purpose=purpose,
            size=0,
            created_at=now,
            expires_at=now + min(seconds or most, most),
        )

    # ── uploading ─────────────────────────────────────────────────────────────────────────────

    async def upload(self, request: Request, key: Key) -> None:
        """Store a file while it is received."""
        length = request.body.length
        if length is not None and length > self._max_bytes + OVERHEAD:
            raise _too_large(self._max_bytes)
        if await self._store.used_bytes(key.account) >= self._max_account_bytes:
            raise _full(self._max_account_bytes)
        if self._uploads.get(key.account, 0) >= MAX_UPLOADS:
            text = f"This account has {MAX_UPLOADS} uploads under way already. Retry after one."
            raise ApiError(429, "too_many_uploads", text, type="rate_limit_error", retry_after=5.0)
        self._uploads[key.account] = self._uploads.get(key.account, 0) + 1
        file = self.new(key.account, "", "")
        try:
            await self._store.begin(file)
            file = await self._receive(request, file)
            if not await self._store.complete(file, max_bytes=self._max_account_bytes):
                raise _full(self._max_account_bytes)
        except BaseException:
            # Also when the client disconnects.  A file left behind is deleted as outdated.
            await asyncio.shield(self._store.delete(file.id))
            raise
        finally:
            self._uploads[key.account] -= 1
            if not self._uploads[key.account]:
                del self._uploads[key.account]
        request.respond(200, _json(view(file)))

    async def _receive(self, request: Request, file: FileRow) -> FileRow:
        """Store the file of a multipart body, and return its row."""
        body = request.body
        writer = ChunkWriter(self._store, file.id)
        filename: str | None = None
        in_file = False
        try:
            parts = Multipart(boundary_of(request.headers.get(b"content-type", b"")))
            while not parts.complete:
                data = body.take()
                if not data and body.complete:
                    raise MultipartError("the body ends before its last boundary")
                for event in parts.feed(data):
                    if isinstance(event, FileBegun):
                        in_file = event.name == "file"
                        if in_file and filename is not None:
                            raise MultipartError("there is more than one file")
                        filename = event.filename if in_file else filename
                    elif in_file:
                        await writer.write(event)
                        body.passed_on += len(event)
                        if writer.size > self._max_bytes:
                            raise _too_large(self._max_bytes)
                await body.more()
        except MultipartError as error:
            raise errors.bad_field("file", f"The upload is not valid: {error}.") from None
        await writer.flush()
        purpose = parts.fields.get("purpose", "")
        if purpose not in PURPOSES:
            raise _wrong_purpose(purpose)
        if filename is None:
            raise errors.bad_field("file", "'file' is missing.")
        name = "".join(filter(str.isprintable, filename))[-255:] or "file"
        return replace(
            file,
            name=name,
            purpose=purpose,
            size=writer.size,
            complete=True,
            expires_at=self._expires_at(file.created_at, parts.fields),
        )

    def _expires_at(self, created_at: float, fields: Mapping[str, str]) -> float:
        """Return when a file with these fields is deleted.  Raises ``ApiError``: 400."""
        anchor, text = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
        if anchor is None and text is None:
            return created_at + self._days * DAY
        if anchor != "created_at":
            words = "'expires_after[anchor]' must be 'created_at'."
            raise errors.bad_field("expires_after.anchor", words)
        most = min(MAX_EXPIRY, int(self._days * DAY))
        readable = text is not None and text.isascii() and text.isdigit() and len(text) < 10
        seconds = int(text) if readable and text is not None else 0
        if not MIN_EXPIRY <= seconds <= most:
            words = f"'expires_after[seconds]' must be a number from {MIN_EXPIRY} to {most}."
            raise errors.bad_field("expires_after.seconds", words)
        return created_at + seconds

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    async def list_files(self, request: Request, key: Key) -> None:
        """List the account's files."""
        query = parse_qs(request.query)
        limit = read_limit(query, 10_000)
        after = None
        if "after" in query:
            after = await self._store.file(key.account, query["after"][0])
            if after is None:
                raise _not_found(query["after"][0], "after")
        files = await self._store.files(
            key.account,
            after=after,
            purpose=query.get("purpose", [None])[0],
            limit=limit + 1,
            newest=query.get("order", ["desc"])[0] != "asc",
        )
        request.respond(200, _json(page(list(map(view, files[:limit])), len(files) > limit)))

    async def show(self, request: Request, key: Key) -> None:
        """Show a file's properties, or at ``…/content`` its content."""
        file, content = await self._find(request, key)
        if not content:
            request.respond(200, _json(view(file)))
            return
        request.start_response(200, [(b"content-type", b"application/octet-stream")], file.size)
        try:
            async for chunk in self._store.chunks(file.id):
                request.response.write(chunk)
                await _wait_until_read(request)
        except TimeoutError:
            request.response.abort()
        else:
            request.response.finish()

    async def delete(self, request: Request, key: Key) -> None:
        """Delete a file."""
        file, content = await self._find(request, key)
        if content:
            raise errors.wrong_method("DELETE", request.path, "GET")
        await self._store.delete(file.id)
        request.respond(200, _json({"id": file.id, "object": "file", "deleted": True}))

    async def _find(self, request: Request, key: Key) -> tuple[FileRow, bool]:
        """Return the file that the path names, and whether the path is that of its content."""
        path = unquote(request.path.removeprefix("/v1/files/"))
        id = path.removesuffix("/content")
        file = await self._store.file(key.account, id)
        if file is None:
            raise _not_found(id, "id")
        return file, id != path


class ChunkWriter:
    """Writes a file to the store in chunks of one size."""

    def __init__(self, store: FileStore, id: str) -> None:
        self.size = 0
        self._store = store
        self._id = id
        self._number = 0
        self._data = bytearray()

    async def write(self, data: bytes) -> None:
        """Append bytes; whole chunks are stored."""
        self._data += data
        self.size += len(data)
        while len(self._data) >= CHUNK:
            await self._put(CHUNK)

    async def flush(self) -> None:
        """Store the last chunk."""
        if self._data:
            await self._put(len(self._data))

    async def _put(self, count: int) -> None:
        await self._store.add_chunk(self._id, self._number, bytes(self._data[:count]))
        self._number += 1
        del self._data[:count]


async def _wait_until_read(request: Request) -> None:
    """Wait until the client has read.  Raises ``TimeoutError`` if it stops reading."""
    while request.response.paused:
        drained = asyncio.Event()
        request.response.on_drained = drained.set
        async with asyncio.timeout(READER_SECONDS):
            await drained.wait()


def view(file: FileRow) -> dict[str, Any]:
    """Return OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _not_found(id: str, param: str) -> ApiError:
    return ApiError(404, "file_not_found", f"There is no file '{id}'.", param=param)


def _too_large(most: int) -> ApiError:
    text = f"The file is larger than {most} bytes."
    return errors.closing(ApiError(413, "file_too_large", text, param="file"))


def _full(most: int) -> ApiError:
    text = f"This account's files have {most} bytes already. Delete some."
    return errors.closing(ApiError(413, "files_full", text, param="file"))


def _wrong_purpose(purpose: str) -> ApiError:
    known = ", ".join(f"'{one}'" for one in PURPOSES)
    if not purpose:
        return errors.bad_field("purpose", f"'purpose' is missing; it must be {known}.")
    shown = "".join(filter(str.isprintable, purpose))[:64]
    text = f"'purpose' is '{shown}', for which files are not used here: it must be {known}."
    return errors.bad_field("purpose", text)
