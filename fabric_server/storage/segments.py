"""The files of a spool, as bytes: frames in segments, and the cursor.

A log is a sequence of frames; a *position* counts its bytes since the log was begun, for ever.  It
is kept in segments, files named by the position of their first byte in 16 digits:

    request-ledger/0000000000000000.log
                   0000000001048311.log    the last is being appended to
                   cursor

    0        4        8                    8 + length
    +--------+--------+--------------------+--------+ ...
    | length | CRC-32 | payload: JSON      | length |        a segment: frames and nothing else
    +--------+--------+--------------------+--------+ ...
    0                 8        12
    +-----------------+--------+
    |    position     | CRC-32 |        the cursor: all before this position is settled
    +-----------------+--------+        (or was dropped)

All numbers are little-endian and unsigned; each CRC is of the bytes of the payload or position.
Positions may jump from one segment to the next: what was settled before it was written left a gap.

A payload begins with ``{"`` and contains no byte below 0x20, and a length below 16 MiB does: text
that a user chose can't look like a frame, so that behind damage the next whole frame is found.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import crc32

_HEADER = Struct("<II")
_POSITION = Struct("<Q")
_CURSOR = Struct("<QI")
HEADER_SIZE = _HEADER.size
LONGEST = (1 << 24) - 1
"""Bytes of a payload."""
_PAYLOAD_BEGINS = b'{"'

_NAME = re.compile(r"(\d{16})\.log")

# Windows would translate line ends.
_BINARY = getattr(os, "O_BINARY", 0)


# ── frames ────────────────────────────────────────────────────────────────────────────────────


def framed(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), crc32(payload)) + payload


class Stretch(NamedTuple):
    """Some bytes, from ``begin`` to before ``end``."""

    begin: int
    end: int


class Scan(NamedTuple):
    frames: list[Stretch]
    """The whole and undamaged ones, in order."""
    damaged: list[Stretch]
    """What lies between them and holds no frame."""


def scan(data: bytes) -> Scan:
    """Everything in ``data`` belongs to one stretch of the two lists; any bytes will do."""
    found = Scan([], [])
    view = memoryview(data)
    at, size = 0, len(data)
    while at < size:
        end = _frame_end(view, at)
        if end:
            found.frames.append(Stretch(at, end))
        else:
            end = _next_frame(data, view, at)
            found.damaged.append(Stretch(at, end))
        at = end
    return found


def is_torn(data: bytes, at: int) -> bool:
    """Whether a frame begins there of which the end is missing, as after a kill while it was
    written; what is there in full and wrong is damage."""
    if len(data) - at < HEADER_SIZE:
        return True
    length: int = _HEADER.unpack_from(data, at)[0]
    return at + HEADER_SIZE + length > len(data)


def joined(stretches: list[Stretch]) -> list[Stretch]:
    """The same bytes, in order, in as few stretches as possible."""
    result: list[Stretch] = []
    for stretch in sorted(stretches):
        if result and result[-1].end == stretch.begin:
            result[-1] = Stretch(result[-1].begin, stretch.end)
        else:
            result.append(stretch)
    return result


def _frame_end(view: memoryview, at: int) -> int:
    """Where the frame that begins there ends; 0 if there is none."""
    begin = at + HEADER_SIZE
    if begin > len(view):
        return 0
    length, crc = _HEADER.unpack_from(view, at)
    end: int = begin + length
    # Zeroes, which a power cut leaves behind, would be a frame without a payload.
    if not 0 < length <= LONGEST or end > len(view) or crc32(view[begin:end]) != crc:
        return 0
    return end


def _next_frame(data: bytes, view: memoryview, at: int) -> int:
    """Where the next whole frame after ``at`` begins; the end of ``data`` if there is none."""
    payload = data.find(_PAYLOAD_BEGINS, at + 1 + HEADER_SIZE)
    while payload >= 0:
        if _frame_end(view, payload - HEADER_SIZE):
            return payload - HEADER_SIZE
        payload = data.find(_PAYLOAD_BEGINS, payload + 1)
    return len(data)


# ── segments ──────────────────────────────────────────────────────────────────────────────────


class Segment:
    """Bytes from position ``start`` to before ``end``, in a file."""

    __slots__ = ("end", "path", "start", "surplus", "unread")

    def __init__(self, path: Path, start: int, end: int) -> None:
        self.path = path
        self.start = start
        self.end = end
        self.unread = 0
        """Records that are in the file only, not in memory too."""
        self.surplus = 0
        """Bytes in the file behind the end, where the next segment begins already."""

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} end={self.end} unread={self.unread}>"

    @property
    def size(self) -> int:
        return self.end - self.start

    def read(self, position: int) -> bytes:
        """The bytes from there to the end, fewer if the file was cut.  Raises ``OSError``."""
        return self._read(position - self.start, self.end - position)

    def read_surplus(self) -> bytes:
        """Raises ``OSError``."""
        return self._read(self.size, self.surplus)

    def _read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def find_segments(folder: Path) -> list[Segment]:
    """Those in the folder, in order; files with other names are none of ours.  Raises
    ``OSError``."""
    found: list[Segment] = []
    for entry in os.scandir(folder):
        name = _NAME.fullmatch(entry.name)
        if name and entry.is_file(follow_symlinks=False):
            start = int(name[1])
            found.append(Segment(Path(entry.path), start, start + entry.stat().st_size))
    found.sort(key=lambda segment: segment.start)
    for segment, after in pairwise(found):
        # A torn frame that could not be cut off when it happened, or somebody's editor.
        segment.surplus = max(0, segment.end - after.start)
        segment.end -= segment.surplus
    return found


def segment_path(folder: Path, start: int) -> Path:
    return folder / f"{start:016}.log"


def open_for_appending(path: Path) -> int:
    """A new segment's descriptor.  Raises ``OSError``, also when there is something in the file."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | _BINARY, 0o600)
    if os.fstat(fd).st_size:
        os.close(fd)
        raise FileExistsError(f"{path} exists already")
    return fd


