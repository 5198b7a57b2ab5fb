"""Filters of answers: the public name for an engine's own, and no private text in errors."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from fabric_client.offer.private_text import PrivateText
from fabric_client.translation import Headers
from fabric_client.translation.collector import CollectingFilter
from fabric_client.translation.lenient_json import (
    Json,
    decode_object,
    get_object,
    get_text,
)
from runtime.engine_errors import find_error

MAX_LINE = 4 * 2**20
"""Bytes of a line, or of a document, that is looked at as a whole."""

_TEXTS = frozenset(
    {
        *("", "text/plain", "application/json", "application/jsonl"),
        *("application/x-ndjson", "text/event-stream"),
    }
)
_NAME = re.compile(
    rb'("(?:model(?:_path|_name|_alias|_id)?|root|parent|parent_model)"\s*:\s*)'
    rb'("(?:[^"\\]|\\.)*")'
)
"""A field with a model's name.  In JSON text a quote inside a string is written ``\\"``, so that
text which a model has written never matches."""
_OPEN = re.compile(rb'"(?:[a-z_]{0,12}|[a-z_]{4,12}"\s{0,8}(?::\s{0,8}(?:"[^"]{0,8192})?)?)\Z')
_FROM = re.compile(r"^[ \t]*(?:#[ \t]*)?(?:FROM|ADAPTER)[ \t].*$", re.IGNORECASE | re.MULTILINE)
"""A line of a Modelfile that names a model or an adapter."""
_ERROR = re.compile(rb'"error"|^error:|"object"\s*:\s*"error"', re.MULTILINE)


class NameFilter:
    """Filter of an answer of an engine that has other names for its models, or hides some.

    Whole lines pass at once, so that streams are not delayed; a document is held until its end.
    """

    decided = None

    def __init__(self, private: PrivateText, own: str, asked: str) -> None:
        """``own`` is the engine's name for the model that was ``asked`` for."""
        self._private = private
        self._own = own
        self._asked = msgspec.json.encode(asked)
        self._renames = own != asked
        self._spelled = b""
        """The engine's name as it wrote it last."""
        self._held = bytearray()
        self._is_document = False
        self.feed: Callable[[bytes], bytes] = self._feed_lines

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        kind = next((value for name, value in headers if name == "content-type"), "")
        kind = kind.partition(";")[0].strip().lower()
        if kind not in _TEXTS:
            self.feed = _pass_through
            return status, headers
        self._is_document = kind == "application/json"
        return status, [one for one in headers if one[0] != "content-length"]

    def end(self) -> bytes:
        return self._change(self._take(len(self._held)))

    def _feed_lines(self, data: bytes) -> bytes:
        held = self._held
        end = 0 if self._is_document else data.rfind(b"\n") + 1
        if not held and end == len(data):
            return self._change(data)
        if end:
            end += len(held)
        held += data
        if len(held) - end > MAX_LINE:
            begun = _OPEN.search(held, max(0, len(held) - 16 * 1024))
            end = begun.start() if begun is not None else len(held)
        return self._change(self._take(end)) if end else b""

    def _take(self, size: int) -> bytes:
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def _change(self, data: bytes) -> bytes:
        if _ERROR.search(data) is not None:
            hide = _hide_line if self._is_document else _hide_lines
            data = hide(self._private, data)
        return _NAME.sub(self._rename, data) if self._renames else data

    def _rename(self, found: re.Match[bytes]) -> bytes:
        value = found[2]
        if value != self._spelled:
            try:
                if msgspec.json.decode(value) != self._own:
                    return found[0]
            except (msgspec.MsgspecError, ValueError):
                return found[0]
            self._spelled = value
        return found[1] + self._asked


class ShowFilter(CollectingFilter):
    """Filter of ``/api/show`` that leaves out which models that are held back it was made from."""

    def __init__(self, private: PrivateText) -> None:
        super().__init__()
        self._private = private

    def translate(self, document: Json) -> object:
        if modelfile := get_text(document, "modelfile"):
            document["modelfile"] = _FROM.sub(self._hide, modelfile)
        for fields in (document, get_object(document, "details")):
            for name in ("parent_model", "remote_model"):
                if parent := get_text(fields, name):
                    fields[name] = self._private.hide(parent)
        return document

    def _hide(self, found: re.Match[str]) -> str:
        return self._private.hide(found[0])


def _pass_through(data: bytes) -> bytes:
    return data


def _hide_lines(private: PrivateText, data: bytes) -> bytes:
    """Hide what is private in those lines that are errors."""
    return b"".join([_hide_line(private, line) for line in data.splitlines(keepends=True)])


def _hide_line(private: PrivateText, line: bytes) -> bytes:
    begin = 0
    for field in (b"data:", b"error:"):
        if line.startswith(field):
            begin = len(field)
    text = line[begin:].strip()
    if not text:
        return line
    document = decode_object(text)
    if document is not None and not _is_error(document):
        return line
    return line.replace(text, private.hide_in(text), 1)


def _is_error(document: Json) -> bool:
    if document.get("type") == "error" or find_error(document) is not None:
        return True
    return bool(get_object(document, "response").get("error"))  # response.failed
