"""An engine's answer at /v1/chat/completions, decoded once for every dialect.

``ChatTranslator`` decodes; an ``AnswerEncoder`` writes the same in the user's dialect.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from fabric_client.sse import EventFramer, EventTooLong, decode_events
from fabric_client.translation import Headers
from fabric_client.translation.chunks import (
    FAILURES,
    UNREADABLE,
    Chunk,
    MalformedToolCall,
    read_chunk,
)

PATH = "/v1/chat/completions"
MAX_BODY = 16 * 1024 * 1024
"""Bytes of an unstreamed answer, which can only be translated as a whole."""


class AnswerEncoder(Protocol):
    """Writes an answer in a user's dialect.

    ``encode_chunk`` and ``encode_whole`` raise ``MalformedToolCall``.
    """

    def encode_chunk(self, chunk: Chunk) -> bytes:
        """Encode the next event of a stream."""

    def encode_end(self) -> bytes:
        """Encode the end of a stream; it is complete only if a chunk had a ``finish_reason``."""

    def encode_failure(self, message: str) -> bytes:
        """Encode an error in the middle of a stream; nothing is encoded after it."""

    def encode_whole(self, chunk: Chunk) -> bytes:
        """Encode the body of an unstreamed answer."""

    def encode_error(self, status: int, message: str) -> bytes:
        """Encode the body of an error response."""


_CONTEXT_OVERFLOW = re.compile(
    "maximum context length|context size|context length|context window", re.I
)
"""The texts of vLLM, llama-server and Ollama; only llama-server has an error type for it."""
_MAX_TOKENS_OVERFLOW = re.compile("max_tokens|max_completion_tokens|in the completion")


class ChatTranslator:
    """``fabric_client.translation.ResponseFilter`` of any dialect that has an ``AnswerEncoder``."""

    streamed_type = "text/event-stream"
    """The content type of what the encoder writes in a stream."""

    def __init__(self, encoder: AnswerEncoder) -> None:
        self._encoder = encoder
        self._framer: EventFramer | None = None
        """Set if the engine streams."""
        self._body = bytearray()
        self._status = 200
        self._over = False

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._status = status
        kept = []
        for name, value in headers:
            if name.lower() == "content-type":
                if status < 400 and value.lower().startswith("text/event-stream"):
                    self._framer = EventFramer()
            elif name.lower() not in ("content-length", "content-encoding"):
                kept.append((name, value))
        streamed = self._framer is not None
        kept.append(("content-type", self.streamed_type if streamed else "application/json"))
        return status, kept

    def feed(self, data: bytes) -> bytes:
        if self._over:
            return b""
        if self._framer is None:
            self._body += data
            if len(self._body) > MAX_BODY:
                self._over = True
                return self._encoder.encode_error(
                    502, f"the engine's answer is longer than {MAX_BODY >> 20} MiB"
                )
            return b""
        try:
            return self._translate(self._framer.feed(data))
        except EventTooLong:
            return self._fail("the engine sent an event that is too long")

    def end(self) -> bytes:
        if self._over:
            return b""
        if self._framer is None:
            self._over = True
            return self._translate_whole()
        encoded = self._translate(self._framer.end())
        return encoded if self._over else encoded + self._finish()

    def _translate(self, events: bytes) -> bytes:
        encoded = []
        for data in decode_events(events):
            if self._over:
                break
            if data == b"[DONE]":
                encoded.append(self._finish())
                continue
            try:
                chunk = read_chunk(data)
            except UNREADABLE:
                encoded.append(self._fail("the engine sent an event that can't be read"))
                break
            if chunk.error is not None:
                encoded.append(self._fail(error_text(chunk.error)))
            elif chunk.choices and chunk.choices[0].finish_reason in FAILURES:
                encoded.append(self._fail("the engine aborted the request"))
            else:
                try:
                    encoded.append(self._encoder.encode_chunk(chunk))
                except MalformedToolCall:
                    encoded.append(self._fail("the engine sent a malformed tool call"))
        return encoded[0] if len(encoded) == 1 else b"".join(encoded)

    def _finish(self) -> bytes:
        self._over = True
        return self._encoder.encode_end()

    def _fail(self, message: str) -> bytes:
        self._over = True
        return self._encoder.encode_failure(message)

    def _translate_whole(self) -> bytes:
        if self._status >= 400:
            return self._encoder.encode_error(self._status, body_error_text(bytes(self._body)))
        try:
            chunk = read_chunk(self._body)
        except UNREADABLE:
            return self._encoder.encode_error(502, "the engine sent an answer that can't be read")
        if chunk.error is not None:
            return self._encoder.encode_error(502, error_text(chunk.error))
        if chunk.choices and chunk.choices[0].finish_reason in FAILURES:
            return self._encoder.encode_error(502, "the engine aborted the request")
        if not chunk.choices or (chunk.choices[0].message or chunk.choices[0].text) is None:
            return self._encoder.encode_error(502, "the engine sent an answer without a message")
        try:
            return self._encoder.encode_whole(chunk)
        except MalformedToolCall:
            return self._encoder.encode_error(502, "the engine sent a tool call without a name")


def error_text(error: Any) -> str:
    """Return the message in an engine's ``error``, which is an object or a string."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()


def is_context_overflow(message: str) -> bool:
    """Return whether the prompt alone does not fit the model's context.

    False when only prompt and ``max_tokens`` together do not fit.
    """
    return bool(_CONTEXT_OVERFLOW.search(message)) and not _MAX_TOKENS_OVERFLOW.search(message)


def body_error_text(body: bytes) -> str:
    """Return the message in an error's body.

    FastAPI has ``{"detail": …}``, older vLLMs ``{"object": "error", "message": …}``.
    """
    try:
        found = msgspec.json.decode(body)
    except UNREADABLE:
        return body[:500].decode(errors="replace").strip() or "the engine gave no reason"
    return error_text(found.get("error") or found if isinstance(found, dict) else found)
