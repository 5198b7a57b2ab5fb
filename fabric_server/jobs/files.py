"""``/v1/files``: what batches are made of and what they make, in OpenAI's shape."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec.structs import replace

from fabric_server.auth.keys import Accounts
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.gateway.authenticate import authenticate
from fabric_server.jobs.multipart import FileBegun, Multipart, MultipartError, boundary_of
from fabric_server.jobs.store_errors import StoreErrors
from fabric_server.storage.files import CHUNK, FileRow, FileStore

PURPOSES = ("batch",)
OVERHEAD = 64 * 1024
"""Bytes of a multipart body around its file."""
READER_SECONDS = 30.0
MAX_UPLOADS = 4
"""Of one account at once."""
_json = msgspec.json.Encoder().encode


class Files:
    def __init__(
        self,
        store: FileStore,
        accounts: Accounts,
        *,
        most: int,
        most_of_account: int,
        days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``most`` bytes may be in a file, ``most_of_account`` in all of an account's."""
        self._store = store
        self._accounts = accounts
        self._most = most
        self._most_of_account = most_of_account
        self._days = days
        self._clock = clock
        self._uploads: dict[str, int] = {}

    def add_to(self, public: StoreErrors) -> None:
        public.add("POST", "/v1/files", self.upload)
        public.add("GET", "/v1/files", self.list_files)
        public.add("GET", "/v1/files/*", self.show)
        public.add("DELETE", "/v1/files/*", self.delete)

    def new(self, account: str, name: str, purpose: str, id: str = "") -> FileRow:
        now = self._clock()
        return FileRow(
            id=id or f"file-{int(now * 1000):011x}{secrets.token_hex(6)}",
            account=account,
            name=name,
            purpose=purpose,
            size=0,
            created_at=now,
            expires_at=now + self._days * 86_400.0,
        )

    # ── uploading ─────────────────────────────────────────────────────────────────────────────

    async def upload(self, request: Request) -> None:
        key = await authenticate(self._accounts, request)
        length = request.body.length
        if length is not None and length > self._most + OVERHEAD:
            raise _too_large(self._most)
        if await self._store.used_bytes(key.account) >= self._most_of_account:
            raise _full(self._most_of_account)
        if self._uploads.get(key.account, 0) >= MAX_UPLOADS:
            words = f"This account uploads {MAX_UPLOADS} files already."
            raise ApiError(429, "too_many_uploads", words, type="rate_limit_error", retry_after=5.0)
        self._uploads[key.account] = self._uploads.get(key.account, 0) + 1
        file = self.new(key.account, "", "")
        try:
            await self._store.begin(file)
            file = await self._read(request, file)
            if not await self._store.complete(file, max_bytes=self._most_of_account):
                raise _full(self._most_of_account)
        except BaseException:
            # Also when the user hangs up; what this leaves behind is deleted with what is outdated.
            await asyncio.shield(self._store.delete(file.id))
            raise
        finally:
            self._uploads[key.account] -= 1
            if not self._uploads[key.account]:
                del self._uploads[key.account]
        request.respond(200, _json(view(file)))

    async def _read(self, request: Request, file: FileRow) -> FileRow:
        body = request.body
        writer = ChunkWriter(self._store, file.id)
        filename: str | None = None
        wanted = False
        try:
            parts = Multipart(boundary_of(request.headers.get(b"content-type", b"")))
            while not parts.complete:
                data = body.take()
                if not data and body.complete:
                    raise MultipartError("the body ends before its last boundary")
                for event in parts.feed(data):
                    if isinstance(event, FileBegun):
                        wanted = event.name == "file"
                        if wanted and filename is not None:
                            raise MultipartError("there is more than one file")
                        filename = event.filename if wanted else filename
                    elif wanted:
                        await writer.write(event)
                        if writer.size > self._most:
                            raise _too_large(self._most)
                await body.more()
        except MultipartError as error:
            raise errors.bad_field("file", f"The upload can't be read: {error}.") from None
        await writer.flush()
        purpose = parts.fields.get("purpose", "")
        if purpose not in PURPOSES:
            words = f"'purpose' must be one of {', '.join(PURPOSES)}."
            raise errors.bad_field("purpose", words)
        if filename is None:
            raise errors.bad_field("file", "'file' is missing.")
        name = "".join(filter(str.isprintable, filename))[-255:] or "file"
        return replace(file, name=name, purpose=purpose, size=writer.size, complete=True)

    # ── looking ───────────────────────────────────────────────────────────────────────────────

    async def list_files(self, request: Request) -> None:
        key = await authenticate(self._accounts, request)
        query = parse_qs(request.query)
        most = read_limit(query, 10_000)
        after = None
        if "after" in query:
            after = await self._store.file(key.account, query["after"][0])
            if after is None:
                raise _not_found(query["after"][0], "after")
        files = await self._store.files(
            key.account,
            after=after,
            purpose=query.get("purpose", [None])[0],
            limit=most + 1,
            newest=query.get("order", ["desc"])[0] != "asc",
        )
        request.respond(200, _json(page(list(map(view, files[:most])), len(files) > most)))

    async def show(self, request: Request) -> None:
        file, content = await self._find(request)
        if not content:
            request.respond(200, _json(view(file)))
            return
        request.start_response(200, [(b"content-type", b"application/octet-stream")], file.size)
        try:
            async for chunk in self._store.chunks(file.id):
                request.response.write(chunk)
                await _drained(request)
        except TimeoutError:
            request.response.abort()
        else:
            request.response.finish()

    async def delete(self, request: Request) -> None:
        file, content = await self._find(request)
        if content:
            raise errors.wrong_method("DELETE", request.path, "GET")
        await self._store.delete(file.id)
        request.respond(200, _json({"id": file.id, "object": "file", "deleted": True}))

    async def _find(self, request: Request) -> tuple[FileRow, bool]:
        key = await authenticate(self._accounts, request)
        rest = unquote(request.path.removeprefix("/v1/files/"))
        id = rest.removesuffix("/content")
        file = await self._store.file(key.account, id)
        if file is None:
            raise _not_found(id, "id")
        return file, id != rest


