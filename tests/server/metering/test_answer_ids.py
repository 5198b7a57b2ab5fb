"""Stored answers get ids of the server's, however their bytes come."""

from __future__ import annotations

import pytest

from fabric_server.metering.answer_ids import MAX_ANSWER, ChatIdMeter, ResponseIdMeter
from fabric_server.metering.events import ResponsesMeter
from fabric_server.metering.openai import BodyMeter, StreamMeter

BODY = (
    b'{"metadata":{"id":"respondent"},"id" : "resp_7","object":"response","output":[{"id":"msg_7",'
    b'"content":[{"text":"\\"id\\":\\"resp_7\\""}]}],"usage":{"input_tokens":3,"output_tokens":4}}'
)
STREAM = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_7"}}\n\n'
    b'data: {"type":"response.output_text.delta","item_id":"msg_7","delta":"resp_7"}\n\n'
    b'data: {"type":"response.completed","response":{"output":[],"id":"resp_7","usage":'
    b'{"input_tokens":3,"output_tokens":4}}}\n\n'
)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_an_answer_in_one_piece(size: int) -> None:
    meter = ResponseIdMeter(BodyMeter(), "resp_new", whole=True)
    passed = [meter.feed(BODY[at : at + size]) for at in range(0, len(BODY), size)]
    assert not any(passed), "its length is not known before its end"
    assert meter.end() == BODY.replace(b'"resp_7","object"', b'"resp_new","object"')
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (3, 4)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream(size: int) -> None:
    meter = ResponseIdMeter(ResponsesMeter(), "resp_new", whole=False)
    passed = b"".join(meter.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size))
    passed += meter.end()
    assert passed == STREAM.replace(b'"id":"resp_7"', b'"id":"resp_new"')
    assert meter.complete
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (3, 4)


def test_an_answer_too_large_to_be_held_passes_as_it_is() -> None:
    meter = ResponseIdMeter(BodyMeter(), "resp_new", whole=True)
    large = BODY[:-1] + b" " * MAX_ANSWER
    assert meter.feed(large) == large
    assert meter.feed(b"}") + meter.end() == b"}"


CHAT = (
    b'{"choices":[{"message":{"content":"\\"id\\":\\"1\\"","tool_calls":[{"id":"call_1"}]},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4},"id": "1"}'
)
CHUNK = b'{"choices":[{"delta":{"tool_calls":[{"id":"call_1"}]},"finish_reason":%b}],"id":%b}'
CHUNKS = (
    b": a comment with {}\n\ndata: " + CHUNK % (b"null", b'"1"') + b"\n\n"
    b"data:" + CHUNK % (b"null", b'"2"') + b"\r\n\r\n"
    b"data:  " + CHUNK % (b"null", b'"1"') + b"\n\n"
    b'data: {"broken\n\n'
    b"data: " + CHUNK % (b'"stop"', b"null") + b"\n\ndata: [DONE]\n\n"
)
NEW = b'"chatcmpl-new"'


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_chat_in_one_piece(size: int) -> None:
    meter = ChatIdMeter(BodyMeter(), "chatcmpl-new", whole=True)
    passed = [meter.feed(CHAT[at : at + size]) for at in range(0, len(CHAT), size)]
    assert not any(passed), "its length is not known before its end"
    assert meter.end() == CHAT.replace(b'"id": "1"', b'"id":' + NEW)
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (3, 4)


def test_a_chat_that_begins_with_a_line_end() -> None:
    meter = ChatIdMeter(BodyMeter(), "chatcmpl-new", whole=True)
    meter.feed(b"\r\n" + CHAT)
    assert meter.end() == CHAT.replace(b'"id": "1"', b'"id":' + NEW)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_streamed_chat(size: int) -> None:
    meter = ChatIdMeter(StreamMeter(True), "chatcmpl-new", whole=False)
    passed = b"".join(meter.feed(CHUNKS[at : at + size]) for at in range(0, len(CHUNKS), size))
    wanted = CHUNKS
    for old in (b'"1"', b'"2"', b"null"):
        wanted = wanted.replace(b'"id":' + old, b'"id":' + NEW)
    assert passed + meter.end() == wanted
    assert meter.complete


@pytest.mark.parametrize("text", [b'{"error":"no"}', b'{"id":"1","choices":', b"[]", b""])
def test_what_is_no_chat_passes_as_it_is(text: bytes) -> None:
    meter = ChatIdMeter(BodyMeter(), "chatcmpl-new", whole=True)
    assert meter.feed(text) + meter.end() == text
    event = b"data: " + text + b"\n\n"
    assert meter.replace(event) == event
