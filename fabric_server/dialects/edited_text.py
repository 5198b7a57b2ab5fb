"""Text that comes in pieces and is taken out in pieces, with some ranges of it replaced."""

from __future__ import annotations

_PIECE = 64 * 1024
"""Bytes of a piece that is kept, however small those are in which the text comes."""


class EditedText:
    """``add`` the pieces, ``replace`` what has not been taken, and ``take`` what can go on."""

    def __init__(self) -> None:
        self.taken = 0
        """Where what is still to be taken begins in the text."""
        self.size = 0
        """Bytes of the text that were added."""
        self.grown = 0
        """Bytes that replacements have added."""
        self._pieces: list[bytes] = []
        self._last = bytearray()
        self._edits: list[tuple[int, int, bytes]] = []

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._last += data
        if len(self._last) >= _PIECE:
            self._pieces.append(bytes(self._last))
            self._last.clear()

    def replace(self, start: int, stop: int, text: bytes) -> None:
        """Put ``text`` in the place of a range behind all others that were replaced."""
        self._edits.append((start, stop, text))
        self.grown += len(text) - (stop - start)

    def take(self, stop: int, tail: bytes = b"") -> bytes:
        """Return the text up to ``stop``, with ``tail`` behind it, and keep the rest.

        Nothing is copied but once, into what is returned.
        """
        if stop == self.taken and not self._edits:
            return tail
        pieces, begin, at = [*self._pieces, bytes(self._last)], self.taken, self.taken
        parts = []
        for start, end, text in self._edits:
            parts += _cut(pieces, at - begin, start - begin)
            parts.append(text)
            at = end
        parts += _cut(pieces, at - begin, stop - begin)
        parts.append(tail)
        rest = _cut(pieces, stop - begin, self.size - begin)
        self._pieces, self._last = [], bytearray(b"".join(rest))
        self._edits.clear()
        self.taken = stop
        return b"".join(parts)


def _cut(pieces: list[bytes], start: int, stop: int) -> list[bytes]:
    """Return what is between two offsets in the pieces."""
    found, at = [], 0
    for piece in pieces:
        begin, end = max(start - at, 0), min(stop - at, len(piece))
        if begin < end:
            found.append(piece[begin:end])
        at += len(piece)
    return found
