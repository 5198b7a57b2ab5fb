"""Collecting the chunks of a stream into one answer, for a user who asked for no stream."""

from __future__ import annotations

from fabric_client.translation.chunks import Choice, Chunk, Function, Message, ToolCall, Usage
from fabric_client.translation.tool_calls import Call, ToolCallSequencer


class ChunkCollector:
    """The parts of an answer, in order."""

    def __init__(self) -> None:
        self.size = 0
        """Characters collected."""
        self._first: Chunk | None = None
        self._texts: dict[str, list[str]] = {"content": [], "thinking": [], "text": []}
        self._sequencer = ToolCallSequencer()
        self._calls: dict[Call, list[str]] = {}
        self._finish: str | None = None
        self._stop: str | int | None = None
        self._usage: Usage | None = None

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk.  Raises ``MalformedToolCall``."""
        self._first = self._first or chunk
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices[:1]:
            message = choice.delta or choice.message or Message()
            self._add_text("content", message.content or message.refusal)
            self._add_text("thinking", message.thinking)
            self._add_text("text", choice.text)
            self._add_calls(message.calls)
            if choice.finish_reason and self._finish is None:
                self._finish, self._stop = choice.finish_reason, choice.stop_reason

    def finish(self, *, done: bool) -> Chunk | None:
        """Return the answer; None if its end is missing.  ``done``: the stream was ended."""
        if self._first is None or not (self._finish or done):
            return None
        for part in self._sequencer.end():
            self._calls.setdefault(part.call, []).append(part.text)
        calls = [
            ToolCall(place, call.id, Function(call.name, "".join(pieces)))
            for place, (call, pieces) in enumerate(self._calls.items())
        ]
        joined = {name: "".join(pieces) or None for name, pieces in self._texts.items()}
        message = Message(
            joined["content"], reasoning_content=joined["thinking"], tool_calls=calls or None
        )
        choice = Choice(
            message=message,
            finish_reason=self._finish or "stop",
            stop_reason=self._stop,
            text=joined["text"],
        )
        first = self._first
        return Chunk(
            first.id,
            first.created,
            first.model,
            [choice],
            self._usage,
            system_fingerprint=first.system_fingerprint,
        )

    def _add_text(self, name: str, text: str | None) -> None:
        if text:
            self.size += len(text)
            self._texts[name].append(text)

    def _add_calls(self, pieces: list[ToolCall]) -> None:
        for part in self._sequencer.feed(pieces):
            self.size += len(part.text)
            self._calls.setdefault(part.call, []).append(part.text)


def as_delta(chunk: Chunk) -> Chunk:
    """Return an unstreamed answer as the only chunk of a stream."""
    for choice in chunk.choices:
        choice.delta = choice.delta or choice.message
    return chunk
