"""Replies that a node makes by itself, in the dialect of the path."""

from __future__ import annotations

import msgspec

from fabric_client.translation import LocalReply

_ANTHROPIC_TYPES = {413: "request_too_large"}
_OPENAI_CODES = {413: "body_too_large"}


def error_reply(path: str, status: int, message: str, param: str = "") -> LocalReply:
    """Return an error; ``param`` is the field of the user's body that is at fault, if one is."""
    document: object
    if path.startswith("/api/"):
        document = {"error": message}
    elif path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error")
        document = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        error = {"message": message, "type": "invalid_request_error", "param": param or None}
        document = {"error": {**error, "code": _OPENAI_CODES.get(status)}}
    return json_reply(document, status)


def json_reply(document: object, status: int = 200) -> LocalReply:
    return LocalReply(status, [("content-type", "application/json")], msgspec.json.encode(document))
