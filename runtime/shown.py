"""Display of values and of text that others wrote: secrets masked, control characters escaped."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?b|b)?", re.IGNORECASE)
# Greedy: a password may hold an @ itself, though in a URL it should be written %40.
_PASSWORD = re.compile(r"(?<=://)((?:[^/@:\s]*:)?)\S*@")
_IN_QUERY = re.compile(r"([?&]\w*password=)[^&\s'\"]*")

_OF_PROSE = "\n\u200c\u200d"
"""The line end, and the zero width non-joiner and joiner."""


class Secret(str):
    """Text that prints as ``***``; ``reveal()`` returns it.

    It is masked in ``str()``, ``repr()``, f-strings and ``%s``.  Joining or encoding it reveals it,
    so use ``reveal()`` only.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "'***'"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def reveal(self) -> str:
        return str.__str__(self)


def one_line(text: str) -> str:
    """Escape what is not printable: control characters, line ends, marks that change the direction
    of text, and invisible ones.

    All text goes through it, or ``printable``, on its way to a terminal or a log.  Others wrote the
    names, reasons and models in it, and could move the cursor, forge lines, or show other words.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable(text: str) -> str:
    """Escape like ``one_line``, but keep line ends: for text of several lines of our own."""
    return "\n".join(map(one_line, text.split("\n")))


def prose(text: str) -> str:
    """Escape like ``printable``, but keep what languages are written with: the spaces of French,
    Chinese and others, and the invisible joiners of Persian, Indian scripts and emoji."""
    if text.isprintable():
        return text
    return "".join(mark if _is_of_prose(mark) else _escaped(mark) for mark in text)


def printable_json(text: str) -> str:
    """Escape in JSON what is not printable; it means the same."""
    if text.isprintable():
        return text
    return "".join(
        mark if mark.isprintable() or mark == "\n" else json.dumps(mark)[1:-1] for mark in text
    )


def _is_of_prose(mark: str) -> bool:
    return mark in _OF_PROSE or unicodedata.category(mark) == "Zs"


def _escaped(mark: str) -> str:
    return mark if mark.isprintable() else mark.encode("unicode_escape").decode()


def parse_size(text: str) -> int | str:
    """Return the bytes of "32MiB", "1.5 GB" or "4096"; anything else comes back unchanged."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return text
    return int(float(match[1]) * _SIZES[(match[2] or "b").lower()])


def shown(value: object, unit: str | None = None) -> str:
    """Return one line for the value of a setting, passwords masked."""
    if value in (None, "", ()):
        return "none"
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and unit == "bytes":
        return _size(value)
    if isinstance(value, int | float):
        return f"{value:g} s" if unit == "seconds" else f"{value:.15g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(one) for one in value)
    return without_password(str(value))


def without_password(text: str) -> str:
    """Mask the password in ``postgresql://fabric:secret@host/db``, also in its query.

    A single word before the ``@`` may be a misplaced password and is masked too.
    """
    return _IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} B"
