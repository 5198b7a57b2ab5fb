"""The meters of OpenAI's chat: tokens and completeness of an answer, read while it passes.

A streamed answer is passed on in whole events, at once.  Complete means that a terminal marker was
seen, never that the bytes ended.  In JSON text a quote inside a string is written ``\\"``, so
``"usage"`` with its plain quotes before a colon can only be a key.

What runs for each event asks ``rfind`` for a word: it misses one three times as fast as ``find`` in
a piece of many events, and ``in`` first tries to take the word for a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Protocol

import msgspec

from fabric_server.metering.documents import Figures, decode_figures
from fabric_server.metering.error_events import (
    EVENT_BEGUN,
    TOO_LONG,
    ErrorEvent,
    has_error,
    openai_event,
    read_error_event,
    without_error,
)
from fabric_server.metering.sse import BLANK_LINES, UNREADABLE, events_in, read_data, read_object
from fabric_server.metering.usage import Usage
from runtime.engine_errors import PROMPT_FIELDS

MAX_EVENT = 1024 * 1024
"""A longer event passes in pieces, unread."""
_EDGE = 8192
"""Bytes kept of both ends of an unstreamed answer, where ``usage`` is found."""
_MAX_GUESSES = 4
"""Objects called ``usage`` that are tried in one of these ends."""
_SMALL_OBJECT, _MAX_CLOSED = 1024, 8
"""Bytes of an object, and objects in it, up to which ``usage`` is read without Python's decoder."""
_OVERLAP = 64
"""Bytes of an over-long event that are kept, for markers and ends that span two pieces."""

_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"(?!(?:null|none|None)?")([a-z]*)')
"""A reason to end; engines that write "" or "null" mean none."""
_FAILURES = (b"abort", b"error", b"failed")
"""Values of ``finish_reason`` for a request that failed."""
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][\r\n]+\Z")
_DONE_ENDS = (b"[DONE]\n\n", b"[DONE]\r\n\r\n", b"[DONE]\r\r")
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_SOME_USAGE = re.compile(rb'"usage"\s*+(?::\s*+(?!null)|data:)')
"""A value that is not null, or that may stand in the next line of data."""
_raw_json = json.JSONDecoder().raw_decode
_NO_REASONS = ("null", "none", "None")
_TEXTS = ("error", "message", "delta", "content", "text", "response", "output")
"""Fields beside ``choices`` in which odd engines put what they have to say."""

_EVENTS_MEASURED = 4
"""Events of a stream that show how long a piece is that certainly has one only."""


class Meter(Protocol):
    usage: Usage
    events: int
    """About how many events or lines have passed; 0 for an answer in one piece."""
    before: int
    """How many of them are tokens that the client got from other engines."""
    complete: bool
    """A terminal marker was seen."""
    done: bool
    """The very last marker was seen; clients have stopped reading."""
    failed: bool
    """The engine reported an error inside its answer."""
    torn: bool
    """The client has the beginning of an event without its end."""

    @property
    def sample(self) -> bytes:
        """Return events with text that have passed, or the beginning of an answer in one piece."""

    @property
    def aside(self) -> int:
        """Return the bytes that came beside the events that were counted."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those that may be sent to the client now."""

    def end(self) -> bytes:
        """Take the end of the answer; return the bytes that were still held back."""


