"""Reading a user's body field by field; what is not as it should be is ``TranslationError``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from fabric_client.translation import TranslationError
from fabric_client.translation.lenient_json import decoded

Json = dict[str, Any]

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
"""Fields of the chat API that would make an engine answer in ways that other dialects can't say."""


def parse_body(body: bytes) -> Json:
    try:
        found = decoded(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TranslationError("body", f"the body is not JSON: {error}") from None
    return require_object(found, "body")


def encode_body(fields: Json) -> bytes:
    return msgspec.json.encode(fields)


def pass_unknown_fields(chat: Json, asked: Json, known: frozenset[str]) -> None:
    """What neither dialect knows is for the engine, as in a body that passes verbatim."""
    for name, value in asked.items():
        if name in known:
            continue
        if name in UNTRANSLATABLE_FIELDS or name in chat:
            raise refused(name, "it has no meaning in this API")
        chat[name] = value


def add_template_switches(chat: Json, asked: Json, thinks: bool | None) -> None:
    """Of the chat's template.  Templates call their switch for thinking by one name or the other,
    and skip what they don't know."""
    given = require_object(asked.get("chat_template_kwargs") or {}, "chat_template_kwargs")
    switches = {} if thinks is None else {"enable_thinking": thinks, "thinking": thinks}
    if switches | given:
        chat["chat_template_kwargs"] = switches | given


def refused(param: str, reason: str) -> TranslationError:
    return TranslationError(param, f"'{param}': {reason}")


def reject_if_set(fields: Json, param: str, reason: str) -> None:
    """Empty values ask for nothing."""
    if fields.get(param) not in (None, False, [], {}, ""):
        raise refused(param, reason)


def require_object(value: Any, param: str) -> Json:
    if not isinstance(value, dict):
        raise refused(param, "it must be an object")
    return value


def require_list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        raise refused(param, "it must be an array")
    return value


def require_text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise refused(param, "it must be a string")
    return value


def require_count(value: Any, param: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refused(param, "it must be a positive whole number")
    return value


def require_choice(value: Any, param: str, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise refused(param, f"it must be one of {', '.join(choices)}")
    return value


def require_bool(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise refused(param, "it must be true or false")
    return value


def require_objects(value: Any, param: str) -> Iterator[tuple[str, Json]]:
    """The objects of an array, each with its place."""
    for at, item in enumerate(require_list(value, param)):
        yield f"{param}[{at}]", require_object(item, f"{param}[{at}]")


def json_schema_format(name: str, schema: Any, param: str, strict: Any = True) -> Json:
    """``response_format`` of the chat API for answers that fit a JSON schema."""
    described = {"name": name, "schema": require_object(schema, param), "strict": strict}
    return {"type": "json_schema", "json_schema": described}
