"""Parses the few fields of a multipart form (RFC 7578) that the fabric needs.

Ambiguous forms, which an engine might read differently, are refused: a request must not be
authorised for one model and served by another.  So are fields that say where a file is: an engine
would open it in its owner's network.  Files are only searched for the next boundary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.media import FORM_FIELDS, fold
from fabric_server.dialects.media_values import is_foreign, refused
from runtime.form_headers import (
    Disposition,
    FormError,
    read_boundary,
    read_charset,
    read_disposition,
)

MAX_PARTS = 100
_MAX_HEAD = 4096
"""Limit of one part's headers, in bytes."""
MAX_FIELD = 1024
"""Limit of a value that is read, in bytes."""
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:([^\r\n]*)", re.I)
_TYPE = re.compile(rb"(?:^|\r\n)content-type:([^\r\n]*)", re.I)
_MAX_LINK = 1024
"""Bytes of a value in which a URL or path is looked for."""


_BARE = re.compile(rb'(?:^|\r\n)content-disposition:[^\r\n]*?[;\s]name=([^"\s;][^\s;]*)', re.I)
"""A name without quotes, as .NET writes it."""


class Field(NamedTuple):
    start: int
    stop: int
    """Offsets of the value in the body, once names have quotes there."""
    text: bytes
    """The value in UTF-8, or the beginning of one that is too long."""


class FormScanner:
    """Finds the values of the wanted fields while the form arrives, in one pass.

    ``feed`` it the pieces, then call ``end``; both raise ``ApiError``.  It keeps no more than the
    headers of one part and the wanted values.
    """

    def __init__(self, content_type: bytes, wanted: frozenset[str]) -> None:
        mark = _mark(content_type)
        self.fields: dict[str, Field] = {}
        self.bare: list[tuple[int, int]] = []
        """Start and stop of the names without quotes, in the body as it came."""
        self._wanted = wanted
        self._mark = b"\r\n" + mark
        self._text = bytearray(b"\r\n")  # the first boundary has no line before it
        self._offset = -2
        """Where the text that is kept begins in the body."""
        self._searched = 0
        """Bytes of the text that were searched, and where what is searched for does not begin."""
        self._parts = 0
        self._name = ""
        self._is_file = False
        self._charset = "utf-8"
        self._value = bytearray()
        """The beginning of a part's value."""
        self._start = 0
        self._state: Callable[[], bool] = self._on_start
        self._problem = "it does not begin with its boundary"
        """What is wrong with a form that ends now."""

    def feed(self, data: bytes) -> None:
        self._text += data
        while self._state():
            pass

    def end(self) -> dict[str, Field]:
        if self._problem:
            raise _unreadable(self._problem)
        return self.fields

    def _cut(self, count: int) -> None:
        del self._text[:count]
        self._offset += count
        self._searched = 0

    # ── states: each returns whether the next one has something to do ─────────────────────────

    def _on_start(self) -> bool:
        if not self._text.startswith(self._mark[: len(self._text)]):
            raise _unreadable(self._problem)
        if len(self._text) < len(self._mark):
            return False
        self._on_boundary()
        return True

    def _on_boundary(self) -> None:
        self._cut(len(self._mark))
        self._state, self._problem = self._on_part, "a boundary is followed by other text"

    def _on_part(self) -> bool:
        text = self._text
        if len(text) < 2:
            return False
        if self._parts == MAX_PARTS:
            raise _unreadable(f"it has more than {MAX_PARTS} parts")
        self._parts += 1
        if text.startswith(b"--"):
            self._state, self._problem = self._on_epilogue, ""
        elif text.startswith(b"\r\n"):
            self._state, self._problem = self._on_head, "the headers of a part are too long"
        else:
            raise _unreadable(self._problem)
        return True

    def _on_head(self) -> bool:
        text = self._text
        ends = text.find(b"\r\n\r\n", self._searched, _MAX_HEAD)
        if ends < 0:
            if len(text) >= _MAX_HEAD:
                raise _unreadable(self._problem)
            self._searched = max(0, len(text) - 3)
            return False
        head = bytes(text[:ends])
        name, filename = _read_disposition(head)
        self._is_file = filename is not None
        plain = self._name = fold(name.strip())
        if plain in self._wanted:
            self._charset = _read_charset(head)
        if plain in self._wanted and (name != plain or plain in self.fields):
            raise errors.bad_field(plain, f"'{plain}' must be given once, in lower case.")
        self._value.clear()
        bare = _BARE.search(head)
        if bare is not None:
            self.bare.append((self._offset + bare.start(1), self._offset + bare.end(1)))
        self._cut(ends + 4)
        self._start = self._offset
        self._state, self._problem = self._on_value, "its last boundary is missing"
        return True

    def _on_value(self) -> bool:
        text, mark = self._text, self._mark
        stop = text.find(mark)
        ready = max(0, len(text) - len(mark) + 1) if stop < 0 else stop
        value = self._value
        if len(value) <= MAX_FIELD:
            value += text[: min(ready, MAX_FIELD + 1 - len(value))]
        if stop < 0:
            self._cut(ready)
            return False
        _refuse_reference(self._name, self._is_file, bytes(value[:_MAX_LINK]))
        if self._name in self._wanted:
            text_of = _to_utf8(bytes(value), self._charset)
            more = 2 * len(self.bare)
            self.fields[self._name] = Field(self._start + more, self._offset + stop + more, text_of)
        self._cut(stop)
        self._on_boundary()
        return True

    def _on_epilogue(self) -> bool:
        self._cut(len(self._text))
        return False


