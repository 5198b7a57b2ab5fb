"""One frame on a tunnel: its layout and its limits.

::

     0        1        2                 4                 8                 12
    +--------+--------+-----------------+-----------------+-----------------+-----------
    | type   | flags  | reserved = 0    | stream id       | length          | payload …
    +--------+--------+-----------------+-----------------+-----------------+-----------
      u8       u8       u16               u32               u32

All numbers are big-endian.  Stream id 0 is the tunnel itself.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

HEADER = Struct(">BBHII")
KIND = Struct(">III")
"""The same layout with type, flags and reserved bits as one number, the kind of the frame."""
OFFSET = Struct(">Q")
CODE = Struct(">H")

MAX_DATA = 16_372
"""Payload bytes of one DATA frame: with its header, exactly one TLS record of 16,384 bytes."""
MAX_HEAD = 48 * 1024
"""Payload bytes of OPEN and HEAD."""
MAX_REASON = 254


class FrameType(IntEnum):
    HELLO = 1
    OPEN = 2
    HEAD = 3
    DATA = 4
    END = 5
    RESET = 6
    WINDOW = 7
    PING = 8
    PONG = 9
    DRAIN = 10
    CLOSE = 11
    RESUME = 13
    ACK = 14


# Types of frequent frames: looking a member up on its Enum costs 50 ns on Python 3.11, a global 5.
OPEN = int(FrameType.OPEN)
HEAD = int(FrameType.HEAD)
DATA = int(FrameType.DATA)
END = int(FrameType.END)
WINDOW = int(FrameType.WINDOW)
ACK = int(FrameType.ACK)

END_FLAG = 0x01
"""On OPEN and DATA: the body ends with this frame."""
CONFIRM_FLAG = 0x01
"""On RESET: it answers a RESET; the work behind the stream has stopped."""

# Indexed by type: (minimum payload, maximum payload, flags allowed, on a stream?).  The last is
# None where both are allowed, which the connection checks.  Unassigned types have no rule.
RULES: tuple[tuple[int, int, int, bool | None] | None, ...] = (
    None,
    (1, 256, 0, False),  # HELLO
    (1, MAX_HEAD, END_FLAG, True),  # OPEN
    (1, MAX_HEAD, 0, True),  # HEAD
    (0, MAX_DATA, END_FLAG, True),  # DATA
    (1, 1024, 0, True),  # END
    (2, 2 + MAX_REASON, CONFIRM_FLAG, True),  # RESET
    (8, 8, 0, None),  # WINDOW
    (8, 8, 0, False),  # PING
    (8, 8, 0, False),  # PONG
    (1, 1280, 0, False),  # DRAIN
    (2, 2 + MAX_REASON, 0, False),  # CLOSE
    None,
    (1, 256, 0, True),  # RESUME
    (8, 8, 0, False),  # ACK
)


def encode(type: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(type, flags, 0, stream_id, len(payload)) + payload


def cut(text: str, limit: int) -> str:
    """Return at most ``limit`` bytes of UTF-8, whole characters; a lone surrogate becomes ``?``."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def encode_reason(code: int, reason: str) -> bytes:
    """Return the payload of RESET and CLOSE: a code, then text for a log, cut to what fits."""
    return CODE.pack(code) + cut(reason, MAX_REASON).encode()


def parse_reason(payload: bytes) -> tuple[int, str]:
    """Return code and reason; bytes that are not UTF-8 become replacement characters."""
    return CODE.unpack_from(payload)[0], payload[2:].decode(errors="replace")


def problem_with(type: int, flags: int, reserved: int, stream_id: int, length: int) -> str | None:
    """Return why a header breaks the specification, as text for the peer; None if it is valid."""
    rule = RULES[type] if type < len(RULES) else None
    if rule is None:
        return f"unknown frame type {type}"
    minimum, maximum, allowed, on_stream = rule
    if (  # checked first, because naming the type costs more than all of this
        not reserved
        and not flags & ~allowed
        and minimum <= length <= maximum
        and (on_stream is None or (stream_id & 1 if on_stream else not stream_id))
    ):
        return None
    name = FrameType(type).name
    if reserved:
        return f"{name} with reserved bits {reserved:#06x}"
    if flags & ~allowed:
        return f"{name} with unknown flags {flags:#04x}"
    if not minimum <= length <= maximum:
        return f"{name} of {length} bytes, outside {minimum} to {maximum}"
    if on_stream:
        return f"{name} on stream {stream_id}, which can't exist"
    return f"{name} on stream {stream_id}, but it belongs to the tunnel"
