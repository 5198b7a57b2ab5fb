"""Engines' errors within a stream, in the form that clients of OpenAI's API know."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from runtime.private_places import hide_places

_MAX_MESSAGE = 2000
"""Characters of a message that are shown."""
_WORD = re.compile(r"[a-z][a-z0-9_.]{1,63}")
_KIND = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
_PARAM = re.compile(r"[\w.\[\]-]{1,100}", re.ASCII)
_NAME = re.compile(rb"event: ?[a-z][a-z_.]{0,63}\r?\n")
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def tell_error(event: bytes, data: bytes) -> bytes:
    """Return an engine's error as an event with a word as ``code``, and without places of the node.

    ``data`` is the JSON in the event; one that can't be read as an error is returned as it is.
    """
    try:
        document = msgspec.json.decode(data)
    except _UNREADABLE:
        return event
    if not isinstance(document, dict):
        return event
    error = document.get("error") or document
    fields: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message") or fields.get("detail")
    if not isinstance(message, str):
        message = "The engine reported an error."
    code, kind, param = (fields.get(name) for name in ("code", "type", "param"))
    told = {
        "message": hide_places(message)[:_MAX_MESSAGE],
        "type": kind if isinstance(kind, str) and _KIND.fullmatch(kind) else "server_error",
        "param": param if isinstance(param, str) and _PARAM.fullmatch(param) else None,
        "code": code if isinstance(code, str) and _WORD.fullmatch(code) else "engine_error",
    }
    dialect = {"type": "error"} if document.get("type") == "error" else {}
    name = _NAME.match(event)
    return b"%bdata: %b\n\n" % (
        b"" if name is None else name[0],
        msgspec.json.encode({**dialect, "error": told}),
    )
