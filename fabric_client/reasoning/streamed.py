"""The reasoning of a streamed chat completion: events in, the same events out.

An event that needs no change passes as the bytes that the engine sent.  In JSON text a quote inside
a string is written ``\\"``, so ``"usage"`` with its plain quotes before a colon can only be a key:
which events can't need a change is known without decoding them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from fabric_client.reasoning.events import Events, each
from fabric_client.reasoning.figures import Usage
from fabric_client.reasoning.splitter import CONTENT, REASONING, Channel, Part, Splitter

MAX_CHOICES = 128
"""Choices of an answer that are looked at: the most that the official API can be asked for."""

_DATA = re.compile(rb"(?:^|[\r\n])data: ?([^\r\n]*)")
_CONCERNS_US = re.compile(rb'"(?:reasoning|usage"\s*:\s*\{|index"\s*:\s*[1-9])').search
"""Whether events may need a change once choice 0 is settled."""
_OF_THE_ANSWER = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
"""The fields that all events of an answer have in common."""
_FIELD: dict[Channel, str] = {REASONING: "reasoning_content", CONTENT: "content"}


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Raw] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice]
    usage: Usage | None = None


class _Change(NamedTuple):
    """What is to become of a choice's delta."""

    of: int
    """The choice's index."""
    alias: bool
    """``reasoning`` is told a second time, as ``reasoning_content``."""
    early: list[Part]
    """Go before it, in events of their own."""
    own: Part | None
    """Takes the place of its ``content``; None: it has none."""


_NO_DELTA = _Delta()
_read = msgspec.json.Decoder(_Chunk).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_fields_or_none = msgspec.json.Decoder(dict[str, Raw] | None).decode
_list_of_fields = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class StreamedReasoning:
    """For ``text/event-stream``."""

    def __init__(self, inline: bool) -> None:
        self._inline = inline
        self._events = Events(self._pass, self._flush)
        self._splitters: dict[int, Splitter] = {}
        """By the choice's index."""
        self._settled = False
        """There is one, and all are."""
        self._last = b"{}"
        """The JSON of the last chunk that was read."""
        self._thoughts = 0
        self._sayings = 0
        """Deltas with reasoning, and, once there was any, others."""
        self.feed = self._events.feed

    def end(self) -> bytes:
        return self._flush() + self._events.end()  # what is no whole event counts for nothing

    def _pass(self, events: bytes) -> bytes:
        if self._settled and not _CONCERNS_US(events):
            if self._thoughts:
                self._sayings += 1 + events.count(b"\ndata:")
            return events
        return b"".join([self._event(event) for event in each(events)])

    def _event(self, event: bytes) -> bytes:
        data = _DATA.search(event)
        if data is None:
            return event  # a comment
        try:
            data[1].decode()  # all of it: not only what is looked at must be text
            chunk = _read(data[1])
        except _UNREADABLE:
            return self._flush() + event  # [DONE], an error, or none of our business
        self._last = data[1]
        changes = [self._change(choice) for choice in chunk.choices]
        splitters = self._splitters.values()
        self._settled = bool(splitters) and all(splitter.settled for splitter in splitters)
        lacking = chunk.usage is not None and chunk.usage.lacks_shares
        if not lacking and not any(changes):
            return event
        early, fields = _changed(_fields(data[1]), changes)
        if chunk.usage is not None and lacking:
            shares = chunk.usage.shares(self._thoughts, self._sayings)
            fields["usage"] = _fields(fields["usage"]) | shares
        return early + event[: data.start(1)] + _encode(fields) + event[data.end(1) :]

    def _change(self, choice: _Choice) -> _Change | None:
        splitter = self._splitter(choice.index)
        if splitter is None:
            return None
        delta = choice.delta or _NO_DELTA
        said: list[Part] = [(CONTENT, delta.content)] if delta.content else []
        if delta.reasoning or delta.reasoning_content:
            parts = splitter.settle() + said  # the engine splits: what looks like a marker is text
            self._thoughts += 1
        else:
            parts = splitter.feed(delta.content or "", last=bool(choice.finish_reason))
            channels = [channel for channel, _ in parts]
            self._thoughts += REASONING in channels
            self._sayings += CONTENT in channels or delta.tool_calls is not None
        alias = bool(delta.reasoning) and delta.reasoning_content is None
        if parts == said and not alias:
            return None
        own = None
        if said:
            own = parts.pop() if parts else (CONTENT, "")
        return _Change(choice.index, alias, parts, own)

    def _splitter(self, index: int) -> Splitter | None:
        splitter = self._splitters.get(index)
        if splitter is None and 0 <= index < MAX_CHOICES:
            splitter = self._splitters[index] = Splitter()
            if not self._inline:
                splitter.settle()
        return splitter

    def _flush(self) -> bytes:
        """What splitters hold back, in events of their own."""
        held = [
            (index, part)
            for index, one in self._splitters.items()
            for part in one.feed("", last=True)
        ]
        if not held:
            return b""
        fields = _fields(self._last)
        return b"".join(_event_of(fields, index, part, {}) for index, part in held)


def _changed(fields: dict[str, Any], changes: list[_Change | None]) -> tuple[bytes, dict[str, Any]]:
    """The events that go before a chunk, and its fields."""
    if not any(changes):
        return b"", fields
    early = b""
    choices: list[dict[str, Any]] = _list_of_fields(fields["choices"])
    for choice, change in zip(choices, changes, strict=True):
        if change is None:
            continue
        delta: dict[str, Any] = _fields_or_none(choice.get("delta", b"null")) or {}
        for part in change.early:
            role = {"role": delta.pop("role")} if "role" in delta else {}
            early += _event_of(fields, change.of, part, role)
        if change.alias:
            delta["reasoning_content"] = delta["reasoning"]
        if change.own is not None:
            channel, text = change.own
            del delta["content"]
            delta[_FIELD[channel]] = text
        choice["delta"] = delta
    return early, fields | {"choices": choices}


def _event_of(fields: dict[str, Any], index: int, part: Part, role: dict[str, Any]) -> bytes:
    """An event that says ``part`` alone, in the answer that has a chunk of these fields."""
    channel, text = part
    choice = {"index": index, "delta": role | {_FIELD[channel]: text}, "finish_reason": None}
    common = {name: fields[name] for name in _OF_THE_ANSWER if name in fields}
    return b"data: " + _encode(common | {"choices": [choice]}) + b"\n\n"
