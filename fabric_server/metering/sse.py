"""Events in the text of a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator

BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
_EVENT_END = re.compile(b"|".join(BLANK_LINES))
_DATA = re.compile(rb"(?:^|[\r\n])data:([^\r\n]*)")


def events_in(text: bytes) -> Iterator[bytes]:
    """Yield each event with its blank line; the last one may have none."""
    at = 0
    while at < len(text):
        found = _EVENT_END.search(text, at)
        end = found.end() if found else len(text)
        yield text[at:end]
        at = end


def read_data(event: bytes) -> bytes | None:
    """Return the event's data, of one line or several; None when it has none."""
    lines = _DATA.findall(event)
    return b"\n".join(lines) if lines else None
