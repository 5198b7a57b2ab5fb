"""Parses the few fields of a multipart form (RFC 7578) that the fabric needs.

Ambiguous forms, which an engine might read differently, are refused: a request must not be
authorised for one model and served by another.  So are fields that say where a file is: an engine
would open it in its owner's network.  The bytes of files are never looked at.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.media import FORM_FIELDS, fold
from fabric_server.dialects.media_values import is_foreign, refused

MAX_PARTS = 100
_MAX_HEAD = 4096
"""Limit of one part's headers, in bytes."""
_MAX_FIELD = 1024
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


def read_form(body: bytes, content_type: bytes, wanted: frozenset[str]) -> dict[str, Field]:
    """Find the values of the ``wanted`` fields.  Raises ``ApiError``."""
    found = _BOUNDARY.match(content_type.strip())
    if found is None:
        raise _unreadable("its content-type must be 'multipart/form-data; boundary=…'")
    mark = b"--" + (found[1] or found[2])
    if not body.startswith(mark):
        raise _unreadable("it does not begin with its boundary")
    fields: dict[str, Field] = {}
    at = len(mark)
    for _ in range(MAX_PARTS):
        if body.startswith(b"--", at):
            return fields
        if not body.startswith(b"\r\n", at):
            raise _unreadable("a boundary is followed by other text")
        head_ends = body.find(b"\r\n\r\n", at, at + _MAX_HEAD)
        if head_ends < 0:
            raise _unreadable("the headers of a part are too long")
        name = _name(body[at:head_ends])
        start = head_ends + 4
        stop = body.find(b"\r\n" + mark, start)
        if stop < 0:
            raise _unreadable("its last boundary is missing")
        plain = fold(name.strip())
        _refuse_reference(plain, body[at:head_ends], body[start : min(stop, start + _MAX_LINK)])
        if plain in wanted:
            if name != plain or plain in fields:
                raise errors.bad_field(plain, f"'{plain}' must be given once, in lower case.")
            fields[plain] = Field(start, stop)
        at = stop + 2 + len(mark)
    raise _unreadable(f"it has more than {MAX_PARTS} parts")


def read_field(body: bytes, fields: dict[str, Field], name: str) -> str | None:
    """Return the value of a field; None when it is missing."""
    field = fields.get(name)
    if field is None:
        return None
    if field.stop - field.start > _MAX_FIELD:
        raise errors.bad_field(name, f"'{name}' is longer than {_MAX_FIELD} bytes.")
    try:
        return body[field.start : field.stop].decode()
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
