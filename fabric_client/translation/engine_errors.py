"""Engines' errors as OpenAI's API would report them: status, message, type, code and param.

Engines differ: their codes are numbers (vLLM, llama-server) or missing (Ollama), and some report a
mistake of the user's as a failure of their own.  A status of 500 is kept unless the message shows
such a mistake: other engines are asked again then, and one that fails is avoided.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from fabric_client.sse import decode_events, looks_like_events
from fabric_client.translation.lenient_json import Json, decode_object, find_error, get_object

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
MODEL_NOT_FOUND = "model_not_found"
MAX_MESSAGE = 2000
"""Characters of a message that are shown, and that are looked at."""
_MAY_BE_THE_USERS = frozenset({400, 413, 422, 500, 501})
"""Statuses with which engines report mistakes of the user's."""
_CODE = re.compile(r"[a-z][a-z0-9_.]{1,63}")
_PARAM = re.compile(r"[\w.\[\]-]{1,100}", re.ASCII)

_CODES = {
    400: "invalid_value",
    404: MODEL_NOT_FOUND,
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    429: "rate_limit_exceeded",
    501: "not_supported",
    503: "overloaded",
    504: "upstream_timeout",
}
"""Codes for errors of which the message says no more; those of the server are the same."""
_OVERFLOW = re.compile(
    r"context (?:length|size|window)[^\n]{0,80}(?:exceed|too)"
    r"|(?:exceed|longer than|larger than|greater than|too long|too large|maximum)[^\n]{0,80}"
    r"context (?:length|size|window)"
    r"|exceeds? the (?:available |model's )?context|prompt is too long"
    r"|input[^\n]{0,40} too (?:long|large)|max(?:imum)? (?:model|input|sequence) length"
    r"|max_model_len|`?inputs`? tokens \+ `?max_new_tokens`? must be",
    re.IGNORECASE,
)
_MAX_TOKENS = re.compile("max_tokens|max_completion_tokens|max_new_tokens|in the completion")
_FIELD = re.compile(
    r"\b(?:field|key|parameter) [`'\"]([\w.]{1,64})[`'\"]", re.IGNORECASE | re.ASCII
)
"""A field of the body that a message names, as llama-server does."""
_NO_PATH = re.compile(r"(?:file )?not found\.?", re.IGNORECASE)
"""What FastAPI and llama-server say of a path that they don't have."""
_NO_MODEL = re.compile(
    r"model\b[^\n]{0,300}(?:\bnot found|does not exist|doesn't exist)|(?:no such|unknown) model\b"
    r"|invalid model\b",
    re.IGNORECASE,
)
_BAD_MEDIA = re.compile(
    r"(?:image|audio|video)\b[^\n]{0,60}(?:not supported|unsupported|unknown format|invalid)"
    r"|(?:fail\w*|unable|cannot|can't|could not)[^\n]{0,20}"
    r"(?:load|decode|identify|open|process|read|pars)\w*[^\n]{0,20}(?:image|audio|video)"
    r"|(?:invalid|unsupported|illegal)[^\n]{0,20}(?:image|audio|video|base64)"
    r"|does not support (?:image|vision|multimodal)|data required for image input",
    re.IGNORECASE,
)
_BAD_REQUEST = re.compile(
    r"pars\w+ grammar|grammar (?:pars|error|compil)|invalid grammar|json[_ -]?schema|invalid regex"
    r"|template|jinja|roles must alternate|raise_exception|tool_choice|pars\w+ (?:messages|tools)"
    r"|json\.exception|cannot unmarshal|invalid character|invalid options"
    r"|(?<!server) does not support (?:tools|thinking|chat|generate|completion|insert|embed)"
    r"|[`'\"][\w.]{1,64}[`'\"](?: \w{1,32})? must (?:not )?be\b"
    r"|\b(?:input|prompt|messages?|content|text)\b[^\n]{0,20}(?:cannot|can't|must not) be empty"
    r"|\bno (?:input|prompt|messages?|content|text) (?:was |were )?(?:provided|given)",
    re.IGNORECASE,
)
_USER_MISTAKES = (
    (_OVERFLOW, CONTEXT_LENGTH_EXCEEDED),
    (_BAD_MEDIA, "invalid_image"),
    (_BAD_REQUEST, "invalid_value"),
)
"""Texts by which llama-server, Ollama, vLLM, SGLang and TGI report a mistake of the user's, with a
status that may be 500, and the codes for them."""
_NOT_THE_USERS = re.compile(
    r"out of memory|cuda|rocm|vulkan|metal\b|terminated|connection|\bEOF\b|segmentation"
    r"|unable to load model|failed to load model|more system memory|no space|killed|crash"
    r"|unexpectedly stopped|resource limitation",
    re.IGNORECASE,
)
"""Texts of failures of the engine itself, whatever else they say."""


