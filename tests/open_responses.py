"""What Open Responses requires of answers and events at /v1/responses.

The tables are the required fields of the specification of 2026-04-24 (openresponses.org).  Its name
of one event differs from that which OpenAI sends, and its clients read: reasoning is
``response.reasoning_text.delta`` here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Json = dict[str, Any]
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _object(**fields: Check) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, dict) and not missing(value, fields)

    return check


def _one_of(*values: str) -> Check:
    return lambda value: value in values


def _by_type(kinds: dict[str, dict[str, Check]]) -> Check:
    def check(value: Any) -> bool:
        kind = kinds.get(value["type"])
        return kind is not None and not missing(value, kind)

    return check


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def missing(value: Json, fields: dict[str, Check]) -> list[str]:
    """Return the required fields that an object lacks, or that have another type."""
    return [name for name, check in fields.items() if name not in value or not check(value[name])]


_STATUS = _one_of("in_progress", "completed", "incomplete")
_PART = _by_type(
    {
        "output_text": {"text": _text, "annotations": _list, "logprobs": _list},
        "reasoning_text": {"text": _text},
        "refusal": {"refusal": _text},
    }
)
_ITEM = _by_type(
    {
        "message": {
            "id": _text,
            "status": _STATUS,
            "role": _one_of("assistant"),
            "content": _each(_PART),
        },
        "reasoning": {"id": _text, "summary": _list, "content": _each(_PART)},
        "function_call": {
            "id": _text,
            "call_id": _text,
            "name": _text,
            "arguments": _text,
            "status": _STATUS,
        },
    }
)
_TOOL = _object(
    type=_one_of("function"),
    name=_text,
    description=_or_null(_text),
    parameters=_or_null(_object()),
    strict=_or_null(_flag),
)
_FORMAT = _by_type(
    {
        "text": {},
        "json_object": {},
        "json_schema": {"name": _text, "description": _or_null(_text), "strict": _flag},
    }
)
RESPONSE: dict[str, Check] = {
    "id": _text,
    "object": _one_of("response"),
    "created_at": _integer,
    "completed_at": _or_null(_integer),
    "status": _text,
    "incomplete_details": _or_null(_object(reason=_text)),
    "model": _text,
    "previous_response_id": _or_null(_text),
    "instructions": _or_null(_text),
    "output": _each(_ITEM),
    "error": _or_null(_object(code=_text, message=_text)),
    "tools": _each(_TOOL),
    "tool_choice": lambda value: (
        value in ("none", "auto", "required") or _object(type=_text)(value)
    ),
    "truncation": _one_of("auto", "disabled"),
    "parallel_tool_calls": _flag,
    "text": _object(format=_FORMAT),
    "top_p": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "top_logprobs": _integer,
    "temperature": _number,
    "reasoning": _or_null(_object(effort=_or_null(_text), summary=_or_null(_text))),
    "usage": _or_null(
        _object(
            input_tokens=_integer,
            output_tokens=_integer,
            total_tokens=_integer,
            input_tokens_details=_object(cached_tokens=_integer),
            output_tokens_details=_object(reasoning_tokens=_integer),
        )
    ),
    "max_output_tokens": _or_null(_integer),
    "max_tool_calls": _or_null(_integer),
    "store": _flag,
    "background": _flag,
    "service_tier": _text,
    "metadata": _object(),
    "safety_identifier": _or_null(_text),
    "prompt_cache_key": _or_null(_text),
    "user": _or_null(_text),
}
_RESPONSE_EVENT: dict[str, Check] = {"response": lambda value: not missing(value, RESPONSE)}
_ITEM_EVENT: dict[str, Check] = {"output_index": _integer, "item": _ITEM}
_AT: dict[str, Check] = {"item_id": _text, "output_index": _integer}
_IN_PART: dict[str, Check] = {**_AT, "content_index": _integer}
_EVENTS: dict[str, dict[str, Check]] = {
    "created": _RESPONSE_EVENT,
    "in_progress": _RESPONSE_EVENT,
    "completed": _RESPONSE_EVENT,
    "incomplete": _RESPONSE_EVENT,
    "failed": _RESPONSE_EVENT,
    "output_item.added": _ITEM_EVENT,
    "output_item.done": _ITEM_EVENT,
    "content_part.added": {**_IN_PART, "part": _PART},
    "content_part.done": {**_IN_PART, "part": _PART},
    "output_text.delta": {**_IN_PART, "delta": _text, "logprobs": _list},
    "output_text.done": {**_IN_PART, "text": _text, "logprobs": _list},
    "refusal.delta": {**_IN_PART, "delta": _text},
    "refusal.done": {**_IN_PART, "refusal": _text},
    "reasoning_text.delta": {**_IN_PART, "delta": _text},
    "reasoning_text.done": {**_IN_PART, "text": _text},
    "function_call_arguments.delta": {**_AT, "delta": _text},
    "function_call_arguments.done": {**_AT, "arguments": _text},
}


def problems_of_stream(stream: Iterable[Json]) -> list[str]:
    """Return what is wrong with the events of a stream."""
    found = []
    for number, event in enumerate(stream):
        kind = event["type"].removeprefix("response.")
        if event["sequence_number"] != number:
            found.append(f"{kind}: sequence_number")
        found += [f"{kind}: {name}" for name in missing(event, _EVENTS[kind])]
    return found


def problems_of_response(response: Json) -> list[str]:
    """Return the fields that a response lacks."""
    return missing(response, RESPONSE)
