"""Engines' errors within a stream, in the form that clients of each API know.

They follow the rules of errors that have a status (``runtime.engine_errors``), and places of the
node are left out of them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from fabric_server.metering.sse import events_in, read_data
from runtime.engine_errors import MAX_MESSAGE, EngineError, classify, read_event
from runtime.private_places import hide_places

ERROR = re.compile(
    rb"(?:^|[\r\n])(?:event: ?(?:error|response\.failed)\b"
    rb'|(?:data|error): ?\{\s*"(?:error"\s*:\s*[{"]|type"\s*:\s*"(?:error|response\.failed)"))'
)
LINE = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"]')
"""The beginning of an error in a line of JSON."""
NO_REASON = "The engine reported an error."
_ERROR_FIELD = re.compile(rb"(?:^|[\r\n])error:([^\r\n]*)")
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_encode = msgspec.json.encode


class ErrorEvent(NamedTuple):
    """An engine's error, and the document in which it came."""

    error: EngineError
    document: dict[str, Any]


TOO_LONG = ErrorEvent(classify(500, "The engine's error is too long to be shown."), {})


class _Marks(Struct, gc=False):
    """The fields that show that an event is an error."""

    type: Raw = Raw(b"null")
    error: Raw = Raw(b"null")
    object: Raw = Raw(b"null")
    choices: Raw = Raw(b"null")

    @property
    def told(self) -> bool:
        if bytes(self.choices) not in (b"null", b"[]"):
            return False
        return (
            bytes(self.error) not in (b"null", b'""', b"{}", b"false")
            or bytes(self.object) == b'"error"'
            or bytes(self.type) in (b'"error"', b'"response.failed"')
        )


_decode_marks = msgspec.json.Decoder(_Marks).decode


def has_error(events: bytes) -> bool:
    """Return whether one of the events is an engine's error, in any of the known shapes."""
    if ERROR.search(events):
        return True
    for event in events_in(events):
        data = read_data(event) if b'error"' in event else None
        if data is None:
            continue
        try:
            if _decode_marks(data).told:
                return True
        except _UNREADABLE:
            continue
    return False


def is_error_line(line: bytes) -> bool:
    """Return whether a line of JSON, in which ``"error"`` is, is an engine's error."""
    try:
        return LINE.match(line) is not None or _decode_marks(line).told
    except _UNREADABLE:
        return False


def read_error(data: bytes) -> ErrorEvent:
    """Read an error, which is JSON or any text."""
    document: Any = None
    text = data.decode("utf-8", "replace").strip()
    try:
        document = msgspec.json.decode(data)
    except _UNREADABLE:
        text = "" if text[:1] in ("{", "[", "<") else text
    if isinstance(document, dict):
        error = read_event(document, NO_REASON)
    else:
        text = document if isinstance(document, str) else text
        error = classify(500, text or NO_REASON)
        document = {}
    status, message, code, param = error
    shown = EngineError(status, hide_places(message)[:MAX_MESSAGE], code, param)
    return ErrorEvent(shown, document)


def read_error_event(event: bytes) -> ErrorEvent:
    """Read an event that ``has_error`` knows for an error."""
    data = read_data(event)
    if not data:
        found = _ERROR_FIELD.search(event)
        data = b"" if found is None else found[1]
    return read_error(data)


# ── the forms ─────────────────────────────────────────────────────────────────────────────────


def openai_event(told: ErrorEvent) -> bytes:
    """Return the error as OpenAI's chat has it, or as its other streams if it says so."""
    fields = told.error.openai()
    if told.document.get("type") == "error":
        return b"event: error\ndata: %b\n\n" % _encode({"type": "error", **fields})
    return b"data: %b\n\n" % _encode(fields)


def messages_event(error: EngineError) -> bytes:
    """Return the error as Anthropic's API has it."""
    return b"event: error\ndata: %b\n\n" % _encode(error.anthropic())


def responses_event(told: ErrorEvent, before: bytes) -> bytes:
    """Return the error as OpenAI's Responses API has it; ``before`` are the latest events."""
    error, document = told
    response = document.get("response")
    if document.get("type") == "response.failed" and isinstance(response, dict):
        details = {"code": error.code_of_response, "message": error.message}
        failed = {**document, "response": {**response, "error": details}}
        return b"event: response.failed\ndata: %b\n\n" % _encode(failed)
    fields = flat_error(error.openai()["error"], before)
    number = document.get("sequence_number")
    if type(number) is int:
        fields["sequence_number"] = number
    return b"event: error\ndata: %b\n\n" % _encode(fields)


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