def read_form(body: bytes, content_type: bytes, wanted: frozenset[str]) -> dict[str, Field]:
    """Find the values of the ``wanted`` fields of a whole form.  Raises ``ApiError``."""
    scanner = FormScanner(content_type, wanted)
    scanner.feed(body)
    return scanner.end()


def quote_names(body: bytes, bare: Sequence[tuple[int, int]]) -> bytes:
    """Return a form whose names all have quotes: engines read no others for certain."""
    view, pieces, at = memoryview(body), list[bytes | memoryview](), 0
    for start, stop in bare:
        pieces += (view[at:start], b'"', view[start:stop], b'"')
        at = stop
    return b"".join((*pieces, view[at:]))


def put_field(body: bytes, content_type: bytes, name: str, text: str) -> bytes:
    """Return a form with one more field; unchanged if it has that, or can't be read."""
    try:
        mark = _mark(content_type)
        if name in read_form(body, content_type, frozenset({name})):
            return body
    except ApiError:
        return body
    head = f'\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
    return mark + head.encode() + body


def read_field(fields: dict[str, Field], name: str) -> str | None:
    """Return the value of a field; None when it is missing."""
    field = fields.get(name)
    if field is None:
        return None
    if len(field.text) > MAX_FIELD:
        raise errors.bad_field(name, f"'{name}' is longer than {MAX_FIELD} bytes.")
    try:
        return field.text.decode()
    except UnicodeDecodeError:
        raise errors.bad_field(name, f"'{name}' is not UTF-8 text.") from None


def _refuse_reference(name: str, is_file: bool, value: bytes) -> None:
    """Refuse a field that says where a file is, instead of the file itself."""
    if name in FORM_FIELDS and value.strip():
        raise refused(name, value.decode(errors="replace"), "send the file itself in 'file'")
    if name == "file" and not is_file:
        text = value.decode("latin-1")
        if is_foreign(text):
            raise refused(name, text, "it must be a file, with a filename")


def _mark(content_type: bytes) -> bytes:
    """Return what begins each boundary line.  Raises ``ApiError``."""
    try:
        return b"--" + read_boundary(content_type.decode("latin-1").strip()).encode()
    except FormError as error:
        raise _unreadable(str(error)) from None


def _read_disposition(head: bytes) -> Disposition:
    found = _DISPOSITION.findall(head)
    try:
        if len(found) == 1:
            return read_disposition(found[0].decode("utf-8", "replace").strip())
    except FormError as error:
        raise _unreadable(str(error)) from None
    raise _unreadable("each part needs one content-disposition with one plain name")


def _read_charset(head: bytes) -> str:
    types = _TYPE.findall(head)
    try:
        return read_charset(types[0].decode("latin-1").strip() if types else "")
    except FormError as error:
        raise _unreadable(str(error)) from None


def _to_utf8(value: bytes, charset: str) -> bytes:
    """Return a value in UTF-8; one that is not in its charset as it is, to be refused."""
    if charset == "utf-8" or value.isascii():
        return value
    try:
        return value.decode(charset).encode()
    except UnicodeError:
        return value


def _unreadable(detail: str) -> ApiError:
    return errors.bad_request_body(f"Invalid multipart form: {detail}.")
