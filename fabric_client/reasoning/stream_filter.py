"""Reasoning of a streamed chat completion: events in, the same events out.

An event that needs no change passes as the bytes that the engine sent.  In JSON text a quote inside
a string is written ``\\"``, so ``"usage"`` with its plain quotes before a colon can only be a key:
which events can't need a change is known without decoding them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from fabric_client.reasoning.documents import (
    ChunkChoice,
    Delta,
    decode_chunk,
    decode_fields,
    decode_fields_or_none,
    decode_list_of_fields,
)
from fabric_client.reasoning.repair import BOM, is_sound, repair
from fabric_client.reasoning.splitter import CONTENT, REASONING, Channel, Part, Splitter
from fabric_client.sse import EventFramer, EventTooLong, event_end, split_events

MAX_EVENT = 1024 * 1024
"""Bytes of an event; a longer one passes in pieces, unread."""
MAX_CHOICES = 128
"""Choices of an answer that are read: the most that OpenAI's API accepts in ``n``."""

_DATA = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])data: ?([^\r\n]*)")
_MAY_CHANGE = re.compile(
    rb'"(?:reasoning|usage"\s*:\s*\{|index"\s*:\s*[1-9]|choices"\s*:\s*n)'
).search
"""Find what makes events need a change even after choice 0 is settled."""
_COMMON_FIELDS = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
"""Fields that are the same in all events of an answer."""
_FIELD: dict[Channel, str] = {REASONING: "reasoning_content", CONTENT: "content"}


class _Change(NamedTuple):
    """A change of one choice's delta."""

    choice: int
    """Index of the choice."""
    add_alias: bool
    """Repeat ``reasoning`` as ``reasoning_content``."""
    before: list[Part]
    """Parts to send before it, in events of their own."""
    content: Part | None
    """Replaces the delta's ``content``; None if it has none."""


