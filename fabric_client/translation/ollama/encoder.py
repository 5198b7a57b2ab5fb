"""An engine's chat or completion as Ollama's: one line of JSON for each event, or all in one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric_client.translation.chat import ChatTranslator
from fabric_client.translation.chunks import Choice, Chunk, Message, Usage
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.ollama.logprobs import tokens
from fabric_client.translation.ollama.timestamps import stamp
from fabric_client.translation.ollama.tool_calls import ToolCallAssembler

_REASONS = {"tool_calls": "stop", "function_call": "stop"}
_NOTHING = Message()
_encode = msgspec.json.Encoder().encode

Say = Callable[[str, str, list[Json]], Json]
"""What is said, what is thought, which tools are called → the part of a line that tells it."""


def in_chat(words: str, thoughts: str, calls: list[Json]) -> Json:
    """``/api/chat``"""
    message: Json = {"role": "assistant", "content": words}
    if thoughts:
        message["thinking"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def in_response(words: str, thoughts: str, calls: list[Json]) -> Json:
    """``/api/generate``"""
    line: Json = {"response": words}
    if thoughts:
        line["thinking"] = thoughts
    if calls:
        line["tool_calls"] = calls
    return line


class NdjsonTranslator(ChatTranslator):
    streamed_type = "application/x-ndjson"


class OllamaEncoder:
    """``chat.Teller``.

    The last line is said when the engine has both given its reason to stop and ended: an answer
    that ends without is none, and its user must be able to tell.
    """

    def __init__(
        self, model: str, say: Say, clock: Callable[[], int], alternatives: int = 0
    ) -> None:
        """``alternatives`` to each token, where probabilities were asked for."""
        self._model = model
        self._say = say
        self._clock = clock
        self._alternatives = alternatives
        self._asked_at = clock()
        self._first_at: int | None = None
        self._calls = ToolCallAssembler()
        self._reason: str | None = None
        self._usage: Usage | None = None

    def encode_chunk(self, chunk: Chunk) -> bytes:
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return b""
        choice = chunk.choices[0]
        words, thoughts, calls = self._heard(choice, choice.delta or choice.message or _NOTHING)
        if not (words or thoughts or calls):
            return b""
        now = self._clock()
        if self._first_at is None:
            self._first_at = now
        line = self._line(now, words, thoughts, calls)
        line["done"] = False
        self._add_probabilities(line, choice)
        return _encode(line) + b"\n"

    def encode_end(self) -> bytes:
        if self._reason is None:
            return b""
        now = self._clock()
        return _encode(self._close(self._line(now, "", "", []), now)) + b"\n"

    def encode_failure(self, message: str) -> bytes:
        return _encode({"error": message}) + b"\n"

    def encode_whole(self, chunk: Chunk) -> bytes:
        choice = chunk.choices[0]
        self._usage = chunk.usage
        choice.finish_reason = choice.finish_reason or "stop"
        now = self._clock()
        line = self._line(now, *self._heard(choice, choice.message or _NOTHING))
        self._add_probabilities(line, choice)
        return _encode(self._close(line, now))

    def encode_error(self, status: int, message: str) -> bytes:
        return _encode({"error": message})

    def _heard(self, choice: Choice, message: Message) -> tuple[str, str, list[Json]]:
        words = choice.text or message.content or message.refusal or ""
        calls: list[Json] = []
        if message.tool_calls:
            calls, torn = self._calls.feed(message.tool_calls)
            words += torn
        if choice.finish_reason is not None:
            self._reason = _REASONS.get(choice.finish_reason, choice.finish_reason)
            last, torn = self._calls.end()
            calls += last
            words += torn
        return words, message.thought or "", calls

    def _line(self, now: int, words: str, thoughts: str, calls: list[Json]) -> Json:
        said = self._say(words, thoughts, calls)
        return {"model": self._model, "created_at": stamp(now), **said}

    def _add_probabilities(self, line: Json, choice: Choice) -> None:
        if choice.logprobs and (told := tokens(choice.logprobs, self._alternatives)):
            line["logprobs"] = told

    def _close(self, line: Json, now: int) -> Json:
        """Times in nanoseconds.  Of an answer in one piece nobody knows when it began, so all of
        its time counts as the answer's."""
        first = self._asked_at if self._first_at is None else self._first_at
        line["done"] = True
        line["done_reason"] = self._reason
        line["total_duration"] = max(0, now - self._asked_at)
        line["load_duration"] = 0
        if self._usage is not None:
            line["prompt_eval_count"] = self._usage.prompt_tokens
        line["prompt_eval_duration"] = max(0, first - self._asked_at)
        if self._usage is not None:
            line["eval_count"] = self._usage.completion_tokens
        line["eval_duration"] = max(0, now - first)
        return line
