"""A chunk of a stream, or a whole answer, as engines send it at /v1/chat/completions.

Shapes: the OpenAI API, with what vLLM, llama-server and Ollama add to it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

FAILURES = frozenset({"abort", "error"})
"""What vLLM gives for ``finish_reason`` when an answer is not one."""


class MalformedToolCall(Exception):
    """There is a piece of a call that has no beginning: whose arguments these are is not known."""


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None
    """JSON as text; older engines send the object itself."""


class ToolCall(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: Function | None = None

    @property
    def name(self) -> str:
        """Without which no call can begin.  Raises ``MalformedToolCall``."""
        if self.function is None or not self.function.name:
            raise MalformedToolCall
        return self.function.name

    @property
    def arguments(self) -> str:
        given = None if self.function is None else self.function.arguments
        if isinstance(given, dict):
            return msgspec.json.encode(given).decode()
        return given or ""

    @property
    def is_empty(self) -> bool:
        return not self.arguments and not (self.function and self.function.name)

    def begins_after(self, last: ToolCall | None) -> bool:
        """Whether this is a call of its own, not more of the last one.

        Some engines number all calls 0, and some number none; a new id with a name tells as well.
        """
        if last is None:
            return True
        named = self.function is not None and bool(self.function.name)
        return self.index != last.index or bool(named and self.id and self.id != last.id)


class Message(Struct, gc=False):
    """A whole message, or a stream's next piece of one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None

    @property
    def thought(self) -> str | None:
        """Engines spell it either way; where both are there, they are the same text."""
        return self.reasoning_content or self.reasoning


class Choice(Struct, gc=False):
    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM: which of the stop sequences it was, or the number of a stop token."""
    text: str | None = None
    """What /v1/completions has in place of a message."""
    logprobs: Any = None


class PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt's tokens."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def reasoning_tokens(self) -> int:
        """Of the completion's tokens."""
        details = self.completion_tokens_details
        return (details and details.reasoning_tokens) or 0


class Chunk(Struct, gc=False):
    """An event of a stream, or the body of an unstreamed answer."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    system_fingerprint: str | None = None

    @property
    def is_llama_server(self) -> bool:
        """It puts the number of its build there: b1234-…"""
        return re.match(r"b\d", self.system_fingerprint or "") is not None


read_chunk = msgspec.json.Decoder(Chunk).decode
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What ``read_chunk`` raises."""
