"""Requests of Ollama's API, as an engine gets them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from fabric_client.translation import (
    LocalReply,
    TranslationError,
)
from tests.client.translation.ollama.common import (
    HELLO,
    PNG,
    Json,
    engine_request,
    ollama,
    rejection,
)


def test_a_chat_is_asked_for_as_a_stream_with_its_usage_unless_told_otherwise() -> None:
    asked = engine_request("chat", {"messages": HELLO})
    assert asked == {
        "path": "/v1/chat/completions",
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": HELLO,
    }
    asked = engine_request("chat", {"messages": HELLO, "stream": False})
    assert asked["stream"] is False
    assert "stream_options" not in asked


def test_options_become_what_each_kind_of_engine_calls_them() -> None:
    options = {
        "temperature": 0.5,
        "top_k": 20.0,
        "seed": 7,
        "stop": ["a"],
        "num_predict": 9,
        "repeat_penalty": 1.2,
        "num_ctx": 8192,
        "num_gpu": 1,
        "min_p": None,
    }
    asked = engine_request("chat", {"messages": HELLO, "options": options})
    fields = {name: asked[name] for name in ("temperature", "top_k", "seed", "stop", "max_tokens")}
    assert fields == {
        "temperature": 0.5,
        "top_k": 20,
        "seed": 7,
        "stop": ["a"],
        "max_tokens": 9,
    }
    assert asked["repetition_penalty"] == 1.2
    assert not {"num_ctx", "num_gpu", "min_p", "repeat_penalty"} & asked.keys()
    llama = {"repeat_penalty": 1.2, "typical_p": 0.9, "repeat_last_n": 64, "mirostat": 1}
    asked = engine_request("chat", {"messages": HELLO, "options": llama}, "llama-server")
    assert llama.items() <= asked.items()


@pytest.mark.parametrize("most", [-2, -1, 0])
def test_an_answer_without_limit_has_none(most: int) -> None:
    assert "max_tokens" not in engine_request(
        "chat", {"messages": HELLO, "options": {"num_predict": most}}
    )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tfs_z": 0.5}, "options.tfs_z"),
        ({"mirostat": 1}, "options.mirostat"),
        ({"repeat_last_n": 9, "repeat_penalty": 1.1}, "options.repeat_last_n"),
        ({"temperatur": 1}, "options.temperatur"),
        ({"temperature": "1"}, "options.temperature"),
        ({"temperature": True}, "options.temperature"),
        ({"stop": [1]}, "options.stop"),
        ([], "options"),
    ],
)
def test_an_option_that_would_change_nothing_there_is_refused_by_name(
    options: Any, param: str
) -> None:
    assert rejection("chat", {"messages": HELLO, "options": options}).param == param


def test_an_option_that_changes_nothing_anywhere_is_none() -> None:
    options = {"tfs_z": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "repeat_last_n": 64}
    engine_request("chat", {"messages": HELLO, "options": options})


def test_a_format_is_a_response_format() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    asked = engine_request("chat", {"messages": HELLO, "format": schema})
    assert asked["response_format"]["json_schema"]["schema"] == schema
    asked = engine_request("chat", {"messages": HELLO, "format": "json"})
    assert asked["response_format"] == {"type": "json_object"}
    assert "response_format" not in engine_request("chat", {"messages": HELLO, "format": ""})
    assert rejection("chat", {"messages": HELLO, "format": "xml"}).param == "format"


def test_think_reaches_the_template_and_the_engine() -> None:
    asked = engine_request("chat", {"messages": HELLO, "think": False})
    assert asked["chat_template_kwargs"]["enable_thinking"] is False
    assert "reasoning_effort" not in asked
    asked = engine_request("chat", {"messages": HELLO, "think": "low"})
    assert asked["reasoning_effort"] == "low"
    assert asked["chat_template_kwargs"]["enable_thinking"] is True
    assert rejection("chat", {"messages": HELLO, "think": "hard"}).param == "think"


def test_images_say_what_they_are() -> None:
    message = {"role": "user", "content": "what?", "images": [PNG]}
    (asked,) = engine_request("chat", {"messages": [message]})["messages"]
    text, image = asked["content"]
    assert text == {"type": "text", "text": "what?"}
    assert image["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    sound = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt " + bytes(9)).decode()
    (asked,) = engine_request("chat", {"messages": [{**message, "images": [sound]}]})["messages"]
    assert asked["content"][1]["input_audio"]["format"] == "wav"
    for wrong in ("?", base64.b64encode(b"%PDF-1.7 and so on").decode(), 5):
        error = rejection("chat", {"messages": [{**message, "images": [PNG, wrong]}]})
        assert error.param == "messages[0].images[1]"


def test_results_of_tools_find_their_calls_by_id_by_name_or_by_order() -> None:
    def call(name: str, **more: Any) -> Json:
        return {"function": {"name": name, "arguments": {"city": "東京"}}, **more}

    calls = [call("weather", id="w"), call("clock"), call("clock")]
    given = [
        *HELLO,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls},
        {"role": "tool", "content": "3 pm", "tool_name": "clock"},
        {"role": "tool", "content": "sun", "tool_call_id": "w"},
        {"role": "tool", "content": "4 pm"},
    ]
    asked = engine_request("chat", {"messages": given, "tools": [{"function": {"name": "clock"}}]})
    _, said, first, second, third = asked["messages"]
    assert said["reasoning_content"] == "hm"
    ids = [one["id"] for one in said["tool_calls"]]
    assert len(set(ids)) == 3
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "東京"}
    assert [one["tool_call_id"] for one in (first, second, third)] == [ids[1], "w", ids[2]]
    assert asked["tools"] == [{"type": "function", "function": {"name": "clock"}}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"messages": HELLO, "tools": {}}, "tools"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "top_logprobs": 99}, "top_logprobs"),
        ({"messages": HELLO, "_debug_render_only": True}, "_debug_render_only"),
        ({"messages": HELLO, "model": ""}, "model"),
    ],
)
def test_what_is_no_question_is_refused_by_the_field_at_fault(body: Json, param: str) -> None:
    assert rejection("chat", body).param == param


@pytest.mark.parametrize("path", ["chat", "generate", "embed", "embeddings"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_body_is_refused(path: str, body: bytes) -> None:
    with pytest.raises(TranslationError):
        getattr(ollama(), path)(body)


def test_a_prompt_is_a_chat_of_one_message_and_raw_it_is_itself() -> None:
    asked = engine_request("generate", {"prompt": "why?", "system": "be brief", "images": [PNG]})
    assert asked["path"] == "/v1/chat/completions"
    assert asked["messages"][0] == {"role": "system", "content": "be brief"}
    assert asked["messages"][1]["content"][0] == {"type": "text", "text": "why?"}
    asked = engine_request("generate", {"prompt": "<s>why?", "raw": True, "logprobs": True})
    assert (asked["path"], asked["prompt"]) == ("/v1/completions", "<s>why?")
    assert asked["logprobs"] == 1


@pytest.mark.parametrize(
    "given", [{"context": [1]}, {"suffix": "x"}, {"template": "{{ .Prompt }}"}, {"prompt": 5}]
)
def test_what_only_ollama_can_do_with_a_prompt_is_refused(given: Json) -> None:
    assert rejection("generate", {"prompt": "why?", **given}).param in given


def test_a_format_for_a_raw_prompt_is_asked_for_where_there_is_a_word_for_it() -> None:
    body = {"prompt": "why?", "raw": True, "format": {"type": "object"}}
    assert engine_request("generate", body)["response_format"]["type"] == "json_schema"
    assert engine_request("generate", body, "llama-server")["json_schema"] == {"type": "object"}
    assert rejection("generate", body, "openai").param == "format"


def test_embeddings_are_asked_for_as_numbers() -> None:
    asked = engine_request("embed", {"input": "one", "dimensions": 8}, "llama-server")
    assert asked == {
        "path": "/v1/embeddings",
        "model": "tiny",
        "encoding_format": "float",
        "input": ["one"],
        "dimensions": 8,
    }
    assert engine_request("embed", {"input": ["one"]})["truncate_prompt_tokens"] == -1
    assert "truncate_prompt_tokens" not in engine_request(
        "embed", {"input": "a", "truncate": False}
    )
    assert engine_request("embeddings", {"prompt": "one"})["input"] == ["one"]
    assert rejection("embed", {"input": [5]}).param == "input"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("chat", {}, {"message": {"role": "assistant", "content": ""}, "done_reason": "load"}),
        ("chat", {"messages": [], "keep_alive": 0}, {"done": True}),
        ("generate", {}, {"response": "", "done": True, "done_reason": "load"}),
        ("embed", {"input": []}, {"embeddings": []}),
        ("embeddings", {}, {"embedding": []}),
    ],
)
def test_who_only_wants_the_model_loaded_is_told_that_it_is(
    path: str, body: Json, told: Json
) -> None:
    reply = getattr(ollama(), path)(json.dumps({"model": "tiny", **body}).encode())
    assert isinstance(reply, LocalReply)
    assert reply.status == 200
    assert told.items() <= json.loads(reply.body).items()
