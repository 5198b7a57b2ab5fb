"""A streamed chat completion, collected to the object that it would be in one piece."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from fabric_server.jobs.held_answer import TOO_LARGE
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.metering.sse import UNREADABLE, events_in, read_data
from fabric_server.metering.usage import Usage

CAN_NOT_BE_READ = "a chunk of it is not as in OpenAI's API, or has over 128 choices or calls"
_PART = 1024
"""Bytes that a choice or a call counts beyond its text."""
_LOGPROB = 128
"""Bytes that a log probability counts beyond its text."""
_PARTS = Meta(max_length=128)
"""Bounds the choices of a chunk, and the calls of each; OpenAI's API has no more in an answer."""
_LOGPROBS = Meta(max_length=MAX_ANSWER // _LOGPROB)
_NO_FINISH = ("", "null", "none", "None")


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[_Call], _PARTS] | None = None
    function_call: _Function | None = None


class _Logprobs(Struct, gc=False):
    content: Annotated[list[Raw], _LOGPROBS] | None = None
    refusal: Annotated[list[Raw], _LOGPROBS] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct, gc=False):
    choices: Annotated[list[_Choice], _PARTS]
    id: str
    created: int | float = 0
    usage: Raw = Raw(b"null")
    system_fingerprint: str | None = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Full(Exception):
    """More is held than may be stored."""


class _Room:
    """Counts what is held, for all parts of an answer."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, size: int) -> None:
        """Count so many bytes more.  Raises ``_Full``."""
        self.taken += size
        if self.taken > MAX_ANSWER:
            raise _Full


class _Texts:
    """Texts by name, each from many pieces."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._parts: dict[str, bytearray] = {}  # no lists: a piece may be one letter

    def add(self, name: str, piece: str | None) -> None:
        if piece:
            data = piece.encode()
            self._room.take(len(data))
            self._parts.setdefault(name, bytearray()).extend(data)

    def replace(self, name: str, text: str | None) -> None:
        """Set a text that comes in one piece, unless it is missing or empty."""
        if text:
            data = text.encode()
            self._room.take(len(data) - len(self._parts.get(name, b"")))
            self._parts[name] = bytearray(data)

    def has(self, name: str, text: str) -> bool:
        """Return whether the text is just this one, in time that grows with ``text`` only."""
        return self._parts.get(name, b"") == text.encode()

    def get(self, name: str) -> str | None:
        part = self._parts.get(name)
        return None if part is None else part.decode()


class _CollectedCall:
    def __init__(self, room: _Room) -> None:
        room.take(_PART)
        self.has_id = False
        self.texts = _Texts(room)

    def shown(self) -> dict[str, Any]:
        type = self.texts.get("type") or "function"
        return {"id": self.texts.get("id"), "type": type, "function": self.function()}

    def function(self) -> dict[str, Any]:
        return {"name": self.texts.get("name"), "arguments": self.texts.get("arguments") or ""}

    def add(self, function: _Function | None) -> None:
        if function is None:
            return
        self.texts.add("arguments", function.arguments)
        name = function.name
        if name and not self.texts.has("name", name):  # some engines repeat it with each piece
            self.texts.add("name", name)


