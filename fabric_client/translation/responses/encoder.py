"""Answers of OpenAI's Responses API, from those of the chat API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from fabric_client.translation.chunks import Chunk, Message, Usage
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.responses.items import CALL_PREFIXES, OutputItem
from fabric_client.translation.responses.tools import OfferedTools
from fabric_client.translation.tool_calls import Call, CallPart, ToolCallSequencer
from runtime.engine_errors import classify

_json = msgspec.json.encode

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_TEXT_DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
    b'"sequence_number":%d,"output_index":%d,"item_id":%b,"content_index":0,"delta":%b,'
    b'"logprobs":[]}\n\n'
)
_REFUSAL_DELTA = (
    b'event: response.refusal.delta\ndata: {"type":"response.refusal.delta",'
    b'"sequence_number":%d,"output_index":%d,"item_id":%b,"content_index":0,"delta":%b}\n\n'
)
_REASONING_DELTA = (
    b'event: response.reasoning_text.delta\ndata: {"type":"response.reasoning_text.delta",'
    b'"sequence_number":%d,"output_index":%d,"item_id":%b,"content_index":0,"delta":%b}\n\n'
)
_ARGUMENTS_DELTA = (
    b"event: response.function_call_arguments.delta\n"
    b'data: {"type":"response.function_call_arguments.delta",'
    b'"sequence_number":%d,"output_index":%d,"item_id":%b,"delta":%b}\n\n'
)


class ResponsesEncoder:
    """``fabric_client.translation.chat.AnswerEncoder``."""

    def __init__(self, echo: Json, tools: OfferedTools, clock: Callable[[], int]) -> None:
        """``echo``: the fields of the request that answers repeat, kept as text: some are large.

        ``clock`` returns nanoseconds since 1970.
        """
        self._echo: Json = {name: msgspec.Raw(_json(value)) for name, value in echo.items()}
        self._tools = tools
        self._clock = clock
        self._id = ""
        self._sequence_number = 0
        """The number of the next event."""
        self._created = 0
        self._output: list[Json] = []
        self._open: OutputItem | None = None
        self._sequencer = ToolCallSequencer()
        self._finish: str | None = None
        self._usage: Usage | None = None

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
        if choice.finish_reason and self._finish is None:
            encoded += self._end_calls()
            self._finish = choice.finish_reason
            encoded += self._end_item()
        return encoded

    def encode_end(self, *, done: bool) -> bytes:
        if self._finish is None and not done:
            return b""
        encoded = self._end_calls() + self._end_item()
        self._finish = self._finish or "stop"
        response = self._finished()
        return encoded + self._event(f"response.{response['status']}", response=response)

    def encode_failure(self, message: str) -> bytes:
        # The status tells that the engine has failed, unless the message shows a user's mistake.
        error = {"code": classify(500, message).code_of_response, "message": message}
        response = self._response("failed") | {"error": error}
        return self._event("response.failed", response=response)

    def _begin(self, chunk: Chunk) -> bytes:
        self._read_head(chunk)
        response = self._response("in_progress")
        encoded = self._event("response.created", response=response)
        return encoded + self._event("response.in_progress", response=response)

    def _delta(self, delta: Message) -> bytes:
        encoded = b""
        if self._sequencer.is_open and (delta.thinking or delta.content or delta.refusal):
            encoded = self._end_calls()
        if thinking := delta.thinking:
            encoded += self._piece("reasoning", "rs", thinking, _REASONING_DELTA)
        if text := delta.content:
            encoded += self._piece("message", "msg", text, _TEXT_DELTA)
        if refusal := delta.refusal:
            encoded += self._piece("refusal", "msg", refusal, _REFUSAL_DELTA)
        if delta.tool_calls or delta.function_call:
            for part in self._sequencer.feed(delta.calls):
                encoded += self._call_part(part)
        return encoded

    def _piece(self, kind: str, prefix: str, text: str, template: bytes) -> bytes:
        item, encoded = self._open, b""
        if item is None or item.kind != kind:
            encoded = self._end_item()
            item = self._begin_item(kind, prefix)
            encoded += self._added(item) + self._part_event("response.content_part.added", item, "")
        item.pieces.append(text)
        return encoded + self._numbered(template, item, text)

    def _end_calls(self) -> bytes:
        return b"".join(map(self._call_part, self._sequencer.end()))

    def _call_part(self, part: CallPart) -> bytes:
        item, encoded = self._open, b""
        if part.begins or item is None:
            encoded = self._end_item()
            item = self._begin_call(part.call)
            encoded += self._added(item)
        arguments = part.text
        if part.ends and not item.pieces and not arguments:
            arguments = "{}"
        if arguments:
            item.pieces.append(arguments)
            # The input of other calls is inside the arguments, and is read when these are complete.
            if item.kind == "function_call":
                encoded += self._numbered(_ARGUMENTS_DELTA, item, arguments)
        return encoded + self._end_item() if part.ends else encoded

    def _begin_call(self, call: Call) -> OutputItem:
        tool = self._tools.find(call.name)
        item = self._begin_item(tool.call_type, CALL_PREFIXES[tool.call_type])
        item.call_id, item.tool = call.id, tool
        return item

    def _begin_item(self, kind: str, prefix: str) -> OutputItem:
        item = OutputItem(kind, f"{prefix}_{self._id.removeprefix('resp_')}_{len(self._output)}")
        self._open = item
        return item

    def _added(self, item: OutputItem) -> bytes:
        name, index = "response.output_item.added", len(self._output)
        return self._event(name, output_index=index, item=item.describe_begun())

    def _end_item(self) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        at = {"item_id": item.id, "output_index": len(self._output)}
        text = item.text
        done = item.describe_done("incomplete" if self._finish in _INCOMPLETE else "completed")
        if item.kind == "function_call":
            name = "response.function_call_arguments.done"
            encoded = self._event(name, **at, name=item.tool.name, arguments=text)
        elif item.kind == "custom_tool_call":
            name = "response.custom_tool_call_input"
            encoded = self._event(f"{name}.delta", **at, delta=done["input"])
            encoded += self._event(f"{name}.done", **at, input=done["input"])
        elif item.kind == "tool_search_call":
            encoded = b""
        else:
            encoded = self._text_done(item, text)
            encoded += self._part_event("response.content_part.done", item, text)
        index = len(self._output)
        encoded += self._event("response.output_item.done", output_index=index, item=done)
        self._output.append(done)
        return encoded

    def _text_done(self, item: OutputItem, text: str) -> bytes:
        at = {"item_id": item.id, "output_index": len(self._output), "content_index": 0}
        if item.kind == "reasoning":
            return self._event("response.reasoning_text.done", **at, text=text)
        if item.kind == "refusal":
            return self._event("response.refusal.done", **at, refusal=text)
        return self._event("response.output_text.done", **at, text=text, logprobs=[])

    def _part_event(self, name: str, item: OutputItem, text: str) -> bytes:
        at = {"item_id": item.id, "output_index": len(self._output), "content_index": 0}
        return self._event(name, **at, part=item.part(text))

    def _numbered(self, template: bytes, item: OutputItem, text: str) -> bytes:
        number = self._sequence_number
        self._sequence_number = number + 1
        return template % (number, len(self._output), item.encoded_id, _json(text))

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._sequence_number
        self._sequence_number = number + 1
        data = _json({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    # ── unstreamed answers ────────────────────────────────────────────────────────────────────────

    def encode_whole(self, chunk: Chunk) -> bytes:
        """Encode the answer as a stream of one piece, and return only its end."""
        choice = chunk.choices[0]
        self._read_head(chunk)
        self._usage = chunk.usage
        self._delta(choice.message or Message())
        self._end_calls()
        self._finish = choice.finish_reason or "stop"
        self._end_item()
        return _json(self._finished())

    def encode_error(self, status: int, message: str) -> bytes:
        return _json(classify(status, message).openai())

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────

    def _read_head(self, chunk: Chunk) -> None:
        self._id = f"resp_{chunk.id.removeprefix('chatcmpl-') or chunk.created}"
        self._created = chunk.created or self._now()
        if chunk.model:
            self._echo["model"] = chunk.model

    def _now(self) -> int:
        return self._clock() // 1_000_000_000

    def _finished(self) -> Json:
        reason = _INCOMPLETE.get(self._finish or "")
        if reason is None:
            now = max(self._now(), self._created)  # the engine's clock may be another
            return self._response("completed") | {"completed_at": now}
        return self._response("incomplete") | {"incomplete_details": {"reason": reason}}

    def _response(self, status: str) -> Json:
        return {
            "id": self._id or "resp_0",
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": self._output,
            "usage": None if self._usage is None else _usage(self._usage),
            **self._echo,
        }


def _usage(usage: Usage) -> Json:
    cached = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0}
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": cached,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
