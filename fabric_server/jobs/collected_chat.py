"""A streamed chat completion, collected to the object that it would be in one piece."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from fabric_server.metering.openai import UNREADABLE, Usage
from fabric_server.metering.sse import events_in, read_data

_PIECE = 128
"""Bytes that a choice, a call or a log probability counts beyond its text."""
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
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Logprobs(Struct, gc=False):
    content: list[Raw] | None = None
    refusal: list[Raw] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice]
    id: str
    created: int | float = 0
    usage: Raw = Raw(b"null")
    system_fingerprint: str | None = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Texts:
    """Texts by name, each from many pieces."""

    def __init__(self) -> None:
        self._parts: dict[str, bytearray] = {}  # no lists: a piece may be one letter

    def add(self, name: str, piece: str | None) -> int:
        """Add a piece, and return its bytes."""
        if not piece:
            return 0
        data = piece.encode()
        self._parts.setdefault(name, bytearray()).extend(data)
        return len(data)

    def get(self, name: str) -> str | None:
        part = self._parts.get(name)
        return None if part is None else part.decode()


class _CollectedCall:
    def __init__(self, index: int | None, id: str | None, type: str | None) -> None:
        self.index, self.id, self.type = index, id, type
        self.texts = _Texts()

    def shown(self) -> dict[str, Any]:
        return {"id": self.id, "type": self.type or "function", "function": self.function()}

    def function(self) -> dict[str, Any]:
        return {"name": self.texts.get("name"), "arguments": self.texts.get("arguments") or ""}

    def add(self, function: _Function | None) -> int:
        if function is None:
            return 0
        size = self.texts.add("arguments", function.arguments)
        if function.name != self.texts.get("name"):  # some engines repeat it with each piece
            size += self.texts.add("name", function.name)
        return size


class _CollectedChoice:
    def __init__(self) -> None:
        self.role = "assistant"
        self.finish_reason: str | None = None
        self._texts = _Texts()
        self._calls: list[_CollectedCall] = []
        self._function: _CollectedCall | None = None
        self._logprobs: dict[str, list[Raw]] = {}

    def add(self, choice: _Choice) -> int:
        """Add the choice's part of a chunk, and return how many bytes more are held."""
        size, delta = 0, choice.delta
        if choice.finish_reason is not None and choice.finish_reason not in _NO_FINISH:
            self.finish_reason = choice.finish_reason
        if delta is not None:
            self.role = delta.role or self.role
            for name in ("content", "reasoning", "reasoning_content", "refusal"):
                size += self._texts.add(name, getattr(delta, name))
            for call in delta.tool_calls or ():
                size += self._add_call(call)
            if delta.function_call is not None:
                self._function = self._function or _CollectedCall(None, None, None)
                size += self._function.add(delta.function_call)
        if choice.logprobs is not None:
            size += self._add_logprobs("content", choice.logprobs.content)
            size += self._add_logprobs("refusal", choice.logprobs.refusal)
        return size

    def _add_call(self, call: _Call) -> int:
        """Add a piece of a tool's call: its index tells which one, and another id a new one."""
        for known in reversed(self._calls):
            same = call.index is None or known.index == call.index
            if same and (not call.id or known.id in (None, call.id)):
                known.id = known.id or call.id
                return known.add(call.function)
        self._calls.append(_CollectedCall(call.index, call.id, call.type))
        return _PIECE + len(call.id or "") + self._calls[-1].add(call.function)

    def _add_logprobs(self, name: str, values: list[Raw] | None) -> int:
        if values is None:
            return 0
        kept = self._logprobs.setdefault(name, [])
        kept += [Raw(bytes(value)) for value in values]  # not the whole event, of which it is part
        return sum(_PIECE + len(bytes(value)) for value in values)

    def shown(self, index: int) -> dict[str, Any]:
        content, calls = self._texts.get("content"), [call.shown() for call in self._calls]
        function = None if self._function is None else self._function.function()
        if content is None and not calls and function is None:
            content = ""
        message: dict[str, Any] = {
            "role": self.role,
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
            "finish_reason": self.finish_reason,
        }


class CollectedChat:
    """The chunks of a stream so far: ``add`` the events, then ask for the ``completion``."""

    def __init__(self) -> None:
        self.size = 0
        """About how many bytes are held."""
        self.readable = True
        """Every chunk so far could be read."""
        self._first: _Chunk | None = None
        self._choices: dict[int, _CollectedChoice] = {}
        self._usage = b"null"

    def add(self, events: bytes) -> None:
        """Take in whole events.  Comments, and errors, add nothing."""
        for event in events_in(events):
            data = read_data(event)
            if data is not None and data.strip() != b"[DONE]":
                try:
                    self._add(_decode(data))
                except UNREADABLE:
                    self.readable = False

    def _add(self, chunk: _Chunk) -> None:
        usage = bytes(chunk.usage)
        if usage != b"null":
            self.size += len(usage) - len(self._usage)
            self._usage = usage
        if self._first is None:
            self._first = chunk
            self.size += len(chunk.id)
        for choice in chunk.choices:
            collected = self._choices.get(choice.index)
            if collected is None:
                collected = self._choices[choice.index] = _CollectedChoice()
                self.size += _PIECE
            self.size += collected.add(choice)
        chunk.choices, chunk.usage = [], Raw(b"null")  # the first one is kept

    def completion(self, usage: Usage | None = None) -> dict[str, Any] | None:
        """Return the completion's fields; None if there is none.  ``usage`` stands for figures that
        are not in the stream."""
        first = self._first
        if first is None or not self._choices or not self.readable:
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
