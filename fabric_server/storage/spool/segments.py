"""Segments: the files that hold a log's frames.

A log is a sequence of frames; a *position* counts its bytes since the log was begun, for ever.
The log is in segments, files named by the position of their first byte in 16 digits:

    request-ledger/0000000000000000.log
                   0000000001048311.log    the last is being appended to
                   cursor

A segment holds frames and nothing else.  Positions may jump from one segment to the next: frames
that were committed before they could be written left a gap.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

log = logging.getLogger("fabric.spool")

_NAME = re.compile(r"(\d{16})\.log")

# Windows would translate line ends.
_BINARY = getattr(os, "O_BINARY", 0)


class Segment:
    """The bytes from position ``start`` to before ``end``, in a file."""

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
        """Return the bytes from there to the end, fewer if the file was cut.

        Raises ``OSError``.
        """
        return self._read(position - self.start, self.end - position)

    def read_surplus(self) -> bytes:
        """Return the bytes behind the end.  Raises ``OSError``."""
        return self._read(self.size, self.surplus)

    def _read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class SegmentFiles:
    """The segments of one log that are not committed yet, in order."""

    def __init__(self, folder: Path, segments: Iterable[Segment], committed: int) -> None:
        self.folder = folder
        self.committed = committed
        """All before this position is stored or dropped."""
        self._segments = deque(segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def begin(self, start: int) -> tuple[Segment, int]:
        """Create a segment at that position; return it and its descriptor.  Raises ``OSError``."""
        path = self.folder / f"{start:016}.log"
        fd = open_for_appending(path)
        segment = Segment(path, start, start)
        self._segments.append(segment)
        return segment, fd

    def delete_committed(self, active: Segment | None) -> None:
        """Delete segments that are committed as a whole, but not the one being appended to."""
        segments = self._segments
        while segments and segments[0].end <= self.committed and segments[0] is not active:
            delete_segment(segments.popleft())

    def pop_oldest(self) -> Segment | None:
        return self._segments.popleft() if self._segments else None


def find_segments(folder: Path) -> list[Segment]:
    """Return those in the folder, in order; files with other names are ignored.

    Raises ``OSError``.
    """
    found: list[Segment] = []
    for entry in os.scandir(folder):
        name = _NAME.fullmatch(entry.name)
        if name and entry.is_file(follow_symlinks=False):
            start = int(name[1])
            found.append(Segment(Path(entry.path), start, start + entry.stat().st_size))
    found.sort(key=lambda segment: segment.start)
    for segment, after in pairwise(found):
        # A torn frame that could not be cut off when it happened, or a file that was edited.
        segment.surplus = max(0, segment.end - after.start)
        segment.end -= segment.surplus
    return found


def delete_segment(segment: Segment) -> None:
    try:
        segment.path.unlink(missing_ok=True)
    except OSError as error:  # the next process that opens the spool will try again
        about = {"file": str(segment.path), "reason": str(error)}
        log.warning("a file of the spool can't be deleted", extra=about)


def open_for_appending(path: Path) -> int:
    """Return a new segment's descriptor.  Raises ``OSError``, also when the file has content."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | _BINARY, 0o600)
    if os.fstat(fd).st_size:
        os.close(fd)
        raise FileExistsError(f"{path} exists already")
    return fd


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes.  Raises ``OSError``; how many were written is then unknown."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def save_damaged(path: Path, data: bytes) -> str | None:
    """Save damaged bytes for a person to look at; return the reason if that failed."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o600)
    except FileExistsError:
        return None  # saved by the process before, which was killed, so that they are read again
    except OSError as error:
        return str(error)
    try:
        write_all(fd, data)
    except OSError as error:
        return str(error)
    finally:
        os.close(fd)
    return None
