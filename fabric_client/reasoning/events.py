"""Server-sent events out of bytes in any cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

MAX_EVENT = 1024 * 1024
"""An event longer than this passes in pieces, unread."""

_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
_EVENT_END = re.compile(b"|".join(_BLANK_LINES))
_LONGEST_END = 3


class Events:
    """Holds back the last event until it is whole, at most ``MAX_EVENT`` of it."""

    def __init__(self, on_events: Callable[[bytes], bytes], on_unread: Callable[[], bytes]) -> None:
        """``on_events`` takes whole events and returns what goes on in their stead; ``on_unread``
        returns what goes before one that is too long to be held."""
        self._on_events = on_events
        self._on_unread = on_unread
        self._held = bytearray()
        self._torn = False
        """The beginning of an event has gone on, unread, and its end has not come."""

    def feed(self, data: bytes) -> bytes:
        if not self._held and not self._torn and data.endswith(b"\n\n"):
            return self._on_events(data)
        held = self._held
        looked_at = max(0, len(held) - _LONGEST_END + 1)
        held += data
        out = b""
        if self._torn:
            found = _EVENT_END.search(held, looked_at)
            if found is None:
                return self._release(len(held) - _LONGEST_END + 1)
            self._torn = False
            out = self._release(found.end())
            looked_at = 0
        ends = [at + len(mark) for mark in _BLANK_LINES if (at := held.rfind(mark, looked_at)) >= 0]
        if ends:
            out += self._on_events(self._release(max(ends)))
        if len(held) > MAX_EVENT:
            self._torn = True
            out += self._on_unread() + self._release(len(held) - _LONGEST_END + 1)
        return out

    def end(self) -> bytes:
        """What is held: the beginning of an event."""
        return self._release(len(self._held))

    def _release(self, count: int) -> bytes:
        count = max(0, count)
        data = bytes(self._held[:count])
        del self._held[:count]
        return data


def each(events: bytes) -> Iterator[bytes]:
    """One by one; together they are ``events``."""
    at = 0
    while at < len(events):
        found = _EVENT_END.search(events, at)
        end = found.end() if found else len(events)
        yield events[at:end]
        at = end
