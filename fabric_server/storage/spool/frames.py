"""Frames: records as bytes that can be found again behind damage.

    0        4        8                    8 + length
    +--------+--------+--------------------+--------+ ...
    | length | CRC-32 | payload: JSON      | length |
    +--------+--------+--------------------+--------+ ...

Numbers are little-endian and unsigned; the CRC is of the payload.

A payload begins with ``{"`` and contains no byte below 0x20, and a length below 16 MiB does: text
that a user chose can't look like a frame, so that behind damage the next whole frame is found.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

_HEADER = Struct("<II")
HEADER_SIZE = _HEADER.size
MAX_PAYLOAD = (1 << 24) - 1
"""Bytes of a payload."""
_PAYLOAD_BEGINS = b'{"'


def encode_frame(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), crc32(payload)) + payload


class Span(NamedTuple):
    """The bytes from ``begin`` to before ``end``."""

    begin: int
    end: int


class Scan(NamedTuple):
    frames: list[Span]
    """The whole and undamaged frames, in order."""
    damaged: list[Span]
    """The bytes between them that hold no frame."""


def scan(data: bytes) -> Scan:
    """Find the frames in any bytes; each byte belongs to one span of the two lists."""
    found = Scan([], [])
    view = memoryview(data)
    at, size = 0, len(data)
    while at < size:
        end = _frame_end(view, at)
        if end:
            found.frames.append(Span(at, end))
        else:
            end = _next_frame(data, view, at)
            found.damaged.append(Span(at, end))
        at = end
    return found


def is_torn(data: bytes, at: int) -> bool:
    """Return whether the frame that begins there lacks its end, as after a kill during a write.

    A frame that is there in full and wrong is damage instead.
    """
    if len(data) - at < HEADER_SIZE:
        return True
    length: int = _HEADER.unpack_from(data, at)[0]
    return at + HEADER_SIZE + length > len(data)


def merge_spans(spans: list[Span]) -> list[Span]:
    """Return the same bytes, in order, in as few spans as possible."""
    result: list[Span] = []
    for span in sorted(spans):
        if result and result[-1].end == span.begin:
            result[-1] = Span(result[-1].begin, span.end)
        else:
            result.append(span)
    return result


def _frame_end(view: memoryview, at: int) -> int:
    """Return where the frame that begins there ends; 0 if there is none."""
    begin = at + HEADER_SIZE
    if begin > len(view):
        return 0
    length, crc = _HEADER.unpack_from(view, at)
    end: int = begin + length
    # Zeroes, which a power cut leaves behind, would be a frame without a payload.
    if not 0 < length <= MAX_PAYLOAD or end > len(view) or crc32(view[begin:end]) != crc:
        return 0
    return end


def _next_frame(data: bytes, view: memoryview, at: int) -> int:
    """Return where the next whole frame after ``at`` begins; the end of ``data`` if none does."""
    payload = data.find(_PAYLOAD_BEGINS, at + 1 + HEADER_SIZE)
    while payload >= 0:
        if _frame_end(view, payload - HEADER_SIZE):
            return payload - HEADER_SIZE
        payload = data.find(_PAYLOAD_BEGINS, payload + 1)
    return len(data)
