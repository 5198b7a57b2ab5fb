"""How a node says no by itself, in the dialect that the path is of."""

from __future__ import annotations

import msgspec

from fabric_client.translation import LocalReply

_ANTHROPIC = {413: "request_too_large"}
_OPENAI = {413: "body_too_large"}


def refusal(path: str, status: int, message: str, param: str = "") -> LocalReply:
    """``param`` is the field of the user's body that is at fault, if one is."""
    error: object
    if path.startswith("/api/"):
        error = {"error": message}
    elif path.startswith("/v1/messages"):
        kind = _ANTHROPIC.get(status, "invalid_request_error")
        error = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        told = {"message": message, "type": "invalid_request_error", "param": param or None}
        error = {"error": {**told, "code": _OPENAI.get(status)}}
    return json_reply(error, status)


def json_reply(document: object, status: int = 200) -> LocalReply:
    return LocalReply(status, [("content-type", "application/json")], msgspec.json.encode(document))
