"""Repair of an engine's JSON that not every client can read."""

from __future__ import annotations

import re

import msgspec

from fabric_client.translation.chunks import NO_FINISH
from fabric_client.translation.lenient_chunks import (
    UnreadableChunk,
    count_of,
    decode_leniently,
    printable_values,
    text_of,
)
from fabric_client.translation.lenient_json import Json
from runtime.engine_errors import find_error

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
BOM = b"\xef\xbb\xbf"
_N, _I, _BACKSLASH = b"NI\\"


def is_sound(data: bytes) -> bool:
    """Return whether JSON, or events of it, are UTF-8 without NaN, infinities and surrogates.

    A cheap look: words in a text may make it False, and the JSON is decoded then.  A single byte is
    found ten times as fast as a word, so that comes first; a word that is not there is missed three
    times as fast by ``rfind`` as by ``in``.
    """
    if (_N in data and data.rfind(b"NaN") >= 0) or (_I in data and data.rfind(b"Infinity") >= 0):
        return False
    if _BACKSLASH in data and data.rfind(b"\\u") >= 0 and _HALF.search(data):
        return False
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return BOM not in data


def repair(data: bytes) -> bytes | None:
    """Return a chat completion, or a chunk of one, in a form that any client can read.

    None if it is none, or is an error.
    """
    try:
        document = decode_leniently(data)
    except UnreadableChunk:
        return None
    if not isinstance(document, dict) or "choices" not in document or find_error(document):
        return None
    fields: Json = printable_values(document)
    choices = fields["choices"]
    rows = choices if isinstance(choices, list) else [choices]
    fields["choices"] = [_choice(place, row) for place, row in enumerate(rows) if row is not None]
    if not isinstance(fields.get("usage"), dict):
        fields.pop("usage", None)
    return msgspec.json.encode(fields)


def _choice(place: int, row: object) -> Json:
    """Return a choice whose fields have the types that clients expect; unknown ones stay."""
    choice: Json = dict(row) if isinstance(row, dict) else {}
    index, finish = choice.get("index"), choice.get("finish_reason")
    choice["index"] = place if index is None else count_of(index)
    if not isinstance(finish, str) or finish in NO_FINISH:
        choice["finish_reason"] = None
    for name in ("delta", "message"):
        if name in choice:
            choice[name] = _message(choice[name])
    return choice


def _message(value: object) -> Json:
    if not isinstance(value, dict):
        text = text_of(value)
        return {"content": text} if text else {}
    message: Json = dict(value)
    for name in ("content", "reasoning", "reasoning_content", "refusal"):
        if not isinstance(message.get(name), str | None):
            message[name] = text_of(message[name])
    calls = message.get("tool_calls")
    if calls is not None:
        rows = calls if isinstance(calls, list) else [calls]
        message["tool_calls"] = [_call(row) for row in rows if isinstance(row, dict)]
    return message


def _call(row: Json) -> Json:
    call = dict(row)
    if call.get("index") is not None:
        call["index"] = count_of(call["index"])
    function = call.get("function")
    if isinstance(function, dict):
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = msgspec.json.encode(arguments).decode()
        call["function"] = {
            **function,
            "arguments": arguments if isinstance(arguments, str) else "",
        }
    return call
