"""``/v1/responses`` with a store: ``store: true``, ``previous_response_id``, and the routes by id.

Nothing of it is built while the setting ``stored_days`` is 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import ENDPOINTS, with_response_id
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler
from fabric_server.jobs import conversations
from fabric_server.jobs.conversations import not_found
from fabric_server.jobs.held_response import HeldResponse
from fabric_server.jobs.paging import Query, page_of
from fabric_server.jobs.routes import JobRoutes, store_errors
from fabric_server.jobs.stored_answers import NewAnswer, StoredAnswers, off_loop
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.storage.answers import AnswerRow, Kind

PATH = "/v1/responses"
ITEMS = "/input_items"
KIND: Kind = "response"
_json = msgspec.json.Encoder().encode


class Responses:
    """Handlers of ``/v1/responses…``."""

    def __init__(self, stored: StoredAnswers, *, max_body: int) -> None:
        """``max_body`` limits a request with the conversation before it."""
        self._stored = stored
        self._max_body = max_body
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
        await self._stored.answer(
            request, self._complete, partial(self._store_answer, request, key)
        )

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
        asked = await off_loop(len(data), conversations.read_asked, data)
        if asked is None:  # the gateway says what is wrong with it
            body.put_back(data)
            return
        previous, before = asked.previous(), None
        if previous is not None:
            with store_errors(request):
                before = await self._load(request, key, previous, "previous_response_id")
        stores = asked.stores and request.path == PATH
        size = len(data) + (before.size if before is not None else 0)
        data, given = await off_loop(size, conversations.put_together, data, asked, before)
        if before is not None and len(data) > self._max_body:
            raise conversations.too_long(self._max_body)
        body.put_back(data)
        if stores and len(given) > self._stored.limits.answer_bytes:
            self._stored.log_loss(request, KIND, self._stored.too_large)
        elif stores:
            self._hold_answer(request, key, asked.streams, given, previous)

    def _hold_answer(
        self, request: Request, key: Key, streamed: bool, given: bytes, previous: str | None
    ) -> None:
        """Have the answer held, and ``given`` counted.  Raises ``ApiError``: 429 when the key's
        requests hold too much, 503 when all do."""
        holding = self._stored.open(key, len(given))
        request.answer_with(
            lambda connection: HeldResponse(
                connection, holding, streamed=streamed, given=given, previous=previous
            )
        )
        request.endpoint = with_response_id(ENDPOINTS[PATH], _id_of(request))

    async def _store_answer(self, request: Request, key: Key) -> None:
        """Store an answer that is held.  A failure is logged: the client has what it asked for."""
        response = request.response
        assert isinstance(response, HeldResponse)
        answer, id, given = response.answer(), _id_of(request), response.given
        if answer is None:
            if response.status == 200:
                reason = response.lost or f"it is broken, or larger than {MAX_ANSWER} bytes"
                self._stored.log_loss(request, KIND, reason)
            return
        shown = conversations.shown_response(answer, id, response.previous)
        if shown is None:
            self._stored.log_loss(request, KIND, "it is no complete response object")
            return
        new = NewAnswer(account=key.account, kind=KIND, id=id, given=given, answer=shown)
        await self._stored.add(request, new)

    # ── by id ─────────────────────────────────────────────────────────────────────────────────

    async def show(self, request: Request, key: Key) -> None:
        """Show a stored response, or at ``…/input_items`` what it answered."""
        row, lists = await self._find(request, key)
        query = parse_qs(request.query)
        if lists:
            listed = await off_loop(row.size, _list_items, row, query)
            request.respond(200, _json(listed))
            return
        if query.get("stream", [""])[0].lower() in ("true", "1"):
            text = "'stream' is not supported for stored responses: they are sent in one piece."
            raise errors.bad_field("stream", text)
        request.respond(200, row.answer)

    async def delete(self, request: Request, key: Key) -> None:
        """Delete a stored response; those that go on from it stay whole."""
        row, lists = await self._find(request, key)
        if lists:
            raise errors.wrong_method("DELETE", request.path, "GET")
        stored = self._stored
        if not await stored.store.delete(key.account, KIND, row.id, stored.clock()):
            raise not_found(row.id)
        request.respond(200, _json({"id": row.id, "object": "response", "deleted": True}))

    async def _find(self, request: Request, key: Key) -> tuple[AnswerRow, bool]:
        """Return the key's account's response that the path names, and whether its items are
        meant."""
        path = unquote(request.path.removeprefix(f"{PATH}/"))
        id = path.removesuffix(ITEMS)
        return await self._load(request, key, id), id != path

    async def _load(
        self, request: Request, key: Key, id: str, param: str | None = None
    ) -> AnswerRow:
        """Return the response of this id of the key's account, counted as held by the request.

        Raises ``ApiError``: 404 when there is none, 429 or 503 when there is no memory for it.
        """
        row = await self._stored.load(request, key, KIND, id)
        if row is None:
            raise not_found(id, param)
        return row


def _id_of(request: Request) -> str:
    """Return the id of the response that answers a request, where it is stored."""
    return f"resp_{request.id.removeprefix('req_')}"


def _list_items(row: AnswerRow, query: Query) -> dict[str, Any]:
    """Return a page of a response's input, newest first unless the query says otherwise."""
    return page_of(conversations.numbered_items(row), query, "desc")
