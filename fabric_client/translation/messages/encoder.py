"""Answers of Anthropic's Messages API, from those of the chat API."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.sse import encode_event
from fabric_client.translation.chunks import UNREADABLE, Chunk, Message, Usage
from fabric_client.translation.messages.errors import encode_error
from fabric_client.translation.tool_calls import CallPart, ToolCallSequencer, or_empty

_json = msgspec.json.encode

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_TEXT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"text_delta","text":%b}}\n\n'
)
_THINKING = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"thinking_delta","thinking":%b}}\n\n'
)
_ARGUMENTS = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"input_json_delta","partial_json":%b}}\n\n'
)
_SIGNATURE = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"signature_delta","signature":""}}\n\n'
)
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessagesEncoder:
    """``fabric_client.translation.chat.AnswerEncoder``."""

    def __init__(self, model: str, stops: frozenset[str] = frozenset(), prefill: str = "") -> None:
        """``model``, ``stops``: of the request; ``prefill``: the beginning of the answer, if the
        request has one."""
        self._model = model
        self._prefill = prefill
        self._stops = stops
        self._id = ""
        self._index = -1
        """Index of the last content block."""
        self._open: str | None = None
        """Type of that block until it ends."""
        self._sequencer = ToolCallSequencer()
        self._calls = 0
        self._stop: tuple[str, str | None] | None = None
        """``stop_reason`` and ``stop_sequence``, set by the engine's ``finish_reason``."""
        self._usage = Usage()

    # ── streams ───────────────────────────────────────────────────────────────────────────────

    def encode_chunk(self, chunk: Chunk) -> bytes:
        encoded = b"" if self._id else self._begin(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return encoded
        choice = chunk.choices[0]
        if choice.delta is not None:
            encoded += self._delta(choice.delta)
        if choice.finish_reason and self._stop is None:
            encoded += self._end_calls() + self._end_block()
            self._stop = self._stop_of(choice.finish_reason, choice.stop_reason)
        return encoded

    def encode_end(self, *, done: bool) -> bytes:
        if self._stop is None and not done:
            return b""
        encoded = self._end_calls() + self._end_block()
        self._stop = self._stop or self._stop_of("stop", None)
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        end = {"type": "message_delta", "delta": delta, "usage": _usage(self._usage)}
        return encoded + encode_event("message_delta", _json(end)) + _MESSAGE_STOP

    def encode_failure(self, message: str) -> bytes:
        return encode_event("error", encode_error(500, message))

    def _begin(self, chunk: Chunk) -> bytes:
        self._id = _message_id(chunk)
        message = self._message(chunk, [], None, None, Usage())
        start = {"type": "message_start", "message": message}
        return encode_event("message_start", _json(start)) + _PING

    def _delta(self, delta: Message) -> bytes:
        encoded = b""
        if self._sequencer.is_open and (delta.thinking or delta.content or delta.refusal):
            encoded = self._end_calls()
        if thinking := delta.thinking:
            if self._open != "thinking":
                encoded += self._begin_block("thinking", {"thinking": "", "signature": ""})
            encoded += _THINKING % (self._index, _json(thinking))
        if text := delta.content or delta.refusal:
            if self._open != "text":
                encoded += self._begin_block("text", {"text": ""})
            encoded += _TEXT % (self._index, _json(text))
        if delta.tool_calls or delta.function_call:
            for part in self._sequencer.feed(delta.calls):
                encoded += self._call_part(part)
        return encoded

    def _end_calls(self) -> bytes:
        return b"".join(map(self._call_part, self._sequencer.end()))

    def _call_part(self, part: CallPart) -> bytes:
        encoded = b""
        if part.begins:
            block = {"id": self._call_id(part.call.id), "name": part.call.name, "input": {}}
            encoded = self._begin_block("tool_use", block)
        if part.text:
            encoded += _ARGUMENTS % (self._index, _json(part.text))
        return encoded + self._end_block() if part.ends else encoded

    def _call_id(self, id: str | None) -> str:
        self._calls += 1
        return id or f"toolu_{self._id.removeprefix('msg_')}_{self._calls}"

    def _begin_block(self, kind: str, block: dict[str, Any]) -> bytes:
        encoded = self._end_block()
        self._open = kind
        self._index += 1
        content = {"type": kind, **block}
        start = {"type": "content_block_start", "index": self._index, "content_block": content}
        return encoded + encode_event("content_block_start", _json(start))

    def _end_block(self) -> bytes:
        kind, self._open = self._open, None
        if kind is None:
            return b""
        signed = _SIGNATURE % self._index if kind == "thinking" else b""
        return signed + _STOP % self._index

    # ── unstreamed answers ────────────────────────────────────────────────────────────────────────

    def encode_whole(self, chunk: Chunk) -> bytes:
        self._id = _message_id(chunk)
        choice = chunk.choices[0]
        message = choice.message or Message()
        blocks: list[dict[str, Any]] = []
        if thinking := message.thinking:
            blocks.append({"type": "thinking", "thinking": thinking, "signature": ""})
        text = message.content or message.refusal or ""
        if chunk.is_llama_server:  # repeats the prefill, but not in streams
            text = text.removeprefix(self._prefill)
        if text:
            blocks.append({"type": "text", "text": text})
        for call in message.calls:
            block = {"type": "tool_use", "id": self._call_id(call.id), "name": call.name}
            blocks.append({**block, "input": _input(call.arguments)})
        reason, sequence = self._stop_of(choice.finish_reason or "stop", choice.stop_reason)
        return _json(self._message(chunk, blocks, reason, sequence, chunk.usage or Usage()))

    def encode_error(self, status: int, message: str) -> bytes:
        return encode_error(status, message)

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────

    def _message(
        self,
        chunk: Chunk,
        content: list[dict[str, Any]],
        stop_reason: str | None,
        stop_sequence: str | None,
        usage: Usage,
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": chunk.model or self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": _usage(usage),
        }

    def _stop_of(self, finish: str, stop: str | int | None) -> tuple[str, str | None]:
        """Return ``stop_reason`` and ``stop_sequence``; only vLLM reports the latter."""
        if finish == "stop" and isinstance(stop, str) and stop in self._stops:
            return "stop_sequence", stop
        if self._calls and finish == "stop":
            return "tool_use", None
        return _STOP_REASONS.get(finish, "end_turn"), None


def _message_id(chunk: Chunk) -> str:
    return f"msg_{chunk.id.removeprefix('chatcmpl-') or chunk.created}"


def _usage(usage: Usage) -> dict[str, int]:
    """Return Anthropic's usage, where ``input_tokens`` excludes those from the cache."""
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _input(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; those that are no object are wrapped, for the tool to reject."""
    try:
        found = msgspec.json.decode(or_empty(arguments))
    except UNREADABLE:
        found = arguments
    return found if isinstance(found, dict) else {"arguments": found}
