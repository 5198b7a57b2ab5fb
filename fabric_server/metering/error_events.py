"""Engines' errors within a stream, in the form that clients of each API know.

They follow the rules of errors that have a status (``runtime.engine_errors``), and places of the
node are left out of them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from fabric_server.metering.documents import Marks, decode_marks
from fabric_server.metering.sse import UNREADABLE, events_in, read_data, read_object
from runtime.engine_errors import MAX_MESSAGE, EngineError, classify, read_event
from runtime.private_places import hide_places

_BEGUN = (
    rb'\s*\{\s*"(?:error"\s*:\s*(?:\{(?!\s*\})|"(?!"))|type"\s*:\s*"(?:error|response\.failed)")'
)
_NAMED = rb"(?:event: ?(?:error|response\.failed)[ \t]*(?:[\r\n]|\Z)|error:)"
EVENT_BEGUN = re.compile(rb"[\r\n]*(?:%b|data:%b)" % (_NAMED, _BEGUN))
LINE_BEGUN = re.compile(_BEGUN)
"""The beginning of an error, by which one is known that can't be read as a whole."""
NO_REASON = "The engine reported an error."
_HAS_NAME = re.compile(rb"(?:^|[\r\n])" + _NAMED)
_ERROR_FIELD = re.compile(rb"(?:^|[\r\n])error:([^\r\n]*)")
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_OF_A_RESPONSE = frozenset(
    {
        *("id", "object", "created_at", "completed_at", "status", "background", "conversation"),
        *("instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "output"),
        *("parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key"),
        *("prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store"),
        *("temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation"),
        *("usage", "user"),
    }
)
"""Fields of a response in OpenAI's API without those in which engines tell what went wrong."""
_OF_A_CHUNK = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint"}
)
"""Fields of a chunk in OpenAI's API."""
_encode = msgspec.json.encode


class ErrorEvent(NamedTuple):
    """An engine's error, and the document in which it came."""

    error: EngineError
    document: dict[str, Any]


TOO_LONG = ErrorEvent(classify(500, "The engine's error is too long to be shown."), {})


def has_error(events: bytes) -> bool:
    """Return whether one of the events is an engine's error, in any of the known shapes."""
    if _HAS_NAME.search(events):
        return True
    if events.find(b'error"') < 0 and events.find(b'failed"') < 0:
        return False
    return any(map(_is_error_event, events_in(events)))


def _is_error_event(event: bytes) -> bool:
    data = read_data(event) if b'error"' in event or b'failed"' in event else None
    return data is not None and is_error(data)


def is_error(data: bytes) -> bool:
    """Return whether an event's data, or a line of JSON, are an engine's error.

    An empty ``error`` is one only if nothing else is said.
    """
    try:
        marks = decode_marks(data)
    except UNREADABLE:
        document = read_object(data)
        if document is None:
            return LINE_BEGUN.match(data) is not None
        marks = msgspec.convert(document, Marks)
    if marks.told:
        return True
    return isinstance(marks.error, dict | str) and len(read_object(data) or ()) == 1


def read_error(data: bytes) -> ErrorEvent:
    """Read an error, which is JSON or any text."""
    document = read_object(data)
    if document is not None:
        error = read_event(document, NO_REASON)
    else:
        error = classify(500, _read_text(data) or NO_REASON)
    status, message, code, param = error
    shown = EngineError(status, hide_places(message)[:MAX_MESSAGE], code, param)
    return ErrorEvent(shown, document or {})


def _read_text(data: bytes) -> str:
    """Return an error's text, which may be a string of JSON; "" for what nobody could read."""
    text = data.decode("utf-8", "replace").strip()
    if text[:1] in ("{", "[", "<"):
        return ""
    with suppress(*UNREADABLE):
        return msgspec.json.decode(text, type=str)
    return text


def read_error_event(event: bytes, prompt_field: str | None = None) -> ErrorEvent:
    """Read an event that ``has_error`` knows for an error.

    ``prompt_field`` is what is at fault when the prompt is too long.
    """
    data = read_data(event)
    if not data:
        found = _ERROR_FIELD.search(event)
        data = b"" if found is None else found[1]
    error, document = read_error(data)
    return ErrorEvent(error.about_prompt(prompt_field), document)


# ── the forms ─────────────────────────────────────────────────────────────────────────────────


def openai_event(told: ErrorEvent) -> bytes:
    """Return the error as OpenAI's chat has it, or as its other streams if it says so."""
    fields = told.error.openai()
    if told.document.get("choices"):  # the end of a text, as OpenRouter tells it
        return b"data: %b\n\n" % _encode({**_chunk_in(told.document), **fields})
    if told.document.get("type") == "error":
        return b"event: error\ndata: %b\n\n" % _encode({"type": "error", **fields})
    return b"data: %b\n\n" % _encode(fields)


def without_error(event: bytes) -> bytes:
    """Return what an event of OpenAI's chat says beside its error; empty if that is nothing."""
    chunk = read_object(read_data(event) or b"") if b'"choices"' in event else None
    if chunk is None or not chunk.get("choices"):
        return b""
    return b"data: %b\n\n" % _encode(_chunk_in(chunk))


def _chunk_in(document: dict[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in document if name in _OF_A_CHUNK}


def messages_event(error: EngineError) -> bytes:
    """Return the error as Anthropic's API has it."""
    return b"event: error\ndata: %b\n\n" % _encode(error.anthropic())


def responses_event(told: ErrorEvent, before: bytes) -> bytes:
    """Return the error as OpenAI's Responses API has it; ``before`` are the latest events."""
    error, document = told
    response, name = document.get("response"), "error"
    fields: dict[str, Any]
    if document.get("type") == "response.failed" and isinstance(response, dict):
        name = "response.failed"
        kept = {one: response[one] for one in response if one in _OF_A_RESPONSE}
        details = {"code": error.code_of_response, "message": error.message}
        fields = {"type": name, "response": {**kept, "error": details}}
    else:
        fields = flat_error(error.openai()["error"], before)
    number = document.get("sequence_number")
    if type(number) is int:
        fields["sequence_number"] = number
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(fields))


def flat_error(error: Any, before: bytes) -> dict[str, Any]:
    """Return the data of an ``error`` event of the Responses API: fields at the top as documented,
    and ``error``.

    The API sends ``error`` besides, and the official clients raise because of it: without it a
    program that only reads deltas would see a short answer.
    """
    numbers = _NUMBER.findall(before)
    number = int(numbers[-1]) + 1 if numbers else 0
    if not isinstance(error, dict):
        error = {"message": str(error)}
    fields = {name: error.get(name) for name in ("code", "message", "param")}
    return {"type": "error", **fields, "sequence_number": number, "error": error}


def ollama_line(error: EngineError) -> bytes:
    """Return the error as Ollama's API has it, without the line's end."""
    return _encode({"error": error.message})
