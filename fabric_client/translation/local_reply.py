"""Replies that a node makes by itself, in the dialect of the path."""

from __future__ import annotations

import msgspec

from fabric_client.translation import LocalReply
from fabric_client.translation.messages.errors import encode_error
from runtime.engine_errors import EngineError

_JSON = [("content-type", "application/json")]
_CODES = {413: "body_too_large"}


def error_reply(
    path: str, status: int, message: str, param: str = "", code: str = ""
) -> LocalReply:
    """Return an error; ``param`` is the field of the user's body that is at fault, if one is."""
    if path.startswith("/api/"):
        return json_reply({"error": message}, status)
    if path.startswith("/v1/messages"):
        return LocalReply(status, _JSON, encode_error(status, message))
    code = code or _CODES.get(status, "invalid_value")
    return json_reply(EngineError(status, message, code, param or None).openai(), status)


def json_reply(document: object, status: int = 200) -> LocalReply:
    return LocalReply(status, _JSON, msgspec.json.encode(document))
