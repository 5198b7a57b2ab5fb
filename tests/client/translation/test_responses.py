"""OpenAI's Responses API in front of engines that speak the OpenAI chat API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter

from fabric_client.translation import TranslationError
from fabric_client.translation.responses import translate
from fabric_client.translation.responses.request import IGNORED
from fabric_client.translation.validation import UNTRANSLATABLE_FIELDS
from tests.chat_streams import (
    CALLED,
    THOUGHT_AND_SAID,
    Asking,
    Engine,
    Json,
    call,
    chunk,
    events,
    recorded,
    sse,
    told,
    usage,
    whole,
)

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: hunk+"},
}
CALENDAR = {
    "type": "namespace",
    "name": "mcp__calendar",
    "description": "All of March.",
    "tools": [
        {"type": "function", "name": "list", "parameters": {"type": "object"}},
        {"type": "function", "name": "add", "description": "One.", "parameters": {}},
    ],
}
stream_event: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


asking = Asking(translate, model="m", input="Say")
body, chat, refusal, streamed = asking.body, asking.chat, asking.refusal, asking.streamed


def client(engine: Engine) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k", base_url="http://fabric/v1", http_client=engine.client(), max_retries=0
    )


# ── questions ─────────────────────────────────────────────────────────────────────────────────


def test_the_plainest_question():
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "Say"}]}
    assert chat(input=[{"role": "user", "content": "Say"}]) == chat()


def test_instructions_and_what_developers_say_first_are_one_system_message():
    asked = chat(
        instructions="Be brief.",
        input=[
            {"type": "message", "role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "input_text", "text": "Say"}]},
        ],
    )
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Say"},
    ]


def test_a_conversation_with_tools_keeps_its_order():
    said = {"type": "output_text", "text": "Looking.", "annotations": []}
    thought = {"type": "reasoning_text", "text": "I must look."}
    asked = chat(
        tools=[WEATHER, PATCH, CALENDAR],
        input=[
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [thought]},
            {"type": "message", "role": "assistant", "id": "msg", "content": [said]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "b", "name": "apply_patch", "input": "*** x"},
            {
                "type": "function_call",
                "call_id": "c",
                "name": "add",
                "namespace": "mcp__calendar",
                "arguments": "{}",
            },
            {
                "type": "function_call_output",
                "call_id": "a",
                "output": [
                    {"type": "input_text", "text": "Rain"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA"},
                ],
            },
            {"type": "custom_tool_call_output", "call_id": "b", "output": "done"},
            {"type": "function_call_output", "call_id": "c", "output": "ok"},
            {"role": "user", "content": "Go on"},
        ],
    )
    _, assistant, first, second, third, last = asked["messages"]
    assert assistant["content"] == "Looking."
    assert assistant["reasoning_content"] == "I must look."
    assert [made["function"] for made in assistant["tool_calls"]] == [
        {"name": "weather", "arguments": "{}"},
        {"name": "apply_patch", "arguments": '{"input":"*** x"}'},
        {"name": "mcp__calendar__add", "arguments": "{}"},
    ]
    assert first == {"role": "tool", "tool_call_id": "a", "content": "Rain\n(images follow)"}
    assert second == {"role": "tool", "tool_call_id": "b", "content": "done"}
    assert third == {"role": "tool", "tool_call_id": "c", "content": "ok"}
    assert last["content"][1]["image_url"] == {"url": "data:image/png;base64,AA"}
    assert last["content"][2] == {"type": "text", "text": "Go on"}


def test_who_speaks_twice_in_a_row_and_developers_who_come_late():
    asked = chat(
        input=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": "d"},
            {"role": "developer", "content": "Be kind."},
        ]
    )
    assert asked["messages"] == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c\n\nd"},
        {"role": "user", "content": "<system-reminder>\nBe kind.\n</system-reminder>"},
    ]


def test_calls_without_words_are_a_message_of_their_own():
    asked = chat(
        input=[
            {"role": "user", "content": "a"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Again"}]},
            {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "b", "output": "2"},
        ]
    )
    roles = [message["role"] for message in asked["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]
    assert asked["messages"][3]["reasoning_content"] == "Again"


def test_images_of_the_user():
    image = {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}
    asked = chat(input=[{"role": "user", "content": [image]}])
    part = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    assert asked["messages"] == [{"role": "user", "content": [part]}]


def test_tools_of_every_kind_that_codex_offers_are_functions():
    weather, patch, first, second = [
        tool["function"] for tool in chat(tools=[WEATHER, PATCH, CALENDAR])["tools"]
    ]
    assert weather == {"name": "weather", "parameters": {"type": "object"}, "strict": True}
    assert patch["parameters"]["required"] == ["input"]
    assert patch["description"].startswith("Edits files.")
    assert patch["description"].endswith("start: hunk+")
    assert first["name"] == "mcp__calendar__list"
    assert first["description"] == "All of March."
    assert second["description"] == "One."


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, "weather"),
        ({"type": "custom", "name": "apply_patch"}, "apply_patch"),
    ],
)
def test_the_choice_of_a_tool(choice: Any, expected: str):
    chosen = chat(tools=[WEATHER, PATCH], tool_choice=choice, parallel_tool_calls=False)
    assert chosen["parallel_tool_calls"] is False
    if isinstance(choice, str):
        assert chosen["tool_choice"] == expected
    else:
        assert chosen["tool_choice"] == {"type": "function", "function": {"name": expected}}


def test_tools_that_are_not_allowed_are_not_offered():
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{**WEATHER, "strict": None}]}
    asked = chat(tools=[WEATHER, PATCH], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["weather"]
    assert asked["tool_choice"] == "required"


def test_settings_that_engines_know_by_another_name():
    schema = {"type": "object", "properties": {}}
    described = {"type": "json_schema", "name": "o", "schema": schema, "strict": True}
    asked = chat(
        stream=True,
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        user="u",
        text={"format": described, "verbosity": "low"},
        reasoning={"effort": "xhigh", "summary": "auto"},
    )
    assert asked["max_tokens"] == 9
    assert (asked["temperature"], asked["top_p"], asked["user"]) == (0.5, 0.9, "u")
    assert asked["response_format"]["json_schema"]["schema"] == schema
    assert asked["verbosity"] == "low"
    assert asked["reasoning_effort"] == "high"
    assert asked["stream_options"] == {"include_usage": True}
    switches = chat(reasoning={"effort": "none"})["chat_template_kwargs"]
    assert switches == {"enable_thinking": False, "thinking": False}
    assert chat(text={"format": {"type": "json_object"}})["response_format"] == {
        "type": "json_object"
    }


@pytest.mark.parametrize(
    ("fields", "param", "names"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "c"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "leave it out"),
        ({"prompt": {"id": "p"}}, "prompt", "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", 'web_search = "disabled"'),
        ({"tools": [{"type": "image_generation"}]}, "tools[0].type", "features.image_generation"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type", "local_shell"),
        ({"tools": [{"type": "tool_search"}]}, "tools[0].type", "tool_search"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "mcp"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "another tool"),
        ({"tool_choice": "required"}, "tool_choice", "requires"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "'x', which is not"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "file_search"),
        ({"include": ["message.output_text.logprobs"]}, "include", "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs", "chat/completions"),
        ({"input": ...}, "input", "array"),
        ({"input": []}, "input", "empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "send the item"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
            "file, which is not",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "positive"),
        ({"n": 2}, "n", "not a field"),
    ],
)
def test_what_engines_cannot_be_asked_is_refused_by_name(fields: Json, param: str, names: str):
    error = refusal(**fields)
    assert error.param == param
    assert names in error.message


def test_what_codex_sends_is_taken():
    user = [{"type": "input_text", "text": "Fix it"}]
    asked = chat(
        instructions="You are Codex.",
        input=[{"type": "message", "role": "user", "content": user}],
        tools=[WEATHER, PATCH],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        text={"verbosity": "medium"},
        client_metadata={"x": "y"},
    )
    assert asked["messages"][-1] == {"role": "user", "content": "Fix it"}
    assert {"store", "include", "prompt_cache_key", "client_metadata"}.isdisjoint(asked)


@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_parallel_calls_are_only_spoken_of_where_there_are_tools(tools: list[Json]):
    assert ("parallel_tool_calls" in chat(tools=tools, parallel_tool_calls=True)) is bool(tools)


USED = {
    "input": "x",
    "instructions": "s",
    "max_output_tokens": 7,
    "model": "m2",
    "reasoning": {"effort": "low"},
    "stream": True,
    "temperature": 1,
    "text": {"verbosity": "low"},
    "tools": [WEATHER],
    "top_p": 0.5,
    "user": "u",
}
REFUSED = {
    "background": True,
    "context_management": [{"type": "compaction"}],
    "conversation": "c",
    "include": ["message.output_text.logprobs"],
    "moderation": {"model": "x"},
    "previous_response_id": "r",
    "prompt": {"id": "p"},
    "tool_choice": "required",
    "top_logprobs": 1,
}
ONLY_WITH_TOOLS = {"parallel_tool_calls": False}
OFFICIAL = set(ResponseCreateParamsBase.__annotations__)


def test_nothing_that_the_official_client_can_send_is_dropped_in_silence():
    plain = chat()
    assert {"input", "tools", "reasoning", "store"} < OFFICIAL
    for name in OFFICIAL | {"stream"}:
        if name in USED:
            assert chat(**{name: USED[name]}) != plain
        elif name in REFUSED:
            assert refusal(**{name: REFUSED[name]}).param == name
        elif name in ONLY_WITH_TOOLS:
            assert name in chat(tools=[WEATHER], **{name: ONLY_WITH_TOOLS[name]})
        elif name in IGNORED:
            assert chat(**{name: "x"}) == plain
        else:
            assert chat(**{name: "x"})[name] == "x"


def test_what_is_ignored_is_listed_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "dialects.md").read_text()
    section = page.partition("## OpenAI Responses")[2].partition("\n## ")[0]
    listed = section.partition("| ignored by design |")[2].partition("\n")[0]
    assert [name for name in sorted(IGNORED) if f"`{name}`" not in listed] == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
known = sorted({*USED, *REFUSED, *ONLY_WITH_TOOLS, "chat_template_kwargs"})


@given(st.sampled_from(known), json_values)
def test_whatever_stands_in_a_field_it_is_taken_or_refused(name: str, value: Any):
    try:
        translate(body(**{name: value}))
    except TranslationError as error:
        assert error.message


@given(
    st.text(min_size=1) | st.sampled_from(["min_p", "seed", *UNTRANSLATABLE_FIELDS]), st.integers()
)
def test_a_field_that_nobody_knows_is_for_the_engine(name: str, value: int):
    assume(name not in {*known, *IGNORED})
    if name in UNTRANSLATABLE_FIELDS:
        assert refusal(**{name: value}).param == name
    else:
        assert chat(**{name: value})[name] == value


# ── answers ───────────────────────────────────────────────────────────────────────────────────


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
    with client(Engine(translate, THOUGHT_AND_SAID)).responses.stream(
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
    with client(Engine(translate, CALLED)).responses.stream(model="m", input="?") as stream:
        _, first, second = stream.get_final_response().output
    assert first.type == second.type == "function_call"
    assert (first.call_id, first.name, first.arguments) == ("call_a", "weather", '{"city": "Bern"}')
    assert (second.call_id, second.name, second.arguments) == ("call_b", "time", '{"zone":"CET"}')


def test_pieces_of_calls_that_are_mixed_up_are_not_taken_for_others():
    first, second = call(0, "[", "a", "weather"), call(1, "{", "b", "time")
    mixed = [chunk(first), chunk(second), chunk(call(0, "]")), chunk({}, "tool_calls")]
    stream = streamed(sse(*mixed))
    assert stream[-1]["type"] == "response.failed"
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
    stream = streamed(THOUGHT_AND_SAID)
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


@pytest.mark.parametrize("answer", [THOUGHT_AND_SAID, CALLED, recorded("length.sse")])
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
    answer = json.loads(told(translate(body(tools=[PATCH])), whole(message)))
    response = Response.model_validate(answer)
    assert response.status == "completed"
    assert answer["store"] is False


@given(st.sampled_from([THOUGHT_AND_SAID, CALLED, recorded("schema.sse")]), st.data())
def test_any_cut_of_the_engines_bytes_gives_the_same_answer(answer: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=30)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    asked = body(stream=True)
    assert told(translate(asked), pieces) == told(translate(asked), answer)


def test_streamed_or_not_the_response_is_the_same():
    stream = streamed(CALLED)[-1]["response"]
    calls = [call(0, '{"city": "Bern"}', "call_a", "weather")["tool_calls"][0]]
    calls.append(call(1, '{"zone":"CET"}', "call_b", "time")["tool_calls"][0])
    message = {"content": "Let me look.", "tool_calls": calls}
    counts = usage(30, 12)["usage"]
    answer = told(translate(body()), whole(message, "tool_calls", usage=counts))
    assert json.loads(answer) == stream


def test_a_stream_that_breaks_off_has_no_end():
    whole_stream = streamed(THOUGHT_AND_SAID)
    cut = THOUGHT_AND_SAID[: THOUGHT_AND_SAID.index(b'"finish_reason": "stop"')]
    broken = events(told(translate(body(stream=True)), cut, end=False))
    assert broken == whole_stream[: len(broken)]
    ends = {"response.completed", "response.incomplete", "response.failed"}
    assert ends.isdisjoint(event["type"] for event in broken)
    assert ends.isdisjoint(event["type"] for event in streamed(sse(chunk({"content": "a"}))))


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
        (400, openai.BadRequestError, None),
        (404, openai.NotFoundError, "model_not_found"),
        (429, openai.RateLimitError, "rate_limit_exceeded"),
        (500, openai.InternalServerError, None),
    ],
)
def test_an_engines_error_has_openais_shape(status: int, kind: type[Any], code: str | None):
    error = b'{"error":{"message":"no","type":"BadRequestError","code":400}}'
    with pytest.raises(kind) as caught:
        client(Engine(translate, error, status)).responses.create(model="m", input="x")
    assert caught.value.body["message"] == "no"
    assert caught.value.body["code"] == code


def test_a_prompt_that_is_too_long_is_called_so():
    error = json.loads(told(translate(body()), recorded("too_long.json"), 400))["error"]
    assert error["code"] == "context_length_exceeded"


@given(st.binary(max_size=60), st.booleans(), st.sampled_from([200, 400, 500]))
def test_no_answer_of_an_engine_raises(data: bytes, streams: bool, status: int):
    answer = translate(body(stream=streams)).response_filter
    kind = "text/event-stream" if streams else "application/json"
    answer.head(status, [("content-type", kind)])
    answer.feed(data + b"\n\n")
    answer.end()
