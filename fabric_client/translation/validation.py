"""Strict reading of a user's body, field by field.  Everything here raises ``TranslationError``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from fabric_client.translation import TranslationError
from fabric_client.translation.lenient_json import Json, decode_json

UNTRANSLATABLE_FIELDS = frozenset(
    {
        "audio",
        "best_of",
        "echo",
        "function_call",
        "functions",
        "logprobs",
        "messages",
        "modalities",
        "n",
        "stream_options",
    }
)
"""Fields of the chat API that change an answer in ways that other dialects can't express."""


def parse_body(body: bytes) -> Json:
    try:
        found = decode_json(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TranslationError("body", f"the body is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise TranslationError("body", "the body must be a JSON object")
    return found


def encode_body(fields: Json) -> bytes:
    return msgspec.json.encode(fields)


def pass_unknown_fields(chat: Json, request: Json, known: frozenset[str]) -> None:
    """Copy fields that are not of the user's dialect: engines have parameters of their own."""
    for name, value in request.items():
        if name in known:
            continue
        if name in UNTRANSLATABLE_FIELDS or name in chat:
            raise invalid(name, "is not a field of this API")
        chat[name] = value


def add_template_switches(chat: Json, request: Json, thinking: bool | None) -> None:
    """Add ``chat_template_kwargs`` that switch thinking.

    Templates read one name or the other and ignore those they don't know.
    """
    param = "chat_template_kwargs"
    given = require_object(request.get(param) or {}, param)
    switches = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
    if switches | given:
        chat[param] = switches | given


def invalid(param: str, problem: str) -> TranslationError:
    """Return an error for the field ``param``; ``problem`` is the predicate of a sentence."""
    return TranslationError(param, f"'{param}' {problem}")


def reject_if_set(fields: Json, param: str, problem: str) -> None:
    """Raise for a field that is present; an empty value counts as absent."""
    if fields.get(param) not in (None, False, [], {}, ""):
        raise invalid(param, problem)


def require_object(value: Any, param: str) -> Json:
    if not isinstance(value, dict):
        raise invalid(param, "must be an object")
    return value


def require_list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(param, "must be an array")
    return value


def require_text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise invalid(param, "must be a string")
    return value


def require_count(value: Any, param: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise invalid(param, "must be a positive integer")
    return value


def require_number(value: Any, param: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise invalid(param, "must be a number")
    return value


def require_choice(value: Any, param: str, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise invalid(param, f"must be one of {', '.join(choices)}")
    return value


def require_bool(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(param, "must be true or false")
    return value


def require_objects(value: Any, param: str) -> Iterator[tuple[str, Json]]:
    """Yield the objects of an array, each after its path, such as ``tools[0]``."""
    for index, item in enumerate(require_list(value, param)):
        yield f"{param}[{index}]", require_object(item, f"{param}[{index}]")


def json_schema_format(name: str, schema: Any, param: str, strict: Any = True) -> Json:
    """Return the chat API's ``response_format`` for answers that match a JSON schema."""
    described = {"name": name, "schema": require_object(schema, param), "strict": strict}
    return {"type": "json_schema", "json_schema": described}