_NO_DELTA = Delta()
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class StreamFilter:
    """Filter of a ``text/event-stream``."""

    def __init__(self, inline: bool) -> None:
        self._markers = inline
        self._framer = EventFramer(MAX_EVENT)
        self._frame = self._framer.feed
        self._passing = False
        """Whether the rest of an event that is too long passes, unread."""
        self._splitters: dict[int, Splitter] = {}
        """By the choice's index."""
        self._settled = False
        """Whether there is a splitter, and all are settled."""
        self._last = b"{}"
        """The JSON of the last chunk that was read."""
        self._reasoning_deltas = 0
        self._content_deltas = 0
        """Deltas with content or tool calls; those before any reasoning need not be counted."""

    def feed(self, data: bytes) -> bytes:
        if self._passing:
            return self._pass_rest(data)
        try:
            events = self._frame(data)
        except EventTooLong:
            self._passing = True
            return self._flush() + self._framer.release()
        if not events:
            return events
        if self._settled and not _MAY_CHANGE(events) and is_sound(events):
            if self._reasoning_deltas:
                self._content_deltas += 1 + events.count(b"\ndata:")
            return events
        return self._read(events)

    def end(self) -> bytes:
        return self._flush() + self._framer.end()  # half an event means nothing to a client

    def _pass_rest(self, data: bytes) -> bytes:
        try:
            events = self._frame(data)
        except EventTooLong:
            events = b""
        if not events:
            return self._framer.release()
        self._passing = False
        end = event_end(events)
        return events[:end] + b"".join([self._filter(one) for one in split_events(events[end:])])

    def _read(self, events: bytes) -> bytes:
        """Return events of which some may need a change; the others pass without being decoded."""
        if events.find(b"\r") < 0:
            if events.find(b"\n\n") == len(events) - 2:
                return self._filter(events)  # there is but one
            if is_sound(events):
                return self._read_sound(events)
        return b"".join([self._filter(event) for event in split_events(events)])

    def _read_sound(self, events: bytes) -> bytes:
        """Read events of which none has a ``\\r``, up to the next one that may need a change.

        Where deltas are counted, each is read: the figures are those of the events' own text.
        """
        passed, at, size = [], 0, len(events)
        while at < size:
            end = at
            if self._settled and not self._reasoning_deltas:
                found = _MAY_CHANGE(events, at)
                before = size - 2 if found is None else events.rfind(b"\n\n", at, found.start())
                end = before + 2 if before >= 0 else at
            if end > at:
                passed.append(events[at:end])
            else:
                end = events.find(b"\n\n", at) + 2
                passed.append(self._filter(events[at:end]))
            at = end
        return b"".join(passed)

    def _filter(self, event: bytes, *, repaired: bool = False) -> bytes:
        event = event.removeprefix(BOM)
        start, end = _data_of(event)
        if end < 0:
            return event  # a comment
        data = event[start:end]
        try:
            sound = repaired or is_sound(data)
            chunk = decode_chunk(data) if sound else None
        except _UNREADABLE:
            chunk = None
        if chunk is None:
            better = None if repaired else repair(data)
            if better is None:
                return self._flush() + event  # [DONE], an error, or something unknown
            return self._filter(event[:start] + better + event[end:], repaired=True)
        self._last = data
        changes = [self._change(choice) for choice in chunk.choices]
        if not self._settled:
            splitters = self._splitters.values()
            self._settled = bool(splitters) and all(splitter.settled for splitter in splitters)
        add_shares = chunk.usage is not None and chunk.usage.lacks_shares()
        if not add_shares and not any(changes):
            return event
        before, fields = _changed(decode_fields(data), changes)
        if chunk.usage is not None and add_shares:
            shares = chunk.usage.shares(self._reasoning_deltas, self._content_deltas)
            fields["usage"] = decode_fields(fields["usage"]) | shares
        return before + event[:start] + _encode(fields) + event[end:]

    def _change(self, choice: ChunkChoice) -> _Change | None:
        splitter = self._splitter(choice.index)
        if splitter is None:
            return None
        delta = choice.delta or _NO_DELTA
        sent: list[Part] = [(CONTENT, delta.content)] if delta.content else []
        if delta.reasoning or delta.reasoning_content:
            parts = splitter.settle() + sent  # the engine splits: what looks like a marker is text
            self._reasoning_deltas += 1
        else:
            parts = splitter.feed(delta.content or "", last=bool(choice.finish_reason))
            channels = [channel for channel, _ in parts]
            self._reasoning_deltas += REASONING in channels
            self._content_deltas += CONTENT in channels or delta.tool_calls is not None
        add_alias = bool(delta.reasoning) and delta.reasoning_content is None
        if parts == sent and not add_alias:
            return None
        content = None
        if sent:
            content = parts.pop() if parts else (CONTENT, "")
        return _Change(choice.index, add_alias, parts, content)

    def _splitter(self, index: int) -> Splitter | None:
        splitter = self._splitters.get(index)
        if splitter is None and 0 <= index < MAX_CHOICES:
            splitter = self._splitters[index] = Splitter()
            self._settled = False
            if not self._markers:
                splitter.settle()
        return splitter

    def _flush(self) -> bytes:
        """Return the text that splitters hold back, in events of its own."""
        held = [
            (index, part)
            for index, one in self._splitters.items()
            for part in one.feed("", last=True)
        ]
        if not held:
            return b""
        fields = decode_fields(self._last)
        return b"".join(_event_of(fields, index, part, {}) for index, part in held)


def _data_of(event: bytes) -> tuple[int, int]:
    """Return where an event's first line of data begins and ends; (-1, -1) if it has none."""
    if event.startswith(b"data: ") and event.find(b"\r") < 0:
        end = event.find(b"\n")
        return 6, end if end >= 0 else len(event)
    found = _DATA.search(event)
    return found.span(1) if found else (-1, -1)


def _changed(fields: dict[str, Any], changes: list[_Change | None]) -> tuple[bytes, dict[str, Any]]:
    """Return the events that go before a chunk, and the chunk's changed fields."""
    if not any(changes):
        return b"", fields
    before = b""
    choices: list[dict[str, Any]] = decode_list_of_fields(fields["choices"])
    for choice, change in zip(choices, changes, strict=True):
        if change is None:
            continue
        delta: dict[str, Any] = decode_fields_or_none(choice.get("delta", b"null")) or {}
        for part in change.before:
            role = {"role": delta.pop("role")} if "role" in delta else {}
            before += _event_of(fields, change.choice, part, role)
        if change.add_alias:
            delta["reasoning_content"] = delta["reasoning"]
        if change.content is not None:
            channel, text = change.content
            del delta["content"]
            delta[_FIELD[channel]] = text
        choice["delta"] = delta
    return before, fields | {"choices": choices}


def _event_of(fields: dict[str, Any], index: int, part: Part, role: dict[str, Any]) -> bytes:
    """Return an event with ``part`` alone, for the answer of which a chunk has these fields."""
    channel, text = part
    choice = {"index": index, "delta": role | {_FIELD[channel]: text}, "finish_reason": None}
    common = {name: fields[name] for name in _COMMON_FIELDS if name in fields}
    return b"data: " + _encode(common | {"choices": [choice]}) + b"\n\n"
