"""What is done even for engines that speak the user's dialect: little, and only where it must be.

Bodies are not touched unless a few bytes in them say that there is something to do.
"""

from __future__ import annotations

import base64
import re
from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from fabric_client.translation import Headers, TranslatedRequest, TranslationError
from fabric_client.translation.collector import BodyCollector, CollectingTranslator
from fabric_client.translation.lenient_json import Json, inner, rows, said, text
from fabric_client.translation.messages.encoder import refused

_ROLE = re.compile(rb'"role"\s*:\s*"developer"')
_TOKENS = re.compile(rb'"input"\s*:\s*\[\s*[\[\d]')
_NO_TOKENS = frozenset({"ollama", "lm-studio"})
"""Kinds whose embeddings take no token ids: they answer them with nothing, and call it success."""


def chat(body: bytes) -> TranslatedRequest:
    """``developer`` is OpenAI's newer word for ``system``.  Chat templates don't know it: they
    leave the message out, or fail."""
    if _ROLE.search(body):
        body = _renamed(body)
    return TranslatedRequest("/v1/chat/completions", body, None)


def _renamed(body: bytes) -> bytes:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        messages = msgspec.json.decode(fields["messages"], type=list[dict[str, msgspec.Raw]])
    except (ValueError, KeyError, RecursionError):
        return body  # the engine says what is wrong with it
    for message in messages:
        if bytes(message.get("role", b"")) == b'"developer"':
            message["role"] = msgspec.Raw(b'"system"')
    fields["messages"] = msgspec.Raw(msgspec.json.encode(messages))
    return msgspec.json.encode(fields)


def embeddings(kind: str) -> Callable[[bytes], TranslatedRequest]:
    """For an engine of that kind.  The official clients ask for base64, whether or not the engine
    knows the word; LangChain's send token ids."""

    def translate(body: bytes) -> TranslatedRequest:
        if kind in _NO_TOKENS and _TOKENS.search(body):
            raise TranslationError(
                "input",
                "The engine which serves this model takes text, not token ids. Send strings; in "
                "LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False.",
            )
        answer = _Base64Encoder() if b'"base64"' in body and _asks_base64(body) else None
        return TranslatedRequest("/v1/embeddings", body, answer)

    return translate


def _asks_base64(body: bytes) -> bool:
    try:
        return text(msgspec.json.decode(body), "encoding_format") == "base64"
    except (ValueError, RecursionError):
        return False


def ollama(path: str) -> Callable[[bytes], TranslatedRequest]:
    """For Ollama's own paths: how long a model stays in memory is its owner's business.  Without
    this any user could pin one there, or throw out what others use."""

    def translate(body: bytes) -> TranslatedRequest:
        if b'"keep_alive"' in body:
            body = _without("keep_alive", body)
        return TranslatedRequest(path, body, None)

    return translate


def _without(name: str, body: bytes) -> bytes:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return body  # the engine says what is wrong with it
    return body if fields.pop(name, None) is None else msgspec.json.encode(fields)


def show(body: bytes) -> TranslatedRequest:
    """A Modelfile names the files of the model, and with them often their owner."""
    return TranslatedRequest("/api/show", body, _ShowFilter())


def messages(path: str) -> Callable[[bytes], TranslatedRequest]:
    """Some engines speak Anthropic's dialect until something is wrong, and say that in OpenAI's."""
    return lambda body: TranslatedRequest(path, body, _ErrorTranslator())


class _ErrorTranslator:
    """Puts an engine's error in Anthropic's shape, unless it is; all else passes untouched."""

    def __init__(self) -> None:
        self._whole = BodyCollector()
        self._status = 200

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        if status < 400:
            return status, headers
        kept = [(name, value) for name, value in headers if name == "retry-after"]
        return status, [("content-type", "application/json"), *kept]

    def feed(self, data: bytes) -> bytes:
        if self._status < 400:
            return data
        self._whole.add(data)
        return b""

    def end(self) -> bytes:
        if self._status < 400:
            return b""
        data = self._whole.data
        if (said(data) or {}).get("type") == "error":
            return data
        return refused(self._status, text(self._whole.document(self._status), "error"))


class _Base64Encoder:
    """Passes on what has no lists of numbers; encodes them where it has."""

    def __init__(self) -> None:
        self._whole = BodyCollector()
        self._status = 200

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        if status != 200:
            return status, headers
        return status, [one for one in headers if one[0] != "content-length"]

    def feed(self, data: bytes) -> bytes:
        if self._status != 200:
            return data
        self._whole.add(data)
        return b""

    def end(self) -> bytes:
        if self._status != 200:
            return b""
        document = self._whole.document(self._status)
        lists = [row for row in rows(document, "data") if isinstance(row.get("embedding"), list)]
        if not lists:
            return self._whole.data or msgspec.json.encode(document)
        for row in lists:
            row["embedding"] = _encoded(row["embedding"])
        return msgspec.json.encode(document)


def _encoded(numbers: list[Any]) -> object:
    """As OpenAI does: 32-bit floats, little end first."""
    try:
        floats = array("f", numbers)
    except (TypeError, OverflowError):
        return numbers
    if floats.itemsize == 4 and array("H", [1]).tobytes() == b"\0\1":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


_FILE = re.compile(r"^(\s*(?:FROM|ADAPTER)\s+).*[/\\]([^/\\\s]+)\s*$", re.IGNORECASE)


class _ShowFilter(CollectingTranslator):
    def told(self, document: Json) -> object:
        if modelfile := text(document, "modelfile"):
            lines = modelfile.split("\n")
            document["modelfile"] = "\n".join(_FILE.sub(r"\1\2", line) for line in lines)
        if "parent_model" in inner(document, "details"):
            parent = text(document["details"], "parent_model")
            document["details"]["parent_model"] = re.split(r"[/\\]blobs[/\\]", parent)[-1]
        return document
