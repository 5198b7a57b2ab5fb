"""Finds top-level keys of a JSON object that is still incomplete."""

from __future__ import annotations

import re

MAX_MARKS = 20_000
"""Brackets, commas and strings that are scanned at most: some 15 ms of work."""

_MARK = re.compile(rb'["{}\[\],:]')
_DEEP_MARK = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_BACKSLASH = ord("\\")


class Scanner:
    """Finds top-level values of a JSON object while it arrives, without parsing what is inside.

    ``feed`` takes the pieces in order.  ``spans`` maps each wanted key found so far to the
    (start, stop) of its complete value.  The text is assumed to be JSON: in other text nothing or
    something wrong is found, and the engine reports the error; the scanner never raises.  After
    ``MAX_MARKS`` it finds nothing more.
    """

    def __init__(self, wanted: frozenset[bytes]) -> None:
        self.spans: dict[bytes, tuple[int, int]] = {}
        self._wanted = wanted
        self._text = bytearray()
        self._at = 0
        self._marks = 0
        self._depth = 0
        self._string_from = -1
        self._last_string: bytes = b""
        self._key: bytes | None = None
        self._value_from = -1

    @property
    def text(self) -> bytes:
        return bytes(self._text)

    def feed(self, data: bytes) -> None:
        text = self._text
        text += data
        at, end = self._at, len(text)
        while at < end and self._marks < MAX_MARKS:
            if self._string_from >= 0:
                found = _IN_STRING.match(text, at)
                assert found is not None  # the pattern matches the empty string, too
                at = found.end()
                if at == end or text[at] == _BACKSLASH:
                    break  # the rest of the string or the escaped character has not come yet
                if self._depth == 1 and self._key is None:
                    self._last_string = bytes(text[self._string_from : at])
                self._string_from = -1
                at += 1
                continue
            self._marks += 1
            found = (_MARK if self._depth < 2 else _DEEP_MARK).search(text, at)
            if found is None:
                at = end
                break
            at = found.end()
            self._on_mark(found[0], at)
        self._at = at

    def _on_mark(self, mark: bytes, at: int) -> None:
        if mark == b'"':
            self._string_from = at
        elif mark in b"{[":
            self._depth += 1
        elif mark == b":":
            if self._depth == 1 and self._key is None:
                self._key, self._value_from = self._last_string, at
        elif mark == b",":
            if self._depth == 1:
                self._end_value(at - 1)
        else:
            if self._depth == 1:
                self._end_value(at - 1)
            self._depth -= 1

    def _end_value(self, stop: int) -> None:
        if self._key in self._wanted:
            start = self._value_from
            value = bytes(self._text[start:stop])
            start += len(value) - len(value.lstrip())
            self.spans[self._key] = start, start + len(value.strip())
        self._key = None
