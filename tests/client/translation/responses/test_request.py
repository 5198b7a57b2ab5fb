"""Requests of OpenAI's Responses API, as an engine gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from fabric_client.translation import TranslationError
from fabric_client.translation.responses.request import IGNORED
from fabric_client.translation.validation import UNTRANSLATABLE_FIELDS
from tests.chat_streams import (
    Json,
)
from tests.client.translation.responses.common import (
    CALENDAR,
    PATCH,
    WEATHER,
    body,
    chat,
    rejection,
    translate,
)


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
    error = rejection(**fields)
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
            assert rejection(**{name: REFUSED[name]}).param == name
        elif name in ONLY_WITH_TOOLS:
            assert name in chat(tools=[WEATHER], **{name: ONLY_WITH_TOOLS[name]})
        elif name in IGNORED:
            assert chat(**{name: "x"}) == plain
        else:
            assert chat(**{name: "x"})[name] == "x"


def test_what_is_ignored_is_listed_in_the_docs():
    page = (Path(__file__).parents[4] / "docs" / "dialects.md").read_text()
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
        assert rejection(**{name: value}).param == name
    else:
        assert chat(**{name: value})[name] == value
