"""Engines' errors as OpenAI's API would report them: status, message, type, code and param.

Engines differ: their codes are numbers (vLLM, llama-server) or missing (Ollama), and some report a
mistake of the user's as a failure of their own.  A status of 500 is kept unless the message shows
such a mistake: other engines are asked again then, and one that fails is avoided.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

Json = dict[str, Any]
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
MODEL_NOT_FOUND = "model_not_found"
PROMPT_FIELDS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
}
"""The field that is at fault when a prompt is too long, by path."""
ENGINE_ERROR = "engine_error"
"""The code of a failure of which nothing more is known."""
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
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUSES = {
    **{kind: status for status, kind in reversed(_ANTHROPIC_TYPES.items())},
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "BadRequestError": 400,
    "NotFoundError": 404,
    "not_supported_error": 501,
    "unavailable_error": 503,
}
"""Statuses for the types of Anthropic, llama-server and vLLM, where an error tells no number."""
_KINDS = frozenset(
    {
        *("error", "type", "object", "code", "status", "status_code", "param"),
        *("response", "sequence_number"),
    }
)
"""Fields of an error that do not tell what happened."""
_TOO_LONG = "prompt is too long: "
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

    @property
    def code_of_response(self) -> str:
        """The code in OpenAI's Responses API of a response that has failed."""
        return "server_error" if self.code == ENGINE_ERROR else self.code

    def about_prompt(self, field: str | None) -> EngineError:
        """Return the error with ``field`` as its param if it is of a prompt that is too long."""
        if self.param or self.code != CONTEXT_LENGTH_EXCEEDED:
            return self
        return self._replace(param=field)

    def openai(self) -> Json:
        """Return the error as a document of OpenAI's API."""
        fields = {"message": self.message[:MAX_MESSAGE], "type": self.type}
        return {"error": {**fields, "param": self.param, "code": self.code}}

    def anthropic(self) -> Json:
        """Return the error as a document of Anthropic's API, or as the data of its event."""
        message = self.message
        if self.status == 400 and is_context_overflow(message):
            # Claude Code then shortens the conversation.
            message = _TOO_LONG + message.removeprefix(_TOO_LONG)
        return {"type": "error", "error": {"type": anthropic_type(self.status), "message": message}}


def anthropic_type(status: int) -> str:
    """Return the type of Anthropic's API for an error with this status."""
    usual = "api_error" if status >= 500 else "invalid_request_error"
    return _ANTHROPIC_TYPES.get(status, usual)


def read_document(status: int, document: Json, no_reason: str = "") -> EngineError:
    """Read an engine's error that is JSON, whatever its form.

    ``no_reason`` is the message of one that has none.
    """
    message, field = _read_message(document)
    error = document.get("error")
    details = error if error and isinstance(error, dict) else document
    code, param = details.get("code"), details.get("param") or field
    return classify(
        status,
        message or no_reason or f"The engine answered with status {status}.",
        code if isinstance(code, str) and _CODE.fullmatch(code) else None,
        param if isinstance(param, str) and _PARAM.fullmatch(param) else None,
    )


def read_event(document: Json, no_reason: str) -> EngineError:
    """Read an engine's error within a stream, whose status only the error itself may tell."""
    response = document.get("response")
    if isinstance(response, dict) and response.get("error"):
        document = {"error": response["error"]}  # response.failed
    error = document.get("error")
    details = error if isinstance(error, dict) else document
    told = (details.get(name) for name in ("code", "status", "status_code"))
    status = next((one for one in told if type(one) is int and 400 <= one < 600), None)
    kind = details.get("type")
    if status is None:
        status = _STATUSES.get(kind, 500) if isinstance(kind, str) else 500
    return read_document(status, document, no_reason)


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
    usual = _CODES.get(status, ENGINE_ERROR if status >= 500 else _CODES[400])
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


def find_error(document: Json) -> str | None:
    """Return the message of an engine's error, in any of the known shapes; None if there is none.

    ``{"error": {"message": …}}``, ``{"error": "…"}``, and of older vLLM
    ``{"object": "error", "message": …}``; FastAPI has ``{"detail": …}``, others ``{"code": …,
    "message": …}``.
    """
    error = document.get("error")
    if isinstance(error, dict):
        return _text(error, "message") or msgspec.json.encode(error).decode()
    if error:
        return str(error)
    if document.get("object") == "error":
        return _text(document, "message") or "the engine failed"
    if "choices" in document:
        return None
    detail = document.get("detail")
    if detail:
        return detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
    if any(name in document for name in ("code", "status", "status_code")):
        return _text(document, "message") or None
    return None


def _text(document: Json, key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _read_message(document: Json) -> tuple[str, str | None]:
    """Return a document's message, and the field that it is about if FastAPI says so."""
    detail = document.get("detail")
    rows = [row for row in detail if isinstance(row, dict)] if isinstance(detail, list) else []
    if rows:
        return "; ".join(map(_tell_row, rows[:5])), _name_field(rows[0])
    if isinstance(detail, dict) and isinstance(detail.get("msg"), str):
        return detail["msg"], None  # KoboldCpp
    message = document.get("message")
    if not _says_why(document):
        return (message if isinstance(message, str) else ""), None
    message = find_error(document) or message
    return (message if isinstance(message, str) else msgspec.json.encode(document).decode()), None


def _says_why(document: Json) -> bool:
    """Return whether an error has more than its kind, and so is worth showing as it is."""
    error = document.get("error") or document
    return not isinstance(error, dict) or any(error[name] for name in error.keys() - _KINDS)


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
