"""The reading end of a log: records decoded from segments, damaged bytes set aside."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from fabric_server.storage.spool.frames import HEADER_SIZE, merge_spans, scan
from fabric_server.storage.spool.segments import Segment, save_damaged

log = logging.getLogger("fabric.spool")

R = TypeVar("R", bound=Struct)

MAX_FAILURES = 10
"""Attempts to read a segment before it is given up, if the medium or file system is to blame."""
_BAD_MEDIUM = {errno.EIO, errno.EBADMSG, errno.EISDIR, getattr(errno, "EUCLEAN", errno.EIO)}


class Found(NamedTuple, Generic[R]):
    """The records of a segment."""

    records: list[R]
    ends: list[int]
    """The position behind each of them."""
    given_up: bool = False
    """The segment can't be read, and its file was renamed."""


class SegmentReader(Generic[R]):
    """Decodes records of one type.  No method raises, but ``decode``."""

    def __init__(self, folder: Path, kind: type[R]) -> None:
        self.damaged = 0
        """Damaged places found; their bytes are in ``*.damaged`` files beside the segments."""
        self.problem: str | None = None
        """Why the last segment could not be read; it may be tried again in a while."""
        self._folder = folder
        self._topic = folder.name
        self._decode = msgspec.json.Decoder(kind).decode
        self._failures = 0

    def decode(self, frame: bytes | memoryview) -> R:
        """Return the record of a whole frame.

        Raises ``ValueError`` when another release wrote it, or JSON could not hold a value.
        """
        return self._decode(frame[HEADER_SIZE:])

    def read(self, segment: Segment, begin: int) -> Found[R] | None:
        """Read a segment from that position; None if it must be tried again later."""
        try:
            data = segment.read(begin)
        except OSError as error:
            return self._on_error(segment, error)
        self.problem = None
        self._failures = 0
        found = self._decode_all(segment, begin, data)
        missing = segment.end - begin - len(data)
        if missing > 0:
            self.damaged += 1
            about = {"topic": self._topic, "file": str(segment.path), "bytes": missing}
            log.error("a file of the spool was truncated, records are lost", extra=about)
        return found

    def set_aside(self, segment: Segment, offset: int, data: bytes) -> None:
        """Save damaged bytes of a segment in a file of their own."""
        path = segment.path.with_name(f"{segment.path.stem}-{offset:08}.damaged")
        problem = save_damaged(path, data)
        self.damaged += 1
        about = {
            "topic": self._topic,
            "file": str(segment.path),
            "bytes": len(data),
            "kept": str(path) if problem is None else f"no: {problem}",
        }
        log.error("part of the spool can't be read and was set aside", extra=about)

    def _decode_all(self, segment: Segment, begin: int, data: bytes) -> Found[R]:
        spans = scan(data)
        damaged = spans.damaged
        view = memoryview(data)
        found: Found[R] = Found([], [])
        for frame in spans.frames:
            try:
                record = self.decode(view[frame.begin : frame.end])
            except (msgspec.MsgspecError, ValueError):
                damaged.append(frame)  # written by another release
                continue
            found.records.append(record)
            found.ends.append(begin + frame.end)
        for span in merge_spans(damaged):
            offset = begin - segment.start + span.begin
            self.set_aside(segment, offset, data[span.begin : span.end])
        return found

    def _on_error(self, segment: Segment, error: OSError) -> Found[R] | None:
        # With the whole folder away, a disk is not mounted: its records will come back; and too
        # many open files, say, are no reason to give a segment up either.
        gone = isinstance(error, FileNotFoundError) and os.path.exists(self._folder)
        self._failures += error.errno in _BAD_MEDIUM
        about = {"topic": self._topic, "file": str(segment.path), "reason": str(error)}
        if not gone and (self._failures < MAX_FAILURES or not _rename_aside(segment)):
            if self.problem is None:
                log.error("the spool can't be read", extra=about)
            self.problem = f"the spool can't be read: {error}"
            return None
        self.problem = None
        self._failures = 0
        self.damaged += 1
        log.error(
            "a file of the spool can't be read and was set aside",
            extra={**about, "count": segment.unread},
        )
        return Found([], [], given_up=True)


def _rename_aside(segment: Segment) -> bool:
    try:
        segment.path.rename(segment.path.with_suffix(".damaged"))
    except OSError:
        return False
    return True
