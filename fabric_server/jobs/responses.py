"""``/v1/responses`` with a store: ``store: true``, ``previous_response_id``, and the routes by id.

Nothing of it is built while the setting ``stored_days`` is 0.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote

import msgspec

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import ENDPOINTS, with_response_id
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler
from fabric_server.jobs import conversations
from fabric_server.jobs.conversations import not_found
from fabric_server.jobs.files import DAY, page, read_limit
from fabric_server.jobs.held_response import HeldResponse
from fabric_server.jobs.routes import JobRoutes, store_errors
from fabric_server.metering.response_ids import MAX_ANSWER
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.storage.responses import OVERHEAD_BYTES, ResponseRow, ResponseStore
from runtime.errors import BackendError

log = logging.getLogger("fabric.responses")

PATH = "/v1/responses"
ITEMS = "/input_items"
WRITE_SECONDS = 5.0
"""Timeout for storing; the client waits for it, and gets its answer in any case."""
MAX_STORED = 4 * 2**20
"""Bytes of one stored response with its input; SQLite has one writer, which all must wait for."""
MAX_INLINE = 1024 * 1024
"""Bytes that are read on the event loop; more are read in a thread."""
T = TypeVar("T")
_json = msgspec.json.Encoder().encode


class Responses:
    """Handlers of ``/v1/responses…``."""

    def __init__(
        self,
        store: ResponseStore,
        memory: MemoryBudget,
        *,
        max_body: int,
        max_account_bytes: int,
        days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``max_body`` limits a request with the conversation before it; ``max_account_bytes`` all
        stored responses of an account."""
        self._store = store
        self._memory = memory
        self._max_body = max_body
        self._max_account_bytes = max_account_bytes
        self._max_stored = min(MAX_STORED, max_account_bytes - OVERHEAD_BYTES)
        self._too_large = f"with its conversation it is larger than {self._max_stored} bytes"
        self._days = days
        self._clock = clock
        self._complete: Handler
        """Has an engine answer."""
        self._count: Handler
        """Has an engine count tokens."""

    def add_to(self, routes: JobRoutes) -> None:
        """Add the handlers to the public port, which has those of engines already."""
        self._complete = routes.replace("POST", PATH, self.create)
        self._count = routes.replace("POST", f"{PATH}/input_tokens", self.count)
        routes.add("POST", f"{PATH}/*", self.refuse)
        routes.add("GET", f"{PATH}/*", self.show)
        routes.add("DELETE", f"{PATH}/*", self.delete)

    # ── asking ────────────────────────────────────────────────────────────────────────────────

    async def create(self, request: Request, key: Key) -> None:
        """Have an engine answer, after the conversation before; store the answer if so asked."""
        request.body.preparations += (partial(self._prepare, request),)
        try:
            await self._complete(request)
            await self._store_answer(request, key)
        except asyncio.CancelledError:
            if isinstance(request.response, HeldResponse):
                request.response.drop()
            raise
        finally:
            if isinstance(request.response, HeldResponse):
                request.response.release()

    async def count(self, request: Request, key: Key) -> None:
        """Have an engine count the tokens of a request, with the conversation before."""
        request.body.preparations += (partial(self._prepare, request),)
        await self._count(request)

    async def refuse(self, request: Request, key: Key) -> None:
        """Refuse a POST below ``/v1/responses`` that is none of the routes."""
        id = request.path.removeprefix(f"{PATH}/").removesuffix(ITEMS)
        if id.startswith("resp_") and "/" not in id:
            raise errors.wrong_method("POST", request.path, "GET, DELETE")
        raise errors.unknown_path(request.path)

    async def _prepare(self, request: Request, key: Key) -> None:
        """Put the conversation before into the request, and hold its answer where it is stored.

        What was read is let go when this returns: an answer may take long.
        """
        body = request.body
        data = await body.take_all()
        asked = await _off_loop(len(data), conversations.read_asked, data)
        if asked is None:  # the gateway says what is wrong with it
            body.put_back(data)
            return
        previous, before = asked.previous(), None
        if previous is not None:
            with store_errors(request):
                before = await self._load(request, key, previous, "previous_response_id")
        stores = asked.stores and request.path == PATH
        size = len(data) + (before.size if before is not None else 0)
        data, given = await _off_loop(size, conversations.put_together, data, asked, before)
        if before is not None and len(data) > self._max_body:
            raise conversations.too_long(self._max_body)
        body.put_back(data)
        if stores and len(given) > self._max_stored:
            _log_loss(request, self._too_large)
        elif stores:
            self._hold_answer(request, key, asked.streams, given, previous)

    def _hold_answer(
        self, request: Request, key: Key, streamed: bool, given: bytes, previous: str | None
    ) -> None:
        """Have the answer held, and ``given`` counted.  Raises ``ApiError``: 429 when the key's
        requests hold too much, 503 when all do."""
        holding = self._memory.open(key.id)
        holding.reach(len(given))
        request.answer_with(
            lambda connection: HeldResponse(
                connection, holding, streamed=streamed, given=given, previous=previous
            )
        )
        request.endpoint = with_response_id(ENDPOINTS[PATH], _id_of(request))

    async def _store_answer(self, request: Request, key: Key) -> None:
        """Store an answer that is held.  A failure is logged: the client has what it asked for."""
        response = request.response
        if not isinstance(response, HeldResponse):
            return
        answer, id, given = response.answer(), _id_of(request), response.given
        if answer is None:
            if response.status == 200:
                _log_loss(request, f"it is broken, or larger than {MAX_ANSWER} bytes")
            return
        shown = conversations.shown_response(answer, id, response.previous)
        if shown is None:
            _log_loss(request, "it is no complete response object")
            return
        now, size = self._clock(), len(given) + len(shown)
        if size > self._max_stored:
            _log_loss(request, self._too_large)
            return
        row = ResponseRow(key.account, id, size, now, now + self._days * DAY, given, shown)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                if await self._store.add(row, max_bytes=self._max_account_bytes):
                    return
            reason = "it is larger than stored_per_account"
        except TimeoutError:
            reason = "the store took too long"
        except BackendError as error:
            reason = str(error)
        _log_loss(request, reason)

    # ── by id ─────────────────────────────────────────────────────────────────────────────────

    async def show(self, request: Request, key: Key) -> None:
        """Show a stored response, or at ``…/input_items`` what it answered."""
        row, lists = await self._find(request, key)
        query = parse_qs(request.query)
        if lists:
            listed = await _off_loop(row.size, _list_items, row, query)
            request.respond(200, _json(listed))
            return
        if query.get("stream", [""])[0].lower() in ("true", "1"):
            text = "'stream' is not supported for stored responses: they are sent in one piece."
            raise errors.bad_field("stream", text)
        request.respond(200, row.response)

    async def delete(self, request: Request, key: Key) -> None:
        """Delete a stored response; those that go on from it stay whole."""
        row, lists = await self._find(request, key)
        if lists:
            raise errors.wrong_method("DELETE", request.path, "GET")
        if not await self._store.delete(key.account, row.id, self._clock()):
            raise not_found(row.id)
        request.respond(200, _json({"id": row.id, "object": "response", "deleted": True}))

    async def _find(self, request: Request, key: Key) -> tuple[ResponseRow, bool]:
        """Return the key's account's response that the path names, and whether its items are
        meant."""
        path = unquote(request.path.removeprefix(f"{PATH}/"))
        id = path.removesuffix(ITEMS)
        return await self._load(request, key, id), id != path

    async def _load(
        self, request: Request, key: Key, id: str, param: str | None = None
    ) -> ResponseRow:
        """Return the response of this id of the key's account, counted as held by the request.

        Raises ``ApiError``: 404 when there is none, 429 or 503 when there is no memory for it.
        """
        now = self._clock()
        size = await self._store.size(key.account, id, now)
        if size is not None:
            request.body.hold(size)
            row = await self._store.find(key.account, id, now)
            if row is not None:
                return row
        raise not_found(id, param)


async def _off_loop(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Return what ``work`` returns, called in a thread if it reads so many bytes."""
    if size <= MAX_INLINE:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _id_of(request: Request) -> str:
    """Return the id of the response that answers a request, where it is stored."""
    return f"resp_{request.id.removeprefix('req_')}"


def _log_loss(request: Request, reason: str) -> None:
    log.warning("a response was not stored", extra={"request": request.id, "reason": reason})


def _list_items(row: ResponseRow, query: dict[str, list[str]]) -> dict[str, Any]:
    """Return a page of a response's input, newest first unless the query says otherwise."""
    limit = read_limit({"limit": ["20"], **query}, 100)
    items = conversations.numbered_items(row)
    if query.get("order", ["desc"])[0] != "asc":
        items.reverse()
    if after := query.get("after", [""])[0]:
        places = [at for at, item in enumerate(items) if item["id"] == after]
        if not places:
            raise errors.bad_field("after", "'after' must be the id of an item of this list.")
        items = items[places[0] + 1 :]
    return page(items[:limit], len(items) > limit)
