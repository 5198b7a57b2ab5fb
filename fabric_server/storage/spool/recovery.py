"""Recovery of a log when it is opened: segments, a cursor, perhaps a torn last frame."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fabric_server.storage.spool.cursor import Cursor
from fabric_server.storage.spool.frames import is_torn, scan
from fabric_server.storage.spool.segment_reader import SegmentReader
from fabric_server.storage.spool.segments import Segment, delete_segment, find_segments

log = logging.getLogger("fabric.spool")


class Recovered(NamedTuple):
    segments: list[Segment]
    committed: int
    end: int
    """Position behind the last frame, also if that was deleted."""
    waiting: int
    """Records in the segments from ``committed`` on."""


def recover(folder: Path, cursor: Cursor, reader: SegmentReader[Any]) -> Recovered:
    """Find what is not committed, delete what is, and cut off a torn frame at the end.

    Raises ``OSError`` when the folder or the cursor can't be read.
    """
    found = find_segments(folder)
    try:
        committed = cursor.load()
    except ValueError:
        log.error(
            "a cursor is damaged, records are stored again from the beginning",
            extra={"topic": folder.name, "file": str(cursor.path)},
        )
        committed = None
    end = max([committed or 0, *(segment.end for segment in found)])
    if committed is None:
        committed = 0
    if found and found[-1].end > committed:
        _cut_torn_frame(found[-1], folder.name)
    segments, waiting = [], 0
    for segment in found:
        if segment.surplus:
            with suppress(OSError):
                reader.set_aside(segment, segment.size, segment.read_surplus())
        # An empty one is left by a process that was killed before it could write to it.
        if segment.end <= committed or segment.size == 0:
            delete_segment(segment)
            continue
        segments.append(segment)
        with suppress(OSError):  # then it is counted when it is read
            segment.unread = len(scan(segment.read(max(committed, segment.start))).frames)
        waiting += segment.unread
    committed = max(committed, segments[0].start) if segments else end
    return Recovered(segments, committed, end, waiting)


def _cut_torn_frame(last: Segment, topic: str) -> None:
    """Cut off a frame that was being written when the process was killed.

    Its publisher was never informed that it had been published.
    """
    try:
        data = last.read(last.start)
        damaged = scan(data).damaged
        if not damaged or damaged[-1].end < len(data) or not is_torn(data, damaged[-1].begin):
            return
        begin = damaged[-1].begin
        os.truncate(last.path, begin)
    except OSError as error:  # then it is set aside when it is read
        about = {"file": str(last.path), "reason": str(error)}
        log.warning("a partly written record could not be cut off", extra=about)
        return
    last.end = last.start + begin
    cut = {"topic": topic, "file": str(last.path), "bytes": len(data) - begin}
    log.warning("a partly written record was cut off", extra=cut)
