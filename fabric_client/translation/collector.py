"""Collecting a response that is translated as a whole."""

from __future__ import annotations

import msgspec

from fabric_client.translation import Headers
from fabric_client.translation.lenient_json import Json, decode_object
from runtime.engine_errors import find_error

MAX_BODY = 64 * 2**20
"""Bytes of an unstreamed answer; a longer one is discarded."""


class BodyCollector:
    """The body of a response, up to ``MAX_BODY``."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._too_long = False

    def add(self, data: bytes) -> None:
        if self._too_long or len(self._data) + len(data) > MAX_BODY:
            self._too_long = True
            self._data.clear()
        else:
            self._data += data

    @property
    def data(self) -> bytes:
        """The bytes that came; empty if they were too many."""
        return b"" if self._too_long else bytes(self._data)

    def document(self, status: int) -> Json:
        """Return the engine's document, or ``{"error": "…"}`` with its message or one of ours."""
        if self._too_long:
            return {"error": f"the engine's answer is longer than {MAX_BODY >> 20} MiB"}
        document = decode_object(bytes(self._data))
        if document is None:
            text = bytes(self._data[:1000]).decode("utf-8", "replace").strip()
            if status == 200 or not text.isprintable() or text.startswith("<"):
                text = ""
            return {"error": text or f"the engine's answer can't be read (status {status})"}
        problem = find_error(document)
        if problem is None and status != 200:
            problem = f"the engine answered with status {status}"
        return document if problem is None else {"error": problem}


class CollectingFilter:
    """A ``ResponseFilter`` of Ollama's dialect that collects the response and translates it.

    An answer with status 200 that is an error, or can't be read, gets status 502.
    """

    def __init__(self) -> None:
        self.decided: tuple[int, Headers] | None = None
        self._body = BodyCollector()
        self._status = 200
        self._headers: Headers = []

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        self._status = status
        kept = [(name, value) for name, value in headers if name == "retry-after"]
        self._headers = [("content-type", "application/json; charset=utf-8"), *kept]
        return None if status < 300 else (status, self._headers)

    def feed(self, data: bytes) -> bytes:
        self._body.add(data)
        return b""

    def end(self) -> bytes:
        document = self._body.document(self._status)
        failed = "error" in document
        status = 502 if failed and self._status < 300 else self._status
        self.decided = status, self._headers
        return msgspec.json.encode(document if failed else self.translate(document))

    def translate(self, document: Json) -> object:
        """Return the user's document for an engine's that is no error."""
        raise NotImplementedError
