"""Reads off an answer, as it passes, what it cost and whether it was complete.

A streamed answer goes on in whole events, at once.  Complete means a terminal marker was seen,
never that the bytes ended.  In JSON text a quote inside a string is written ``\\"``, so ``"usage"``
with its plain quotes can only be a key.
"""

from __future__ import annotations

import json
import re
from typing import Protocol

import msgspec
from msgspec import Struct

MOST_EVENT = 1024 * 1024
"""An event longer than this passes in pieces, unread."""
_EDGE = 8192
"""Bytes kept of both ends of an unstreamed answer, where ``usage`` stands."""

_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_ERROR = re.compile(rb'(?:^|\n)(?:event: ?error|data: ?\{"error")')
_DONE = b"data: [DONE]"
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_raw_json = json.JSONDecoder().raw_decode


class Usage(Struct, gc=False):
    """Tokens as the engine counts them; None where it does not tell."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Meter(Protocol):
    usage: Usage
    complete: bool
    """A terminal marker was seen."""
    failed: bool
    """The engine reported an error inside its answer."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those that may go on to the user now."""

    def end(self) -> bytes:
        """The answer has ended; return what was still held back."""


class StreamMeter:
    """For ``text/event-stream``."""

    def __init__(self, usage_asked: bool) -> None:
        self.usage = Usage()
        self.complete = False
        self.failed = False
        self._strip = not usage_asked
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        if data.endswith(b"\n\n"):
            self._held = b""
        else:
            end = _last_event_end(data)
            if end == 0 and len(data) > MOST_EVENT:
                self._held = b""
                return data
            self._held = data[end:]
            data = data[:end]
        return self._read(data) if data else data

    def end(self) -> bytes:
        held, self._held = self._held, b""
        return self._read(held) if held else held

    def _read(self, events: bytes) -> bytes:
        if not self.complete:
            self.complete = _FINISH.search(events) is not None
        if b'"error"' in events and _ERROR.search(events):
            self.failed = True
        if b'"usage"' in events:
            return self._read_usage(events)
        return events

    def _read_usage(self, events: bytes) -> bytes:
        kept: list[bytes] = []
        at = 0
        while at < len(events):
            found = _EVENT_END.search(events, at)
            end = found.end() if found else len(events)
            event = events[at:end]
            at = end
            if not (b'"usage"' in event and self._is_usage_chunk(event) and self._strip):
                kept.append(event)
        return b"".join(kept)

    def _is_usage_chunk(self, event: bytes) -> bool:
        """Note the figures; True when the event has nothing else to tell."""
        if not event.startswith(b"data:"):
            return False
        try:
            chunk = _decode_chunk(event[5:])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False  # not of OpenAI's shape: none of our business
        if chunk.usage is not None:
            self.usage = chunk.usage
        return chunk.usage is not None and chunk.choices == []


class BodyMeter:
    """For an answer in one piece: passes untouched; the figures are read when it has ended."""

    complete = True
    failed = False

    def __init__(self) -> None:
        self.usage = Usage()
        self._first = b""
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        if not self._first:
            self._first = data
        elif len(data) >= _EDGE:
            self._last = data
        else:
            self._last = (self._last + data)[-_EDGE:]
        return data

    def end(self) -> bytes:
        self.usage = _usage_in(self._last) or _usage_in(self._first) or self.usage
        return b""


class NoMeter:
    """For what is not metered, such as an engine's error."""

    complete = True
    failed = False
    usage = Usage()

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


def _last_event_end(data: bytes) -> int:
    """The offset behind the last blank line; 0 when there is none."""
    plain, with_returns = data.rfind(b"\n\n"), data.rfind(b"\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, with_returns + 3 if with_returns >= 0 else 0)


def _usage_in(text: bytes) -> Usage | None:
    at = text.rfind(b'"usage"')
    if at < 0:
        return None
    brace = text.find(b"{", at)
    if brace < 0 or text[at + 7 : brace].strip() != b":":
        return None
    try:
        figures, _ = _raw_json(text[brace:].decode(errors="replace"))
        return msgspec.convert(figures, Usage)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
