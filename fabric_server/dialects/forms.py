"""Parses the few fields of a multipart form (RFC 7578) that the fabric needs.

Ambiguous forms, which an engine might read differently, are refused: a request must not be
authorised for one model and served by another.  So are fields that say where a file is: an engine
would open it in its owner's network.  Files are only searched for the next boundary.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.media import FORM_FIELDS, fold
from fabric_server.dialects.media_values import is_foreign, refused

MAX_PARTS = 100
_MAX_HEAD = 4096
"""Limit of one part's headers, in bytes."""
MAX_FIELD = 1024
"""Limit of a value that is read, in bytes."""
_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;\s*boundary=(?:"([^"\\]{1,70})"|([^\s";,]{1,70}))\s*\Z', re.I
)
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:([^\r\n]*)", re.I)
_NAME = re.compile(rb'form-data;(?:.*;)?\s*name="([^"\\]*)"(?:\s*;.*)?\Z', re.I)
_FILENAME = re.compile(rb"(?<![a-z])filename\*?\s*=", re.I)
_MAX_LINK = 1024
"""Bytes of a value in which a URL or path is looked for."""
_NAMES = re.compile(rb"(?<![a-z])name\*?\s*=", re.I)


class Field(NamedTuple):
    start: int
    stop: int
    """Offsets of the value in the body."""
    text: bytes
    """The value, or the beginning of one that is too long."""


class FormScanner:
    """Finds the values of the wanted fields while the form arrives, in one pass.

    ``feed`` it the pieces, then call ``end``; both raise ``ApiError``.  It keeps no more than the
    headers of one part and the wanted values.
    """

    def __init__(self, content_type: bytes, wanted: frozenset[str]) -> None:
        found = _BOUNDARY.match(content_type.strip())
        if found is None:
            raise _unreadable("its content-type must be 'multipart/form-data; boundary=…'")
        self.fields: dict[str, Field] = {}
        self._wanted = wanted
        self._mark = b"\r\n--" + (found[1] or found[2])
        self._text = bytearray(b"\r\n")  # the first boundary has no line before it
        self._offset = -2
        """Where the text that is kept begins in the body."""
        self._searched = 0
        """Bytes of the text that were searched, and where what is searched for does not begin."""
        self._parts = 0
        self._name = ""
        self._head = b""
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
        self._head = bytes(text[:ends])
        name = _name(self._head)
        plain = self._name = fold(name.strip())
        if plain in self._wanted and (name != plain or plain in self.fields):
            raise errors.bad_field(plain, f"'{plain}' must be given once, in lower case.")
        self._value.clear()
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
        _refuse_reference(self._name, self._head, bytes(value[:_MAX_LINK]))
        if self._name in self._wanted:
            self.fields[self._name] = Field(self._start, self._offset + stop, bytes(value))
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


def put_field(body: bytes, content_type: bytes, name: str, text: str) -> bytes:
    """Return a form with one more field; unchanged if it has that, or can't be read."""
    found = _BOUNDARY.match(content_type.strip())
    if found is None:
        return body
    mark = b"--" + (found[1] or found[2])
    try:
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


def _refuse_reference(name: str, head: bytes, value: bytes) -> None:
    """Refuse a field that says where a file is, instead of the file itself."""
    if name in FORM_FIELDS and value.strip():
        raise refused(name, value.decode(errors="replace"), "send the file itself in 'file'")
    if name == "file" and _FILENAME.search(head) is None:
        text = value.decode("latin-1")
        if is_foreign(text):
            raise refused(name, text, "it must be a file, with a filename")


def _name(head: bytes) -> str:
    dispositions = _DISPOSITION.findall(head)
    if len(dispositions) == 1:
        given = dispositions[0].strip()
        name = _NAME.match(given)
        if name is not None and len(_NAMES.findall(given)) == 1:
            return name[1].decode("latin-1")
    raise _unreadable("each part needs one content-disposition with one plain name")


def _unreadable(detail: str) -> ApiError:
    return errors.bad_request_body(f"Invalid multipart form: {detail}.")
