"""Multipart forms (RFC 7578), read strictly and written anew.

Parsers differ in what they make of odd forms.  One that is written anew from what was read has only
one meaning: each part has a name and perhaps a file's name and type, and nothing else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fabric_client.translation import TranslationError
from runtime.form_headers import FormError, read_boundary, read_disposition

FORM_TYPE = re.compile(r"\s*multipart/form-data\b", re.IGNORECASE)
_MAX_PARTS = 256
_MAX_PART_HEAD = 16 * 1024
_PLAIN_NAME = re.compile(r"[\w\[\].:-]+", re.ASCII)
_NOT_IN_FILE_NAMES = re.compile(r'["\\;=]')
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})


class _Part(NamedTuple):
    name: str
    filename: str | None
    kind: str
    content: bytes


class Form:
    """A form that was read; ``encode`` writes it with the same boundary."""

    def __init__(self, boundary: bytes, parts: list[_Part]) -> None:
        self._boundary = boundary
        self._parts = parts

    @property
    def names(self) -> list[str]:
        return [part.name for part in self._parts]

    def value(self, name: str) -> str:
        """Return the text of the one field of this name.  Raises ``TranslationError``."""
        found = [part for part in self._parts if part.name.casefold() == name]
        if not found:
            raise TranslationError(name, f"'{name}' is missing in the form.")
        if len(found) > 1 or found[0].name != name or found[0].filename is not None:
            raise TranslationError(name, f"'{name}' must be given once, in lower case, as a text.")
        try:
            return found[0].content.decode()
        except UnicodeDecodeError:
            raise TranslationError(name, f"'{name}' is not in UTF-8.") from None

    def encode(self, replaced: dict[str, str]) -> bytes:
        """Return the form's body with other texts in the fields that ``replaced`` names."""
        written: list[bytes] = []
        for part in self._parts:
            file = ""
            if part.filename is not None:
                file = f'; filename="{_writable(part.filename, self._boundary.decode())}"'
            head = f'Content-Disposition: form-data; name="{part.name}"{file}\r\n'
            if part.kind:
                head += f"Content-Type: {part.kind}\r\n"
            text = replaced.get(part.name)
            content = part.content if text is None else text.encode()
            written += [b"--", self._boundary, b"\r\n", head.encode(), b"\r\n", content, b"\r\n"]
        return b"".join([*written, b"--", self._boundary, b"--\r\n"])


def read_form(types: list[str], body: bytes) -> Form:
    """Read a form; ``types`` are the values of its Content-Type headers.

    Raises ``TranslationError`` for a form that could be read in two ways.
    """
    try:
        if len(types) != 1:
            raise FormError("it has more than one Content-Type")
        boundary = read_boundary(types[0].strip()).encode()
    except FormError as error:
        raise _wrong(str(error)) from None
    delimiter = b"--" + boundary
    pieces = body.split(delimiter)
    if len(pieces) > _MAX_PARTS + 2:
        raise _wrong(f"it has more than {_MAX_PARTS} parts")
    first, *parts, last = pieces if len(pieces) > 1 else (b"x", b"")
    if first.strip(b"\r\n") or not last.startswith(b"--") or last[2:].strip(b"\r\n \t"):
        raise _wrong("it does not begin and end with its boundary")
    return Form(boundary, [_read_part(part) for part in parts])


def _read_part(data: bytes) -> _Part:
    if not data.startswith(b"\r\n") or not data.endswith(b"\r\n"):
        raise _wrong("a part of it is not between line ends")
    head, blank, content = data[2:-2].partition(b"\r\n\r\n")
    if not blank or len(head) > _MAX_PART_HEAD:
        raise _wrong("a part of it has no end of its headers")
    disposition, kind = "", ""
    try:
        lines = head.decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        raise _wrong("the headers of a part are not in UTF-8") from None
    for line in lines:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip()
        if not colon or not value.isprintable():
            raise _wrong("a part of it has a header that can't be read")
        if name == "content-disposition" and not disposition:
            disposition = value
        elif name == "content-type" and not kind:
            kind = value
        elif name == "content-length":
            continue
        elif name != "content-transfer-encoding" or value.lower() not in _PLAIN_ENCODINGS:
            raise _wrong("a part of it has headers that are not usual")
    try:
        field, filename = read_disposition(disposition)
    except FormError as error:
        raise _wrong(str(error)) from None
    if _PLAIN_NAME.fullmatch(field) is None:
        raise _wrong("a part of it has no plain name")
    return _Part(field, filename if filename is None else filename or "file", kind, content)


def _writable(filename: str, boundary: str) -> str:
    """Return a file's name as a quoted text can have it, whoever reads it."""
    if f"--{boundary}" in filename:
        return "file"
    shown = "".join(one if one.isprintable() else "_" for one in filename)
    return _NOT_IN_FILE_NAMES.sub("_", shown)


def _wrong(why: str) -> TranslationError:
    return TranslationError("body", f"The form can't be read for certain: {why}.")
