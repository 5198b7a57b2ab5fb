"""Cuts received bytes into frames, checks their headers, and calls a handler for each frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.tunnel import frames
from protocol.tunnel.frames import HEADER, KIND, RULES, FrameType

Handler = Callable[[int, int, bytes], None]
"""Called with stream id, flags and payload."""

_unpack = KIND.unpack_from
_Rule = tuple[Handler, int, int, int, int, int]
"""What handles a kind of frame, its flags, the least and the most of its payload, and what its
stream id must be: these bits of it have this value."""


class FrameReader:
    """Receive buffer and frame parser of a tunnel."""

    __slots__ = (
        "_partial",
        "_refuse",
        "_rules",
        "_wanted",
        "bytes_received",
        "frames_received",
        "stopped",
    )

    def __init__(self, refuse: Callable[[FrameType], str]) -> None:
        """Accept no frames before ``accept``; ``refuse`` words why a type is an error."""
        self._rules: dict[int, _Rule] = {}
        """Rules by kind of frame: a kind that is not here is an error."""
        self._refuse = refuse
        self._partial = bytearray()
        self._wanted = 0
        """Length of ``_partial`` at which there is something to do."""
        self.stopped = False
        self.bytes_received = 0
        self.frames_received = 0

    def accept(self, handlers: Mapping[FrameType, Handler]) -> None:
        """Accept further types of frames; handlers may call this."""
        for type, handler in handlers.items():
            rule = RULES[type]
            assert rule is not None
            least, most, allowed, on_stream = rule
            bits = 0 if on_stream is None else 1 if on_stream else 0xFFFF_FFFF
            for flags in {0, allowed}:
                kind = type << 24 | flags << 16
                self._rules[kind] = handler, flags, least, most, bits, int(on_stream is True)

    def stop(self) -> None:
        """Drop what is buffered and handle no further frame: none has a rule any more."""
        self.stopped = True
        self._partial.clear()
        self._rules.clear()

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
        rules = self._rules
        while end - at >= 12:
            kind, stream_id, length = _unpack(data, at)
            rule = rules.get(kind)
            if rule is None:
                return None if self.stopped else self._problem(data, at)
            handle, flags, least, most, bits, value = rule
            if not least <= length <= most or stream_id & bits != value:
                return self._problem(data, at)
            start = at + 12
            at = start + length
            if at > end:
                at = start - 12
                self._wanted = 12 + length
                break
            self.frames_received += 1
            handle(stream_id, flags, data[start:at])
        else:
            self._wanted = 12
        if at < end and not self.stopped:
            self._partial += data[at:] if at else data
        return None

    def _problem(self, data: bytes, at: int) -> str:
        """Return what is wrong with a header that has no rule, or breaks it."""
        header = HEADER.unpack_from(data, at)
        return frames.problem_with(*header) or self._refuse(FrameType(header[0]))
