"""Errors in the format of Anthropic's Messages API."""

from __future__ import annotations

import msgspec

from fabric_client.translation.engine_errors import is_context_overflow

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def encode_error(status: int, message: str) -> bytes:
    """Return the body of an error response, or the data of an ``error`` event."""
    if status == 400 and is_context_overflow(message):
        message = f"prompt is too long: {message}"  # Claude Code then shortens the conversation
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
