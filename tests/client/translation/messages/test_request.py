"""Requests of Anthropic's Messages API, as an engine gets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_client.translation import TranslationError
from fabric_client.translation.messages import translate
from fabric_client.translation.messages.request import IGNORED
from fabric_client.translation.validation import UNTRANSLATABLE_FIELDS
from tests.chat_streams import (
    Json,
    recorded,
    translated,
)
from tests.client.translation.messages.common import (
    USER,
    WEATHER,
    body,
    chat,
    rejection,
)


def test_the_plainest_question():
    assert chat() == {
        "model": "m",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Say"}],
        "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
    }


def test_a_streamed_question_asks_for_usage():
    asked = chat(stream=True)
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}


def test_system_blocks_are_one_system_message_without_the_billing_line():
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=12;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be kind."},
    ]
    assert chat(system=blocks)["messages"][0] == {
        "role": "system",
        "content": "Be brief.\nBe kind.",
    }
    assert chat(system="Be brief.")["messages"][0]["content"] == "Be brief."


def test_a_conversation_with_tools_keeps_its_order():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I must look.", "signature": ""},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
                {"type": "tool_use", "id": "t2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "Rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no clock"}],
                },
                {"type": "text", "text": "Go on"},
            ],
        },
    ]
    assert chat(messages=messages)["messages"] == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "I must look.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Bern"}'},
                },
                {"id": "t2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no clock"},
        {"role": "user", "content": "Go on"},
    ]


def test_what_the_system_says_in_the_middle_is_handed_on_by_the_user():
    messages = [
        *USER,
        {"role": "system", "content": "Agents: one"},
        {"role": "user", "content": "?"},
    ]
    text = "Say\n<system-reminder>\nAgents: one\n</system-reminder>\n?"
    assert chat(messages=messages)["messages"] == [{"role": "user", "content": text}]


def test_images_of_tools_follow_the_last_result():
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    content = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [png]},
        {"type": "tool_result", "tool_use_id": "t2"},
        {"type": "text", "text": "Well?"},
    ]
    first, second, said = chat(messages=[{"role": "user", "content": content}])["messages"]
    assert first == {"role": "tool", "tool_call_id": "t1", "content": "(images follow)"}
    assert second == {"role": "tool", "tool_call_id": "t2", "content": ""}
    assert said["role"] == "user"
    assert [part["type"] for part in said["content"]] == ["text", "image_url", "text"]
    assert said["content"][1]["image_url"] == {"url": "data:image/png;base64,AA"}


def test_images_and_documents_of_the_user():
    content = [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {
            "type": "document",
            "title": "Notes",
            "source": {"type": "text", "media_type": "text/plain", "data": "Buy milk."},
        },
    ]
    assert chat(messages=[{"role": "user", "content": content}])["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "text", "text": "Notes\nBuy milk."},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        (
            {"type": "tool", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
    ],
)
def test_tools_and_the_choice_among_them(choice: Json, expected: Any):
    asked = chat(tools=[WEATHER], tool_choice=choice | {"disable_parallel_tool_use": True})
    function = {"name": "weather", "description": "Now", "parameters": {"type": "object"}}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert asked["tool_choice"] == expected
    assert asked["parallel_tool_calls"] is False


def test_settings_that_engines_know_by_another_name():
    schema = {"type": "object", "properties": {}}
    asked = chat(
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        metadata={"user_id": "u1"},
        thinking={"type": "enabled", "budget_tokens": 8000},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert asked["stop"] == ["END"]
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.5, 0.9, 40)
    assert asked["user"] == "u1"
    assert asked["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}
    assert asked["reasoning_effort"] == "medium"
    assert asked["response_format"]["json_schema"]["schema"] == schema
    assert chat(output_format={"type": "json_schema", "schema": schema})["response_format"]
    assert chat(output_config={"effort": "max"})["reasoning_effort"] == "high"


def test_an_answer_that_has_begun_is_gone_on_with():
    messages = [*USER, {"role": "assistant", "content": "well known then"}]
    asked = chat(messages=messages)
    assert asked["continue_final_message"] is True
    assert asked["add_generation_prompt"] is False
    # llama-server repeats the beginning in unstreamed answers; Anthropic does not.
    repeated = recorded("begun.json")
    assert json.loads(repeated)["choices"][0]["message"]["content"].startswith("well known then")
    answer = json.loads(translated(translate(body(messages=messages)), repeated))
    assert not answer["content"][0]["text"].startswith("well known then")


@pytest.mark.parametrize(
    ("fields", "param", "names"),
    [
        ({"max_tokens": ...}, "max_tokens", "required"),
        ({"max_tokens": 0}, "max_tokens", "positive"),
        ({"model": ...}, "model", "string"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "at least one"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "assistant"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "array"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0].type",
            "web",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "requires"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers", "tools"),
        ({"container": "c1"}, "container", "not supported"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "edits",
            "BETAS",
        ),
        ({"output_config": {"task_budget": {}}}, "output_config.task_budget", "leave"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "positive"),
        ({"n": 2}, "n", "not a field"),
        ({"stop_sequences": ["x"], "stop": ["y"]}, "stop", "not a field"),
        ({"stream": "yes"}, "stream", "true or false"),
    ],
)
def test_what_engines_cannot_be_asked_is_refused_by_name(fields: Json, param: str, names: str):
    error = rejection(**fields)
    assert param in error.param
    assert names in error.message


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}},
        {"type": "container_upload", "file_id": "f"},
        {"type": "document", "citations": {"enabled": True}, "source": {"type": "text"}},
    ],
)
def test_content_that_engines_cannot_read_is_refused_by_its_place(block: Json):
    error = rejection(messages=[{"role": "user", "content": [block]}])
    assert error.param.startswith("messages[0].content[0]")


def test_what_claude_code_always_sends_is_taken():
    asked = chat(
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        thinking={"type": "adaptive"},
        output_config={"effort": "medium"},
        metadata={"user_id": "user_1_session_2"},
        betas=["x"],
    )
    assert asked["reasoning_effort"] == "medium"
    assert "context_management" not in asked


USED = {
    "messages": USER,
    "model": "m2",
    "max_tokens": 7,
    "system": "s",
    "metadata": {"user_id": "u"},
    "output_config": {"effort": "low"},
    "output_format": {"type": "json_schema", "schema": {}},
    "stop_sequences": ["x"],
    "stream": True,
    "temperature": 1,
    "thinking": {"type": "adaptive"},
    "tools": [WEATHER],
    "top_k": 3,
    "top_p": 0.5,
}
REFUSED = {
    "container": "c",
    "context_management": {"edits": [{"type": "x"}]},
    "inference_geo": "us",
    "mcp_servers": [{}],
    "tool_choice": {"type": "any"},
}
OFFICIAL = set(anthropic.types.message_create_params.MessageCreateParamsBase.__annotations__)


def test_nothing_that_the_official_client_can_send_is_dropped_in_silence():
    plain = chat()
    assert {"messages", "max_tokens", "tools", "thinking"} < OFFICIAL
    for name in OFFICIAL | {"stream", "context_management", "mcp_servers", "output_format"}:
        if name in USED:
            assert chat(**{name: USED[name]}) != plain or USED[name] == USER, name
        elif name in REFUSED:
            assert name in rejection(**{name: REFUSED[name]}).param
        elif name in IGNORED:
            assert chat(**{name: "x"}) == plain
        else:
            assert chat(**{name: "x"})[name] == "x"


@given(
    st.text(min_size=1).filter(lambda name: name not in {*USED, *REFUSED, *IGNORED}), st.integers()
)
def test_a_field_that_nobody_knows_is_for_the_engine(name: str, value: int):
    if name in UNTRANSLATABLE_FIELDS:
        assert rejection(**{name: value}).param == name
    else:
        assert chat(**{name: value})[name] == value or name in ("chat_template_kwargs",)


def test_what_is_ignored_is_listed_in_the_docs():
    page = (Path(__file__).parents[4] / "docs" / "dialects.md").read_text()
    section = page.partition("## Anthropic Messages")[2].partition("\n## ")[0]
    listed = section.partition("| ignored by design |")[2].partition("\n")[0]
    assert [name for name in sorted(IGNORED) if f"`{name}`" not in listed] == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = sorted({*USED, *REFUSED, "chat_template_kwargs"})


@given(st.sampled_from(names), json_values)
def test_whatever_stands_in_a_field_it_is_taken_or_refused(name: str, value: Any):
    try:
        translate(body(**{name: value}))
    except TranslationError as error:
        assert error.message


@given(st.binary(max_size=30))
def test_a_body_that_is_no_json_object_is_refused(data: bytes):
    with pytest.raises(TranslationError):
        translate(data)
