"""Small changes for engines that speak the user's dialect themselves.

A body is parsed only if a few bytes in it show that there is something to change.  Translators are
functions that can be pickled: large bodies are translated in another process.
"""

from __future__ import annotations

import base64
import re
from array import array
from functools import partial
from typing import Any

import msgspec

from fabric_client.translation import (
    Headers,
    RequestTranslator,
    TranslatedRequest,
    TranslationError,
)
from fabric_client.translation.collector import BodyCollector, CollectingFilter
from fabric_client.translation.lenient_json import (
    Json,
    get_object,
    get_objects,
    get_text,
)
from fabric_client.translation.ollama.history import as_ollama_history

_DEVELOPER_ROLE = re.compile(rb'"role"\s*:\s*"developer"')
_TOKEN_IDS = re.compile(rb'"input"\s*:\s*\[\s*[\[\d]')
_WITHOUT_TOKEN_IDS = frozenset({"ollama", "lm-studio"})
"""Kinds whose embeddings take no token ids: they answer status 200 without embeddings."""


def chat(body: bytes) -> TranslatedRequest:
    """Rename the role ``developer``, OpenAI's newer name, to ``system``.

    Chat templates don't know the new name: they leave the message out, or fail.
    """
    if body.rfind(b'"developer"') >= 0 and _DEVELOPER_ROLE.search(body):
        body = _with_system_role(body)
    return TranslatedRequest("/v1/chat/completions", body, None)


def _with_system_role(body: bytes) -> bytes:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        messages = msgspec.json.decode(fields["messages"], type=list[dict[str, msgspec.Raw]])
    except (ValueError, KeyError, RecursionError):
        return body  # the engine reports what is wrong with it
    for message in messages:
        if bytes(message.get("role", b"")) == b'"developer"':
            message["role"] = msgspec.Raw(b'"system"')
    fields["messages"] = msgspec.Raw(msgspec.json.encode(messages))
    return msgspec.json.encode(fields)


def embeddings(kind: str) -> RequestTranslator:
    """Return the translator of ``/v1/embeddings`` for an engine of this kind.

    OpenAI's clients ask for base64, which not every engine knows; LangChain's send token ids.
    """

    return partial(_embeddings, kind)


def _embeddings(kind: str, body: bytes) -> TranslatedRequest:
    if kind in _WITHOUT_TOKEN_IDS and _TOKEN_IDS.search(body):
        raise TranslationError(
            "input",
            "'input' must be text: the engine that serves this model takes no token ids. "
            "In LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False.",
        )
    encoder = _Base64Encoder() if b'"base64"' in body and _asks_base64(body) else None
    return TranslatedRequest("/v1/embeddings", body, encoder)


def _asks_base64(body: bytes) -> bool:
    try:
        return get_text(msgspec.json.decode(body), "encoding_format") == "base64"
    except (ValueError, RecursionError):
        return False


def ollama_chat(body: bytes) -> TranslatedRequest:
    """Read a conversation for Ollama itself that is written as for OpenAI's API."""
    return TranslatedRequest("/api/chat", as_ollama_history(body), None)


def unchanged(path: str) -> RequestTranslator:
    """Return the translator that changes nothing, for requests that are to be read whole."""
    return partial(_unchanged, path)


def _unchanged(path: str, body: bytes) -> TranslatedRequest:
    return TranslatedRequest(path, body, None)


def show(body: bytes) -> TranslatedRequest:
    """Hide directories in ``/api/show``: a Modelfile's paths often contain the owner's name."""
    return TranslatedRequest("/api/show", body, _ShowFilter())


class _Base64Encoder:
    """Encodes embeddings that are lists of numbers; an answer without such passes as it is."""

    def __init__(self) -> None:
        self.decided: tuple[int, Headers] | None = None
        self._body = BodyCollector()
        self._status = 200
        self._headers: Headers = []

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        self._status = status
        self._headers = [one for one in headers if one[0] != "content-length"]
        return None if status == 200 else (status, headers)

    def feed(self, data: bytes) -> bytes:
        if self._status != 200:
            return data
        self._body.add(data)
        return b""

    def end(self) -> bytes:
        if self._status != 200:
            return b""
        document = self._body.document(self._status)
        self.decided = 502 if "error" in document else 200, self._headers
        rows = get_objects(document, "data")
        lists = [row for row in rows if isinstance(row.get("embedding"), list)]
        if not lists:
            return self._body.data or msgspec.json.encode(document)
        for row in lists:
            row["embedding"] = _encode_floats(row["embedding"])
        return msgspec.json.encode(document)


def _encode_floats(numbers: list[Any]) -> object:
    """Encode as OpenAI does: 32-bit floats, little-endian."""
    try:
        floats = array("f", numbers)
    except (TypeError, OverflowError):
        return numbers
    if floats.itemsize == 4 and array("H", [1]).tobytes() == b"\0\1":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


_FILE = re.compile(r"^(\s*(?:#\s*)?(?:FROM|ADAPTER)\s+).*[/\\]([^/\\]+?)\s*$", re.IGNORECASE)


class _ShowFilter(CollectingFilter):
    def translate(self, document: Json) -> object:
        if modelfile := get_text(document, "modelfile"):
            lines = modelfile.split("\n")
            document["modelfile"] = "\n".join(_FILE.sub(r"\1\2", line) for line in lines)
        if "parent_model" in get_object(document, "details"):
            parent = get_text(document["details"], "parent_model")
            document["details"]["parent_model"] = re.split(r"[/\\]blobs[/\\]", parent)[-1]
        return document
