"""Histories on ``/api/chat`` that are written as for OpenAI's API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_client.translation import TranslationError, native_filters
from tests.client.translation.ollama.common import PNG, Json, engine_request, rejection

DATA = f"data:image/png;base64,{PNG}"
CALL = {
    "id": "call_7",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
}
HISTORY: list[Json] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what"},
            {"type": "image_url", "image_url": {"url": DATA}},
            {"type": "text", "text": "is this"},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_7", "content": [{"type": "text", "text": "sunny"}]},
    {"role": "assistant", "content": "It is sunny."},
]


def native(messages: Any) -> Any:
    """What Ollama itself is asked."""
    translate = native_filters.ollama_chat
    asked = translate(json.dumps({"model": "tiny", "messages": messages}).encode())
    return json.loads(asked.body)["messages"]


def test_ollama_itself_gets_its_own_form() -> None:
    asked, called, result, last = native(HISTORY)
    assert asked == {"role": "user", "content": "what\nis this", "images": [PNG]}
    assert called["content"] == ""
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert result["content"] == "sunny"
    assert result["tool_name"] == "weather"
    assert last == HISTORY[-1]


def test_a_translated_engine_gets_what_was_meant() -> None:
    asked, called, result, last = engine_request("chat", {"messages": HISTORY})["messages"]
    assert asked["content"] == [
        {"type": "text", "text": "what\nis this"},
        {"type": "image_url", "image_url": {"url": DATA}},
    ]
    function = called["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Rome"})
    assert called["tool_calls"][0]["id"] == result["tool_call_id"] == "call_7"
    assert result["content"] == "sunny"
    assert last["content"] == "It is sunny."


@pytest.mark.parametrize("arguments", ["", "null", " ", None, "{}"])
def test_arguments_that_are_missing_are_an_empty_object(arguments: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert native(messages)[0]["tool_calls"][0]["function"]["arguments"] == {}
    [told] = engine_request("chat", {"messages": messages})["messages"]
    assert told["tool_calls"][0]["function"]["arguments"] == "{}"


def test_arguments_that_are_no_object_are_the_user_s_mistake() -> None:
    call = {"function": {"name": "f", "arguments": "{half"}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert "arguments" in rejection("chat", {"messages": messages}).message
    assert native(messages) == messages, "Ollama says so itself"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://192.168.1.1/x.png"}},
        {"type": "image_url", "image_url": None},
        {"type": "file", "file": {}},
        7,
    ],
)
def test_what_ollama_s_api_can_t_express_is_refused(part: Any) -> None:
    messages = [{"role": "user", "content": [part]}]
    assert rejection("chat", {"messages": messages}).param.startswith("messages[0].content[0]")
    with pytest.raises(TranslationError):
        native(messages)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","messages":[{"role":"user","content":"a"}],"n":1.50}',
        b'{"model":"tiny", "messages":[{"role":"user","content":"\\u0041"}]}',
        b'{"messages":7,"content":[]}',
        b'{"content":[',
        b'["content":null]',
    ],
)
def test_what_is_ollama_s_own_passes_byte_by_byte(body: bytes) -> None:
    assert native_filters.ollama_chat(body).body == body


JSONS = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "arguments"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSONS, max_size=3))
def test_no_history_breaks_it(messages: Any) -> None:
    for ask in (native, lambda given: engine_request("chat", {"messages": given})):
        try:
            ask(messages)
        except (TranslationError, AssertionError):
            continue
