"""The transcript of a streamed chat as its client sees it, and the splice with another engine's.

Engines do not number their tokens, so an event with text counts as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import msgspec
from msgspec import Raw, Struct

from fabric_server.metering.usage import Usage

MAX_TEXT = 256 * 1024
"""Bytes of an answer's text; a longer answer is not continued."""
MAX_UNREAD = 32 * 1024
"""Bytes of events that are kept unread.  The text is needed only when a node is lost, so that most
answers end before any of their events is parsed."""
MAX_NAMES = 1024
"""Characters of an answer's id and model."""
MIN_ECHO = 8
"""Characters of text from which on its repetition at the beginning of a continuation is an echo."""

_EVENT = re.compile(rb".*?(?:\n\n|\n\r\n|\r\r)|.+\Z", re.DOTALL)
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?([^\r\n]*)")
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class NotContinued(Exception):
    """The next engine does not continue the answer; ``str()`` says what it does instead."""


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
    """The text and the tokens that the client has got of an answer, as of the last ``catch_up``."""

    def __init__(self) -> None:
        self.possible = True
        """True while nothing in the answer so far forbids a continuation."""
        self.id = self.model = ""
        self.created = 0
        self.tokens = 0
        self.reasoning_tokens = 0
        self.trailing_blanks = 0
        """Tokens at the end that are white space."""
        self._unread = bytearray()
        self._text = bytearray()  # not a list of pieces: a piece may be one letter

    @property
    def spent(self) -> int:
        """Tokens of text and of reasoning."""
        return self.tokens + self.reasoning_tokens

    @property
    def text(self) -> str:
        return self._text.decode()

    @property
    def stripped_text(self) -> str:
        """The text without white space at its end.

        Many chat templates cut that off, so that an engine may repeat it or not.  Asked without it,
        every engine repeats it, and what is repeated is known.
        """
        return self.text.rstrip()

    def give_up(self) -> None:
        self.possible = False
        self._unread.clear()
        self._text.clear()

    def add(self, events: bytes) -> None:
        """Add whole events, as they go to the client."""
        if self.possible:
            self._unread += events
            if len(self._unread) > MAX_UNREAD:
                self.catch_up()

    def catch_up(self) -> Transcript:
        """Parse the events that were added; call it before attributes are read."""
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
                self.trailing_blanks = self.trailing_blanks + 1 if delta.content.isspace() else 0
                self._text += delta.content.encode()
            elif delta.reasoning or delta.reasoning_content:
                self.reasoning_tokens += 1
        if len(self._text) > MAX_TEXT:
            self.give_up()


class Splice:
    """Turns the stream of the next engine into the rest of the first one's."""

    def __init__(self, before: Transcript, kind: str) -> None:
        self._identity: dict[str, Any] = {}
        if before.id:
            self._identity = {"id": before.id, "created": before.created, "model": before.model}
        self._tokens, self._spent = before.tokens, before.spent
        text = before.stripped_text
        self._echo = text if kind == "llama-server" and len(text) >= MIN_ECHO else ""
        """Text that this engine may repeat at the beginning."""
        self._gap = before.text[len(text) :]
        """White space behind the text, which any engine may repeat."""
        self._repeated = 0
        """Tokens that are not passed on, because the client has them."""
        self._answering = bool(text)

    @property
    def spent(self) -> int:
        """Return the tokens of the answer before this part."""
        return self._spent

    def feed(self, events: bytes) -> bytes:
        """Return whole events as they go to the client.  Raises ``NotContinued``."""
        return b"".join([self._splice(event, data) for event, data in _events(events)])

    def _splice(self, event: bytes, data: re.Match[bytes] | None) -> bytes:
        if data is None or data[1] == b"[DONE]":
            return event
        try:
            chunk, fields = _decode_chunk(data[1]), _decode_fields(data[1])
            usage = _decode_any(fields.get("usage", b"null"))
        except _UNREADABLE:
            raise NotContinued("an event of the continuation can't be parsed") from None
        if self._identity and chunk.choices and all(map(_is_empty, chunk.choices)):
            return b""
        new: dict[str, Any] = {**fields, **self._identity}
        if usage:
            new["usage"] = self._sum_usage(usage)
        for choice in chunk.choices:
            delta = choice.delta
            if self._answering and (delta.reasoning or delta.reasoning_content):
                raise NotContinued("the engine begins to reason again")
            if delta.content and (self._echo or self._gap):
                delta.content = self._strip_known(delta.content)
                if _is_empty(choice):
                    self._repeated += 1
                    return b""
                choices = _decode_any(fields["choices"])
                choices[0]["delta"]["content"] = delta.content
                new["choices"] = choices
        return event[: data.start(1)] + _encode(new) + event[data.end(1) :]

    def _strip_known(self, content: str) -> str:
        """Return the part of ``content`` that the client does not have."""
        content = content.removeprefix(self._echo)
        pairs = zip(content, self._gap, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._echo = ""
        self._gap = self._gap[known:] if known == len(content) else ""
        return content[known:]

    def _sum_usage(self, usage: Any) -> Any:
        try:
            parsed = msgspec.convert(usage, Usage)
        except _UNREADABLE:
            return usage
        total = self.total(parsed)
        prompt, completion = total.prompt_tokens, total.completion_tokens
        if prompt is None or completion is None:
            return usage
        figures = {"prompt_tokens": prompt, "completion_tokens": completion}
        return {**usage, **figures, "total_tokens": prompt + completion}

    def total(self, usage: Usage) -> Usage:
        """Return the usage of the whole answer, whose first part was the next engine's prompt."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if not prompt and not completion:
            return usage  # the engine does not report any
        return Usage(
            None if prompt is None else max(0, prompt - self._tokens + self._repeated),
            None if completion is None else completion + self._spent - self._repeated,
        )


def _events(events: bytes) -> Iterator[tuple[bytes, re.Match[bytes] | None]]:
    """Yield each event with its data, which can't be parsed where it has several lines."""
    for found in _EVENT.finditer(events):
        yield found[0], _DATA.search(found[0])


def _data_in(events: bytes) -> Iterator[bytes]:
    """Yield the data of each event that has some."""
    if events.find(b"\r") < 0 and events.startswith(b"data: ") and events.endswith(b"\n\n"):
        pieces = events[6:-2].split(b"\n\ndata: ")
        if events.count(b"\n") == 2 * len(pieces):  # only events of one line of data
            yield from pieces
            return
    for _, data in _events(events):
        if data is not None:
            yield data[1]


def _is_empty(choice: _Choice) -> bool:
    """Return whether a choice carries nothing, as in a first chunk, which only names a role."""
    delta = choice.delta
    text = delta.content or delta.reasoning or delta.reasoning_content or delta.refusal
    return not (text or delta.tool_calls or delta.function_call or choice.finish_reason)
