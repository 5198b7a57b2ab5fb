"""``/v1/chat/completions`` with a store: ``store: true``, the list, and the routes by id.

Nothing of it is built while the setting ``stored_days`` is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec import Raw, Struct

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import CHAT, with_chat_id
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.large_body import LargeBody
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler, Router
from fabric_server.jobs.chat_objects import (
    OtherId,
    not_found,
    numbered_messages,
    read_asked,
    read_fields,
    shown_chat,
    stored_chat,
)
from fabric_server.jobs.held_answer import NO_MEMORY
from fabric_server.jobs.held_chat import HeldChat
from fabric_server.jobs.metadata import check_metadata, decode_metadata
from fabric_server.jobs.paging import Query, is_descending, page_of, read_limit
from fabric_server.jobs.routes import JobRoutes
from fabric_server.jobs.stored_answers import NewAnswer, StoredAnswers, off_loop
from fabric_server.jobs.submission import parse, read_body
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.storage.answers import AnswerRow, Kind, Page, Shown, metadata_text

PATH = CHAT.path
MESSAGES = "/messages"
KIND: Kind = "chat"
PREFIX = "chatcmpl-"
MAX_PAGE = 4 * 2**20
"""Bytes of the chats of one page, if it has more than one."""
MAX_BODY = 64 * 1024
_LATE = "its body is large, and 'store' comes behind its first part: put it before 'messages'"
_OTHER_ID = "its engine writes it in a form in which its id is not replaced"
_json = msgspec.json.Encoder().encode


class _Change(Struct, frozen=True):
    metadata: Raw


class Chats:
    """Handlers of ``/v1/chat/completions…``, and the gateway's ``Keeper``."""

    def __init__(self, stored: StoredAnswers) -> None:
        self._stored = stored
        self._endpoint = replace(CHAT, stores=True)
        self._complete: Handler
        """Has an engine answer."""

    def add_to(self, routes: JobRoutes, router: Router) -> None:
        """Add the handlers to the public port, which has that of engines already."""
        self._complete = router.replace("POST", PATH, self.create)
        routes.add("GET", PATH, self.list_chats)
        routes.add("GET", f"{PATH}/*", self.show)
        routes.add("POST", f"{PATH}/*", self.change)
        routes.add("DELETE", f"{PATH}/*", self.delete)

    # ── asking ────────────────────────────────────────────────────────────────────────────────

    async def create(self, request: Request) -> None:
        """Have an engine answer; store the answer if so asked."""
        request.endpoint = self._endpoint
        await self._stored.answer(request, self._complete, partial(self._store_answer, request))
        reader = request.body.reader
        if isinstance(reader, LargeBody) and reader.flows and reader.stores:
            self._stored.log_loss(request, KIND, _LATE)

    async def keep(self, record: RequestRecord) -> None:
        """Have the answer held, and what is stored with it counted, if the request asks for it."""
        request, stored, body = record.request, self._stored, record.request.body.replay_buffer
        asked = await off_loop(len(body), read_asked, body)
        if asked is None:
            return
        if asked.size > stored.limits.answer_bytes:
            stored.log_loss(request, KIND, stored.too_large)
            return
        try:
            holding = stored.open(record.key, asked.size)
        except ApiError:
            stored.log_loss(request, KIND, NO_MEMORY)
            return
        request.answer_with(lambda connection: HeldChat(connection, holding, record, asked))
        request.endpoint = with_chat_id(request.endpoint or CHAT, _id_of(request))

    async def _store_answer(self, request: Request) -> None:
        """Store an answer that is held.  A failure is logged: the client has what it asked for."""
        response = request.response
        assert isinstance(response, HeldChat)
        record = response.record
        answer = response.answer()
        if answer is None:
            if response.status == 200:
                self._stored.log_loss(request, KIND, _reason(response))
            return
        id = _id_of(request)
        more = {
            **read_fields(response.shown),
            "request_id": request.id,
            "model": record.parsed.model,
        }
        try:
            shown = await off_loop(response.size, stored_chat, answer, more, id)
        except OtherId:
            self._stored.log_loss(request, KIND, _OTHER_ID)
            return
        if shown is None:
            self._stored.log_loss(request, KIND, "it is no complete chat completion")
            return
        new = NewAnswer(
            account=record.key.account,
            kind=KIND,
            id=id,
            given=response.given,
            answer=shown,
            model=record.parsed.model,
            metadata=response.metadata,
        )
        await self._stored.add(request, new)

    # ── the list ──────────────────────────────────────────────────────────────────────────────

    async def list_chats(self, request: Request, key: Key) -> None:
        """List the account's chats, oldest first unless the query says otherwise."""
        query = parse_qs(request.query, keep_blank_values=True)
        limit = read_limit(query, 100, default=20)
        after = query.get("after", [""])[0]
        if after and not after.startswith(PREFIX):
            raise errors.bad_field("after", "'after' must be the id of a stored chat completion.")
        page = Page(
            limit + 1,
            after,
            is_descending(query, "asc"),
            query.get("model", [None])[0],
            _read_filter(query),
        )
        now = self._stored.clock()
        listed = await self._stored.store.list_ids(key.account, KIND, page, now)
        ids: list[str] = []
        size = 0
        for chat in listed[:limit]:
            if ids and size + chat.size > MAX_PAGE:
                break
            ids.append(chat.id)
            size += chat.size
        request.body.hold(size)
        found = await self._stored.store.show(key.account, KIND, ids, now)
        listing = {
            "object": "list",
            "data": [shown_chat(found[id]) for id in ids if id in found],
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": len(listed) > len(ids),
        }
        request.respond(200, _json(listing))

    # ── by id ─────────────────────────────────────────────────────────────────────────────────

    async def show(self, request: Request, key: Key) -> None:
        """Show a stored chat, or at ``…/messages`` the messages that it answered."""
        id, lists = _read_path(request)
        if not lists:
            request.respond(200, bytes(shown_chat(await self._find(request, key, id))))
            return
        row = await self._stored.load(request, key, KIND, id)
        if row is None:
            raise not_found(id)
        query = parse_qs(request.query)
        request.respond(200, _json(await off_loop(row.size, _list_messages, row, query)))

    async def change(self, request: Request, key: Key) -> None:
        """Change the metadata of a stored chat."""
        id, lists = _read_path(request)
        if lists:
            raise errors.wrong_method("POST", request.path, "GET")
        stored = self._stored
        change = parse(await read_body(request.body, MAX_BODY), _Change)
        text, most = (
            metadata_text(decode_metadata(bytes(change.metadata))),
            stored.limits.account_bytes,
        )
        if not await stored.store.set_metadata(
            key.account, KIND, id, text, stored.clock(), max_bytes=most
        ):
            raise not_found(id)
        request.respond(200, bytes(shown_chat(await self._find(request, key, id))))

    async def delete(self, request: Request, key: Key) -> None:
        """Delete a stored chat."""
        id, lists = _read_path(request)
        if lists:
            raise errors.wrong_method("DELETE", request.path, "GET")
        if not await self._stored.store.delete(key.account, KIND, id, self._stored.clock()):
            raise not_found(id)
        deleted = {"object": "chat.completion.deleted", "id": id, "deleted": True}
        request.respond(200, _json(deleted))

    async def _find(self, request: Request, key: Key, id: str) -> Shown:
        """Return the chat of this id of the key's account, counted as held by the request.

        Raises ``ApiError``: 404 when there is none, 429 or 503 when there is no memory for it.
        """
        stored, now = self._stored, self._stored.clock()
        size = await stored.store.size(key.account, KIND, id, now)
        if size is not None:
            request.body.hold(size)
            found = await stored.store.show(key.account, KIND, [id], now)
            if id in found:
                return found[id]
        raise not_found(id)


def _id_of(request: Request) -> str:
    """Return the id of the chat completion that answers a request, where it is stored.

    Ids begin with the time, so that they are in the order of a list.
    """
    return f"{PREFIX}{request.id.removeprefix('req_')}"


def _reason(response: HeldChat) -> str:
    """Return why a response has no answer to be stored."""
    found = response.lost if response.record.outcome == "ok" else ""
    return found or "it is not complete"


def _read_path(request: Request) -> tuple[str, bool]:
    """Return the id that the path names, and whether its messages are meant."""
    path = unquote(request.path.removeprefix(f"{PATH}/"))
    id = path.removesuffix(MESSAGES)
    return id, id != path


def _list_messages(row: AnswerRow, query: Query) -> dict[str, Any]:
    return page_of(numbered_messages(row), query, "asc")


def _read_filter(query: Query) -> Mapping[str, str]:
    """Return the pairs of ``metadata[key]=value``.  Raises ``ApiError``: 400."""
    pairs = {
        name.removeprefix("metadata[").removesuffix("]"): values[0]
        for name, values in query.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if "metadata" in query:
        raise errors.bad_field("metadata", "'metadata' must be written as metadata[key]=value.")
    check_metadata(pairs)
    return pairs
