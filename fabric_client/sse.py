"""Server-sent events (WHATWG HTML, 9.2.6): framing of bytes in any cut, decoding, encoding.

    bytes in any cut  ->  EventFramer  ->  whole events as sent  ->  split_events, decode_events

``EventFramer`` never changes a byte, so that events can be passed on verbatim; only those who need
an event's data pay for decoding it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MAX_EVENT = 8 * 1024 * 1024
"""Default limit, in bytes, of an event whose end has not arrived."""

_BLANK_LINE = re.compile(rb"\n\n|\n\r\n|\r\r|\n\r(?=[^\n])")
"""End of a line and a blank line after it.  ``\\r\\r`` counts at once: a ``\\n`` that follows is an
empty line in front of the next event and means nothing."""
_BLANK_LINE_SIZE = 3
_BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """An event exceeds the framer's limit."""


class EventFramer:
    """Cuts a stream into whole events; holds the last one until its blank line arrives."""

    __slots__ = ("_buffer", "_max_event")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._buffer = bytearray()
        self._max_event = max_event

    def feed(self, data: bytes) -> bytes:
        """Return the events that are whole with ``data``, as sent; empty if there are none.

        Raises ``EventTooLong``; the framer can still be used, see ``release``.
        """
        buffer = self._buffer
        if not buffer and data.endswith(b"\n\n"):
            return data
        start = max(0, len(buffer) - _BLANK_LINE_SIZE + 1)
        buffer += data
        end = 0
        if buffer.find(b"\r", start) < 0:
            end = buffer.rfind(b"\n\n", start) + 2
            if end < 2:
                end = 0
        else:
            for found in _BLANK_LINE.finditer(buffer, start):
                end = found.end()
        if end:
            return self._take(end)
        if len(buffer) > self._max_event:
            raise EventTooLong
        return b""

    def release(self) -> bytes:
        """Return the beginning of an unfinished event, all but the bytes that may begin its blank
        line.  The next ``feed`` that returns events begins with the rest of this one."""
        return self._take(max(0, len(self._buffer) - _BLANK_LINE_SIZE + 1))

    def end(self) -> bytes:
        """Return what is held when the stream is over: an event without its blank line."""
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")


def looks_like_events(begun: bytes) -> bool | None:
    """Return whether text that begins so is a stream of events; None if that is still open."""
    if not begun or any(name.startswith(begun) for name in _FIELDS if len(begun) < len(name)):
        return None
    return begun.startswith(_FIELDS)


def event_end(events: bytes, start: int = 0) -> int:
    """Return the offset behind the first event in ``events[start:]``."""
    found = _BLANK_LINE.search(events, start)
    return found.end() if found else len(events)


def split_events(events: bytes) -> Iterator[bytes]:
    """Yield whole events one by one, as sent; joined they are ``events``."""
    start = 0
    if events.find(b"\r") < 0:  # as nearly all are: a plain search takes a tenth of the time
        while (end := events.find(b"\n\n", start)) >= 0:
            yield events[start : end + 2]
            start = end + 2
    while start < len(events):
        end = event_end(events, start)
        yield events[start:end]
        start = end


def decode_events(events: bytes) -> list[bytes]:
    """Return the data of each event; those that have none, such as comments, are left out.

    An ``error`` field counts as data: older llama-servers send errors so.  The data of an event
    that is called ``error`` is an object with ``error``.
    """
    if b"\r" in events:
        events = events.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    elif events.find(b"\n") == len(events) - 2 and events[:6] == b"data: " and events[-1:] == b"\n":
        return [events[6:-2]]  # the usual case: one event of one line
    decoded = []
    for event in events.split(b"\n\n"):
        if event.startswith(b"data: ") and b"\n" not in event:
            decoded.append(event[6:])
        elif event and (data := _data(event)) is not None:
            decoded.append(data)
    return decoded


def _data(event: bytes) -> bytes | None:
    lines, is_error = [], False
    for line in event.removeprefix(_BOM).split(b"\n"):
        name, _, value = line.partition(b":")
        if name in (b"data", b"error"):
            lines.append(value.removeprefix(b" "))
        elif name == b"event":
            is_error = value.strip() == b"error"
    if not lines:
        return None
    data = b"\n".join(lines)
    return _as_error(data) if is_error and b'"error"' not in data else data


def _as_error(data: bytes) -> bytes:
    """Return the data of an event named ``error`` as an object that has it as ``error``."""
    if data.lstrip()[:1] == b"{":
        return b'{"error":%b}' % data
    return json.dumps({"error": data.decode("utf-8", "replace") or "the engine failed"}).encode()


def encode_event(name: str, data: bytes) -> bytes:
    """Return an event of this name; ``data`` is a single line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
