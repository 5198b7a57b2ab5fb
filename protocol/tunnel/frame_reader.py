"""Cuts received bytes into frames, checks their headers, and calls a handler for each frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.tunnel import frames
from protocol.tunnel.frames import DATA, END_FLAG, HEADER, MAX_DATA, FrameType

Handler = Callable[[int, int, bytes], None]
"""Called with stream id, flags and payload."""

_unpack_header = HEADER.unpack_from


class FrameReader:
    """Receive buffer and frame parser of a tunnel."""

    __slots__ = (
        "_handlers",
        "_partial",
        "_refuse",
        "_wanted",
        "bytes_received",
        "frames_received",
        "stopped",
    )

    def __init__(self, refuse: Callable[[FrameType], str]) -> None:
        """Accept no frames before ``accept``; ``refuse`` words why a type is an error."""
        self._handlers: dict[int, Handler] = {}
        self._refuse = refuse
        self._partial = bytearray()
        self._wanted = 0
        """Length of ``_partial`` at which there is something to do."""
        self.stopped = False
        self.bytes_received = 0
        self.frames_received = 0

    def accept(self, handlers: Mapping[FrameType, Handler]) -> None:
        """Accept further types of frames; handlers may call this."""
        # Comparing an int with a member of an Enum takes longer than the rest of the lookup.
        self._handlers.update((int(type), handler) for type, handler in handlers.items())

    def stop(self) -> None:
        """Drop what is buffered and handle no further frame."""
        self.stopped = True
        self._partial.clear()

    def feed(self, data: bytes) -> str | None:
        """Handle each complete frame; return what is wrong with the first bad header, if any."""
        self.bytes_received += len(data)
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return None
            data = bytes(self._partial)
            self._partial.clear()
        at, end = 0, len(data)
        handlers = self._handlers
        while end - at >= 12:
            type, flags, reserved, stream_id, length = _unpack_header(data, at)
            if (
                type != DATA  # by far the most frequent type is checked without a call
                or length > MAX_DATA
                or flags > END_FLAG
                or reserved
                or not stream_id & 1
                or type not in handlers
            ):
                problem = frames.problem_with(type, flags, reserved, stream_id, length)
                if problem is not None:
                    return problem
                if type not in handlers:
                    return self._refuse(FrameType(type))
            start = at + 12
            at = start + length
            if at > end:
                at = start - 12
                self._wanted = 12 + length
                break
            self.frames_received += 1
            handlers[type](stream_id, flags, data[start:at])
            if self.stopped:
                return None
        else:
            self._wanted = 12
        if at < end:
            self._partial += data[at:] if at else data
        return None
