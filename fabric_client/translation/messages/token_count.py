"""The answer to ``POST /v1/messages/count_tokens``, from that of vLLM's /tokenize."""

from __future__ import annotations

import msgspec

from fabric_client.translation import Headers
from fabric_client.translation.chat import body_error_text
from fabric_client.translation.chunks import UNREADABLE
from fabric_client.translation.messages.errors import encode_error


class _Count(msgspec.Struct):
    count: int


_read_count = msgspec.json.Decoder(_Count).decode


class TokenCountTranslator:
    """``fabric_client.translation.ResponseFilter``."""

    def __init__(self) -> None:
        self._status = 200
        self._body = bytearray()

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        return status, [("content-type", "application/json")]

    def feed(self, data: bytes) -> bytes:
        self._body += data
        return b""

    def end(self) -> bytes:
        if self._status >= 400:
            return encode_error(self._status, body_error_text(bytes(self._body)))
        try:
            return msgspec.json.encode({"input_tokens": _read_count(self._body).count})
        except UNREADABLE:
            return encode_error(502, "the engine sent a token count that can't be read")
