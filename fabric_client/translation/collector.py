"""Answers that are read whole before anything of them is said in another dialect."""

from __future__ import annotations

import msgspec

from fabric_client.translation import Headers
from fabric_client.translation.lenient_json import Json, complaint, said

MAX_ANSWER = 64 * 2**20
"""Bytes of an unstreamed answer; a longer one is not kept."""


class BodyCollector:
    """What has come of an answer, up to a limit."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._too_long = False

    def add(self, data: bytes) -> None:
        if self._too_long or len(self._data) + len(data) > MAX_ANSWER:
            self._too_long = True
            self._data.clear()
        else:
            self._data += data

    @property
    def data(self) -> bytes:
        """As it came; empty when it was too long."""
        return b"" if self._too_long else bytes(self._data)

    def document(self, status: int) -> Json:
        """What the engine said, or ``{"error": "…"}`` with its words or ours for what is wrong."""
        if self._too_long:
            return {"error": f"the engine's answer is longer than {MAX_ANSWER >> 20} MiB"}
        document = said(bytes(self._data))
        if document is None:
            words = bytes(self._data[:1000]).decode("utf-8", "replace").strip()
            if status == 200 or not words.isprintable() or words.startswith("<"):
                words = ""
            return {"error": words or f"the engine's answer can't be read (its status is {status})"}
        problem = complaint(document)
        if problem is None and status != 200:
            problem = f"the engine answered {status}"
        return document if problem is None else {"error": problem}


class CollectingTranslator:
    """An ``ResponseFilter`` of Ollama's dialect that comes in one piece; ``told`` makes it."""

    def __init__(self) -> None:
        self._whole = BodyCollector()
        self._status = 200

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        kept = [(name, value) for name, value in headers if name == "retry-after"]
        return status, [("content-type", "application/json; charset=utf-8"), *kept]

    def feed(self, data: bytes) -> bytes:
        self._whole.add(data)
        return b""

    def end(self) -> bytes:
        document = self._whole.document(self._status)
        return msgspec.json.encode(document if "error" in document else self.told(document))

    def told(self, document: Json) -> object:
        """The user's, of an engine's that is no complaint."""
        raise NotImplementedError