class _CollectedCalls:
    """The calls of tools of a choice: the index of a piece tells which one, and another id a new
    one."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._calls: list[_CollectedCall] = []
        self._by_key: dict[tuple[int | None, str | None], _CollectedCall] = {}
        """Calls by index and id, and the last one by either of them, and by none."""

    def add(self, piece: _Call) -> None:
        index, id = piece.index, piece.id or None
        call = self._by_key.get((index, id))
        if call is None and id is not None:
            call = self._by_key.get((index, None))
            if call is not None and call.has_id:
                call = None
        if call is None:
            call = _CollectedCall(self._room)
            self._calls.append(call)
            call.texts.add("type", piece.type)
            self._by_key[index, None] = self._by_key[None, None] = call
        if id is not None and not call.has_id:
            call.has_id = True
            call.texts.add("id", id)
            self._by_key[index, id] = self._by_key[None, id] = call
        call.add(piece.function)

    def shown(self) -> list[dict[str, Any]]:
        return [call.shown() for call in self._calls]


class _CollectedChoice:
    def __init__(self, room: _Room) -> None:
        room.take(_PART)
        self._room = room
        self._texts = _Texts(room)
        self._calls: _CollectedCalls | None = None
        self._function: _CollectedCall | None = None
        self._logprobs: dict[str, list[Raw]] = {}

    def add(self, choice: _Choice) -> None:
        """Add the choice's part of a chunk."""
        texts, delta, reason = self._texts, choice.delta, choice.finish_reason
        if reason is not None and reason not in _NO_FINISH:
            texts.replace("finish_reason", reason)
        if delta is not None:
            texts.replace("role", delta.role)
            texts.add("content", delta.content)
            texts.add("reasoning", delta.reasoning)
            texts.add("reasoning_content", delta.reasoning_content)
            texts.add("refusal", delta.refusal)
            if delta.tool_calls:
                self._calls = self._calls or _CollectedCalls(self._room)
                for call in delta.tool_calls:
                    self._calls.add(call)
            if delta.function_call is not None:
                self._function = self._function or _CollectedCall(self._room)
                self._function.add(delta.function_call)
        if choice.logprobs is not None:
            self._add_logprobs("content", choice.logprobs.content)
            self._add_logprobs("refusal", choice.logprobs.refusal)

    def _add_logprobs(self, name: str, values: list[Raw] | None) -> None:
        if values is not None:
            # Not the whole event, of which they are part.
            texts = [bytes(value) for value in values]
            self._room.take(len(texts) * _LOGPROB + sum(map(len, texts)))
            self._logprobs.setdefault(name, []).extend(map(Raw, texts))

    def shown(self, index: int) -> dict[str, Any]:
        content = self._texts.get("content")
        calls = None if self._calls is None else self._calls.shown()
        function = None if self._function is None else self._function.function()
        if content is None and not calls and function is None:
            content = ""
        message: dict[str, Any] = {
            "role": self._texts.get("role") or "assistant",
            "content": content,
            "refusal": self._texts.get("refusal"),
        }
        for name in ("reasoning", "reasoning_content"):
            if (text := self._texts.get(name)) is not None:
                message[name] = text
        if calls:
            message["tool_calls"] = calls
        if function is not None:
            message["function_call"] = function
        logprobs = {"content": None, "refusal": None, **self._logprobs} if self._logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._texts.get("finish_reason"),
        }


class CollectedChat:
    """The chunks of a stream so far: ``add`` the events, then ask for the ``completion``."""

    def __init__(self) -> None:
        self.lost = ""
        """Why there is no completion: it is too large, or a chunk can't be read.  Nothing is held
        any more."""
        self._room = _Room()
        self._first: _Chunk | None = None
        self._choices: dict[int, _CollectedChoice] = {}
        self._usage = b"null"

    @property
    def size(self) -> int:
        """Return about how many bytes are held."""
        return self._room.taken

    def add(self, events: bytes) -> None:
        """Take in whole events.  Comments, and errors, add nothing."""
        for event in events_in(events):
            data = read_data(event)
            if data is None or data.strip() == b"[DONE]":
                continue
            if self.lost:
                return
            try:
                self._add(_decode(data))
            except UNREADABLE:
                self._give_up(CAN_NOT_BE_READ)
            except _Full:
                self._give_up(TOO_LARGE)

    def _give_up(self, reason: str) -> None:
        self.lost = reason
        self._room, self._first, self._choices, self._usage = _Room(), None, {}, b"null"

    def _add(self, chunk: _Chunk) -> None:
        room, usage = self._room, bytes(chunk.usage)
        if usage != b"null":
            room.take(len(usage) - len(self._usage))
            self._usage = usage
        if self._first is None:
            self._first = chunk
            named = (chunk.id, chunk.system_fingerprint, chunk.service_tier)
            room.take(sum(len(text.encode()) for text in named if text))
        for choice in chunk.choices:
            collected = self._choices.get(choice.index)
            if collected is None:
                collected = self._choices[choice.index] = _CollectedChoice(room)
            collected.add(choice)
        chunk.choices, chunk.usage = [], Raw(b"null")  # the first one is kept

    def completion(self, usage: Usage | None = None) -> dict[str, Any] | None:
        """Return the completion's fields; None if there is none.  ``usage`` stands for figures that
        are not in the stream."""
        first = self._first
        if first is None or not self._choices:
            return None
        figures: Any = Raw(self._usage)
        if self._usage == b"null" and usage is not None:
            prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
            figures = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }
        return {
            "id": first.id,
            "object": "chat.completion",
            "created": int(first.created),
            "choices": [choice.shown(index) for index, choice in sorted(self._choices.items())],
            "usage": figures,
            "system_fingerprint": first.system_fingerprint,
            "service_tier": first.service_tier,
        }
