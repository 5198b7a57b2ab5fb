"""Answers of the Responses API have every field that Open Responses requires.

Its compliance suite asks these questions; ``tests/open_responses.py`` has the fields.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chat_streams import REASONING_AND_TEXT, Json, call, chunk, sse, translated, usage, whole
from tests.client.translation.responses.common import NOW, body, chat, streamed, translate
from tests.open_responses import problems_of_response, problems_of_stream


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
    assert problems_of_response(answer) == []
    assert answer["status"] == "completed"
    assert answer["completed_at"] == NOW
    assert answer["output"]


@questions
def test_every_event_of_a_stream_has_every_required_field(fields: Json, message: Json):
    stream = streamed(stream_of(message), **fields)
    assert problems_of_stream(stream) == []
    assert stream[-1]["type"] == "response.completed"
    assert problems_of_response(stream[-1]["response"]) == []


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
    assert problems_of_stream(cut) == []
    assert cut[-1]["type"] == "response.incomplete"
    assert cut[-1]["response"]["completed_at"] is None
    assert cut[0]["response"]["completed_at"] is None
    failed = streamed(sse(chunk({"content": "a"}), done=False) + b'data: {"error":"no"}\n\n')
    assert problems_of_stream(failed) == []
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
