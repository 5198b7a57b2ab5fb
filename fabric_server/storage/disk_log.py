"""One topic of a spool: an ordered queue of records that survives the death of its process.

        settled     taken          loaded          written         end
    ───────┼──────────┼───────────────┼───────────────┼──────────────┼───▶ positions
    deleted│ given,   │ in memory     │ on disk only, │ in memory    │
    by and │ being    │ (and on disk) │ read when     │ only: could  │
    by     │ stored   │               │ taken         │ not be       │
           │          │               │               │ written      │

Usually all but ``settled`` are the same or nearly so: nothing is read, and what is in memory only
is nothing.  While writing fails, ``loaded`` may be behind or before ``written``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from fabric_server.storage.segments import (
    HEADER_SIZE,
    Cursor,
    Segment,
    find_segments,
    is_torn,
    joined,
    open_for_appending,
    put_aside,
    scan,
    segment_path,
    write_all,
)

log = logging.getLogger("fabric.spool")

R = TypeVar("R", bound=Struct)

PIECE_BYTES = 1 << 20
"""Decoded in one go of what could not be written."""
READ_TRIES = 10
"""Before a segment is given up, for what the medium or the file system is to blame."""
_BAD_MEDIUM = {errno.EIO, errno.EBADMSG, errno.EISDIR, getattr(errno, "EUCLEAN", errno.EIO)}


class DiskLog(Generic[R]):
    """Records of one type.  Nothing raises but making it, which raises ``OSError``."""

    def __init__(
        self,
        folder: Path,
        kind: type[R],
        *,
        segment_bytes: int,
        memory_bytes: int,
        most_unwritten: int,
        retry_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """So many bytes of records, as encoded, stay in memory for whoever takes them, and so many
        records while they can't be written."""
        self.topic = folder.name
        self.waiting = 0
        """Records not yet taken."""
        self.dropped = 0
        """Records lost for want of room, or because they could be kept nowhere."""
        self.damaged = 0
        """Damaged places found; what was there is in ``*.damaged`` files beside the segments."""
        self.settled = 0
        """All before this position is stored or dropped."""
        self.end = 0
        """Position behind the last record."""
        self._folder = folder
        self._decode = msgspec.json.Decoder(kind).decode
        self._segment_bytes = segment_bytes
        self._memory_bytes = memory_bytes
        self._most_unwritten = most_unwritten
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._taken = 0
        self._loaded = 0
        self._written = 0
        self._records: deque[R] = deque()  # from _taken to _loaded
        self._ends: deque[int] = deque()  # the position behind each of them
        self._unwritten: deque[bytes] = deque()  # frames from _written to end
        self._segments: deque[Segment] = deque()
        self._active: Segment | None = None  # the last one, if it was begun by this process
        self._fd = -1  # its descriptor
        self._torn = False  # it may have bytes behind its end, to be cut off before the next
        self._room = 0  # bytes that may be appended to it without further thought
        self._closed = False
        self._write_problem: str | None = None
        self._retry_at = 0.0
        self._read_problem: str | None = None
        self._reads_failed = 0
        self._told_dropped = 0

        folder.mkdir(mode=0o700, exist_ok=True)
        self._cursor = Cursor(folder / "cursor")
        try:
            self._recover()
        except BaseException:
            self._cursor.close()
            raise

    def __repr__(self) -> str:
        return f"<DiskLog {self.topic} waiting={self.waiting} held={self.held}>"

    @property
    def held(self) -> int:
        """Bytes published and not yet settled."""
        return self.end - self.settled

    @property
    def unwritten(self) -> int:
        """Records that are in memory only, because they can't be written."""
        return len(self._unwritten)

    @property
    def unreadable(self) -> bool:
        """The last ``take`` could not read; it may be tried again in a while."""
        return self._read_problem is not None

    @property
    def problem(self) -> str | None:
        return self._write_problem or self._read_problem

    # ── publishing ────────────────────────────────────────────────────────────────────────────

    def append(self, frame: bytes, record: R) -> bool:
        """Whether the record was kept: handed to the kernel, or to be written later."""
        size = len(frame)
        active = self._active
        if size > self._room or active is None:
            return self._append_slowly(frame, record)
        try:
            whole = os.write(self._fd, frame) == size
        except OSError as error:
            self._write_failed(error)
            whole = False
        if not whole:
            self._torn = True
            return self._append_slowly(frame, record)
        self._room -= size
        active.end += size
        self._written += size
        if not self._remember(record, size):
            active.unread += 1
        return True

    def _append_slowly(self, frame: bytes, record: R) -> bool:
        size = len(frame)
        if self._closed:
            self.drop(1)
            return False
        if not self._unwritten and self._write(frame):
            if not self._remember(record, size) and self._active is not None:
                self._active.unread += 1
        elif len(self._unwritten) < self._most_unwritten:
            self._unwritten.append(frame)
            self._remember(record, size)
            self.flush()
        else:
            self.drop(1)
            return False
        self._set_room()
        return True

    def _remember(self, record: R, size: int) -> bool:
        """The record is the last one now; whether it stays in memory."""
        self.waiting += 1
        start = self.end
        self.end = end = start + size
        if self._loaded != start or start - self._taken > self._memory_bytes:
            return False
        self._records.append(record)
        self._ends.append(end)
        self._loaded = end
        return True

    def drop(self, count: int) -> None:
        """Counts them, and says so when they are the first since a ``take``."""
        if count and self.dropped == self._told_dropped:
            held = {"topic": self.topic, "held": self.waiting, "reason": self._write_problem}
            log.error("records are being dropped", extra=held)
        self.dropped += count

    def drop_oldest(self) -> None:
        """The oldest segment goes, and what was not yet taken of it is counted as dropped."""
        if not self._segments:
            self.settled = self._taken = self._loaded = self.end  # a gap: there is nothing
            return
        segment = self._segments.popleft()
        if segment is self._active:
            self._leave_active()
        count = segment.unread
        while self._ends and self._ends[0] <= segment.end:
            self._ends.popleft()
            self._records.popleft()
            count += 1
        self._loaded = max(self._loaded, segment.end)
        self._taken = max(self._taken, segment.end)
        self.settled = max(self.settled, segment.end)
        self.waiting -= count
        self._delete(segment)
        self.drop(count)

    # ── taking ────────────────────────────────────────────────────────────────────────────────

    def take(self, most: int) -> list[R]:
        """The next records.  There may be fewer than ``most`` although more wait: at most one
        segment is read for it, unless there is nothing in that."""
        self._tell_dropped()
        self.flush()
        taken = self._take_from_memory(most)
        if len(taken) < most and self._loaded < self.end:
            self._load()
            taken += self._take_from_memory(most - len(taken))
        while not taken and self._loaded < self.end and not self.unreadable:
            self._load()
            taken = self._take_from_memory(most)
        self.waiting -= len(taken)
        return taken

    def settle(self) -> None:
        """What was taken is stored."""
        self.settled = max(self.settled, self._taken)
        while self._unwritten and self._written < self.settled:
            self._written += len(self._unwritten.popleft())
        if self._closed:
            return
        try:
            self._cursor.save(self.settled)
        except OSError as error:
            self._write_failed(error)
        self._delete_settled()

    def _take_from_memory(self, most: int) -> list[R]:
        records, ends = self._records, self._ends
        if len(records) <= most:
            taken = list(records)
            records.clear()
            ends.clear()
            # Also behind damage, or frames of another release, that came after the last record.
            self._taken = self._loaded
            return taken
        taken = [records.popleft() for _ in range(most)]
        for _ in taken:
            self._taken = ends.popleft()
        return taken

    def _load(self) -> None:
        """Reads what comes next into memory, which is empty: one segment, or a piece of what could
        not be written."""
        for segment in self._segments:
            if segment.end > self._loaded:
                self._load_segment(segment)
                return
        self._load_unwritten()

    def _load_segment(self, segment: Segment) -> None:
        begin = max(self._loaded, segment.start)
        try:
            data = segment.read(begin)
        except OSError as error:
            self._read_failed(segment, error)
            return
        self._read_problem = None
        self._reads_failed = 0
        count = self._decode_all(segment, begin, data)
        if len(data) < segment.end - begin:
            self.damaged += 1
            missing = segment.end - begin - len(data)
            said = {"topic": self.topic, "file": str(segment.path), "bytes": missing}
            log.error("a file of the spool was cut by somebody, records are lost", extra=said)
        self._loaded = segment.end
        self.waiting += count - segment.unread
        segment.unread = 0

    def _decode_all(self, segment: Segment, begin: int, data: bytes) -> int:
        found = scan(data)
        damaged = found.damaged
        view = memoryview(data)
        count = 0
        for frame in found.frames:
            try:
                record = self._decode(view[frame.begin + HEADER_SIZE : frame.end])
            except (msgspec.MsgspecError, ValueError):
                damaged.append(frame)  # written by another release
                continue
            self._records.append(record)
            self._ends.append(begin + frame.end)
            count += 1
        for stretch in joined(damaged):
            offset = begin - segment.start + stretch.begin
            self._put_aside(segment, offset, data[stretch.begin : stretch.end])
        return count

    def _put_aside(self, segment: Segment, offset: int, data: bytes) -> None:
        path = segment.path.with_name(f"{segment.path.stem}-{offset:08}.damaged")
        problem = put_aside(path, data)
        self.damaged += 1
        said = {
            "topic": self.topic,
            "file": str(segment.path),
            "bytes": len(data),
            "kept": str(path) if problem is None else f"no: {problem}",
        }
        log.error("part of the spool can't be read and was put aside", extra=said)

    def _read_failed(self, segment: Segment, error: OSError) -> None:
        # With the whole folder away, a disk is not mounted: its records will come back; and too
        # many open files, say, are no reason to give a segment up either.
        gone = isinstance(error, FileNotFoundError) and os.path.exists(self._folder)
        self._reads_failed += error.errno in _BAD_MEDIUM
        if not gone and (self._reads_failed < READ_TRIES or not self._renamed_aside(segment)):
            if self._read_problem is None:
                said = {"topic": self.topic, "file": str(segment.path), "reason": str(error)}
                log.error("the spool can't be read", extra=said)
            self._read_problem = f"the spool can't be read: {error}"
            return
        self._read_problem = None
        self._reads_failed = 0
        self.damaged += 1
        if segment is self._active:
            self._leave_active()
        said = {"topic": self.topic, "file": str(segment.path), "reason": str(error)}
        log.error(
            "a file of the spool can't be read and was put aside",
            extra=said | {"count": segment.unread},
        )
        self._loaded = segment.end
        self.waiting -= segment.unread
        segment.unread = 0

    def _renamed_aside(self, segment: Segment) -> bool:
        try:
            segment.path.rename(segment.path.with_suffix(".damaged"))
        except OSError:
            return False
        return True

    def _load_unwritten(self) -> None:
        position, size = self._written, 0
        for frame in self._unwritten:
            position += len(frame)
            if position <= self._loaded:
                continue
            try:
                record = self._decode(frame[HEADER_SIZE:])
            except (msgspec.MsgspecError, ValueError):  # a NaN, say, became a null
                self.waiting -= 1
                self.drop(1)
                continue
            self._records.append(record)
            self._ends.append(position)
            size += len(frame)
            if size > PIECE_BYTES:
                break
        self._loaded = position

    def _tell_dropped(self) -> None:
        if self.dropped != self._told_dropped:
            count = self.dropped - self._told_dropped
            log.warning("records were dropped", extra={"topic": self.topic, "count": count})
            self._told_dropped = self.dropped

    # ── writing ───────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Writes what could not be written before: at most one segment of it, if that works."""
        if not self._unwritten or self._closed:
            return
        piece, size = [], 0
        for frame in self._unwritten:
            if size and size + len(frame) > self._segment_bytes:
                break
            piece.append(frame)
            size += len(frame)
        position = self._written
        if not self._write(b"".join(piece)) or self._active is None:
            return
        for frame in piece:
            position += len(frame)
            self._unwritten.popleft()
            if position > self._loaded:
                self._active.unread += 1
        self._set_room()

    def _write(self, data: bytes) -> bool:
        """Appends whole frames; whether it could be done."""
        if self._write_problem is not None and self._clock() < self._retry_at:
            return False
        try:
            active = self._active_for(len(data))
            self._torn = True
            write_all(self._fd, data)
            self._torn = False
        except OSError as error:
            self._write_failed(error)
            return False
        active.end += len(data)
        self._written += len(data)
        if self._write_problem is not None:
            self._write_problem = None
            log.info("the spool can be written again", extra={"topic": self.topic})
        return True

    def _active_for(self, size: int) -> Segment:
        """The segment to append so much to, at ``_written``."""
        active = self._active
        if active is not None and active.end == self._written:
            if self._torn:
                os.ftruncate(self._fd, active.size)
                self._torn = False
            if active.size == 0 or active.size + size <= self._segment_bytes:
                return active
        path = segment_path(self._folder, self._written)
        fd = open_for_appending(path)
        self._leave_active()
        self._fd = fd
        self._active = active = Segment(path, self._written, self._written)
        self._segments.append(active)
        self._delete_settled()
        return active

    def _leave_active(self) -> None:
        if self._active is not None:
            if self._torn:
                with suppress(OSError):
                    os.ftruncate(self._fd, self._active.size)
            os.close(self._fd)
        self._active, self._fd, self._torn, self._room = None, -1, False, 0

    def _set_room(self) -> None:
        active = self._active
        if active is None or self._unwritten or self._torn or active.end != self.end:
            self._room = 0
        else:
            self._room = self._segment_bytes - active.size

    def _write_failed(self, error: OSError) -> None:
        advice = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        problem = f"the spool {self._folder} can't be written: {error.strerror or error}{advice}"
        if self._write_problem is None:
            log.error("the spool can't be written", extra={"topic": self.topic, "reason": problem})
        self._write_problem = problem
        self._retry_at = self._clock() + self._retry_seconds
        self._room = 0

    def _delete_settled(self) -> None:
        segments = self._segments
        while segments and segments[0].end <= self.settled and segments[0] is not self._active:
            self._delete(segments.popleft())

    def _delete(self, segment: Segment) -> None:
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:  # the next process that opens the spool will try again
            said = {"file": str(segment.path), "reason": str(error)}
            log.warning("a file of the spool can't be deleted", extra=said)

    # ── opening and closing ───────────────────────────────────────────────────────────────────

    def _recover(self) -> None:
        segments = find_segments(self._folder)
        try:
            cursor = self._cursor.load()
        except ValueError:
            log.error(
                "a cursor is damaged, records are stored again from the beginning",
                extra={"topic": self.topic, "file": str(self._cursor.path)},
            )
            cursor = None
        self.end = max([cursor or 0, *(segment.end for segment in segments)])
        if cursor is None:
            cursor = 0
        if segments and segments[-1].end > cursor:
            self._cut_torn_end(segments[-1])
        for segment in segments:
            if segment.surplus:
                with suppress(OSError):
                    self._put_aside(segment, segment.size, segment.read_surplus())
            # An empty one is left by a process that was killed before it could write to it.
            if segment.end <= cursor or segment.size == 0:
                self._delete(segment)
                continue
            self._segments.append(segment)
            with suppress(OSError):  # then it is counted when it is read
                segment.unread = len(scan(segment.read(max(cursor, segment.start))).frames)
            self.waiting += segment.unread
        if self._segments:
            cursor = max(cursor, self._segments[0].start)
        else:
            cursor = self.end
        self._written = self.end
        self.settled = self._taken = self._loaded = cursor
        try:
            self._cursor.save(cursor)
        except OSError as error:
            self._write_failed(error)

    def _cut_torn_end(self, last: Segment) -> None:
        """A frame of which the end is missing was being written when the process was killed:
        nobody was told that it had been published."""
        try:
            data = last.read(last.start)
            damaged = scan(data).damaged
            if not damaged or damaged[-1].end < len(data) or not is_torn(data, damaged[-1].begin):
                return
            begin = damaged[-1].begin
            os.truncate(last.path, begin)
        except OSError as error:  # then it is put aside when it is read
            cut = {"file": str(last.path), "reason": str(error)}
            log.warning("a record that was half written could not be cut off", extra=cut)
            return
        last.end = last.start + begin
        said = {"topic": self.topic, "file": str(last.path), "bytes": len(data) - begin}
        log.warning("a record that was half written was cut off", extra=said)

    def close(self) -> None:
        """What can still be written is written; the rest is lost, and the log says so."""
        if self._closed:
            return
        self._retry_at = self._clock()
        left = 0
        while self._unwritten and self.unwritten != left:
            left = self.unwritten
            self.flush()
        if self._unwritten:
            said = {"topic": self.topic, "count": self.unwritten, "reason": self._write_problem}
            log.error("records could not be written and are lost", extra=said)
        self._closed = True
        self._leave_active()
        self._cursor.close()
