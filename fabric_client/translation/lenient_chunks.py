"""Reading of an engine's chunks, whatever is odd about them.

A chunk that fits the types of ``chunks`` is decoded by msgspec.  Of any other, each needed field is
read for itself: what has another type is converted or left out, and what can't be decoded becomes
U+FFFD.  Text is never lost without a sign.
"""

from __future__ import annotations

import json
import math
from typing import Any

from fabric_client.translation.chunks import (
    NO_FINISH,
    UNREADABLE,
    Choice,
    Chunk,
    CompletionDetails,
    Function,
    Message,
    PromptDetails,
    ToolCall,
    Usage,
    decode_chunk,
)
from fabric_client.translation.lenient_json import Json, get_object
from runtime.engine_errors import find_error

MAX_COUNT = 2**53
MAX_DEPTH = 16
"""Levels of lists in which text is looked for."""


class UnreadableChunk(Exception):
    """The data is no chunk, and may be part of one."""


def read_chunk(data: bytes | bytearray) -> Chunk | None:
    """Return the chunk; None for data that means nothing, such as ``null``.

    ``error`` of the chunk is set for an error in any known shape.  Raises ``UnreadableChunk``.
    """
    try:
        chunk = decode_chunk(data)
    except UNREADABLE:
        return _read_leniently(bytes(data))
    choices = chunk.choices
    if choices:
        if choices[0].finish_reason in NO_FINISH:
            choices[0].finish_reason = None
    elif chunk.usage is None and chunk.error is None:
        return _read_leniently(bytes(data))  # perhaps an error of another shape
    return chunk


def _read_leniently(data: bytes) -> Chunk | None:
    document = decode_leniently(data)
    if not isinstance(document, dict):
        return None
    choices = document.get("choices")
    rows = [choices] if isinstance(choices, dict) else _list(choices)
    found = [_choice(row) for row in rows if isinstance(row, dict)]
    return Chunk(
        text_of(document.get("id")),
        count_of(document.get("created")),
        text_of(document.get("model")),
        found,
        _usage(document.get("usage")),
        None if any(_has_content(choice) for choice in found) else find_error(document),
        text_of(document.get("system_fingerprint")),
    )


def decode_leniently(data: bytes) -> Any:
    """Decode JSON with NaN, huge numbers, bad UTF-8 and lone surrogates; None for other words.

    Raises ``UnreadableChunk`` for what begins like an object or a list and can't be decoded.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
    try:
        return json.loads(text, parse_int=_parse_int, strict=False)
    except (ValueError, RecursionError):
        if text[:1] in ("{", "["):
            raise UnreadableChunk from None
        return None


def _parse_int(digits: str) -> int:
    return int(digits) if len(digits) < 20 else 0


def printable_values(value: Any) -> Any:
    """Return decoded JSON without what JSON can't hold: halves of pairs, NaN and infinities."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_clean(key): printable_values(one) for key, one in value.items()}
    if isinstance(value, list):
        return [printable_values(one) for one in value]
    return value


# ── fields ────────────────────────────────────────────────────────────────────────────────────


def _choice(row: Json) -> Choice:
    finish = row.get("finish_reason")
    stop = row.get("stop_reason")
    text = row.get("text")
    return Choice(
        count_of(row.get("index")),
        _message(row.get("delta")),
        _message(row.get("message")),
        finish if isinstance(finish, str) and finish not in NO_FINISH else None,
        stop if isinstance(stop, str) or type(stop) is int else None,
        None if text is None else text_of(text),
        row.get("logprobs"),
    )


def _message(value: object) -> Message | None:
    if not isinstance(value, dict):
        text = text_of(value)
        return Message(text) if text else None
    thinking = text_of(value.get("reasoning_content")) or text_of(value.get("reasoning"))
    call = value.get("function_call")
    calls = value.get("tool_calls")
    rows = [calls] if isinstance(calls, dict) else _list(calls)
    return Message(
        content=text_of(value.get("content")) or None,
        reasoning_content=thinking or text_of(value.get("reasoning_details")) or None,
        refusal=text_of(value.get("refusal")) or None,
        tool_calls=[_tool_call(row) for row in rows if isinstance(row, dict)] or None,
        function_call=_function(call) if isinstance(call, dict) else None,
    )


def _tool_call(row: Json) -> ToolCall:
    index = row.get("index")
    id = row.get("id")
    function = row.get("function")
    return ToolCall(
        None if index is None else count_of(index),
        str(id) if isinstance(id, str | int) and not isinstance(id, bool) and id != "" else None,
        _function(function if isinstance(function, dict) else row),
    )


def _function(row: Json) -> Function:
    arguments = row.get("arguments")
    if isinstance(arguments, str):
        arguments = _clean(arguments)
    elif not isinstance(arguments, dict | list):
        arguments = None
    return Function(text_of(row.get("name")) or None, arguments)


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = (
        get_object(value, f"{name}_tokens_details") for name in ("prompt", "completion")
    )
    return Usage(
        count_of(value.get("prompt_tokens")),
        count_of(value.get("completion_tokens")),
        PromptDetails(count_of(prompt.get("cached_tokens"))) if prompt else None,
        CompletionDetails(count_of(completion.get("reasoning_tokens"))) if completion else None,
    )


def _has_content(choice: Choice) -> bool:
    message = choice.delta or choice.message
    return bool(choice.text or (message and (message.content or message.thinking or message.calls)))


# ── values ────────────────────────────────────────────────────────────────────────────────────


def text_of(value: object, depth: int = 0) -> str:
    """Return the text of a string, a number, a content part or a list of them."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, bool) or value is None or depth > MAX_DEPTH:
        return ""
    if isinstance(value, int | float):
        return str(value) if math.isfinite(value) else ""
    if isinstance(value, list):
        return "".join(text_of(one, depth + 1) for one in value)
    if isinstance(value, dict):
        for name in ("text", "content", "value", "summary", "refusal", "thinking"):
            if text := text_of(value.get(name), depth + 1):
                return text
    return ""


def _clean(text: str) -> str:
    """Join halves of surrogate pairs; a half alone becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def count_of(value: object) -> int:
    """Return a count of any type; 0 for what is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return int(value) if 0 <= value < MAX_COUNT else 0


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
