"""The headers of multipart forms (RFC 7578), read by Python's ``email`` and checked strictly.

Clients differ: .NET writes names without quotes and a file's name in ``filename*`` (RFC 8187)
besides, others write ``charset`` parameters.  What could be read in two ways is refused: a form
must not be authorised as one thing and served as another.
"""

from __future__ import annotations

import re
import unicodedata
from email.message import Message
from typing import NamedTuple

MAX_HEADER = 2048
"""Characters of a header; browsers write file names of 255 characters, nine of them for each."""
_BOUNDARY = re.compile(r"[\w'()+,./:=? -]{0,69}[\w'()+,./:=?-]", re.ASCII)
_NAMES = re.compile(r"[;\s]name\*?\s*=", re.IGNORECASE)
_BARE = re.compile(r"name\s*=\s*(?!\")(?![\w!#$%&'*+.^`{|}~\[\]-]+\s*(?:;|$))", re.IGNORECASE)
"""A name without quotes that is more than one word."""
CHARSETS = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "ascii", "ascii": "ascii",
            "iso-8859-1": "latin-1", "windows-1252": "cp1252"}  # fmt: skip
"""The charsets in which texts may be written, and Python's names for them."""


class FormError(ValueError):
    """A header that can't be read in one way only; ``str()`` says why, as the end of a sentence."""


class Disposition(NamedTuple):
    name: str
    filename: str | None
    """None: the part is no file."""


def read_boundary(content_type: str) -> str:
    """Return the boundary of a form's Content-Type.  Raises ``FormError``."""
    kind, found = _read(content_type, "boundary")
    boundary = found[0] if len(found) == 1 else None
    if kind != "multipart/form-data" or not isinstance(boundary, str):
        raise FormError("its content-type must be 'multipart/form-data; boundary=…'")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise FormError("its boundary has characters that are not allowed, or too many")
    return boundary


def read_disposition(text: str) -> Disposition:
    """Return what a part's Content-Disposition says.  Raises ``FormError``."""
    kind, names = _read(text, "name")
    name = names[0] if len(names) == 1 else None
    if kind != "form-data" or not isinstance(name, str) or len(_NAMES.findall(text)) != 1:
        raise FormError("each part needs one content-disposition with one plain name")
    if _BARE.search(text) or not name.isprintable() or not {'"', "\\"}.isdisjoint(name):
        raise FormError("the name of a part has characters that are not allowed")
    filename: str | None = None
    for value in _read(text, "filename")[1]:
        # filename* is written by who has a name that the other one can't tell.
        if isinstance(value, tuple):
            filename = _decode(value)
            break
        filename = value
    if filename is not None and not is_writable(filename):
        raise FormError("the file name of a part has characters that are not allowed")
    return Disposition(name, filename)


def is_writable(text: str) -> bool:
    """Return whether a text has no ends of lines and no other controls, so that a header can have
    it."""
    return text.isprintable() or all(
        one.isprintable() or unicodedata.category(one) == "Zs" for one in text
    )


def read_charset(content_type: str) -> str:
    """Return Python's name for the charset of a part's text, UTF-8 if there is none.

    Raises ``FormError`` for one that is not known here.
    """
    found = _read(content_type, "charset")[1] if content_type else []
    name = found[0] if found else "utf-8"
    known = CHARSETS.get(name.strip().lower()) if isinstance(name, str) else None
    if known is None:
        raise FormError(f"the charset of a part must be one of {', '.join(CHARSETS)}")
    return known


def _read(text: str, wanted: str) -> tuple[str, list[str | tuple[str | None, str | None, str]]]:
    """Return the first word of a header, and the values of a parameter."""
    if len(text) > MAX_HEADER or not text.isprintable():
        raise FormError("a header of it is too long, or has characters that are not allowed")
    message = Message()
    message["x"] = text
    try:
        found = message.get_params([], "x")
    except (ValueError, IndexError, UnicodeError):
        raise FormError("a header of it can't be read") from None
    kind = found[0][0].strip().lower() if found else ""
    return kind, [value for name, value in found[1:] if name.strip().lower() == wanted]


def _decode(value: tuple[str | None, str | None, str]) -> str:
    charset, _, text = value
    try:
        return text.encode("latin-1").decode(CHARSETS.get((charset or "utf-8").lower(), "utf-8"))
    except UnicodeError:
        return text.encode("ascii", "replace").decode()
