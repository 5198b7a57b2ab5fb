"""The meters of other streams of events: Responses, Messages, transcriptions.

These streams pass unchanged, except for errors of the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from fabric_server.metering.documents import (
    Counts,
    decode_audio,
    decode_message,
    decode_response,
)
from fabric_server.metering.error_events import (
    ErrorEvent,
    has_error,
    messages_event,
    responses_event,
)
from fabric_server.metering.openai import StreamMeter
from fabric_server.metering.sse import UNREADABLE, events_in, read_data
from fabric_server.metering.usage import Usage
from runtime.engine_errors import PROMPT_FIELDS


class _Whole(StreamMeter):
    """Passes whole events on: there is no usage chunk to take out."""

    def __init__(self, usage_requested: bool = True) -> None:
        super().__init__(usage_requested=True)

    def _read(self, events: bytes) -> bytes:
        self._look(events)
        return self._tell(events) if self.failed else events

    def _look(self, events: bytes) -> None:
        raise NotImplementedError


# ── /v1/responses ─────────────────────────────────────────────────────────────────────────────

_ENDED = re.compile(rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)|error)"')
_COMPLETE = frozenset({"response.completed", "response.incomplete"})
_FAILED = frozenset({"response.failed", "error"})


_NAMED = re.compile(rb"(?:^|[\r\n])event: ?(response\.(?:completed|incomplete|failed))[\r\n]")


class ResponsesMeter(_Whole):
    """Complete at ``response.completed`` or ``response.incomplete``."""

    prompt_field: ClassVar[str | None] = PROMPT_FIELDS["/v1/responses"]

    def _look(self, events: bytes) -> None:
        # Most events have none of the words, which is known sooner than that they don't end it.
        ends = events.find(b"complete") >= 0 or events.find(b"failed") >= 0
        if ends:  # an event too long to be read still has its name, in its first piece
            for name in _NAMED.findall(events):
                self._note_type(name.decode())
        fails = events.find(b"error") >= 0
        if fails and has_error(events):
            self.failed = True
        if not ((ends or fails) and _ENDED.search(events)):
            if events.find(b'.delta"') >= 0 or not self.sample:
                self.sample = events
            return
        for data in _data_in(events):
            try:
                event = decode_response(data)
            except UNREADABLE:
                continue
            self._note_type(event.type)
            usage = event.response.usage if event.response is not None else None
            if usage is not None:
                self.usage = Usage(usage.prompt, usage.output_tokens)

    def _encode_error(self, error: ErrorEvent, before: bytes) -> bytes:
        return responses_event(error, self.sample + before)

    def _note_type(self, type: str) -> None:
        if type in _COMPLETE:
            self.complete = self.done = True
        elif type in _FAILED:
            self.failed = True


# ── /v1/messages ──────────────────────────────────────────────────────────────────────────────

_MESSAGE = re.compile(rb'"type"\s*:\s*"(?:message_(?:start|delta|stop)|error)"')


class MessagesMeter(_Whole):
    """Complete at ``message_stop``; the tokens of the answer are in ``message_delta``."""

    def _look(self, events: bytes) -> None:
        if events.find(b"error") >= 0 and has_error(events):
            self.failed = True
        if not _MESSAGE.search(events):
            if events.find(b"_delta") >= 0 or not self.sample:
                self.sample = events
            return
        for data in _data_in(events):
            try:
                event = decode_message(data)
            except UNREADABLE:
                continue
            if event.type == "message_start" and event.message is not None:
                self._count(event.message.usage)
                self._set_aside(len(data) + len(b"event: message_start\ndata: \n\n"))
            elif event.type == "message_delta":
                self._count(event.usage)
            elif event.type == "message_stop":
                self.complete = self.done = True
            elif event.type == "error":
                self.failed = True

    def _encode_error(self, error: ErrorEvent, before: bytes) -> bytes:
        return messages_event(error.error)

    def _count(self, counts: Counts | None) -> None:
        if counts is None:
            return
        usage = self.usage
        # Engines that count the prompt only at the end send 0 at the beginning, and the reverse.
        self.usage = Usage(
            counts.prompt or usage.prompt_tokens,
            usage.completion_tokens if counts.output_tokens is None else counts.output_tokens,
        )


# ── /v1/audio/… ───────────────────────────────────────────────────────────────────────────────

_TRANSCRIBED = re.compile(rb'"type"\s*:\s*"transcript\.text\.done"')


class AudioMeter(StreamMeter):
    """OpenAI's events, or the chunks that vLLM sends instead."""

    prompt_field: ClassVar[str | None] = None

    def __init__(self, usage_requested: bool = True) -> None:
        super().__init__(usage_requested=True)

    def _look(self, events: bytes) -> None:
        super()._look(events)
        if _TRANSCRIBED.search(events):
            self._read_end(events)

    def _read_end(self, events: bytes) -> None:
        for data in _data_in(events):
            try:
                event = decode_audio(data)
            except UNREADABLE:
                continue
            if event.type == "transcript.text.done":
                self.complete = self.done = True
                if event.usage is not None:
                    self.usage = Usage(event.usage.prompt, event.usage.output_tokens)


def _data_in(events: bytes) -> Iterator[bytes]:
    for event in events_in(events):
        data = read_data(event)
        if data is not None:
            yield data