class EngineError(NamedTuple):
    """An error as the user gets it."""

    status: int
    message: str
    """As the engine sent it: what is private in it must be found before it is cut."""
    code: str
    param: str | None = None

    @property
    def type(self) -> str:
        """The type of OpenAI's API."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def openai(self) -> Json:
        """Return the error as a document of OpenAI's API."""
        fields = {"message": self.message[:MAX_MESSAGE], "type": self.type}
        return {"error": {**fields, "param": self.param, "code": self.code}}


def read_error(status: int, body: bytes) -> EngineError:
    """Read an engine's answer whose status is an error, whatever its form."""
    document = _read_document(body)
    if document is None:
        text = body.decode("utf-8", "replace").strip()
        if text.startswith("<") or not text:
            text = f"The engine answered with status {status}."
        return classify(status, text)
    message, field = _read_message(document)
    details = get_object(document, "error") or document
    code, param = details.get("code"), details.get("param") or field
    return classify(
        status,
        message or f"The engine answered with status {status}.",
        code if isinstance(code, str) and _CODE.fullmatch(code) else None,
        param if isinstance(param, str) and _PARAM.fullmatch(param) else None,
    )


def classify(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> EngineError:
    """Return the error for an engine's status and message.

    ``code`` and ``param`` are what the engine said of them; what the message shows is told instead
    of a code that is missing.
    """
    message = _without_traceback(message)
    seen = message[:MAX_MESSAGE]
    if status in (400, 404) and (code == MODEL_NOT_FOUND or _NO_MODEL.search(seen)):
        return EngineError(404, message, MODEL_NOT_FOUND, "model")
    named = _FIELD.search(seen) if param is None and status < 500 else None
    param = param if named is None else named[1]
    if status in _MAY_BE_THE_USERS and (status < 500 or not _NOT_THE_USERS.search(seen)):
        for pattern, meant in _USER_MISTAKES:
            if pattern.search(seen):
                return EngineError(400, message, meant, param)
    if status == 422:
        status = 400  # FastAPI's status for a body that does not fit
    usual = _CODES.get(status, "engine_error" if status >= 500 else _CODES[400])
    if status == 404 and _NO_PATH.fullmatch(seen):
        usual = "not_found"
    return EngineError(status, message, code or usual, param)


def is_context_overflow(message: str) -> bool:
    """Return whether the prompt alone does not fit the model's context.

    False when only prompt and ``max_tokens`` together do not fit: a shorter conversation is not
    what would help then.
    """
    message = message[:MAX_MESSAGE]
    return bool(_OVERFLOW.search(message)) and not _MAX_TOKENS.search(message)


def _read_document(body: bytes) -> Json | None:
    """Return the document of an error, which may be the first event of a stream."""
    body = body.strip()
    if not looks_like_events(body):
        return decode_object(body)
    for data in decode_events(body + b"\n\n"):
        document = decode_object(data)
        if document is not None:
            return document
    return None


def _read_message(document: Json) -> tuple[str, str | None]:
    """Return a document's message, and the field that it is about if FastAPI says so."""
    detail = document.get("detail")
    rows = [row for row in detail if isinstance(row, dict)] if isinstance(detail, list) else []
    if rows:
        return "; ".join(map(_tell_row, rows[:5])), _name_field(rows[0])
    if isinstance(detail, dict) and isinstance(detail.get("msg"), str):
        return detail["msg"], None  # KoboldCpp
    message = find_error(document) or document.get("message")
    return (message if isinstance(message, str) else msgspec.json.encode(document).decode()), None


def _tell_row(row: Json) -> str:
    field, text = _name_field(row), str(row.get("msg", "is invalid"))
    return text if field is None else f"'{field}': {text}"


def _name_field(row: Json) -> str | None:
    at: Any = row.get("loc")
    names = [str(one) for one in at[1:5]] if isinstance(at, list) else []
    return ".".join(names) or None


def _without_traceback(message: str) -> str:
    """Return a message, of a program's traceback only the last line, which says what happened."""
    if "Traceback (most recent call last)" not in message:
        return message
    return message.rstrip().rpartition("\n")[2]
