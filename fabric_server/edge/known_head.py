"""Recognises the head of a request that differs from the one before only in its content-length.

A client's library sends the same dozen headers with every request.  To parse them once a connection
is enough: what llhttp has accepted and is sent again byte for byte says the same again.
"""

from __future__ import annotations

MAX_HEAD = 4096
"""Bytes of a head that are remembered, for each connection."""
_LENGTH = b"\r\ncontent-length:"
_MAX_DIGITS = 15


class KnownHead:
    """A head that was parsed, and what is derived of it."""

    __slots__ = (
        "_after",
        "_before",
        "_size",
        "headers",
        "keep_alive",
        "key_digest",
        "method",
        "path",
        "query",
        "version",
    )

    def __init__(self, before: bytes, after: bytes) -> None:
        """``before`` and ``after`` are the head's bytes around the digits of its length."""
        self._before = before
        self._after = after
        self._size = len(before)
        self.method = ""
        self.path = ""
        self.query = ""
        self.version = ""
        self.headers: dict[bytes, bytes] = {}
        """All but ``content-length`` are those of each request with this head."""
        self.keep_alive = True
        self.key_digest = b""
        """SHA-256 of the API key in it; empty until one has been found."""

    def match(self, data: bytes) -> tuple[int, int] | None:
        """Return the length of the body, and where it begins, if ``data`` begins with this head."""
        if not data.startswith(self._before):
            return None
        start = self._size
        stop = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        after = self._after
        if stop < 0 or not data.startswith(after, stop):
            return None
        digits = data[start:stop]
        return (int(digits), stop + len(after)) if digits.isdigit() else None


def find_head(data: bytes) -> KnownHead | None:
    """Return the head that ``data`` begins with, without what it says.

    llhttp must have accepted it.  None when it has no length, or is too long to be remembered.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD) + 4
    at = data[:end].lower().find(_LENGTH) if end > 3 else -1
    if at < 0:
        return None
    start = at + len(_LENGTH)
    while data[start] == 0x20:
        start += 1
    stop = start
    while data[stop] in b"0123456789":
        stop += 1
    # Digits are followed by the line's end, or this is no head that comes again like this.
    return KnownHead(data[:start], data[stop:end]) if data[stop] == 0x0D else None
