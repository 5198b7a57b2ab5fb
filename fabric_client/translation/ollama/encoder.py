"""Answers of Ollama's API: a line of JSON for each event, or one document."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric_client.translation.chat import ChatTranslator
from fabric_client.translation.chunks import Choice, Chunk, Message, Usage
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.ollama.logprobs import token_rows
from fabric_client.translation.ollama.timestamps import timestamp
from fabric_client.translation.ollama.tool_calls import ToolCallAssembler

_DONE_REASONS = {"tool_calls": "stop", "function_call": "stop"}
_NO_MESSAGE = Message()
_encode = msgspec.json.Encoder().encode

PartEncoder = Callable[[str, str, list[Json]], Json]
"""Takes text, thinking and tool calls; returns the fields of a line that hold them."""


def chat_fields(text: str, thinking: str, calls: list[Json]) -> Json:
    """Return the fields for ``/api/chat``."""
    message: Json = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def generate_fields(text: str, thinking: str, calls: list[Json]) -> Json:
    """Return the fields for ``/api/generate``."""
    line: Json = {"response": text}
    if thinking:
        line["thinking"] = thinking
    if calls:
        line["tool_calls"] = calls
    return line


class NdjsonTranslator(ChatTranslator):
    streamed_type = "application/x-ndjson"


class OllamaEncoder:
    """``fabric_client.translation.chat.AnswerEncoder``.

    The last line is sent only if the engine has given a ``finish_reason`` or marked the end of its
    stream; without it, users can tell that the answer is incomplete.
    """

    def __init__(
        self, model: str, encode_part: PartEncoder, clock: Callable[[], int], alternatives: int = 0
    ) -> None:
        """``alternatives`` to send for each token, if the request asks for log probabilities."""
        self._model = model
        self._encode_part = encode_part
        self._clock = clock
        self._alternatives = alternatives
        self._started = clock()
        self._first_token: int | None = None
        """The time of the first line."""
        self._calls = ToolCallAssembler()
        self._reason: str | None = None
        self._usage: Usage | None = None

    def encode_chunk(self, chunk: Chunk) -> bytes:
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return b""
        choice = chunk.choices[0]
        text, thinking, calls = self._read(choice, choice.delta or choice.message or _NO_MESSAGE)
        if not (text or thinking or calls):
            return b""
        now = self._clock()
        if self._first_token is None:
            self._first_token = now
        line = self._line(now, text, thinking, calls)
        line["done"] = False
        self._add_logprobs(line, choice)
        return _encode(line) + b"\n"

    def encode_end(self, *, done: bool) -> bytes:
        if self._reason is None and not done:
            return b""
        now = self._clock()
        calls, text = self._calls.end()
        line = self._line(now, text, "", calls)
        self._reason = self._reason or "stop"
        return _encode(self._add_totals(line, now)) + b"\n"

    def encode_failure(self, message: str) -> bytes:
        return _encode({"error": message}) + b"\n"

    def encode_whole(self, chunk: Chunk) -> bytes:
        choice = chunk.choices[0]
        self._usage = chunk.usage
        choice.finish_reason = choice.finish_reason or "stop"
        now = self._clock()
        line = self._line(now, *self._read(choice, choice.message or _NO_MESSAGE))
        self._add_logprobs(line, choice)
        return _encode(self._add_totals(line, now))

    def encode_error(self, status: int, message: str) -> bytes:
        return _encode({"error": message})

    def _read(self, choice: Choice, message: Message) -> tuple[str, str, list[Json]]:
        """Return text, thinking and complete tool calls."""
        text = choice.text or message.content or message.refusal or ""
        calls: list[Json] = []
        if message.tool_calls or message.function_call:
            calls, cut_off = self._calls.feed(message.calls)
            text += cut_off
        if choice.finish_reason:
            self._reason = _DONE_REASONS.get(choice.finish_reason, choice.finish_reason)
            last, cut_off = self._calls.end()
            calls += last
            text += cut_off
        return text, message.thinking or "", calls

    def _line(self, now: int, text: str, thinking: str, calls: list[Json]) -> Json:
        fields = self._encode_part(text, thinking, calls)
        return {"model": self._model, "created_at": timestamp(now), **fields}

    def _add_logprobs(self, line: Json, choice: Choice) -> None:
        if choice.logprobs and (rows := token_rows(choice.logprobs, self._alternatives)):
            line["logprobs"] = rows

    def _add_totals(self, line: Json, now: int) -> Json:
        """Add the fields of the last line; durations are in nanoseconds.

        An unstreamed answer has no known first token: all its time counts as evaluation.
        """
        first = self._started if self._first_token is None else self._first_token
        line["done"] = True
        line["done_reason"] = self._reason
        line["total_duration"] = max(0, now - self._started)
        line["load_duration"] = 0
        if self._usage is not None:
            line["prompt_eval_count"] = self._usage.prompt_tokens
        line["prompt_eval_duration"] = max(0, first - self._started)
        if self._usage is not None:
            line["eval_count"] = self._usage.completion_tokens
        line["eval_duration"] = max(0, now - first)
        return line
