"""Events in the text of a stream, and the JSON in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoders raise for text that they can't read."""
BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
_EVENT_END = re.compile(b"|".join(BLANK_LINES))
_DATA = re.compile(rb"(?:^|[\r\n])data:([^\r\n]*)")
_decode = msgspec.json.Decoder().decode
_decode_leniently = json.JSONDecoder(strict=False).decode


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


def read_object(data: bytes) -> dict[str, Any] | None:
    """Return the fields of a JSON object, also of one that has NaN or bad UTF-8; else None.

    What is returned can be written as JSON again.
    """
    try:
        found = _decode(data)
    except UNREADABLE:
        try:
            found = _decode_leniently(data.decode(errors="replace"))
            # Halves of UTF-16 pairs, which JSON can name, are nothing that a text can have.
            written = json.dumps(found, ensure_ascii=False).encode(errors="replace")
            found = json.loads(written)
        except UNREADABLE:
            return None
    return found if isinstance(found, dict) else None
