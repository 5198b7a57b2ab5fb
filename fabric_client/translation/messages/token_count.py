"""The answer to ``POST /v1/messages/count_tokens``, from that of vLLM's /tokenize."""

from __future__ import annotations

import msgspec

from fabric_client.translation import Headers
from fabric_client.translation.collector import BodyCollector
from fabric_client.translation.lenient_json import get_text
from fabric_client.translation.messages.errors import encode_error


class TokenCountTranslator:
    """``fabric_client.translation.ResponseFilter``."""

    def __init__(self) -> None:
        self.decided: tuple[int, Headers] | None = None
        self._status = 200
        self._body = BodyCollector()

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        self._status = status
        return None if status < 300 else (status, [("content-type", "application/json")])

    def feed(self, data: bytes) -> bytes:
        self._body.add(data)
        return b""

    def end(self) -> bytes:
        document = self._body.document(self._status)
        count, status = document.get("count"), self._status
        good = status < 300 and type(count) is int and count >= 0
        status = 502 if status < 300 and not good else status
        self.decided = status, [("content-type", "application/json")]
        if good:
            return msgspec.json.encode({"input_tokens": count})
        reason = get_text(document, "error") or "the engine sent a token count that can't be read"
        return encode_error(status, reason)
