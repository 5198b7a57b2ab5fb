"""The writing end of a log: frames go to the newest segment, or wait in memory if they can't."""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.segments import Segment, SegmentFiles, write_all

log = logging.getLogger("fabric.spool")


class SegmentWriter:
    """Hands frames to the kernel, and forces nothing to the disk.  No method raises."""

    def __init__(
        self,
        topic: str,
        files: SegmentFiles,
        position: int,
        options: SpoolOptions,
        clock: Callable[[], float],
    ) -> None:
        self.written = position
        """All before this position is on disk, or was committed without."""
        self.unwritten: deque[bytes] = deque()
        """The frames from ``written`` on, which could not be written."""
        self.segment: Segment | None = None
        """The one being appended to; None until this process has begun one."""
        self.problem: str | None = None
        """Why frames can't be written at the moment."""
        self.closed = False
        self._topic = topic
        self._files = files
        self._options = options
        self._clock = clock
        self._fd = -1  # the segment's descriptor
        self._torn = False  # it may have bytes behind its end, to be cut off before the next
        self._room = 0  # bytes that may be appended to it without further thought
        self._retry_at = 0.0

    def write(self, frame: bytes) -> Segment | None:
        """Append a frame; return the segment it is in, or None if it could not be written."""
        size = len(frame)
        segment = self.segment
        if size > self._room or segment is None:
            return self._write_slowly(frame)
        try:
            whole = os.write(self._fd, frame) == size
        except OSError as error:
            self.on_error(error)
            whole = False
        if not whole:
            self._torn = True
            return self._write_slowly(frame)
        self._room -= size
        segment.end += size
        self.written += size
        return segment

    def keep(self, frame: bytes) -> bool:
        """Keep in memory a frame that could not be written; False if there are too many."""
        if self.closed or len(self.unwritten) >= self._options.max_unwritten:
            return False
        self.unwritten.append(frame)
        self._room = 0
        return True

    def flush(self, loaded: int) -> None:
        """Write frames that could not be written before: at most one segment, if that works.

        Those behind position ``loaded`` are not in the read buffer, and count as unread.
        """
        if not self.unwritten or self.closed:
            return
        piece, size = [], 0
        for frame in self.unwritten:
            if size and size + len(frame) > self._options.segment_bytes:
                break
            piece.append(frame)
            size += len(frame)
        position = self.written
        if not self._append(b"".join(piece)) or self.segment is None:
            return
        for frame in piece:
            position += len(frame)
            self.unwritten.popleft()
            if position > loaded:
                self.segment.unread += 1
        self._set_room()

    def skip_committed(self) -> None:
        """Drop frames that were committed before they could be written."""
        while self.unwritten and self.written < self._files.committed:
            self.written += len(self.unwritten.popleft())

    def leave(self, segment: Segment) -> None:
        """Append no more to that segment, if it is the one being appended to."""
        if segment is self.segment:
            self._leave()

    def on_error(self, error: OSError) -> None:
        """Note that a file of the log can't be written, and pause."""
        advice = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        where = self._files.folder
        problem = f"the spool {where} can't be written: {error.strerror or error}{advice}"
        if self.problem is None:
            about = {"topic": self._topic, "reason": problem}
            log.error("the spool can't be written", extra=about)
        self.problem = problem
        self._retry_at = self._clock() + self._options.retry_seconds
        self._room = 0

    def close(self, loaded: int) -> None:
        """Write what can still be written; the rest is lost, and logged."""
        self._retry_at = self._clock()
        left = 0
        while self.unwritten and len(self.unwritten) != left:
            left = len(self.unwritten)
            self.flush(loaded)
        if self.unwritten:
            about = {"topic": self._topic, "count": len(self.unwritten), "reason": self.problem}
            log.error("records could not be written and are lost", extra=about)
        self.closed = True
        self._leave()

    def _write_slowly(self, frame: bytes) -> Segment | None:
        if self.closed or self.unwritten or not self._append(frame):
            return None
        self._set_room()
        return self.segment

    def _append(self, data: bytes) -> bool:
        """Append whole frames at ``written``; return whether that was possible."""
        if self.problem is not None and self._clock() < self._retry_at:
            return False
        try:
            segment = self._segment_for(len(data))
            self._torn = True
            write_all(self._fd, data)
            self._torn = False
        except OSError as error:
            self.on_error(error)
            return False
        segment.end += len(data)
        self.written += len(data)
        if self.problem is not None:
            self.problem = None
            log.info("the spool can be written again", extra={"topic": self._topic})
        return True

    def _segment_for(self, size: int) -> Segment:
        """Return the segment to append so many bytes to, a new one if need be."""
        segment = self.segment
        if segment is not None and segment.end == self.written:
            if self._torn:
                os.ftruncate(self._fd, segment.size)
                self._torn = False
            if segment.size == 0 or segment.size + size <= self._options.segment_bytes:
                return segment
        segment, fd = self._files.begin(self.written)
        self._leave()
        self.segment, self._fd = segment, fd
        self._files.delete_committed(segment)
        return segment

    def _leave(self) -> None:
        if self.segment is not None:
            if self._torn:
                with suppress(OSError):
                    os.ftruncate(self._fd, self.segment.size)
            os.close(self._fd)
        self.segment, self._fd, self._torn, self._room = None, -1, False, 0

    def _set_room(self) -> None:
        segment = self.segment
        if segment is None or self.unwritten or self._torn or segment.end != self.written:
            self._room = 0
        else:
            self._room = self._options.segment_bytes - segment.size
