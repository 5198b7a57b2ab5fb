"""The JSON of stored chat completions: what is kept of a request, the object, its messages."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from fabric_server.dialects.body import read_store, readable
from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.metadata import decode_metadata
from fabric_server.metering.sse import UNREADABLE
from fabric_server.storage.answers import AnswerRow, Shown, metadata_text

_encode = msgspec.json.encode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
read_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_NULL = Raw(b"null")


class _Shown(Struct, gc=False):
    """Fields of a request that its object shows."""

    temperature: Raw = _NULL
    top_p: Raw = _NULL
    seed: Raw = _NULL
    presence_penalty: Raw = _NULL
    frequency_penalty: Raw = _NULL
    tools: Raw = _NULL
    tool_choice: Raw = _NULL
    response_format: Raw = _NULL
    user: Raw = _NULL


class _Body(_Shown, gc=False):
    store: Raw | UnsetType = UNSET
    metadata: Raw = _NULL
    messages: Raw = _NULL


_decode_body = msgspec.json.Decoder(_Body).decode


class AskedChat(Struct, frozen=True):
    """The parts of a request that are stored with its answer."""

    messages: bytes
    """JSON: a list."""
    shown: bytes
    """JSON: an object with fields that are shown with the answer."""
    metadata: str

    @property
    def size(self) -> int:
        return len(self.messages) + len(self.shown) + len(self.metadata)


def read_asked(body: bytes) -> AskedChat | None:
    """Return what is kept of a request; None unless its answer is to be stored, or when that can't
    be read: an engine may be able to.

    Raises ``ApiError``: 400, when ``store`` or the metadata to be stored are wrong.
    """
    try:
        asked = _decode_body(body)
    except UNREADABLE:
        text = readable(body)
        return read_asked(text) if text != body else None
    if asked.store is UNSET or not read_store(bytes(asked.store)):
        return None
    metadata = decode_metadata(bytes(asked.metadata))
    shown = {name: getattr(asked, name) for name in _Shown.__struct_fields__}
    shown["input_user"] = shown.pop("user")
    messages = bytes(asked.messages)
    if not messages.startswith(b"["):  # the engine will say what is wrong with them
        messages = b"[]"
    return AskedChat(_as_utf8(messages), _as_utf8(_encode(shown)), metadata_text(metadata))


def _as_utf8(text: bytes) -> bytes:
    """Return JSON text with all that is no UTF-8 replaced, which msgspec does not look for in parts
    that it skips."""
    return text.decode("utf-8", "replace").encode()


class OtherId(Exception):
    """An answer has not got the server's id."""


def stored_chat(answer: dict[str, Any], more: dict[str, Any], id: str) -> bytes | None:
    """Return a chat completion as it is stored, with ``more`` fields; None when it is none.

    Raises ``OtherId``: an engine's id, which other answers of that engine may have, too.
    """
    try:
        found: Any = answer.get("id")
        found = msgspec.json.decode(found) if isinstance(found, Raw) else found
        choices = _decode_items(_encode(answer.get("choices")))
    except UNREADABLE:
        return None
    if not choices:
        return None
    if found != id:
        raise OtherId
    fields = {**answer, **more, "object": "chat.completion"}
    fields.pop("metadata", None)  # an engine's: those that are stored may change
    return _as_utf8(_encode(fields))


def shown_chat(chat: Shown) -> Raw:
    """Return a stored chat completion with its metadata."""
    return Raw(b'%b,"metadata":%b}' % (chat.answer[:-1], chat.metadata.encode()))


def numbered_messages(row: AnswerRow) -> list[dict[str, Any]]:
    """Return the messages of a stored chat's request, each with an id."""
    found = []
    for number, item in enumerate(_decode_items(row.input)):
        try:
            fields: dict[str, Any] = dict(read_fields(item))
        except UNREADABLE:
            continue
        content = fields.get("content", _NULL)
        parts = content if bytes(content).startswith(b"[") else None
        fields |= {"content": None if parts is not None else content, "content_parts": parts}
        found.append({"name": None, **fields, "id": f"{row.id}-{number}"})
    return found


def not_found(id: str, param: str | None = None) -> ApiError:
    """Return the error for a chat that is unknown, another account's, or expired."""
    shown = "".join(filter(str.isprintable, id))[:128]
    text = (
        f"There is no stored chat completion '{shown}'. Chat completions are stored for a limited "
        "time, and only where their request has 'store': true."
    )
    return ApiError(404, "chat_completion_not_found", text, param=param)