def write_all(fd: int, data: bytes) -> None:
    """Raises ``OSError``; how much of it was written is then unknown."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def put_aside(path: Path, data: bytes) -> str | None:
    """Keeps ``data`` for a person; returns why it could not be done."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o600)
    except FileExistsError:
        return None  # by the process before, which was killed and now it is read again
    except OSError as error:
        return str(error)
    try:
        write_all(fd, data)
    except OSError as error:
        return str(error)
    finally:
        os.close(fd)
    return None


# ── the cursor ────────────────────────────────────────────────────────────────────────────────


class Cursor:
    """A position in a file of its own.  A kill can't tear so few bytes: the kernel copies them in
    one go.  Should they be torn by something else, the CRC tells."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``."""
        self.path = path
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | _BINARY, 0o600)
        self._saved: int | None = None

    def load(self) -> int | None:
        """None when there is none yet.  Raises ``OSError``; ``ValueError`` when it is damaged."""
        data = os.pread(self._fd, _CURSOR.size + 1, 0)
        if not data:
            return None
        if len(data) != _CURSOR.size:
            raise ValueError
        position, crc = _CURSOR.unpack(data)
        if crc != _crc_of(position):
            raise ValueError
        self._saved = position
        return int(position)

    def save(self, position: int) -> None:
        """Raises ``OSError``; it may then lag, which is harmless."""
        if position == self._saved:
            return
        os.pwrite(self._fd, _CURSOR.pack(position, _crc_of(position)), 0)
        if self._saved is None:
            os.ftruncate(self._fd, _CURSOR.size)
        self._saved = position

    def close(self) -> None:
        os.close(self._fd)


def _crc_of(position: int) -> int:
    return crc32(_POSITION.pack(position))
