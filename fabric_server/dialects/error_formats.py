"""Error bodies and error events in each dialect of the public port.

OPENAI     {"error": {"message", "type", "param", "code"}}, in a stream an event without a name
RESPONSES  the same, in a stream an event called ``error`` with the fields at its top as well
ANTHROPIC  {"type": "error", "error": {"type", "message"}, "request_id"}, an event called ``error``
OLLAMA     {"error": "text"}, in a stream its last line; with 401 the same text as ``status``
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

import msgspec

_encode = msgspec.json.Encoder().encode
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Dialect(Enum):
    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"

    @property
    def separator(self) -> bytes:
        """The bytes that end a torn part of a stream, so that another part can follow."""
        return b"\n" if self is Dialect.OLLAMA else b"\n\n"


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def dialect_of(path: str, headers: Mapping[bytes, bytes]) -> Dialect:
    """Return the dialect of a request, whether or not its path exists."""
    if path.startswith(("/api/", "/ollama/")) or path in ("/api", "/ollama"):
        return Dialect.OLLAMA
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    if path == "/v1/responses" or path.startswith("/v1/responses/"):
        return Dialect.RESPONSES
    # Both have /v1/models; only clients of the one name a version.
    return Dialect.ANTHROPIC if b"anthropic-version" in headers else Dialect.OPENAI


class ErrorDetails(Protocol):
    """The fields of an error; ``type``, ``code`` and ``param`` are as in OpenAI's API."""

    status: int
    message: str
    type: str
    code: str
    param: str | None
    ollama_message: str | None


def error_body(dialect: Dialect, error: ErrorDetails, request_id: str = "") -> bytes:
    """Encode ``error`` as the JSON body that clients of the dialect expect."""
    message, status = error.message, error.status
    if dialect is Dialect.OLLAMA:
        message = error.ollama_message or message
        # Ollama's program shows only ``status`` of a 401 (AuthorizationError in api/types.go).
        status_field = {"status": message} if status == 401 else {}
        return _encode({"error": message, **status_field})
    if dialect is Dialect.ANTHROPIC:
        usual = "api_error" if status >= 500 else "invalid_request_error"
        fields = {"type": _ANTHROPIC_TYPES.get(status, usual), "message": message}
        return _encode({"type": "error", "error": fields, "request_id": request_id})
    return _encode(
        {
            "error": {
                "message": message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def error_event(dialect: Dialect, body: bytes, after: bytes = b"") -> bytes | None:
    """Return an error's body as part of a stream; None when clients would not recognise it.

    ``after`` is the end of the stream so far.
    """
    try:
        value = msgspec.json.decode(body)
    except _UNREADABLE:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    if not error:
        return None
    # Line ends can't be within a JSON string, only between its parts.
    body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    if dialect is Dialect.OLLAMA:
        return body + b"\n"
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + body + b"\n\n"
    if dialect is Dialect.RESPONSES:
        return b"event: error\ndata: " + _encode(_flat(error, after)) + b"\n\n"
    return b"data: " + body + b"\n\n"


def _flat(error: Any, after: bytes) -> dict[str, Any]:
    """Return the event of the Responses API: fields at the top as documented, and ``error``.

    The API sends ``error`` besides, and the official clients raise because of it: without it a
    program that only reads deltas would see a short answer.
    """
    numbers = _NUMBER.findall(after)
    number = int(numbers[-1]) + 1 if numbers else 0
    if not isinstance(error, dict):
        error = {"message": str(error)}
    fields = {name: error.get(name) for name in ("code", "message", "param")}
    return {"type": "error", **fields, "sequence_number": number, "error": error}
