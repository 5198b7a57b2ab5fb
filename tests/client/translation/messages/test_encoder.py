"""Answers of Anthropic's Messages API, as the official client reads them."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st

from fabric_client.translation.chat import MAX_BODY
from fabric_client.translation.messages import translate
from tests.chat_streams import (
    REASONING_AND_TEXT,
    TOOL_CALLS,
    Engine,
    call,
    chunk,
    events,
    recorded,
    sse,
    translated,
    usage,
    whole,
)
from tests.client.translation.messages.common import (
    USER,
    WEATHER,
    body,
    client,
    stream_event,
    streamed,
)


def test_a_real_stream_as_the_official_client_reads_it():
    engine = Engine(translate, recorded("stopped.sse"))
    with client(engine).messages.stream(model="tiny", max_tokens=9, messages=USER) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert engine.received["stream_options"] == {"include_usage": True}
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
    with client(Engine(translate, REASONING_AND_TEXT)).messages.stream(
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
    with client(Engine(translate, TOOL_CALLS)).messages.stream(
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
    kinds = [event["type"] for event in streamed(REASONING_AND_TEXT)]
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


@pytest.mark.parametrize("answer", [REASONING_AND_TEXT, TOOL_CALLS, recorded("length.sse")])
def test_every_event_is_what_the_official_client_declares(answer: bytes):
    for event in streamed(answer):
        if event["type"] != "ping":
            stream_event.validate_python(event)


@given(st.sampled_from([REASONING_AND_TEXT, TOOL_CALLS, recorded("schema.sse")]), st.data())
def test_any_cut_of_the_engines_bytes_gives_the_same_answer(answer: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=30)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    asked = body(stream=True)
    assert translated(translate(asked), pieces) == translated(translate(asked), answer)


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
    answer = json.loads(translated(translate(body()), whole({"content": "a"}, finish)))
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
    begun = [event["content_block"] for event in stream if event["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in begun] == [("a", "weather"), ("b", "time")]
    deltas = [event for event in stream if event["type"] == "content_block_delta"]
    found = [(event["index"], event["delta"]["partial_json"]) for event in deltas]
    assert found == [(0, "["), (0, "]"), (1, "{")]
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
    answer = json.loads(
        translated(translate(body()), whole({"content": None, **piece}, "tool_calls"))
    )
    block = answer["content"][0]
    assert block["id"].startswith("toolu_")
    assert block["input"] == {"city": "Bern"}
    Message.model_validate(answer)


def test_a_stream_that_breaks_off_has_no_end():
    whole_stream = streamed(REASONING_AND_TEXT)
    cut = REASONING_AND_TEXT[: REASONING_AND_TEXT.index(b'"finish_reason": "stop"')]
    broken = events(translated(translate(body(stream=True)), cut, end=False))
    assert broken == whole_stream[: len(broken)]
    assert "message_stop" not in {event["type"] for event in broken}


def test_an_end_without_a_reason_is_one_only_if_it_is_marked():
    stream = streamed(sse(chunk({"content": "a"}), done=False))
    assert {"message_delta", "message_stop"}.isdisjoint(event["type"] for event in stream)
    stream = streamed(sse(chunk({"content": "a"}), done=True))
    assert [event["type"] for event in stream[-2:]] == ["message_delta", "message_stop"]
    assert stream[-2]["delta"]["stop_reason"] == "end_turn"


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
    error = json.loads(translated(translate(body()), recorded("too_long.json"), 400))
    assert error["error"]["message"].startswith("prompt is too long: request (9014 tokens)")


def test_a_prompt_that_only_its_answer_makes_too_long_is_not_called_so():
    text = (
        "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context"
        " length is 8192 tokens and your request has 50 input tokens (32000 > 8192 - 50)."
    )
    error = json.dumps({"error": {"message": text, "code": 400}}).encode()
    assert json.loads(translated(translate(body()), error, 400))["error"]["message"] == text


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
    found = json.loads(translated(translate(body()), answer))
    assert found["type"] == "error"
    assert found["error"]["type"] == "api_error"


@given(st.binary(max_size=60), st.booleans(), st.sampled_from([200, 400, 500]))
def test_no_answer_of_an_engine_raises(data: bytes, streams: bool, status: int):
    answer = translate(body(stream=streams)).response_filter
    kind = "text/event-stream" if streams else "application/json"
    answer.head(status, [("content-type", kind)])
    answer.feed(data + b"\n\n")
    answer.end()


def test_usage_that_comes_with_the_end_is_told():
    stream = streamed(sse(chunk({"content": "a"}), chunk({}, "stop"), usage(3, 1)))
    assert stream[-2]["usage"]["input_tokens"] == 3
    assert stream[-2]["usage"]["output_tokens"] == 1
