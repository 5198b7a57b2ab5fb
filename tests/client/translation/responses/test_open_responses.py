"""Answers of the Responses API have every field that Open Responses requires.

The tables are the required fields of the specification of 2026-04-24 (openresponses.org), whose
compliance suite asks these questions.  Its name of one event differs from that which OpenAI sends,
and its clients read: reasoning is ``response.reasoning_text.delta`` here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.chat_streams import REASONING_AND_TEXT, Json, call, chunk, sse, translated, usage, whole
from tests.client.translation.responses.common import NOW, body, chat, streamed, translate

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
_RESPONSE: dict[str, Check] = {
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
_RESPONSE_EVENT: dict[str, Check] = {"response": lambda value: not missing(value, _RESPONSE)}
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


def user(content: Any, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": content}


PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
HELLO = {"role": "assistant", "content": "Hello you there"}
CALL = {"role": "assistant", "content": None, **call(0, '{"city":"Bern"}', "call_a", "weather")}
QUESTIONS: dict[str, tuple[Json, Json]] = {
    "text": ({"input": [user("Say hello in 3 words.")]}, HELLO),
    "system": ({"input": [user("You are a pirate.", "system"), user("Say hello.")]}, HELLO),
    "tool": ({"input": [user("Weather?")], "tools": [TOOL]}, CALL),
    "chosen tool": (
        {
            "input": "Weather?",
            "tools": [{"type": "function", "name": "weather"}],
            "tool_choice": {"type": "function", "name": "weather"},
        },
        CALL,
    ),
    "round trip": (
        {
            "input": [
                user("Weather?"),
                {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "Rain"},
            ],
            "tools": [TOOL],
        },
        HELLO,
    ),
    "image": (
        {
            "input": [
                user(
                    [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PNG},
                    ]
                )
            ]
        },
        HELLO,
    ),
    "turns": (
        {
            "input": [
                user("I am Alice."),
                {**user("Hello Alice!", "assistant"), "phase": "final_answer"},
                user("Who am I?"),
            ]
        },
        HELLO,
    ),
    "reasoning": (
        {"input": "2+2?", "reasoning": {"effort": "low"}},
        {**HELLO, "reasoning_content": "Two and two."},
    ),
    "refusal": ({"input": "Say"}, {"role": "assistant", "content": None, "refusal": "No."}),
    "schema": (
        {
            "input": "Say",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        },
        {"role": "assistant", "content": "{}"},
    ),
}
questions = pytest.mark.parametrize(("fields", "message"), QUESTIONS.values(), ids=QUESTIONS)


def stream_of(message: Json, finish: str = "stop") -> bytes:
    """Return a stream of an engine: each field of the message in a chunk of its own."""
    deltas = [{"role": "assistant"}, *({name: message[name]} for name in message if message[name])]
    return sse(*map(chunk, deltas), chunk({}, finish), usage(20, 9))


@questions
def test_an_answer_has_every_required_field(fields: Json, message: Json):
    answer = json.loads(translated(translate(body(**fields)), whole(message)))
    assert missing(answer, _RESPONSE) == []
    assert answer["status"] == "completed"
    assert answer["completed_at"] == NOW
    assert answer["output"]


@questions
def test_every_event_of_a_stream_has_every_required_field(fields: Json, message: Json):
    stream = streamed(stream_of(message), **fields)
    assert problems(stream) == []
    assert stream[-1]["type"] == "response.completed"
    assert missing(stream[-1]["response"], _RESPONSE) == []


@questions
def test_the_events_of_a_stream_come_in_their_order(fields: Json, message: Json):
    stream = streamed(stream_of(message), **fields)
    kinds = [event["type"].removeprefix("response.") for event in stream]
    assert kinds[:2] == ["created", "in_progress"]
    output = stream[-1]["response"]["output"]
    for index, item in enumerate(output):
        own = [event for event in stream if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1] == {**own[-1], "type": "response.output_item.done", "item": item}
        inner = [event["type"].removeprefix("response.") for event in own[1:-1]]
        if item["type"] != "function_call":
            assert (inner[0], inner[-1]) == ("content_part.added", "content_part.done")
            inner = inner[1:-1]
        *deltas, done = inner
        assert {kind.rpartition(".")[2] for kind in deltas} == {"delta"}
        assert done == deltas[0].removesuffix("delta") + "done"
        pieces = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert pieces in json.dumps(item, ensure_ascii=False).replace('\\"', '"')
    assert len(output) == sum(kind == "output_item.added" for kind in kinds)


def test_answers_that_are_not_complete_have_no_time_of_completion():
    cut = streamed(sse(chunk({"content": "a"}), chunk({}, "length"), usage(1, 1)))
    assert problems(cut) == []
    assert cut[-1]["type"] == "response.incomplete"
    assert cut[-1]["response"]["completed_at"] is None
    assert cut[0]["response"]["completed_at"] is None
    failed = streamed(sse(chunk({"content": "a"}), done=False) + b'data: {"error":"no"}\n\n')
    assert problems(failed) == []
    assert failed[-1]["response"]["completed_at"] is None


def test_an_answer_is_not_complete_before_it_was_begun():
    late = sse(*({**one, "created": NOW + 9} for one in (chunk({"content": "a"}, "stop"),)))
    response = streamed(late)[-1]["response"]
    assert response["created_at"] == response["completed_at"] == NOW + 9
    undated = sse({**chunk({"content": "a"}, "stop"), "created": None})
    assert streamed(undated)[-1]["response"]["created_at"] == NOW


def test_answers_repeat_what_was_asked_for():
    asked = {
        "temperature": 0.25,
        "top_p": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "max_tool_calls": 3,
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
    }
    response = streamed(REASONING_AND_TEXT, **asked)[-1]["response"]
    assert {name: response[name] for name in asked} == asked
    sampling = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    sent = chat(**asked)
    assert {name: sent[name] for name in sampling} == {name: asked[name] for name in sampling}
    plain = streamed(REASONING_AND_TEXT)[-1]["response"]
    assert [plain[name] for name in sampling] == [1, 1, 0, 0]
    assert not set(sampling) & chat().keys()


def problems(stream: Iterable[Json]) -> list[str]:
    """Return what is wrong with the events of a stream."""
    found = []
    for number, event in enumerate(stream):
        kind = event["type"].removeprefix("response.")
        if event["sequence_number"] != number:
            found.append(f"{kind}: sequence_number")
        found += [f"{kind}: {name}" for name in missing(event, _EVENTS[kind])]
    return found
