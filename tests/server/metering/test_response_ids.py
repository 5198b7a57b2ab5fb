"""Responses get ids of the server's, however their bytes come."""

from __future__ import annotations

import pytest

from fabric_server.metering.events import ResponsesMeter
from fabric_server.metering.openai import BodyMeter
from fabric_server.metering.response_ids import MAX_ANSWER, IdMeter

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
    meter = IdMeter(BodyMeter(), "resp_new", whole=True)
    passed = [meter.feed(BODY[at : at + size]) for at in range(0, len(BODY), size)]
    assert not any(passed), "its length is not known before its end"
    assert meter.end() == BODY.replace(b'"resp_7","object"', b'"resp_new","object"')
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (3, 4)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream(size: int) -> None:
    meter = IdMeter(ResponsesMeter(), "resp_new", whole=False)
    passed = b"".join(meter.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size))
    passed += meter.end()
    assert passed == STREAM.replace(b'"id":"resp_7"', b'"id":"resp_new"')
    assert meter.complete
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (3, 4)


def test_an_answer_too_large_to_be_held_passes_as_it_is() -> None:
    meter = IdMeter(BodyMeter(), "resp_new", whole=True)
    large = BODY[:-1] + b" " * MAX_ANSWER
    assert meter.feed(large) == large
    assert meter.feed(b"}") + meter.end() == b"}"
