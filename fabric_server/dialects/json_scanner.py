"""Finds the values of wanted fields at the top of JSON text that comes in pieces, in one pass.

The scanner accepts what ``msgspec`` accepts, and says where the text is wrong.  Its work is linear
in the text, in pieces of any size: nothing is read twice, and no text is kept except the beginning
of a wanted value.  What nobody wants is passed over by regular expressions, much of it at a time.

``Fields`` is the table of what is wanted.  Keys are compared as the most lenient engines do: in any
letter case (Go's ``encoding/json``), and however they are escaped (``mod\\u0065l``).  Every
occurrence is reported to ``on_value``, in order; what that raises ends the scan.
``Scanner.pending`` is the value under way, so that whoever passes the text on can hold it back.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

MAX_DEPTH = 900
"""Levels of nesting; ``msgspec`` allows about as many."""
SLICE = 4 * 1024
"""Bytes of the worst text that are scanned in well under 20 ms."""
_MAX_SCALAR = 4096
"""Bytes of a number; Python's own parser takes fewer digits."""
_LONG = 512
"""Bytes of a text from which it is searched for its end first."""


def possessive(item: bytes, times: bytes = b"*") -> bytes:
    """Match ``item`` so many times, and give nothing back.

    Python before 3.11.5 matches a group with ``*+`` or ``?+`` wrongly (CPython's issue 106052), but
    not the same as an atomic group, which is slower.
    """
    form = rb"(?>(?:%b)%b)" if sys.version_info < (3, 11, 5) else rb"(?:%b)%b+"
    return form % (item, times)


_S = rb"[ \t\r\n]*+"
_CHARS = possessive(rb'[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_STRING = rb'"%b"' % _CHARS
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)%b%b" % (
    possessive(rb"\.[0-9]++", b"?"),
    possessive(rb"[eE][+-]?[0-9]++", b"?"),
)
_SCALAR = rb"(?>%b|true|false|null)" % _NUMBER


def _matcher(pattern: bytes) -> Callable[[bytes, int], re.Match[bytes]]:
    """Return the function that matches ``pattern``, which also matches the empty text."""
    return re.compile(pattern).match  # type: ignore[return-value]


def _many(item: bytes) -> bytes:
    """Match items with commas between them, naming the pattern of an item once: they are large."""
    return _S + possessive(rb"%b%b(?:,%b(?![\]}])|(?=[\]}]))" % (item, _S, _S))


def _member(key: bytes, value: bytes) -> bytes:
    return rb"%b%b:%b%b" % (key, _S, _S, value)


def _value(members: bytes, elements: bytes, plain: bytes) -> bytes:
    return rb"(?>%b|\{%b\}|\[%b\])" % (plain, _many(members), _many(elements))


_PLAIN = rb"(?>%b|%b)" % (_STRING, _SCALAR)
_FLAT = _value(_member(_STRING, _PLAIN), _PLAIN, _PLAIN)
_ANY = _value(_member(_STRING, _FLAT), _FLAT, _PLAIN)
"""A value nested two levels at most; deeper ones are read level by level."""

_space = _matcher(_S)
_skip_elements = _matcher(possessive(rb"%b%b%b," % (_S, _ANY, _S)))
_skip_members = _matcher(possessive(rb"%b%b%b," % (_S, _member(_STRING, _ANY), _S)))
_chars = _matcher(_CHARS)
_scalar_chars = _matcher(rb"[0-9a-zA-Z+\-.]*+")
_is_scalar = re.compile(_SCALAR).fullmatch
_is_part_of_escape = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?").fullmatch
_decode = msgspec.json.Decoder(str).decode
_CONTROLS = bytes(range(32))
_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPEN_ARRAY, _CLOSE_ARRAY, _OPEN_OBJECT, _CLOSE_OBJECT = b"[]{}"


class NotJson(Exception):
    """The text is not JSON, or has ended too early: ``str`` says where."""

    def __init__(self, offset: int, problem: str = "it has an invalid character") -> None:
        super().__init__(f"{problem}, at byte {offset}")
        self.offset = offset


class Value(NamedTuple):
    """The value of a wanted field."""

    name: str
    start: int
    stop: int
    """Offsets in the whole text."""
    text: bytes
    """The value as it is written, or the beginning of one that is too long to be kept."""
    exact: bool
    """The key is in lower case, as in the table."""

    @property
    def whole(self) -> bool:
        return len(self.text) == self.stop - self.start


