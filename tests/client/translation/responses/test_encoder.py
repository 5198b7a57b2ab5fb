"""Answers of OpenAI's Responses API, as the official client reads them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from tests.chat_streams import (
    REASONING_AND_TEXT,
    TOOL_CALLS,
    Engine,
    Json,
    call,
    chunk,
    events,
    recorded,
    sse,
    translated,
    usage,
    whole,
)
from tests.client.translation.responses.common import (
    CALENDAR,
    PATCH,
    WEATHER,
    body,
    chat,
    client,
    stream_event,
    streamed,
    translate,
)


def test_a_real_stream_as_the_official_client_reads_it():
    engine = Engine(translate, recorded("stopped.sse"))
    with client(engine).responses.stream(model="tiny", input="Say") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert response.status == "completed"
    assert response.output_text == "".join(pieces) != ""
    assert response.usage is not None
    assert response.usage.total_tokens > response.usage.output_tokens > 0


def test_a_real_answer_that_was_cut_short():
    answer = client(Engine(translate, recorded("whole.json"))).responses.create(
        model="tiny", input="Say", max_output_tokens=5
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    last = streamed(recorded("length.sse"))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_thoughts_are_items_before_what_is_said():
    with client(Engine(translate, REASONING_AND_TEXT)).responses.stream(
        model="m", input="2+2?"
    ) as stream:
        response = stream.get_final_response()
    thought, _ = response.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "Two and two."
    assert response.output_text == "Four ✓"
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 16
    assert response.usage.output_tokens_details.reasoning_tokens == 5


def test_calls_are_items():
    with client(Engine(translate, TOOL_CALLS)).responses.stream(model="m", input="?") as stream:
        _, first, second = stream.get_final_response().output
    assert first.type == second.type == "function_call"
    assert (first.call_id, first.name, first.arguments) == ("call_a", "weather", '{"city": "Bern"}')
    assert (second.call_id, second.name, second.arguments) == ("call_b", "time", '{"zone":"CET"}')


def test_pieces_of_calls_that_are_mixed_up_are_not_taken_for_others():
    first, second = call(0, "[", "a", "weather"), call(1, "{", "b", "time")
    mixed = [chunk(first), chunk(second), chunk(call(0, "]")), chunk({}, "tool_calls")]
    stream = streamed(sse(*mixed))
    output = stream[-1]["response"]["output"]
    found = [(item["name"], item["arguments"]) for item in output]
    assert found == [("weather", "[]"), ("time", "{")]
    nothing = [chunk({"content": "a"}), chunk(call(0, "")), chunk({}, "stop")]
    assert "mixes up" not in json.dumps(streamed(sse(*nothing)))


def test_tools_get_their_own_names_and_forms_back():
    answer = sse(
        chunk(call(0, '{"input": "*** ', "a", "apply_patch")),
        chunk(call(0, 'x\\n"}')),
        chunk(call(1, "{}", "b", "mcp__calendar__add")),
        chunk({}, "tool_calls"),
    )
    stream = streamed(answer, tools=[PATCH, CALENDAR])
    custom, function = stream[-1]["response"]["output"]
    assert custom["type"] == "custom_tool_call"
    assert (custom["call_id"], custom["name"], custom["input"]) == ("a", "apply_patch", "*** x\n")
    assert (function["name"], function["namespace"]) == ("add", "mcp__calendar")
    kinds = [event["type"] for event in stream]
    assert "response.custom_tool_call_input.done" in kinds


SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds", "parameters": {}}


def test_tools_can_be_searched_for_by_the_client_and_called_when_found():
    answer = sse(chunk(call(0, '{"query":"dates"}', "a", "tool_search")), chunk({}, "tool_calls"))
    last = streamed(answer, tools=[SEARCH])[-1]
    Response.model_validate(last["response"])
    searched = last["response"]["output"][0]
    assert searched["type"] == "tool_search_call"
    assert searched["arguments"] == {"query": "dates"}
    found = {"type": "tool_search_output", "call_id": "a", "execution": "client"}
    asked = chat(
        tools=[SEARCH],
        input=[
            {"role": "user", "content": "When?"},
            searched,
            {**found, "status": "completed", "tools": [CALENDAR]},
            searched | {"call_id": "b"},
            {**found, "call_id": "b", "status": "completed", "tools": [CALENDAR]},
        ],
    )
    offered = [tool["function"]["name"] for tool in asked["tools"]]
    assert offered == ["tool_search", "mcp__calendar__list", "mcp__calendar__add"]
    made, result = asked["messages"][1:3]
    assert made["tool_calls"][0]["function"]["arguments"] == '{"query":"dates"}'
    assert result["content"] == "These can be called now: mcp__calendar"


def test_the_events_of_a_stream_in_their_order():
    stream = streamed(REASONING_AND_TEXT)
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    assert [event["type"].removeprefix("response.") for event in stream] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


@pytest.mark.parametrize("answer", [REASONING_AND_TEXT, TOOL_CALLS, recorded("length.sse")])
def test_every_event_is_what_the_official_client_declares(answer: bytes):
    for event in streamed(answer, tools=[WEATHER, PATCH, CALENDAR], metadata={"a": "b"}):
        stream_event.validate_python(event)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a", "reasoning_content": "b"},
        {"content": None, **call(0, "{}", "a", "apply_patch")},
    ],
)
def test_an_unstreamed_answer_is_what_the_official_client_declares(message: Json):
    answer = json.loads(translated(translate(body(tools=[PATCH])), whole(message)))
    response = Response.model_validate(answer)
    assert response.status == "completed"
    assert answer["store"] is False


@given(st.sampled_from([REASONING_AND_TEXT, TOOL_CALLS, recorded("schema.sse")]), st.data())
def test_any_cut_of_the_engines_bytes_gives_the_same_answer(answer: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=30)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    asked = body(stream=True)
    assert translated(translate(asked), pieces) == translated(translate(asked), answer)


def test_streamed_or_not_the_response_is_the_same():
    stream = streamed(TOOL_CALLS)[-1]["response"]
    calls = [call(0, '{"city": "Bern"}', "call_a", "weather")["tool_calls"][0]]
    calls.append(call(1, '{"zone":"CET"}', "call_b", "time")["tool_calls"][0])
    message = {"content": "Let me look.", "tool_calls": calls}
    counts = usage(30, 12)["usage"]
    answer = translated(translate(body()), whole(message, "tool_calls", usage=counts))
    assert json.loads(answer) == stream


def test_a_stream_that_breaks_off_has_no_end():
    whole_stream = streamed(REASONING_AND_TEXT)
    cut = REASONING_AND_TEXT[: REASONING_AND_TEXT.index(b'"finish_reason": "stop"')]
    broken = events(translated(translate(body(stream=True)), cut, end=False))
    assert broken == whole_stream[: len(broken)]
    ends = {"response.completed", "response.incomplete", "response.failed"}
    assert ends.isdisjoint(event["type"] for event in broken)
    unmarked = streamed(sse(chunk({"content": "a"}), done=False))
    assert ends.isdisjoint(event["type"] for event in unmarked)
    assert streamed(sse(chunk({"content": "a"})))[-1]["type"] == "response.completed"


def test_an_error_in_the_middle_fails_the_response():
    bad = b'data: {"error":{"message":"out of memory","code":500}}\n\ndata: [DONE]\n\n'
    stream = streamed(sse(chunk({"content": "a"}), done=False) + bad)
    assert stream[-1]["type"] == "response.failed"
    assert stream[-1]["response"]["status"] == "failed"
    assert stream[-1]["response"]["error"] == {"code": "server_error", "message": "out of memory"}
    stream_event.validate_python(stream[-1])


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, openai.BadRequestError, "invalid_value"),
        (404, openai.NotFoundError, "model_not_found"),
        (429, openai.RateLimitError, "rate_limit_exceeded"),
        (500, openai.InternalServerError, "engine_error"),
    ],
)
def test_an_engines_error_has_openais_shape(status: int, kind: type[Any], code: str):
    error = b'{"error":{"message":"no","type":"BadRequestError","code":400}}'
    with pytest.raises(kind) as caught:
        client(Engine(translate, error, status)).responses.create(model="m", input="x")
    assert caught.value.body["message"] == "no"
    assert caught.value.body["code"] == code


def test_a_prompt_that_is_too_long_is_called_so():
    error = json.loads(translated(translate(body()), recorded("too_long.json"), 400))["error"]
    assert error["code"] == "context_length_exceeded"


@given(st.binary(max_size=60), st.booleans(), st.sampled_from([200, 400, 500]))
def test_no_answer_of_an_engine_raises(data: bytes, streams: bool, status: int):
    answer = translate(body(stream=streams)).response_filter
    kind = "text/event-stream" if streams else "application/json"
    answer.head(status, [("content-type", kind)])
    answer.feed(data + b"\n\n")
    answer.end()
