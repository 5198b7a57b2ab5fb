"""Server-sent events, read from bytes in any cut and written (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

MAX_EVENT = 8 * 1024 * 1024
"""Bytes of an event that are held while its end has not come."""


class EndlessEvent(Exception):
    """An event is longer than ``MAX_EVENT``."""


class Events:
    """Takes bytes, returns the data of the events that are complete with them, without delay.

    Fields other than ``data`` say nothing that the chat API's events need, but for ``error``, with
    which older llama-servers tell theirs.  Comments are skipped.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._after_return = False
        """The last byte was a CR: an LF that follows belongs to it."""

    def feed(self, data: bytes) -> list[bytes]:
        """Raises ``EndlessEvent``."""
        if self._after_return or b"\r" in data:
            data = self._with_plain_line_ends(data)
        held = self._held
        if not held and data.endswith(b"\n\n"):
            whole = data
        else:
            looked_at = max(0, len(held) - 1)
            held += data
            end = held.rfind(b"\n\n", looked_at)
            if end < 0:
                if len(held) > MAX_EVENT:
                    raise EndlessEvent
                return []
            whole = bytes(held[: end + 2])
            del held[: end + 2]
        return [found for block in whole.split(b"\n\n") if (found := _data(block)) is not None]

    def end(self) -> list[bytes]:
        """The data of an event whose blank line is missing because nothing follows."""
        found = _data(bytes(self._held))
        self._held.clear()
        return [] if found is None else [found]

    def _with_plain_line_ends(self, data: bytes) -> bytes:
        if not data:
            return data
        begins = 1 if self._after_return and data.startswith(b"\n") else 0
        self._after_return = data.endswith(b"\r")
        return data[begins:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name in (b"data", b"error"):
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None


def event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
