"""Anthropic's Messages API in front of engines that speak the OpenAI chat API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fabric_client.translation import TranslationError
from fabric_client.translation.chat import MAX_BODY
from fabric_client.translation.messages import count_tokens, translate
from fabric_client.translation.messages.request import IGNORED
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

USER = [{"role": "user", "content": "Say"}]
WEATHER = {"name": "weather", "description": "Now", "input_schema": {"type": "object"}}
stream_event: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


asking = Asking(translate, model="m", max_tokens=100, messages=USER)
body, chat, refusal, streamed = asking.body, asking.chat, asking.refusal, asking.streamed


def client(engine: Engine) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="k", base_url="http://fabric", http_client=engine.client(), max_retries=0
    )


# ── questions ─────────────────────────────────────────────────────────────────────────────────


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
    answer = json.loads(told(translate(body(messages=messages)), repeated))
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
    error = refusal(**fields)
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
    error = refusal(messages=[{"role": "user", "content": [block]}])
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
            assert name in refusal(**{name: REFUSED[name]}).param
        elif name in IGNORED:
            assert chat(**{name: "x"}) == plain
        else:
            assert chat(**{name: "x"})[name] == "x"


@given(
    st.text(min_size=1).filter(lambda name: name not in {*USED, *REFUSED, *IGNORED}), st.integers()
)
def test_a_field_that_nobody_knows_is_for_the_engine(name: str, value: int):
    if name in UNTRANSLATABLE_FIELDS:
        assert refusal(**{name: value}).param == name
    else:
        assert chat(**{name: value})[name] == value or name in ("chat_template_kwargs",)


def test_what_is_ignored_is_listed_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "dialects.md").read_text()
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


# ── answers ───────────────────────────────────────────────────────────────────────────────────


def test_a_real_stream_as_the_official_client_reads_it():
    engine = Engine(translate, recorded("stopped.sse"))
    with client(engine).messages.stream(model="tiny", max_tokens=9, messages=USER) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert engine.asked["stream_options"] == {"include_usage": True}
    assert message.content[0].type == "text"
    assert message.content[0].text == text != ""
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 0
    assert message.id.startswith("msg_")


def test_a_real_answer_as_the_official_client_reads_it():
    message = client(Engine(translate, recorded("whole.json"))).messages.create(
        model="tiny", max_tokens=5, messages=USER
    )
    assert message.stop_reason == "max_tokens"
    assert message.content[0].type == "text"


def test_thoughts_and_words_are_blocks_of_their_own():
    with client(Engine(translate, THOUGHT_AND_SAID)).messages.stream(
        model="m",
        max_tokens=2000,
        messages=USER,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        message = stream.get_final_message()
    thinking, said = message.content
    assert thinking.type == "thinking"
    assert (thinking.thinking, thinking.signature) == ("Two and two.", "")
    assert said.type == "text"
    assert said.text == "Four ✓"
    assert message.usage.input_tokens == 4
    assert message.usage.cache_read_input_tokens == 16
    assert message.usage.output_tokens == 9


def test_calls_of_tools_are_blocks_of_their_own():
    with client(Engine(translate, CALLED)).messages.stream(
        model="m", max_tokens=200, messages=USER, tools=[WEATHER]
    ) as stream:
        message = stream.get_final_message()
    said, first, second = message.content
    assert said.type == "text"
    assert first.type == second.type == "tool_use"
    assert (first.id, first.name, first.input) == ("call_a", "weather", {"city": "Bern"})
    assert (second.id, second.name, second.input) == ("call_b", "time", {"zone": "CET"})
    assert message.stop_reason == "tool_use"


def test_the_events_of_a_stream_in_their_order():
    kinds = [event["type"] for event in streamed(THOUGHT_AND_SAID)]
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",  # the signature
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("answer", [THOUGHT_AND_SAID, CALLED, recorded("length.sse")])
def test_every_event_is_what_the_official_client_declares(answer: bytes):
    for event in streamed(answer):
        if event["type"] != "ping":
            stream_event.validate_python(event)


@given(st.sampled_from([THOUGHT_AND_SAID, CALLED, recorded("schema.sse")]), st.data())
def test_any_cut_of_the_engines_bytes_gives_the_same_answer(answer: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=30)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    asked = body(stream=True)
    assert told(translate(asked), pieces) == told(translate(asked), answer)


def test_a_word_goes_on_with_the_byte_that_completes_its_event():
    answer = translate(body(stream=True)).response_filter
    answer.head(200, [("content-type", "text/event-stream")])
    assert answer.feed(sse(chunk({"content": "a"}), done=False)[:-1]) == b""
    assert b'"text":"a"' in answer.feed(b"\n")


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
    ],
)
def test_why_it_ended(finish: str, reason: str):
    stream = streamed(sse(chunk({"content": "a"}), chunk({}, finish)))
    assert stream[-2]["delta"] == {"stop_reason": reason, "stop_sequence": None}
    answer = json.loads(told(translate(body()), whole({"content": "a"}, finish)))
    assert answer["stop_reason"] == reason


def test_vllm_tells_which_stop_sequence_it_was():
    last = chunk({}, "stop")
    last["choices"][0]["stop_reason"] = "END"
    stream = streamed(sse(chunk({"content": "a"}), last), stop_sequences=["END"])
    assert stream[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    last["choices"][0]["stop_reason"] = 151645  # a token
    stream = streamed(sse(chunk({"content": "a"}), last), stop_sequences=["END"])
    assert stream[-2]["delta"]["stop_reason"] == "end_turn"


def test_calls_that_an_engine_ends_with_stop_and_numbers_all_alike():
    first, second = call(0, "{}", "a", "weather"), call(0, "{}", "b", "time")
    stream = streamed(sse(chunk(first), chunk(second), chunk({}, "stop")))
    begun = [event["content_block"] for event in stream if event["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in begun] == [("a", "weather"), ("b", "time")]
    assert stream[-2]["delta"]["stop_reason"] == "tool_use"


def test_pieces_of_calls_that_are_mixed_up_are_not_taken_for_others():
    first, second = call(0, "[", "a", "weather"), call(1, "{", "b", "time")
    mixed = [chunk(first), chunk(second), chunk(call(0, "]")), chunk({}, "tool_calls")]
    stream = streamed(sse(*mixed))
    assert stream[-1]["type"] == "error"
    nothing = [chunk({"content": "a"}), chunk(call(0, "")), chunk({}, "stop")]
    assert "mixes up" not in json.dumps(streamed(sse(*nothing)))


def test_a_call_whose_id_and_name_are_repeated_is_one():
    pieces = [call(0, '{"a":', "a", "weather"), call(0, "1}", "a", "weather")]
    stream = streamed(sse(*map(chunk, pieces), chunk({}, "tool_calls")))
    begun = [event for event in stream if event["type"] == "content_block_start"]
    told_arguments = [
        event["delta"]["partial_json"] for event in stream if event["type"] == "content_block_delta"
    ]
    assert (len(begun), told_arguments) == (1, ['{"a":', "1}"])


def test_an_empty_finish_reason_is_none_and_words_after_a_real_one_are_still_told():
    stream = streamed(sse(chunk({"content": "a"}, ""), chunk({}, "stop"), chunk({"content": "b"})))
    kinds = [event["type"].removeprefix("content_block_") for event in stream]
    assert kinds == [
        "message_start",
        "ping",
        *["start", "delta", "stop"] * 2,
        "message_delta",
        "message_stop",
    ]


def test_a_call_without_an_id_gets_one_and_an_object_for_arguments_is_taken():
    piece = {"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bern"}}}]}
    answer = json.loads(told(translate(body()), whole({"content": None, **piece}, "tool_calls")))
    block = answer["content"][0]
    assert block["id"].startswith("toolu_")
    assert block["input"] == {"city": "Bern"}
    Message.model_validate(answer)


def test_a_stream_that_breaks_off_has_no_end():
    whole_stream = streamed(THOUGHT_AND_SAID)
    cut = THOUGHT_AND_SAID[: THOUGHT_AND_SAID.index(b'"finish_reason": "stop"')]
    broken = events(told(translate(body(stream=True)), cut, end=False))
    assert broken == whole_stream[: len(broken)]
    assert "message_stop" not in {event["type"] for event in broken}


@pytest.mark.parametrize("done", [True, False])
def test_an_end_without_a_reason_is_none(done: bool):
    stream = streamed(sse(chunk({"content": "a"}), done=done))
    assert {"message_delta", "message_stop"}.isdisjoint(event["type"] for event in stream)


def test_an_end_without_usage_or_done_is_one():
    stream = streamed(sse(chunk({"content": "a"}), chunk({}, "stop"), done=False))
    assert stream[-1]["type"] == "message_stop"


@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"error":{"message":"out of memory","code":500}}\n\n',
        b'error: {"error":"out of memory"}\n\n',
        b"data: {out of memory\n\n",
        sse(chunk({}, "abort"), done=False),
    ],
)
def test_an_error_in_the_middle_is_told_and_the_last_thing_told(bad: bytes):
    stream = streamed(sse(chunk({"content": "a"}), done=False) + bad + b"data: [DONE]\n\n")
    assert stream[-1]["type"] == "error"
    assert stream[-1]["error"]["type"] == "api_error"
    assert stream[-1]["error"]["message"]
    good = sse(chunk({"content": "a"}), done=False)
    with (
        pytest.raises(anthropic.APIStatusError),
        client(Engine(translate, good + bad)).messages.stream(
            model="m", max_tokens=1, messages=USER
        ) as read,
    ):
        read.get_final_message()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (418, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_engines_error_has_anthropics_shape(status: int, kind: str):
    error = b'{"error":{"message":"no","type":"BadRequestError","code":400}}'
    with pytest.raises(anthropic.APIStatusError) as caught:
        client(Engine(translate, error, status)).messages.create(
            model="m", max_tokens=1, messages=USER
        )
    assert caught.value.status_code == status
    assert caught.value.body == {"type": "error", "error": {"type": kind, "message": "no"}}


def test_a_prompt_that_is_too_long_is_called_so():
    error = json.loads(told(translate(body()), recorded("too_long.json"), 400))
    assert error["error"]["message"].startswith("prompt is too long: request (9014 tokens)")


def test_a_prompt_that_only_its_answer_makes_too_long_is_not_called_so():
    text = (
        "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context"
        " length is 8192 tokens and your request has 50 input tokens (32000 > 8192 - 50)."
    )
    error = json.dumps({"error": {"message": text, "code": 400}}).encode()
    assert json.loads(told(translate(body()), error, 400))["error"]["message"] == text


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error":{"message":"out of memory"}}',
        b'{"choices":[]}',
        b"{out of memory",
        whole({"content": "a"}, "abort"),
        pytest.param(whole({"content": "x" * MAX_BODY}), id="too long"),
    ],
)
def test_an_unstreamed_answer_that_is_none_is_an_error(answer: bytes):
    found = json.loads(told(translate(body()), answer))
    assert found["type"] == "error"
    assert found["error"]["type"] == "api_error"


@given(st.binary(max_size=60), st.booleans(), st.sampled_from([200, 400, 500]))
def test_no_answer_of_an_engine_raises(data: bytes, streams: bool, status: int):
    answer = translate(body(stream=streams)).response_filter
    kind = "text/event-stream" if streams else "application/json"
    answer.head(status, [("content-type", kind)])
    answer.feed(data + b"\n\n")
    answer.end()


# ── counting ──────────────────────────────────────────────────────────────────────────────────


def test_tokens_are_counted_by_vllm():
    question = count_tokens(body(max_tokens=..., system="s", tools=[WEATHER]))
    asked = json.loads(question.body)
    assert question.path == "/tokenize"
    assert set(asked) == {"model", "messages", "tools", "chat_template_kwargs"}
    counted = b'{"count":17,"max_model_len":4096,"tokens":[1]}'
    assert json.loads(told(question, counted)) == {"input_tokens": 17}


def test_an_error_while_counting_has_anthropics_shape():
    error = json.loads(told(count_tokens(body()), b'{"detail":"Not Found"}', 404))
    assert error == {"type": "error", "error": {"type": "not_found_error", "message": "Not Found"}}


def test_usage_that_comes_with_the_end_is_told():
    stream = streamed(sse(chunk({"content": "a"}), chunk({}, "stop"), usage(3, 1)))
    assert stream[-2]["usage"]["input_tokens"] == 3
    assert stream[-2]["usage"]["output_tokens"] == 1
