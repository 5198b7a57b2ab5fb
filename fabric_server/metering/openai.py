"""Reads off an answer, as it passes, what it cost and whether it was complete: OpenAI's chat.

A streamed answer goes on in whole events, at once.  Complete means a terminal marker was seen,
never that the bytes ended.  In JSON text a quote inside a string is written ``\\"``, so ``"usage"``
with its plain quotes before a colon can only be a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

MAX_EVENT = 1024 * 1024
"""An event longer than this passes in pieces, unread."""
_EDGE = 8192
"""Bytes kept of both ends of an unstreamed answer, where ``usage`` stands."""
_MAX_GUESSES = 4
"""Objects called ``usage`` that are looked at in one of these ends."""
_OVERLAP = 64
"""Bytes of an endless event that are kept, for marks and ends that lie across pieces."""

_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][\r\n]+\Z")
_DONE_ENDS = (b"[DONE]\n\n", b"[DONE]\r\n\r\n", b"[DONE]\r\r")
ERROR = re.compile(rb'(?:^|[\r\n])(?:event: ?error|(?:data|error): ?\{\s*"error"\s*:\s*[{"])')
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
_EVENT_END = re.compile(b"|".join(_BLANK_LINES))
_DATA = re.compile(rb"(?:^|[\r\n])data:([^\r\n]*)")
_raw_json = json.JSONDecoder().raw_decode

Count = Annotated[int, Meta(ge=0, lt=2**53)]


class Usage(Struct, gc=False):
    """Tokens as the engine counts them; None where it does not tell."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Chunk(Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class Meter(Protocol):
    usage: Usage
    complete: bool
    """A terminal marker was seen."""
    done: bool
    """The very last one was: whatever follows, users have stopped reading."""
    failed: bool
    """The engine reported an error inside its answer."""
    torn: bool
    """The user has got the beginning of an event, and not its end."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those that may go on to the user now."""

    def end(self) -> bytes:
        """The answer has ended; return what was still held back."""


class StreamMeter:
    """For ``text/event-stream``."""

    def __init__(self, usage_asked: bool) -> None:
        self.usage = Usage()
        self.complete = self.done = False
        self.failed = False
        self.torn = False
        self._strip = not usage_asked
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        held = self._held
        if not held and data.endswith(b"\n\n"):
            return self._read(data)
        looked_at = max(0, len(held) - 2)  # but for the last bytes: a blank line has up to three
        held += data
        end = _last_event_end(held, looked_at)
        if end:
            self.torn = False
            return self._read(self._release(end))
        if len(held) <= MAX_EVENT:
            return b""
        self.torn = True
        self._look(bytes(held))
        return self._release(len(held) - _OVERLAP)

    def end(self) -> bytes:
        self.torn = self.torn or bool(self._held)
        return self._read(self._release(len(self._held)))

    def _release(self, count: int) -> bytes:
        data = bytes(self._held[:count])
        del self._held[:count]
        return data

    def _read(self, events: bytes) -> bytes:
        self._look(events)
        if b'"usage"' in events and _USAGE.search(events):
            return self._read_usage(events)
        return events

    def _look(self, events: bytes) -> None:
        if events.endswith(_DONE_ENDS) and _DONE.search(events):
            self.complete = self.done = True
        elif not self.complete and _FINISHED.search(events):
            self.complete = True
        if b'"error"' in events and ERROR.search(events):
            self.failed = True

    def _read_usage(self, events: bytes) -> bytes:
        return b"".join(
            event
            for event in events_in(events)
            if not (b'"usage"' in event and self._is_usage_chunk(event) and self._strip)
        )

    def _is_usage_chunk(self, event: bytes) -> bool:
        """Note the figures; True when the event has nothing else to tell."""
        data = read_data(event)
        if data is None:
            return False
        try:
            chunk = _decode_chunk(data)
        except UNREADABLE:
            return False  # not of OpenAI's shape: none of our business
        usage = chunk.usage
        if usage is None:
            return False
        if usage.prompt_tokens or usage.completion_tokens or self.usage.prompt_tokens is None:
            self.usage = usage  # some say 0 and 0 wherever they don't know
        return chunk.choices == []


class BodyMeter:
    """For an answer in one piece: passes untouched; the figures are read when it has ended."""

    complete = True
    done = failed = torn = False

    def __init__(self, read: Callable[[bytes], Usage | None] | None = None) -> None:
        """``read`` finds the figures in the end of an answer, or in its beginning."""
        self.usage = Usage()
        self._usage_in = read or _usage_in
        self._first = b""
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        if len(self._first) < _EDGE:
            self._first = (self._first + data)[:_EDGE] if self._first else data
        self._last = data if len(data) >= _EDGE else (self._last + data)[-_EDGE:]
        return data

    def end(self) -> bytes:
        self.usage = self._usage_in(self._last) or self._usage_in(self._first) or self.usage
        return b""


class NoMeter:
    """For what is not metered, such as an engine's error."""

    complete = True
    done = failed = torn = False
    usage = Usage()

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


def events_in(text: bytes) -> Iterator[bytes]:
    """Each with its blank line; the last one may have none."""
    at = 0
    while at < len(text):
        found = _EVENT_END.search(text, at)
        end = found.end() if found else len(text)
        yield text[at:end]
        at = end


def read_data(event: bytes) -> bytes | None:
    """Its line of data; None when it has none."""
    data = _DATA.search(event)
    return None if data is None else data[1]


def _last_event_end(data: bytearray, start: int) -> int:
    """The offset behind the last blank line that ends behind ``start``; 0 when there is none."""
    ends = [at + len(mark) for mark in _BLANK_LINES if (at := data.rfind(mark, start)) >= 0]
    return max(ends, default=0)


class _Figures(Struct, gc=False):
    """All names that engines have for them."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    total_tokens: Count | None = None


def _usage_in(text: bytes) -> Usage | None:
    """Those of the last object called ``usage`` that has figures."""
    guesses = [found.end() for found in _USAGE.finditer(text)]
    for at in guesses[: -_MAX_GUESSES - 1 : -1]:
        try:
            figures, _ = _raw_json(text[at:].decode(errors="replace"))
            usage = _as_usage(msgspec.convert(figures, _Figures))
        except UNREADABLE:
            continue
        if usage.prompt_tokens is not None or usage.completion_tokens is not None:
            return usage
    return None


def _as_usage(told: _Figures) -> Usage:
    if told.prompt_tokens is not None or told.completion_tokens is not None:
        return Usage(told.prompt_tokens, told.completion_tokens)
    if told.input_tokens is not None:  # Anthropic counts what was cached beside it
        cached = (told.cache_creation_input_tokens or 0) + (told.cache_read_input_tokens or 0)
        return Usage(told.input_tokens + cached, told.output_tokens)
    if told.output_tokens is None:  # a reranker has no other tokens than the prompt's
        return Usage(told.total_tokens, None)
    return Usage(None, told.output_tokens)
