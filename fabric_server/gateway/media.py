"""Media in requests: what they name is fetched by the server, so that no engine opens a URL.

An engine is in its owner's home; docs/decisions/0056-media-are-fetched-by-the-server.md has why.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from fabric_server.dialects.endpoints import Endpoint
from fabric_server.dialects.error_formats import Dialect
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.media_guard import may_have_media
from fabric_server.dialects.media_scanner import MediaScanner, Reference
from fabric_server.dialects.media_types import media_type
from fabric_server.dialects.media_values import Policy, refused
from fabric_server.edge.request import Body
from fabric_server.edge.slices import feed_slices
from fabric_server.net.egress import Forbidden
from fabric_server.net.fetcher import Fetched, Fetcher, FetchError

MAX_URLS = 8
MAX_BYTES = 20 * 2**20
"""Bytes that one request may have fetched, together."""
MAX_FETCHES_PER_KEY = 4
SECONDS = 10.0
"""Time for all fetches of a request."""
_COPIES = 8 / 3
"""What a fetched byte takes of memory: base64 of it twice, in parts and in the body."""
_ENCODED_AT_ONCE = 3 * 2**20

Setting = Literal["fetch", "data", "off"]


class Media:
    """Replaces URLs in bodies by what they name, or refuses them, by the setting ``media``."""

    def __init__(
        self,
        fetcher: Fetcher | None,
        setting: Setting = "fetch",
        results: Counter[str] | None = None,
    ) -> None:
        """``fetcher`` may be None if the setting is never ``fetch``.

        ``results`` counts URLs ``fetched``, ``refused`` by a rule, and ``failed``.
        """
        self._results = Counter() if results is None else results
        self._fetcher = fetcher
        self._policies = _policies(setting)
        self._off = setting == "off"
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._waiting: Counter[str] = Counter()
        """Fetches that have or await a slot, by key."""

    def configure(self, setting: Setting) -> None:
        """Take another setting, for the requests to come."""
        self._policies, self._off = _policies(setting), setting == "off"

    def concerns(self, body: bytes, endpoint: Endpoint) -> bool:
        """Return False if ``replace`` would leave this body as it is."""
        if endpoint.form:
            return False
        return may_have_media(body) or (self._off and b"source" in body.lower())

    def scanner(self, endpoint: Endpoint) -> MediaScanner:
        """Return a scanner for a body that comes in pieces."""
        return MediaScanner(self._policies[endpoint.dialect is Dialect.OLLAMA])

    async def replace(self, body: Body, endpoint: Endpoint) -> None:
        """Put what URLs name into their places in the replay buffer of a whole body.

        What that takes of memory is held by the body.  Raises ``ApiError``.
        """
        body.replay_buffer = await self._replaced(body, body.replay_buffer, endpoint)

    async def _replaced(self, request: Body, body: bytes, endpoint: Endpoint) -> bytes:
        scanner = self.scanner(endpoint)
        await feed_slices(scanner, body)
        scanner.feed(b"", last=True)
        if not scanner.references:
            return body
        budget = _Budget(request.hold)
        return await self._fetched(body, scanner.references, request.key, budget)

    async def _fetched(
        self, body: bytes, references: Sequence[Reference], key: str, budget: _Budget
    ) -> bytes:
        tasks: dict[tuple[str, str], asyncio.Task[tuple[str, bytes]]] = {}
        try:
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                for one in references:
                    if (wanted := (one.url, one.kind.value)) not in tasks:
                        tasks[wanted] = group.create_task(self._fetch(one, key, budget))
        except TimeoutError:
            late = next((one for one in references if not _is_done(tasks, one)), references[0])
            self._results["failed"] += 1
            rule = f"it did not come within {SECONDS:g} s"
            raise refused(late.param, late.url, rule) from None
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        return _rewrite(body, references, {key: task.result() for key, task in tasks.items()})

    async def _fetch(self, one: Reference, key: str, budget: _Budget) -> tuple[str, bytes]:
        """Return the media type and the data in base64."""
        try:
            assert self._fetcher is not None
            async with self._slot(key):
                fetched = await self._fetcher.get(one.url, key, budget.take)
            data = b"".join(fetched.chunks)
            fetched.chunks.clear()
            type = media_type(one.kind, fetched.content_type, data)
            if type is None:
                raise FetchError(_wrong_type(one, fetched))
            encoded = await _encode(data)
        except Forbidden as error:
            self._results["refused"] += 1
            raise refused(one.param, one.url, str(error)) from None
        except FetchError as error:
            self._results["failed"] += 1
            raise refused(one.param, one.url, str(error)) from None
        self._results["fetched"] += 1
        return type, encoded

    @asynccontextmanager
    async def _slot(self, key: str) -> AsyncIterator[None]:
        """Hold one of the key's slots for fetches."""
        slot = self._slots.setdefault(key, asyncio.Semaphore(MAX_FETCHES_PER_KEY))
        self._waiting[key] += 1
        try:
            async with slot:
                yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._slots[key]


