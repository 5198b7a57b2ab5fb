"""An engine's answer at /v1/chat/completions, decoded once for every dialect.

``ChatTranslator`` decodes; an ``AnswerEncoder`` writes the same in the user's dialect.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from fabric_client.sse import EventFramer, EventTooLong, decode_events, looks_like_events
from fabric_client.translation import Headers
from fabric_client.translation.chunk_collector import ChunkCollector, as_delta
from fabric_client.translation.chunks import FAILURES, UNREADABLE, Chunk, MalformedToolCall
from fabric_client.translation.lenient_chunks import UnreadableChunk, read_chunk

PATH = "/v1/chat/completions"
MAX_BODY = 16 * 1024 * 1024
"""Bytes of an unstreamed answer, which can only be translated as a whole."""


_DOCUMENTS = (b"{", b"[", b"<")
"""The first byte of an answer that is no stream of events."""
_BEFORE = b" \t\r\n\xef\xbb\xbf"
"""White space and a byte order mark, which may precede an answer."""


class AnswerEncoder(Protocol):
    """Writes an answer in a user's dialect.

    ``encode_chunk`` and ``encode_whole`` raise ``MalformedToolCall``.
    """

    def encode_chunk(self, chunk: Chunk) -> bytes:
        """Encode the next event of a stream."""

    def encode_end(self, *, done: bool) -> bytes:
        """Encode the end of a stream.

        It is complete if a chunk had a ``finish_reason``, or if the engine has marked the end
        (``done``).
        """

    def encode_failure(self, message: str) -> bytes:
        """Encode an error in the middle of a stream; nothing is encoded after it."""

    def encode_whole(self, chunk: Chunk) -> bytes:
        """Encode the body of an unstreamed answer."""

    def encode_error(self, status: int, message: str) -> bytes:
        """Encode the body of an error response."""


class ChatTranslator:
    """``fabric_client.translation.ResponseFilter`` of any dialect that has an ``AnswerEncoder``.

    Whether the engine streams is seen from its first bytes, and the user gets the form that was
    asked for.  The head is held until the first event or the whole answer has been read: an answer
    that can't be read, or is an error, becomes status 502.
    """

    streamed_type = "text/event-stream"
    """The content type of what the encoder writes in a stream."""

    def __init__(self, encoder: AnswerEncoder, *, stream: bool) -> None:
        """``stream``: the user asked for one."""
        self.decided: tuple[int, Headers] | None = None
        self._encoder = encoder
        self._stream = stream
        self._framer: EventFramer | None = None
        """Set if the engine streams."""
        self._collector = None if stream else ChunkCollector()
        """Collects an engine's stream for a user who asked for none."""
        self._body = bytearray()
        self._status = 200
        self._headers: Headers = []
        self._event_stream = False
        """Whether the engine says that it streams."""
        self._undecided = True
        """Whether it may still turn out that it does."""
        self._empty = True
        """Whether no chunk has come."""
        self._over = False

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        self._status = status
        self._undecided = status < 300
        for name, value in headers:
            if name == "content-type":
                self._event_stream = value.lower().startswith("text/event-stream")
        left_out = ("content-type", "content-length", "content-encoding")
        self._headers = [one for one in headers if one[0] not in left_out]
        if 300 <= status < 400:
            return self._decide(502)
        return None if status < 300 else self._decide(status)

    def feed(self, data: bytes) -> bytes:
        if self._over:
            return b""
        if self._framer is not None:
            return self._feed_events(data)
        self._body += data
        if len(self._body) > MAX_BODY:
            return self._fail(f"the engine's answer is longer than {MAX_BODY >> 20} MiB")
        if not self._undecided:
            return b""
        self._body = self._body.lstrip(_BEFORE)  # dropped, or each piece would look at it again
        begun = bytes(self._body)
        events = looks_like_events(begun)
        if events is None or not (events or (self._event_stream and begun[:1] not in _DOCUMENTS)):
            self._undecided = events is None
            return b""
        self._framer = EventFramer()
        self._body.clear()
        return self._feed_events(begun)

    def end(self) -> bytes:
        if self._over:
            return b""
        if self._framer is None:
            return self._translate_whole()
        encoded = self._translate(self._framer.end())
        return encoded if self._over else encoded + self._finish(done=False)

    # ── streams ───────────────────────────────────────────────────────────────────────────────

    def _feed_events(self, data: bytes) -> bytes:
        assert self._framer is not None
        try:
            return self._translate(self._framer.feed(data))
        except EventTooLong:
            return self._fail("the engine sent an event that is too long")

    def _translate(self, events: bytes) -> bytes:
        encoded = b""
        for data in decode_events(events):
            if data[:6] == b"[DONE]":
                return encoded + self._finish(done=True)
            try:
                encoded += self._translate_event(data)
            except UnreadableChunk:
                encoded += self._fail("the engine sent an event that can't be read")
            except MalformedToolCall:
                encoded += self._fail("the engine sent a malformed tool call")
            if self._over:
                break
            if self.decided is None and encoded:
                self._decide(200)
        return encoded

    def _translate_event(self, data: bytes) -> bytes:
        chunk = read_chunk(data)
        if chunk is None:
            return b""
        if chunk.error:
            return self._fail(error_text(chunk.error))
        if chunk.choices and chunk.choices[0].finish_reason in FAILURES:
            return self._fail("the engine aborted the request")
        self._empty = False
        if self._collector is None:
            return self._encoder.encode_chunk(chunk)
        self._collector.add(chunk)
        if self._collector.size > MAX_BODY:
            return self._fail(f"the engine's answer is longer than {MAX_BODY >> 20} MiB")
        return b""

    def _finish(self, *, done: bool) -> bytes:
        """End a stream; ``done`` if the engine has marked its end."""
        if self._empty:
            return self._fail("the engine's answer is empty")
        if self._collector is None:
            self._over = True
            self.decided = self.decided or self._decide(200)
            return self._encoder.encode_end(done=done)
        whole = self._collector.finish(done=done)
        if whole is None:
            return self._fail("the engine's answer is incomplete")
        return self._encode_whole(whole)

    def _fail(self, message: str) -> bytes:
        """End with an error: of the status, or once the head was sent, within the stream."""
        self._over = True
        if self.decided is not None:
            return self._encoder.encode_failure(message)
        self._decide(502, failed=True)
        return self._encoder.encode_error(502, message)

    def _decide(self, status: int, *, failed: bool = False) -> tuple[int, Headers]:
        streamed = self._stream and status < 300 and not failed
        kind = ("content-type", self.streamed_type if streamed else "application/json")
        self.decided = status, [*self._headers, kind]
        return self.decided

    # ── unstreamed answers ────────────────────────────────────────────────────────────────────

    def _translate_whole(self) -> bytes:
        body = bytes(self._body)
        if self._status >= 300:
            self._over = True
            text = body_error_text(body) if self._status >= 400 else "the engine redirects"
            return self._encoder.encode_error(max(self._status, 400), text)
        if not body.strip():
            return self._fail("the engine's answer is empty")
        try:
            chunk = read_chunk(body)
        except UnreadableChunk:
            chunk = None
        if chunk is None:
            return self._fail("the engine sent an answer that can't be read")
        if chunk.error:
            return self._fail(error_text(chunk.error))
        if chunk.choices and chunk.choices[0].finish_reason in FAILURES:
            return self._fail("the engine aborted the request")
        if not chunk.choices or (chunk.choices[0].message or chunk.choices[0].text) is None:
            return self._fail("the engine sent an answer without a message")
        return self._encode_whole(chunk)

    def _encode_whole(self, chunk: Chunk) -> bytes:
        try:
            if self._stream:
                encoded = self._encoder.encode_chunk(as_delta(chunk))
                encoded += self._encoder.encode_end(done=True)
            else:
                encoded = self._encoder.encode_whole(chunk)
        except MalformedToolCall:
            return self._fail("the engine sent a tool call without a name")
        self._over = True
        self._decide(200)
        return encoded


def error_text(error: Any) -> str:
    """Return the message in an engine's ``error``, which is an object or a string."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()


def body_error_text(body: bytes) -> str:
    """Return the message in an error's body.

    FastAPI has ``{"detail": …}``, older vLLMs ``{"object": "error", "message": …}``.
    """
    try:
        found = msgspec.json.decode(body)
    except UNREADABLE:
        return body[:500].decode(errors="replace").strip() or "the engine gave no reason"
    return error_text(found.get("error") or found if isinstance(found, dict) else found)
