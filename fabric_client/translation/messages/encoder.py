"""Anthropic's Messages API for engines that speak the OpenAI chat API: the answer."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.sse import encode_event
from fabric_client.translation.chat import is_context_overflow
from fabric_client.translation.chunks import Chunk, Message, ToolCall, Usage

_json = msgspec.json.encode

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
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
    """``fabric_client.translation.chat.Teller``."""

    def __init__(self, model: str, stops: frozenset[str] = frozenset(), begun: str = "") -> None:
        """The model and the stop sequences that were asked for, and the beginning of the answer
        that was put in the model's mouth."""
        self._model = model
        self._begun = begun
        self._stops = stops
        self._id = ""
        self._index = -1
        """Of the block that was begun last."""
        self._open: str | None = None
        """What that block holds, while it has not ended."""
        self._call: ToolCall | None = None
        """The call that it holds."""
        self._calls = 0
        self._stop: tuple[str, str | None] | None = None
        """``stop_reason`` and ``stop_sequence``, once the engine has finished."""
        self._usage = Usage()

    # ── streams ───────────────────────────────────────────────────────────────────────────────

    def encode_chunk(self, chunk: Chunk) -> bytes:
        told = b"" if self._id else self._begin(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return told
        choice = chunk.choices[0]
        if choice.delta is not None:
            told += self._delta(choice.delta)
        if choice.finish_reason and self._stop is None:
            told += self._end_block()
            self._stop = self._stop_of(choice.finish_reason, choice.stop_reason)
        return told

    def encode_end(self) -> bytes:
        if self._stop is None:
            return b""
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        end = {"type": "message_delta", "delta": delta, "usage": _usage(self._usage)}
        return self._end_block() + encode_event("message_delta", _json(end)) + _MESSAGE_STOP

    def encode_failure(self, message: str) -> bytes:
        return encode_event("error", self.encode_error(500, message))

    def _begin(self, chunk: Chunk) -> bytes:
        self._id = _message_id(chunk)
        message = self._message(chunk, [], None, None, Usage())
        return (
            encode_event("message_start", _json({"type": "message_start", "message": message}))
            + _PING
        )

    def _delta(self, delta: Message) -> bytes:
        told = b""
        if thought := delta.thought:
            if self._open != "thinking":
                told += self._begin_block("thinking", {"thinking": "", "signature": ""})
            told += _THINKING % (self._index, _json(thought))
        if text := delta.content or delta.refusal:
            if self._open != "text":
                told += self._begin_block("text", {"text": ""})
            told += _TEXT % (self._index, _json(text))
        for call in delta.tool_calls or ():
            told += self._call_delta(call)
        return told

    def _call_delta(self, call: ToolCall) -> bytes:
        told = b""
        if call.is_empty:
            return told
        if self._open != "tool_use" or call.begins_after(self._call):
            block = {"id": self._call_id(call), "name": call.name, "input": {}}
            told = self._begin_block("tool_use", block)
            self._call = call
        if arguments := call.arguments:
            told += _ARGUMENTS % (self._index, _json(arguments))
        return told

    def _call_id(self, call: ToolCall) -> str:
        self._calls += 1
        return call.id or f"toolu_{self._id.removeprefix('msg_')}_{self._calls}"

    def _begin_block(self, kind: str, block: dict[str, Any]) -> bytes:
        told = self._end_block()
        self._open = kind
        self._index += 1
        begun = {"type": kind, **block}
        start = {"type": "content_block_start", "index": self._index, "content_block": begun}
        return told + encode_event("content_block_start", _json(start))

    def _end_block(self) -> bytes:
        kind, self._open = self._open, None
        if kind is None:
            return b""
        signed = _SIGNATURE % self._index if kind == "thinking" else b""
        return signed + _STOP % self._index

    # ── whole answers ─────────────────────────────────────────────────────────────────────────

    def encode_whole(self, chunk: Chunk) -> bytes:
        self._id = _message_id(chunk)
        choice = chunk.choices[0]
        message = choice.message or Message()
        blocks: list[dict[str, Any]] = []
        if thought := message.thought:
            blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
        text = message.content or message.refusal or ""
        if chunk.is_llama_server:  # repeats the beginning, but not in streams
            text = text.removeprefix(self._begun)
        if text:
            blocks.append({"type": "text", "text": text})
        for call in message.tool_calls or ():
            block = {"type": "tool_use", "id": self._call_id(call), "name": call.name}
            blocks.append({**block, "input": _input(call.arguments)})
        reason, sequence = self._stop_of(choice.finish_reason or "stop", choice.stop_reason)
        return _json(self._message(chunk, blocks, reason, sequence, chunk.usage or Usage()))

    def encode_error(self, status: int, message: str) -> bytes:
        return refused(status, message)

    # ── small parts ───────────────────────────────────────────────────────────────────────────

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
        """vLLM tells which stop sequence it was; of others all that is known is that they ended."""
        if finish == "stop" and isinstance(stop, str) and stop in self._stops:
            return "stop_sequence", stop
        if self._calls and finish == "stop":
            return "tool_use", None
        return _STOP_REASONS.get(finish, "end_turn"), None


def refused(status: int, message: str) -> bytes:
    if status == 400 and is_context_overflow(message):
        message = f"prompt is too long: {message}"  # Claude Code then makes it shorter
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return _json({"type": "error", "error": {"type": kind, "message": message}})


def _message_id(chunk: Chunk) -> str:
    return f"msg_{chunk.id.removeprefix('chatcmpl-') or chunk.created}"


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts apart what of the prompt came from a cache."""
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _input(arguments: str) -> dict[str, Any]:
    """What is not an object is the model's mistake; its tool is the one to say so."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = arguments
    return found if isinstance(found, dict) else {"arguments": found}
