"""Errors in the format of Anthropic's Messages API."""

from __future__ import annotations

import msgspec

from runtime.engine_errors import EngineError


def encode_error(status: int, message: str) -> bytes:
    """Return the body of an error response, or the data of an ``error`` event."""
    return msgspec.json.encode(EngineError(status, message, "").anthropic())
