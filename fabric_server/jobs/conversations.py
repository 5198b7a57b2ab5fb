"""The JSON of stored responses: the items of a request, those before it, the object as shown."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.metering.sse import UNREADABLE
from fabric_server.storage.answers import AnswerRow

_encode = msgspec.json.encode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_id = msgspec.json.Decoder(str | None).decode
_TRUE, _NOTHING = Raw(b"true"), Raw(b"null")


class Asked(Struct, gc=False):
    """The fields of a request that concern stored responses."""

    store: Raw | UnsetType = UNSET
    stream: Raw | UnsetType = UNSET
    previous_response_id: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET

    @property
    def stores(self) -> bool:
        return self.store is not UNSET and bytes(self.store) == b"true"

    @property
    def streams(self) -> bool:
        return self.stream is not UNSET and bytes(self.stream) == b"true"

    def previous(self) -> str | None:
        """Return the id of the response that this one goes on from.  Raises ``ApiError``."""
        given = self.previous_response_id
        if given is UNSET:
            return None
        try:
            value: str | None = _decode_id(given)
        except UNREADABLE:
            text = "'previous_response_id' must be the id of a stored response."
            raise errors.bad_field("previous_response_id", text) from None
        return value

    def items(self) -> list[Raw]:
        """Return the request's own items; a text is a user's message.  Raises ``ApiError``."""
        given = b"[]" if self.input is UNSET else bytes(self.input)
        if given.startswith(b'"'):
            part = _as_part(Raw(given), Raw(b'"user"'))
            return [Raw(_encode({"type": "message", "role": "user", "content": [part]}))]
        try:
            return _decode_items(given)
        except UNREADABLE:
            text = "'input' must be a text or a list of items."
            raise errors.bad_field("input", text) from None


_decode_asked = msgspec.json.Decoder(Asked).decode


def read_asked(body: bytes) -> Asked | None:
    """Return the fields that concern stored responses; None when the body can't be read."""
    try:
        return _decode_asked(body)
    except UNREADABLE:
        return None


def put_together(body: bytes, asked: Asked, before: AnswerRow | None) -> tuple[bytes, bytes]:
    """Return the body for the engine, after the conversation ``before``, and the items to store.

    Raises ``ApiError`` when the body can't be read, or its input is neither a text nor a list.
    """
    if before is None:
        return body, _encode(asked.items()) if asked.stores else b"[]"
    output = _decode_fields(before.answer)["output"]
    items = [*_decode_items(before.input), *_decode_items(output), *asked.items()]
    try:
        fields = _decode_fields(body)
    except UNREADABLE as error:
        raise errors.bad_json(str(error)) from None
    del fields["previous_response_id"]
    return _encode({**fields, "input": items}), _encode(items) if asked.stores else b"[]"


def shown_response(answer: dict[str, Raw], id: str, previous: str | None) -> bytes | None:
    """Return a response as it is stored; None when it has another id, or is none."""
    try:
        found: Any = msgspec.json.decode(answer.get("id", b""))
        _decode_items(answer.get("output", b""))
        status: Any = msgspec.json.decode(answer.get("status", b'"completed"'))
    except UNREADABLE:
        return None
    if found != id or status not in ("completed", "incomplete"):
        return None
    return _encode({**answer, "store": _TRUE, "previous_response_id": previous})


def numbered_items(row: AnswerRow) -> list[dict[str, Any]]:
    """Return the items of a stored response's input, each with an id."""
    found: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(_decode_items(row.input)):
        try:
            fields: dict[str, Any] = dict(_decode_fields(item))
            id = _decode_id(fields.get("id", b"null"))
        except UNREADABLE:
            continue
        if id is None or id in found:  # engines' ids may repeat
            id = f"item_{number}_{row.id}"
        fields = {"type": "message", **fields, "id": id}
        if bytes(content := fields.get("content", _NOTHING)).startswith(b'"'):
            fields["content"] = [_as_part(content, fields.get("role", _NOTHING))]
        found[id] = fields
    return list(found.values())


def _as_part(text: Raw, role: Raw) -> dict[str, Any]:
    """Return a message's text in the longer form, in which clients expect it."""
    if bytes(role) == b'"assistant"':
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def not_found(id: str, param: str | None = None) -> ApiError:
    """Return the error for a response that is unknown, another account's, or expired."""
    shown = "".join(filter(str.isprintable, id))[:128]
    text = (
        f"There is no stored response '{shown}'. Responses are stored for a limited time, and only "
        "where their request has 'store': true."
    )
    return ApiError(404, "response_not_found", text, param=param)


def too_long(limit: int) -> ApiError:
    """Return the error for a conversation that is larger than a request may be."""
    text = (
        f"With the conversation before it, this request is larger than {limit} bytes. Start a new "
        "conversation, without 'previous_response_id'."
    )
    return ApiError(413, "conversation_too_large", text, param="previous_response_id")
