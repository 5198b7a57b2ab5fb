"""One topic of a spool: an ordered queue of records that survives the death of its process.

       committed     taken          loaded          written         end
    ───────┼──────────┼───────────────┼───────────────┼──────────────┼───▶ positions
    deleted│ taken,   │ in memory     │ on disk only, │ in memory    │
    by and │ being    │ (and on disk) │ read when     │ only: could  │
    by     │ stored   │               │ taken         │ not be       │
           │          │               │               │ written      │

Usually all but ``committed`` are the same or nearly so: nothing is read back, and nothing is in
memory only.  While writing fails, ``loaded`` may be behind or before ``written``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from fabric_server.storage.drops import DropCounter
from fabric_server.storage.spool.cursor import Cursor
from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.read_buffer import ReadBuffer
from fabric_server.storage.spool.recovery import recover
from fabric_server.storage.spool.segment_reader import SegmentReader
from fabric_server.storage.spool.segment_writer import SegmentWriter
from fabric_server.storage.spool.segments import Segment, SegmentFiles, delete_segment

log = logging.getLogger("fabric.spool")

R = TypeVar("R", bound=Struct)

PIECE_BYTES = 1 << 20
"""Unwritten frames decoded at once."""


class DiskLog(Generic[R]):
    """Records of one type.  No method raises, but ``__init__``, which raises ``OSError``."""

    def __init__(
        self, folder: Path, kind: type[R], options: SpoolOptions, clock: Callable[[], float]
    ) -> None:
        self.topic = folder.name
        self.drops = DropCounter(self.topic, log)
        """Records lost for lack of space, in memory or on disk."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._reader = SegmentReader(folder, kind)
        self._cursor = Cursor(folder / "cursor")
        try:
            found = recover(folder, self._cursor, self._reader)
        except BaseException:
            self._cursor.close()
            raise
        self.waiting = found.waiting
        """Records not yet taken."""
        self.end = found.end
        """Position behind the last record."""
        self._files = SegmentFiles(folder, found.segments, found.committed)
        self._writer = SegmentWriter(self.topic, self._files, found.end, options, clock)
        self._buffer: ReadBuffer[R] = ReadBuffer(found.committed, options.memory_bytes)
        self._save_cursor()

    def __repr__(self) -> str:
        return f"<DiskLog {self.topic} waiting={self.waiting} held={self.held}>"

    @property
    def committed(self) -> int:
        """All before this position is stored or dropped."""
        return self._files.committed

    @property
    def held(self) -> int:
        """Bytes published and not yet committed."""
        return self.end - self._files.committed

    @property
    def unwritten(self) -> int:
        """Records that are in memory only, because they can't be written."""
        return len(self._writer.unwritten)

    @property
    def damaged(self) -> int:
        """Damaged places found; their bytes are in ``*.damaged`` files beside the segments."""
        return self._reader.damaged

    @property
    def unreadable(self) -> bool:
        """The last ``take`` could not read; it may be tried again in a while."""
        return self._reader.problem is not None

    @property
    def problem(self) -> str | None:
        return self._writer.problem or self._reader.problem

    # ── publishing ────────────────────────────────────────────────────────────────────────────

    def append(self, frame: bytes, record: R) -> bool:
        """Hand the record to the kernel, or keep it to be written later; False: it was dropped."""
        writer = self._writer
        segment = writer.write(frame)
        if segment is None and not writer.keep(frame):
            self.drop(1)
            return False
        self.waiting += 1
        start = self.end
        self.end = end = start + len(frame)
        if not self._buffer.add(record, start, end) and segment is not None:
            segment.unread += 1
        if segment is None:
            self.flush()
        return True

    def flush(self) -> None:
        """Write frames that could not be written before: at most one segment, if that works."""
        self._writer.flush(self._buffer.loaded)

    def drop(self, count: int) -> None:
        """Count so many records as dropped."""
        self.drops.add(count, held=self.waiting, reason=self._writer.problem)

    def drop_oldest(self) -> None:
        """Delete the oldest segment; records not yet taken from it count as dropped."""
        files, buffer = self._files, self._buffer
        segment = files.pop_oldest()
        if segment is None:
            files.committed = buffer.taken = buffer.loaded = self.end  # a gap: there is nothing
            return
        self._writer.leave(segment)
        count = segment.unread + buffer.drop_until(segment.end)
        files.committed = max(files.committed, segment.end)
        self.waiting -= count
        delete_segment(segment)
        self.drop(count)

    # ── taking ────────────────────────────────────────────────────────────────────────────────

    def take(self, limit: int) -> list[R]:
        """Return the next records, up to ``limit``.

        There may be fewer although more wait: at most one segment is read for it, unless there is
        nothing in that.
        """
        self.drops.log_run()
        self.flush()
        buffer = self._buffer
        taken = buffer.take(limit)
        if len(taken) < limit and buffer.loaded < self.end:
            self._load()
            taken += buffer.take(limit - len(taken))
        while not taken and buffer.loaded < self.end and not self.unreadable:
            self._load()
            taken = buffer.take(limit)
        self.waiting -= len(taken)
        return taken

    def commit(self) -> None:
        """Mark what was taken as stored."""
        self._files.committed = max(self._files.committed, self._buffer.taken)
        self._writer.skip_committed()
        if self._writer.closed:
            return
        self._save_cursor()
        self._files.delete_committed(self._writer.segment)

    def close(self) -> None:
        """Write what can still be written; the rest is lost, and logged."""
        if self._writer.closed:
            return
        self._writer.close(self._buffer.loaded)
        self._cursor.close()

    def _load(self) -> None:
        """Fill the empty buffer with what comes next: a segment, or some unwritten frames."""
        for segment in self._files:
            if segment.end > self._buffer.loaded:
                self._load_segment(segment)
                return
        self._load_unwritten()

    def _load_segment(self, segment: Segment) -> None:
        found = self._reader.read(segment, max(self._buffer.loaded, segment.start))
        if found is None:
            return
        if found.given_up:
            self._writer.leave(segment)
        self._buffer.fill(found.records, found.ends, segment.end)
        self.waiting += len(found.records) - segment.unread
        segment.unread = 0

    def _load_unwritten(self) -> None:
        position, size = self._writer.written, 0
        records, ends = [], []
        for frame in self._writer.unwritten:
            position += len(frame)
            if position <= self._buffer.loaded:
                continue
            try:
                records.append(self._reader.decode(frame))
            except (msgspec.MsgspecError, ValueError):  # a NaN, say, became a null
                self.waiting -= 1
                self.drop(1)
                continue
            ends.append(position)
            size += len(frame)
            if size > PIECE_BYTES:
                break
        self._buffer.fill(records, ends, position)

    def _save_cursor(self) -> None:
        try:
            self._cursor.save(self._files.committed)
        except OSError as error:
            self._writer.on_error(error)