class StreamMeter:
    """Meters a stream of events (``text/event-stream``)."""

    before = 0
    prompt_field: ClassVar[str | None] = PROMPT_FIELDS["/v1/chat/completions"]
    """The field of a request that is at fault when its prompt is too long."""

    def __init__(self, usage_requested: bool) -> None:
        self.usage = Usage()
        self.events = 0
        self.sample = b""
        self._short = 0
        """A piece that is shorter has one event."""
        self._smallest = MAX_EVENT
        self._aside = 0
        self.complete = self.done = False
        self.failed = False
        self.torn = False
        self._strip = not usage_requested
        self._told = False
        """An error of the engine's has been passed on."""
        self._held = bytearray()

    @property
    def aside(self) -> int:
        return self._aside + len(self._held)

    def feed(self, data: bytes) -> bytes:
        held = self._held
        if not held and data.endswith(b"\n\n"):
            if len(data) < self._short:
                self.events += 1
            else:
                self._count_events(data)
            return self._read(data)
        looked_at = max(0, len(held) - 2)  # except for the last bytes: a blank line has up to three
        held += data
        end = _last_event_end(held, looked_at)
        if end:
            self.torn = False
            events = self._release(end)
            self.events += events.count(b"\n\n") or 1
            return self._read(events)
        if len(held) <= MAX_EVENT:
            return b""
        if not self.torn and EVENT_BEGUN.match(held[:_OVERLAP]):
            return self._cut_error()
        self.torn = True
        self._look(bytes(held))
        return self._release(len(held) - _OVERLAP)

    def end(self) -> bytes:
        self.torn = self.torn or bool(self._held)
        return self._read(self._release(len(self._held)))

    def _count_events(self, data: bytes) -> None:
        count = data.count(b"\n\n")
        self.events += count
        self._smallest = min(self._smallest, len(data) // count)
        if self.events >= _EVENTS_MEASURED:
            self._short = self._smallest * 3 // 2

    def _set_aside(self, size: int) -> None:
        """Do not count an event that never has text."""
        self.events = max(0, self.events - 1)
        self._aside += size

    def _release(self, count: int) -> bytes:
        data = bytes(self._held[:count])
        del self._held[:count]
        return data

    def _read(self, events: bytes) -> bytes:
        over = self.complete
        self._look(events)
        if self.failed:
            events = self._tell(events)
        if events.rfind(b'"usage"') >= 0 and (self.complete or _SOME_USAGE.search(events)):
            return self._read_usage(events, over)
        return events

    def _look(self, events: bytes) -> None:
        """Note what events say."""
        if events.endswith(_DONE_ENDS) and _DONE.search(events):
            if not self.complete:
                self.sample += events
            if not self.done:
                self._set_aside(len(b"data: [DONE]\n\n"))
            self.complete = self.done = True
        elif not self.complete:
            if finished := _FINISHED.search(events):
                self.complete = True
                self.failed = self.failed or finished[1] in _FAILURES
                self.sample += events
            else:
                self.sample = events
        if events.rfind(b"error") >= 0 and has_error(events):
            self.failed = True

    def _tell(self, events: bytes) -> bytes:
        """Return events with the stream's first error in the form of its API, and no other."""
        passed = []
        for event in events_in(events):
            if not has_error(event):
                passed.append(event)
            elif not self._told:
                self._told = True
                error = read_error_event(event, self.prompt_field)
                passed.append(self._encode_error(error, b"".join(passed)))
            else:
                passed.append(without_error(event))
        return b"".join(passed)

    def _cut_error(self) -> bytes:
        """Return another error for one that is too long, of whose rest nothing is passed on."""
        told, self._told, self.failed = self._told, True, True
        del self._held[_OVERLAP:-_OVERLAP]
        return b"" if told else self._encode_error(TOO_LONG, b"")

    def _encode_error(self, error: ErrorEvent, before: bytes) -> bytes:
        """Return an error as an event; ``before`` are those before it that came with it."""
        return openai_event(error)

    def _read_usage(self, events: bytes, over: bool) -> bytes:
        """Read figures, and take out chunks that are there only because usage was asked for.

        ``over``: a choice has ended before these events.
        """
        start = events.rfind(b"\n\n", 0, events.index(b'"usage"')) + 2
        if start < 2:
            start = 0
        kept = [events[:start]]
        over = over or _FINISHED.search(kept[0]) is not None
        for event in events_in(events[start:]):
            if b'"usage"' in event and self._is_usage_chunk(event, over) and self._strip:
                continue
            kept.append(event)
            over = over or _FINISHED.search(event) is not None
        return b"".join(kept)

    def _is_usage_chunk(self, event: bytes, over: bool) -> bool:
        """Take in the figures; return True when the event carries nothing else."""
        data = read_data(event)
        chunk = None if data is None else read_object(data)
        if chunk is None:
            return False  # not of OpenAI's format: passes as it is
        told = chunk.get("usage")
        if told is None and not over:  # a first chunk may have no choices either
            return False
        with suppress(*UNREADABLE):  # figures that can't be true are not believed
            usage = msgspec.convert(told, Usage)
            if usage.prompt_tokens or usage.completion_tokens or self.usage.prompt_tokens is None:
                self.usage = usage  # some engines send 0 and 0 where they do not know
        return not _tells(chunk, over) and not has_error(event)


def _tells(chunk: dict[str, Any], over: bool) -> bool:
    """Return whether a chunk with usage has anything that a client would miss."""
    return any(chunk.get(name) for name in _TEXTS) or not _is_blank(chunk.get("choices"), over)


def _is_blank(value: Any, over: bool, levels: int = 6) -> bool:
    """Return whether a part of a chunk says nothing; a role counts until a choice has ended."""
    if not value or not levels:
        return not value
    if isinstance(value, list):
        return all(_is_blank(one, over, levels - 1) for one in value)
    return isinstance(value, dict) and all(
        name == "index"
        or (name == "role" and over)
        or (name == "finish_reason" and one in _NO_REASONS)
        or _is_blank(one, over, levels - 1)
        for name, one in value.items()
    )


class CompletionsMeter(StreamMeter):
    """Meters a stream of ``/v1/completions``."""

    prompt_field: ClassVar[str | None] = PROMPT_FIELDS["/v1/completions"]


class BodyMeter:
    """Meters an answer in one piece, which passes untouched; figures are read at its end."""

    events = 0
    before = 0
    aside = 0
    complete = True
    done = False
    failed = False
    torn = False

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

    @property
    def sample(self) -> bytes:
        return self._first

    def end(self) -> bytes:
        self.usage = self._usage_in(self._last) or self._usage_in(self._first) or self.usage
        return b""


class NoMeter:
    """Passes answers that are not metered, such as an engine's error."""

    events = 0
    before = 0
    aside = 0
    sample = b""
    complete = True
    done = False
    failed = False
    torn = False

    def __init__(self) -> None:
        self.usage = Usage()

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


def _last_event_end(data: bytearray, start: int) -> int:
    """Return the offset after the last blank line that ends after ``start``; 0 if there is none."""
    ends = [at + len(mark) for mark in BLANK_LINES if (at := data.rfind(mark, start)) >= 0]
    return max(ends, default=0)


def _usage_in(text: bytes) -> Usage | None:
    """Return the figures of the last object called ``usage`` that has any."""
    at, guesses = len(text), _MAX_GUESSES
    while guesses and (at := text.rfind(b'"usage"', 0, at)) >= 0:
        named = _USAGE.match(text, at)
        if named is None:
            continue
        guesses -= 1
        figures = _figures_at(text, named.end())
        if figures is None:
            continue
        usage = _as_usage(figures)
        if usage.prompt_tokens is not None or usage.completion_tokens is not None:
            return usage
    return None


def _figures_at(text: bytes, start: int) -> Figures | None:
    """Return the figures of the object that begins there; None if it can't be read."""
    try:
        return decode_figures(text[start : _object_end(text, start)])
    except UNREADABLE:  # its end was not there, or it has NaN, which Python's own decoder reads
        pass
    try:
        return msgspec.convert(_raw_json(text[start:].decode(errors="replace"))[0], Figures)
    except UNREADABLE:
        return None


def _object_end(text: bytes, start: int) -> int:
    """Guess where the object ends that begins there, by its braces; 0 where that is not easy.

    What a decoder takes up to there is the whole object, for no object is another's beginning.
    """
    end, limit = start, start + _SMALL_OBJECT
    for closed in range(1, _MAX_CLOSED + 1):
        end = text.find(b"}", end, limit) + 1
        if not end or text.count(b"{", start, end) <= closed:
            return end
    return 0


def _as_usage(figures: Figures) -> Usage:
    if figures.prompt_tokens is not None or figures.completion_tokens is not None:
        return Usage(figures.prompt_tokens, figures.completion_tokens)
    if figures.input_tokens is not None:  # Anthropic counts cached tokens separately
        cached = (figures.cache_creation_input_tokens or 0) + (figures.cache_read_input_tokens or 0)
        return Usage(figures.input_tokens + cached, figures.output_tokens)
    if figures.output_tokens is None:  # a reranker counts the prompt's tokens only
        return Usage(figures.total_tokens, None)
    return Usage(None, figures.output_tokens)