class ChunkWriter:
    """Writes a file to the store in rows of one size."""

    def __init__(self, store: FileStore, id: str) -> None:
        self.size = 0
        self._store = store
        self._id = id
        self._number = 0
        self._data = bytearray()

    async def write(self, data: bytes) -> None:
        self._data += data
        self.size += len(data)
        while len(self._data) >= CHUNK:
            await self._put(CHUNK)

    async def flush(self) -> None:
        if self._data:
            await self._put(len(self._data))

    async def _put(self, count: int) -> None:
        await self._store.add_chunk(self._id, self._number, bytes(self._data[:count]))
        self._number += 1
        del self._data[:count]


async def _drained(request: Request) -> None:
    """Raises TimeoutError for a user who does not read."""
    while request.response.paused:
        drained = asyncio.Event()
        request.response.on_drained = drained.set
        async with asyncio.timeout(READER_SECONDS):
            await drained.wait()


def view(file: FileRow) -> dict[str, Any]:
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


def page(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def read_limit(query: dict[str, list[str]], most: int) -> int:
    """Raises Refusal: 400."""
    text = query.get("limit", [str(min(most, 100))])[0]
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise errors.bad_field("limit", f"'limit' must be a number from 1 to {most}.")
    return int(text)


def _not_found(id: str, param: str) -> ApiError:
    return ApiError(404, "file_not_found", f"There is no file '{id}'.", param=param)


def _too_large(most: int) -> ApiError:
    text = f"The file is larger than {most} bytes."
    return errors.closing(ApiError(413, "file_too_large", text, param="file"))


def _full(most: int) -> ApiError:
    words = f"This account's files have {most} bytes already. Delete some."
    return errors.closing(ApiError(413, "files_full", words, param="file"))
