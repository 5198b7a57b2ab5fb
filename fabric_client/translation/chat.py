"""What engines answer at /v1/chat/completions, read once for every dialect that is made of it.

``ChatTranslator`` reads; a ``AnswerEncoder`` says the same in a user's dialect.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from fabric_client.translation import Headers
from fabric_client.translation.chunks import (
    FAILURES,
    UNREADABLE,
    Chunk,
    MalformedToolCall,
    read_chunk,
)
from fabric_client.translation.sse import EndlessEvent, Events

PATH = "/v1/chat/completions"
MAX_BODY = 16 * 1024 * 1024
"""Bytes of an unstreamed answer; it can only be translated as a whole."""


class AnswerEncoder(Protocol):
    """Says in a user's dialect what an engine tells.

    ``chunk`` and ``whole`` raise ``MalformedToolCall`` when it can't be said.
    """

    def chunk(self, chunk: Chunk) -> bytes:
        """The next event of a stream."""

    def done(self) -> bytes:
        """The stream is over; it was complete only if a chunk had a ``finish_reason``."""

    def broken(self, message: str) -> bytes:
        """The stream can't go on.  Called at most once, and nothing after it."""

    def whole(self, chunk: Chunk) -> bytes:
        """The body of an unstreamed answer."""

    def refusal(self, status: int, message: str) -> bytes:
        """The body of an error."""


_TOO_LONG = re.compile("maximum context length|context size|context length|context window", re.I)
"""As vLLM, llama-server and Ollama put it; of the three only llama-server gives it a type."""
_ANSWER_TOO_LONG = re.compile("max_tokens|max_completion_tokens|in the completion")


class ChatTranslator:
    """``fabric_client.translation.Answer`` for any dialect that has a ``AnswerEncoder``."""

    streamed_type = "text/event-stream"
    """The content type of what the teller says in a stream."""

    def __init__(self, teller: AnswerEncoder) -> None:
        self._teller = teller
        self._events: Events | None = None
        """Of a streamed answer."""
        self._body = bytearray()
        self._status = 200
        self._over = False

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        kept = []
        for name, value in headers:
            if name.lower() == "content-type":
                if status < 400 and value.lower().startswith("text/event-stream"):
                    self._events = Events()
            elif name.lower() not in ("content-length", "content-encoding"):
                kept.append((name, value))
        streamed = self._events is not None
        kept.append(("content-type", self.streamed_type if streamed else "application/json"))
        return status, kept

    def feed(self, data: bytes) -> bytes:
        if self._over:
            return b""
        if self._events is None:
            self._body += data
            if len(self._body) > MAX_BODY:
                self._over = True
                return self._teller.refusal(502, "the engine's answer is too long to be translated")
            return b""
        try:
            return self._tell(self._events.feed(data))
        except EndlessEvent:
            return self._break("the engine sent an event without an end")

    def end(self) -> bytes:
        if self._over:
            return b""
        if self._events is None:
            self._over = True
            return self._tell_whole()
        told = self._tell(self._events.end())
        return told if self._over else told + self._finish()

    def _tell(self, events: list[bytes]) -> bytes:
        told = []
        for data in events:
            if self._over:
                break
            if data == b"[DONE]":
                told.append(self._finish())
                continue
            try:
                chunk = read_chunk(data)
            except UNREADABLE:
                told.append(self._break("the engine sent an event that can't be read"))
                break
            if chunk.error is not None:
                told.append(self._break(error_text(chunk.error)))
            elif chunk.choices and chunk.choices[0].finish_reason in FAILURES:
                told.append(self._break("the engine has given up"))
            else:
                try:
                    told.append(self._teller.chunk(chunk))
                except MalformedToolCall:
                    told.append(self._break("the engine mixes up the pieces of its calls"))
        return told[0] if len(told) == 1 else b"".join(told)

    def _finish(self) -> bytes:
        self._over = True
        return self._teller.done()

    def _break(self, message: str) -> bytes:
        self._over = True
        return self._teller.broken(message)

    def _tell_whole(self) -> bytes:
        if self._status >= 400:
            return self._teller.refusal(self._status, body_error_text(bytes(self._body)))
        try:
            chunk = read_chunk(self._body)
        except UNREADABLE:
            return self._teller.refusal(502, "the engine sent an answer that can't be read")
        if chunk.error is not None:
            return self._teller.refusal(502, error_text(chunk.error))
        if chunk.choices and chunk.choices[0].finish_reason in FAILURES:
            return self._teller.refusal(502, "the engine has given up")
        if not chunk.choices or (chunk.choices[0].message or chunk.choices[0].text) is None:
            return self._teller.refusal(502, "the engine sent an answer without a message")
        try:
            return self._teller.whole(chunk)
        except MalformedToolCall:
            return self._teller.refusal(502, "the engine sent a call of a tool without a name")


def error_text(error: Any) -> str:
    """What an engine's ``error`` says to a person: it is an object or a plain text."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()


def is_context_overflow(message: str) -> bool:
    """Whether an engine refuses because the prompt does not fit its model's context: not because
    the prompt and the answer that was asked for, together, do not."""
    return bool(_TOO_LONG.search(message)) and not _ANSWER_TOO_LONG.search(message)


def body_error_text(body: bytes) -> str:
    """FastAPI says ``{"detail": …}``, older vLLMs ``{"object": "error", "message": …}``."""
    try:
        found = msgspec.json.decode(body)
    except UNREADABLE:
        return body[:500].decode(errors="replace").strip() or "the engine gave no reason"
    return error_text(found.get("error") or found if isinstance(found, dict) else found)