class _Budget:
    """The bytes that one request may have fetched."""

    def __init__(self, hold: Callable[[int], None]) -> None:
        """``hold`` counts what the request takes of memory; it raises ``ApiError``."""
        self._hold = hold
        self._taken = 0

    def take(self, size: int) -> None:
        """Count bytes that come.  Raises ``FetchError``, and ``ApiError`` as ``hold`` does."""
        if self._taken + size > MAX_BYTES:
            raise FetchError(f"a request's media may have {MAX_BYTES >> 20} MiB together")
        self._hold(int(size * _COPIES))
        self._taken += size


def _policies(setting: Setting) -> dict[bool, Policy]:
    """Return the policies for paths of Ollama's (True) and for all others (False)."""
    return {ollama: Policy(setting, ollama, MAX_URLS) for ollama in (False, True)}


def _is_done(tasks: dict[tuple[str, str], asyncio.Task[tuple[str, bytes]]], one: Reference) -> bool:
    task = tasks.get((one.url, one.kind.value))
    return task is not None and task.done() and not task.cancelled()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error of a fetch to tell, rather than one that came of it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in found if isinstance(error, ApiError)), found[0])


def _wrong_type(one: Reference, fetched: Fetched) -> str:
    said = fetched.content_type.partition(";")[0].strip()[:64] or "nothing"
    wanted = "a PDF, text or image" if one.kind.value == "file" else f"of type {one.kind.value}"
    return f"what it names is not {wanted} by its content-type ({ascii(said)[1:-1]}) and content"


async def _encode(data: bytes) -> bytes:
    """Return base64, made in slices, so that others are not kept waiting."""
    pieces = []
    for start in range(0, len(data), _ENCODED_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        pieces.append(base64.b64encode(data[start : start + _ENCODED_AT_ONCE]))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _rewrite(
    body: bytes, references: Sequence[Reference], found: dict[tuple[str, str], tuple[str, bytes]]
) -> bytes:
    """Put the data in the place of the URLs."""
    pieces, at = [], 0
    for one in sorted(references, key=lambda one: one.value.start):
        type, data = found[one.url, one.kind.value]
        if one.value.start < at:
            continue  # within a source that was replaced as a whole
        if one.name is not None:
            pieces += [body[at : one.name.start], b'"file_data"']
            at = one.name.stop
        pieces.append(body[at : one.value.start])
        pieces += _source(type, data) if one.source else [b'"data:', type.encode(), b";base64,",
                                                         data, b'"']  # fmt: skip
        at = one.value.stop
    return b"".join([*pieces, body[at:]])


def _source(type: str, data: bytes) -> list[bytes]:
    """Return Anthropic's ``source`` with data."""
    if type.startswith("text/"):
        text = base64.b64decode(data).decode()
        return [
            b'{"type":"text","media_type":"text/plain","data":',
            msgspec.json.encode(text),
            b"}",
        ]
    return [b'{"type":"base64","media_type":"', type.encode(), b'","data":"', data, b'"}']