class Fields:
    """A table of wanted fields: make it once, and give it to many scanners."""

    def __init__(self, kept: Mapping[str, int]) -> None:
        """``kept`` has the names, in lower case, and how many bytes of each value are kept."""
        self.kept = kept
        self.longest_key = 6 * max(map(len, kept))
        """Bytes of a key in its longest spelling, which has only escapes."""
        names = b"|".join(re.escape(name.encode()) for name in kept)
        # Keys with escapes or other letters than ASCII's are looked at one by one.
        other = rb'"(?!(?i:%b)")[^"\\\x00-\x1f\x80-\xff]*+"' % names
        self.skip_others = _matcher(possessive(rb"%b%b%b," % (_S, _member(other, _ANY), _S)))
        """Matches members with other names, each with its comma."""


class Scanner:
    """Reads one JSON text: ``feed`` it the pieces, then call ``end``."""

    __slots__ = ("_carry", "_exact", "_fields", "_is_key", "_key", "_levels", "_name", "_on_value",
                 "_scalar", "_start", "_state", "_value", "closed_at", "offset")  # fmt: skip

    def __init__(self, fields: Fields, on_value: Callable[[Value], None]) -> None:
        self.offset = 0
        """Bytes that were fed and are scanned."""
        self.closed_at: int | None = None
        """Where the last bracket of an object or array at the top is."""
        self._fields = fields
        self._on_value = on_value
        self._levels: list[bool] = []
        """What is open; True is an object."""
        self._state: Callable[[bytes, int], int] = self._on_start
        self._is_key = False
        """The string that is read is a key."""
        self._key = bytearray()
        self._name = ""
        """The wanted field whose key has been read."""
        self._exact = True
        self._start = 0
        self._value: bytearray | None = None
        """The beginning of the wanted value under way."""
        self._scalar = bytearray()
        self._carry = b""
        """The beginning of an escape sequence of which the rest has not come."""

    @property
    def pending(self) -> tuple[str, int] | None:
        """The wanted field whose value has come in part, and where the value begins."""
        return None if self._value is None else (self._name, self._start)

    def feed(self, data: bytes) -> None:
        """Scan the next piece.  Raises ``NotJson``, and what ``on_value`` raises.

        A piece of ``SLICE`` bytes never takes long; cut longer ones.
        """
        if self._carry:
            data, self._carry = self._carry + data, b""
        at, size = 0, len(data)
        while at < size:
            at = self._state(data, at)
        self._keep(data, size - len(self._carry))
        self.offset += size - len(self._carry)

    def end(self) -> None:
        """Check that the text is complete.  Raises ``NotJson``."""
        if self._state == self._on_scalar:
            self._end_scalar(b"", 0)
        if self._state != self._on_space or self._carry:
            raise NotJson(self.offset + len(self._carry), "it ends too early")

    # ── where a value may begin ───────────────────────────────────────────────────────────────

    def _on_start(self, text: bytes, at: int) -> int:
        at = _space(text, at).end()
        return at if at == len(text) else self._begin_value(text, at)

    def _on_element(self, text: bytes, at: int) -> int:
        """Read elements of an array, many at a time."""
        at = _space(text, _skip_elements(text, at).end()).end()
        return at if at == len(text) else self._begin_value(text, at)

    def _on_first_element(self, text: bytes, at: int) -> int:
        at = _space(text, at).end()
        if at == len(text):
            return at
        if text[at] == _CLOSE_ARRAY:
            return self._close(text, at)
        self._state = self._on_element
        return self._on_element(text, at)

    def _begin_value(self, text: bytes, at: int) -> int:
        mark = text[at]
        if self._name and self._value is None:
            self._start, self._value = self.offset + at, bytearray()
        if mark == _QUOTE:
            self._is_key = False
            self._state = self._on_string
            return at + 1
        if mark in b"{[":
            if len(self._levels) == MAX_DEPTH:
                raise NotJson(self.offset + at, "it is nested too deeply")
            self._levels.append(mark == _OPEN_OBJECT)
            self._state = self._on_first_key if mark == _OPEN_OBJECT else self._on_first_element
            return at + 1
        self._scalar.clear()
        self._state = self._on_scalar
        return self._on_scalar(text, at)

    # ── keys ──────────────────────────────────────────────────────────────────────────────────

    def _on_first_key(self, text: bytes, at: int) -> int:
        at = _space(text, at).end()
        if at == len(text):
            return at
        if text[at] == _CLOSE_OBJECT:
            return self._close(text, at)
        self._state = self._on_key
        return self._on_key(text, at)

    def _on_key(self, text: bytes, at: int) -> int:
        """Read members of an object, many at a time where none is wanted."""
        skip = self._fields.skip_others if len(self._levels) == 1 else _skip_members
        at = _space(text, skip(text, at).end()).end()
        if at == len(text):
            return at
        if text[at] != _QUOTE:
            raise NotJson(self.offset + at)
        self._is_key = True
        self._key.clear()
        self._state = self._on_string
        return at + 1

    def _on_colon(self, text: bytes, at: int) -> int:
        at = _space(text, at).end()
        if at == len(text):
            return at
        if text[at] != _COLON:
            raise NotJson(self.offset + at)
        self._state = self._on_start
        return at + 1

    def _find_name(self) -> None:
        """Set ``_name`` if the key that has been read is wanted."""
        key = self._key
        if len(key) > self._fields.longest_key:
            return
        try:
            name = key.decode() if _BACKSLASH not in key else _decode(b'"' + key + b'"')
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # half an emoji, or no UTF-8: no such name is wanted
        self._exact = name in self._fields.kept
        if self._exact or name.casefold() in self._fields.kept:
            self._name = name if self._exact else name.casefold()

    # ── inside strings, numbers and words ─────────────────────────────────────────────────────

    def _on_string(self, text: bytes, at: int) -> int:
        stop = _chars(text, self._skip_plain(text, at)).end()
        if self._is_key and len(self._key) <= (longest := self._fields.longest_key):
            self._key += text[at : min(stop, at + longest + 1)]
        if stop == len(text):
            return stop
        if text[stop] == _QUOTE:
            if self._is_key:
                if len(self._levels) == 1:
                    self._find_name()
                self._state = self._on_colon
            else:
                self._end_value(text, stop + 1)
            return stop + 1
        if _is_part_of_escape(text, stop) is None:
            raise NotJson(self.offset + stop)
        self._carry = text[stop:]
        return len(text)

    @staticmethod
    def _skip_plain(text: bytes, at: int) -> int:
        """Return where a long text without escapes, such as an image, ends: at memchr's speed."""
        if len(text) - at < _LONG:
            return at
        stop = text.find(b'"', at)
        stop = len(text) if stop < 0 else stop
        if stop - at < _LONG or text.find(b"\\", at, stop) >= 0:
            return at
        run = text[at:stop]
        return stop if len(run.translate(None, _CONTROLS)) == len(run) else at

    def _on_scalar(self, text: bytes, at: int) -> int:
        stop = _scalar_chars(text, at).end()
        scalar = self._scalar
        scalar += text[at : min(stop, at + _MAX_SCALAR + 1)]
        if len(scalar) > _MAX_SCALAR:
            raise NotJson(self.offset + at, "it has a number that is too long")
        if stop < len(text):
            self._end_scalar(text, stop)
        return stop

    def _end_scalar(self, text: bytes, at: int) -> None:
        if _is_scalar(self._scalar) is None:
            raise NotJson(self.offset + at - len(self._scalar))
        self._end_value(text, at)

    # ── where a value ends ────────────────────────────────────────────────────────────────────

    def _end_value(self, text: bytes, stop: int) -> None:
        """Report a wanted value; ``stop`` is behind it."""
        if self._value is not None and len(self._levels) == 1:
            self._keep(text, stop)
            value, self._value = bytes(self._value), None
            name, self._name = self._name, ""
            self._on_value(Value(name, self._start, self.offset + stop, value, self._exact))
        self._state = self._on_comma if self._levels else self._on_space

    def _keep(self, text: bytes, stop: int) -> None:
        """Add what is read of the value under way, up to what is kept of it."""
        value = self._value
        if value is not None:
            room = self._fields.kept[self._name] - len(value)
            start = max(0, self._start - self.offset)
            value += text[start : min(stop, start + max(0, room))]

    def _on_comma(self, text: bytes, at: int) -> int:
        at = _space(text, at).end()
        if at == len(text):
            return at
        mark, is_object = text[at], self._levels[-1]
        if mark == _COMMA:
            self._state = self._on_key if is_object else self._on_element
            return at + 1
        if mark != (_CLOSE_OBJECT if is_object else _CLOSE_ARRAY):
            raise NotJson(self.offset + at)
        return self._close(text, at)

    def _close(self, text: bytes, at: int) -> int:
        self._levels.pop()
        if not self._levels:
            self.closed_at = self.offset + at
        self._end_value(text, at + 1)
        return at + 1

    def _on_space(self, text: bytes, at: int) -> int:
        """Read what follows the text: only space may."""
        at = _space(text, at).end()
        if at < len(text):
            raise NotJson(self.offset + at, "it has trailing characters")
        return at
