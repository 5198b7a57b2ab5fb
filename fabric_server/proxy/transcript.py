"""A streamed chat as its user sees it, event by event; and how another engine's becomes more of it.

Engines do not number their tokens, so an event with text counts as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import msgspec
from msgspec import Raw, Struct

from fabric_server.metering.openai import Usage

MAX_TEXT = 256 * 1024
"""Bytes of an answer; a longer one is not continued."""
READ_AT_ONCE = 32 * 1024
"""Bytes of events that are kept unread.  Nobody asks for what an answer said before it is lost, and
few are: most end before the first of them is read."""
MAX_NAMES = 1024
"""Characters of an answer's id and model."""
MIN_ECHO = 8
"""Characters: a shorter answer at the beginning of the next is no sure sign of an echo."""

_EVENT = re.compile(rb".*?(?:\n\n|\n\r\n|\r\r)|.+\Z", re.DOTALL)
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?([^\r\n]*)")
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class NotContinued(Exception):
    """The next engine does not go on with the answer; ``str()`` says what it does instead."""


class _Delta(Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Raw] | None = None
    function_call: Raw | None = None
    refusal: str | None = None


class _Choice(Struct, gc=False):
    delta: _Delta
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Raw] | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice]
    id: str = ""
    created: int = 0
    model: str = ""


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


class Transcript:
    """What the user has got of an answer, once it has caught up with what it was given."""

    def __init__(self) -> None:
        self.possible = True
        """It can be continued, so far as it tells itself."""
        self.id = self.model = ""
        self.created = 0
        self.tokens = 0
        self.thoughts = 0
        """Tokens of reasoning."""
        self.blanks = 0
        """The last so many tokens are white space."""
        self._unread = bytearray()
        self._text = bytearray()  # not a list of pieces: a piece may be one letter

    @property
    def spent(self) -> int:
        """Tokens of either kind."""
        return self.tokens + self.thoughts

    @property
    def text(self) -> str:
        return self._text.decode()

    @property
    def said(self) -> str:
        """The text without white space at its end.  Many templates cut that off, so that an engine
        may say it again or not; without it, every engine will, and what is said twice is known."""
        return self.text.rstrip()

    def give_up(self) -> None:
        self.possible = False
        self._unread.clear()
        self._text.clear()

    def add(self, events: bytes) -> None:
        """Whole events, as they go to the user."""
        if self.possible:
            self._unread += events
            if len(self._unread) > READ_AT_ONCE:
                self.catch_up()

    def catch_up(self) -> Transcript:
        """To be called before anything is asked."""
        events = bytes(self._unread)
        self._unread.clear()
        for data in _data_in(events):
            try:
                if data != b"[DONE]":
                    self._add(_decode_chunk(data))
            except _UNREADABLE:
                self.give_up()
            if not self.possible:
                break
        return self

    def _add(self, chunk: _Chunk) -> None:
        if not self.id:
            self.id, self.created, self.model = chunk.id, chunk.created, chunk.model
            if len(self.id) + len(self.model) > MAX_NAMES:  # each later event would repeat it
                self.give_up()
                return
        for choice in chunk.choices:
            delta = choice.delta
            other = delta.tool_calls or delta.function_call or delta.refusal or choice.logprobs
            if choice.index or choice.finish_reason or other:
                self.give_up()
                return
            if delta.content:
                self.tokens += 1
                self.blanks = self.blanks + 1 if delta.content.isspace() else 0
                self._text += delta.content.encode()
            elif delta.reasoning or delta.reasoning_content:
                self.thoughts += 1
        if len(self._text) > MAX_TEXT:
            self.give_up()


class Splice:
    """Turns what the next engine says into more of the same stream."""

    def __init__(self, before: Transcript, kind: str) -> None:
        self._same: dict[str, Any] = {}
        if before.id:
            self._same = {"id": before.id, "created": before.created, "model": before.model}
        self._tokens, self._spent = before.tokens, before.spent
        said = before.said
        self._echo = said if kind == "llama-server" and len(said) >= MIN_ECHO else ""
        self._gap = before.text[len(said) :]
        self._again = 0
        """Tokens of which the user hears nothing, because they have them."""
        self._answering = bool(said)

    def feed(self, events: bytes) -> bytes:
        """Whole events; raises ``NotContinued``."""
        return b"".join([self._spliced(event, data) for event, data in _events(events)])

    def _spliced(self, event: bytes, data: re.Match[bytes] | None) -> bytes:
        if data is None or data[1] == b"[DONE]":
            return event
        try:
            chunk, fields = _decode_chunk(data[1]), _decode_fields(data[1])
            usage = _decode_any(fields.get("usage", b"null"))
        except _UNREADABLE:
            raise NotContinued("it says what can't be read") from None
        if self._same and chunk.choices and all(map(_says_nothing, chunk.choices)):
            return b""
        new: dict[str, Any] = {**fields, **self._same}
        if usage:
            new["usage"] = self._summed(usage)
        for choice in chunk.choices:
            delta = choice.delta
            if self._answering and (delta.reasoning or delta.reasoning_content):
                raise NotContinued("it thinks anew")
            if delta.content and (self._echo or self._gap):
                delta.content = self._news(delta.content)
                if _says_nothing(choice):
                    self._again += 1
                    return b""
                choices = _decode_any(fields["choices"])
                choices[0]["delta"]["content"] = delta.content
                new["choices"] = choices
        return event[: data.start(1)] + _encode(new) + event[data.end(1) :]

    def _news(self, content: str) -> str:
        """What the user does not have of it."""
        content = content.removeprefix(self._echo)
        pairs = zip(content, self._gap, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._echo = ""
        self._gap = self._gap[known:] if known == len(content) else ""
        return content[known:]

    def _summed(self, usage: Any) -> Any:
        try:
            told = msgspec.convert(usage, Usage)
        except _UNREADABLE:
            return usage
        total = self.total(told)
        prompt, completion = total.prompt_tokens, total.completion_tokens
        if prompt is None or completion is None:
            return usage
        figures = {"prompt_tokens": prompt, "completion_tokens": completion}
        return {**usage, **figures, "total_tokens": prompt + completion}

    def total(self, usage: Usage) -> Usage:
        """Of the whole answer: its first part was the next engine's prompt."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if not prompt and not completion:
            return usage  # it does not know
        return Usage(
            None if prompt is None else max(0, prompt - self._tokens + self._again),
            None if completion is None else completion + self._spent - self._again,
        )


def _events(events: bytes) -> Iterator[tuple[bytes, re.Match[bytes] | None]]:
    """Each with its data; an event of several lines of it has what can't be read."""
    for found in _EVENT.finditer(events):
        yield found[0], _DATA.search(found[0])


def _data_in(events: bytes) -> Iterator[bytes]:
    """Of each event that has any."""
    if b"\r" not in events and events.startswith(b"data: ") and events.endswith(b"\n\n"):
        pieces = events[6:-2].split(b"\n\ndata: ")
        if events.count(b"\n") == 2 * len(pieces):  # nothing but events of one line of data
            yield from pieces
            return
    for _, data in _events(events):
        if data is not None:
            yield data[1]


def _says_nothing(choice: _Choice) -> bool:
    """As the first chunk of a stream, which only names a role."""
    delta = choice.delta
    said = delta.content or delta.reasoning or delta.reasoning_content or delta.refusal
    return not (said or delta.tool_calls or delta.function_call or choice.finish_reason)
