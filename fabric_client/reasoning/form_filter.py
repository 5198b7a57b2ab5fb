"""Chat answers in a form that was not asked for, or whose content type tells nothing.

Which form an answer has is seen from its first bytes.  The user gets the form that was asked for:
a stream is collected, a whole answer is sent as a stream.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.reasoning.body_filter import MAX_BODY, BodyFilter, error_body
from fabric_client.reasoning.stream_filter import StreamFilter
from fabric_client.sse import EventFramer, EventTooLong, decode_events, looks_like_events
from fabric_client.translation import Headers
from fabric_client.translation.chat import error_text
from fabric_client.translation.chunk_collector import ChunkCollector
from fabric_client.translation.chunks import FAILURES, Chunk, MalformedToolCall
from fabric_client.translation.lenient_chunks import UnreadableChunk, read_chunk
from fabric_client.translation.tool_calls import or_empty

_encode = msgspec.json.Encoder().encode
_BEFORE = b" \t\r\n\xef\xbb\xbf"


class FormFilter:
    """Filter of a chat answer with status 200, whatever its form."""

    def __init__(self, *, stream: bool, inline: bool, headers: Headers) -> None:
        """``stream``: the user asked for one; ``headers`` are the answer's, without its type."""
        self.decided: tuple[int, Headers] | None = None
        self._stream = stream
        self._markers = inline
        self._headers = headers
        self._begun = bytearray()
        self._chosen: StreamFilter | BodyFilter | _Collected | None = None

    def feed(self, data: bytes) -> bytes:
        if self._chosen is None:
            self._begun += data
            self._begun = self._begun.lstrip(_BEFORE)
            begun = bytes(self._begun)
            events = looks_like_events(begun)
            if events is None:
                return b""
            data = begun
            if not events:
                self._chosen = BodyFilter(self._markers, self._typed("application/json"))
            elif self._stream:
                self._chosen = StreamFilter(self._markers)
                self.decided = 200, self._typed("text/event-stream")
            else:
                self._chosen = _Collected()
        return self._chosen.feed(data)

    def end(self) -> bytes:
        chosen = self._chosen or BodyFilter(self._markers, self._typed("application/json"))
        if isinstance(chosen, StreamFilter):
            return chosen.end()
        if isinstance(chosen, _Collected):
            body = BodyFilter(self._markers, self._typed("application/json"))
            held = body.feed(chosen.whole())
            whole = held + body.end()
            self.decided = body.decided
            return whole
        whole = chosen.end()
        status, headers = chosen.decided or (200, self._typed("application/json"))
        if self._stream and status == 200:
            whole, headers = _as_stream(whole), self._typed("text/event-stream")
        self.decided = status, headers
        return whole

    def _typed(self, kind: str) -> Headers:
        return [*self._headers, ("content-type", kind)]


class _Collected:
    """A stream that is collected into one answer; an error of its own if that is impossible."""

    def __init__(self) -> None:
        self._framer = EventFramer()
        self._collector = ChunkCollector()
        self._problem = ""
        self._done = False

    def feed(self, data: bytes) -> bytes:
        try:
            self._read(self._framer.feed(data))
        except EventTooLong:
            self._problem = "the engine sent an event that is too long"
        return b""

    def whole(self) -> bytes:
        """Return the answer, or an error, as a document."""
        self._read(self._framer.end())
        try:
            chunk = self._collector.finish(done=self._done)
        except MalformedToolCall:
            chunk = None
        if self._problem or chunk is None:
            return error_body(self._problem or "the engine's answer is incomplete")
        return _encode(_completion(chunk))

    def _read(self, events: bytes) -> None:
        for data in decode_events(events):
            if self._problem or self._done:
                return
            if data[:6] == b"[DONE]":
                self._done = True
                return
            try:
                chunk = read_chunk(data)
                if chunk is not None and chunk.error:
                    self._problem = error_text(chunk.error)
                elif chunk is not None and _failed(chunk):
                    self._problem = "the engine aborted the request"
                elif chunk is not None:
                    self._collector.add(chunk)
            except (UnreadableChunk, MalformedToolCall):
                self._problem = "the engine sent an event that can't be read"
            if self._collector.size > MAX_BODY:
                self._problem = f"the engine's answer is longer than {MAX_BODY >> 20} MiB"


def _failed(chunk: Chunk) -> bool:
    return bool(chunk.choices) and chunk.choices[0].finish_reason in FAILURES


def _completion(chunk: Chunk) -> dict[str, Any]:
    """Return a collected answer as OpenAI's API has it."""
    choice = chunk.choices[0]
    given = choice.message
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if given is not None:
        message["content"] = given.content
        if given.thinking:
            message["reasoning_content"] = given.thinking
        if given.calls:
            message["tool_calls"] = [
                {
                    "id": call.id or f"call_{place}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": or_empty(call.arguments)},
                }
                for place, call in enumerate(given.calls)
            ]
        elif given.content is None:
            message["content"] = ""
    completion: dict[str, Any] = {
        "id": chunk.id or "chatcmpl-0",
        "object": "chat.completion",
        "created": chunk.created,
        "model": chunk.model,
        "choices": [{"index": 0, "message": message, "finish_reason": choice.finish_reason}],
    }
    if chunk.usage is not None:
        prompt, completed = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        completion["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completed,
            "total_tokens": prompt + completed,
        }
    return completion


def _as_stream(body: bytes) -> bytes:
    """Return a whole answer as the events of a stream."""
    document: dict[str, Any] = msgspec.json.decode(body)
    common = {**document, "object": "chat.completion.chunk"}
    usage = common.pop("usage", None)
    choices = []
    for choice in document.get("choices", []):
        delta = choice.pop("message", None) or {}
        for place, call in enumerate(delta.get("tool_calls") or ()):
            call.setdefault("index", place)
        choices.append(
            {**choice, "delta": delta, "finish_reason": choice.get("finish_reason") or "stop"}
        )
    events = [{**common, "choices": choices}]
    if usage is not None:
        events.append({**common, "choices": [], "usage": usage})
    lines = [b"data: %b\n\n" % _encode(event) for event in events]
    return b"".join(lines) + b"data: [DONE]\n\n"
