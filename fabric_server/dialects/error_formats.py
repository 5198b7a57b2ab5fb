"""Error bodies and error events in each dialect of the public port.

OPENAI     {"error": {"message", "type", "param", "code"}}, in a stream an event without a name
RESPONSES  the same, in a stream an event called ``error`` with the fields at its top as well
ANTHROPIC  {"type": "error", "error": {"type", "message"}, "request_id"}, an event called ``error``
OLLAMA     {"error": "text"}, in a stream its last line; with 401 the same text as ``status``
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

import msgspec

from fabric_server.metering.error_events import flat_error
from runtime.engine_errors import anthropic_type

_encode = msgspec.json.Encoder().encode
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
        fields = {"type": anthropic_type(status), "message": message}
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
        return b"event: error\ndata: " + _encode(flat_error(error, after)) + b"\n\n"
    return b"data: " + body + b"\n\n"
