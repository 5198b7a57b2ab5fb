"""Types of the answers at /v1/chat/completions: chunks of a stream, or whole answers.

Fields are those of the OpenAI API and the additions of vLLM, llama-server and Ollama.
``lenient_chunks`` reads what does not fit these types.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

FAILURES = frozenset({"abort", "error", "failed"})
"""Values of ``finish_reason`` for a request that failed, of vLLM and SGLang."""
NO_FINISH = frozenset({"", "null", "none", "None"})
"""Values of ``finish_reason`` that engines send where they mean null."""


class MalformedToolCall(Exception):
    """A piece of a tool call came before the piece with the tool's name, or after its end."""


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | list[Any] | None = None
    """JSON as text; older engines send the object itself."""


class ToolCall(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: Function | None = None

    @property
    def name(self) -> str:
        """The tool's name.  Raises ``MalformedToolCall`` if it is missing."""
        if self.function is None or not self.function.name:
            raise MalformedToolCall
        return self.function.name

    @property
    def arguments(self) -> str:
        given = None if self.function is None else self.function.arguments
        if given is None or isinstance(given, str):
            return given or ""
        return msgspec.json.encode(given).decode()

    @property
    def is_empty(self) -> bool:
        return not self.arguments and not (self.function and self.function.name)


class Message(Struct, gc=False):
    """A whole message, or the next piece of one in a stream."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    """The older form of ``tool_calls``, for one call."""

    @property
    def thinking(self) -> str | None:
        """The reasoning; engines use one name or the other, or both for the same text."""
        return self.reasoning_content or self.reasoning

    @property
    def calls(self) -> list[ToolCall]:
        """The pieces of tool calls, in either form."""
        if self.function_call is not None and not self.tool_calls:
            return [ToolCall(0, None, self.function_call)]
        return self.tool_calls or []


class Choice(Struct, gc=False):
    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM: the stop sequence that matched, or the id of a stop token."""
    text: str | None = None
    """The text of /v1/completions, which has no message."""
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
        """Tokens of the prompt that came from the engine's cache."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the completion that were reasoning."""
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
        """True if llama-server sent it: its fingerprint is a build number, ``b1234-…``."""
        return re.match(r"b\d", self.system_fingerprint or "") is not None


decode_chunk = msgspec.json.Decoder(Chunk).decode
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""Exceptions of ``decode_chunk``."""
