"""What an engine may report of its tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.metering.ollama import LinesMeter, ollama_usage
from fabric_server.metering.openai import StreamMeter
from fabric_server.metering.plausible import MEDIA_TOKENS, Answered, believable, output_limit
from fabric_server.metering.usage import BoundedUsage, Usage

PLAIN: dict[str, Any] = {
    "prompt_bytes": 100,
    "media": 0,
    "events": 0,
    "seconds": 2.0,
    "limit": None,
    "context": None,
}


@pytest.mark.parametrize(
    ("changes", "reported", "charged"),
    [
        ({}, (100, 40_000), (100, 40_000)),
        ({}, (101, 40_001), (100, 40_000)),
        ({}, (10**12, 10**30), (100, 40_000)),
        ({"media": 2}, (100 + 2 * MEDIA_TOKENS, 1), (100 + 2 * MEDIA_TOKENS, 1)),
        ({"limit": 50}, (1, 51), (1, 50)),
        ({"limit": 50, "events": 60}, (1, 55), (1, 55)),
        ({"limit": 50, "events": 60}, (1, 70), (1, 60)),
        ({"context": 4096}, (1, 5000), (1, 4096)),
        ({"seconds": 0.0}, (1, 20_000), (1, 20_000)),
        ({"seconds": 0.0}, (1, 20_001), (1, 20_000)),
        ({"generates": False}, (90, 10**6), (90, 0)),
        ({}, (None, None), (None, None)),
    ],
)
def test_what_exceeds_a_bound_is_charged_at_the_bound(
    changes: dict[str, Any], reported: tuple[int, int], charged: tuple[int, int]
) -> None:
    usage = believable(Usage(*reported), Answered(**{**PLAIN, **changes}))
    assert (usage.prompt_tokens, usage.completion_tokens) == charged
    assert isinstance(usage, BoundedUsage) is (reported != charged)


@given(st.integers(0, 10**20), st.integers(0, 10**20), st.integers(0, 500), st.floats(0, 1e6))
def test_whatever_is_reported_stays_within_the_bounds(
    prompt: int, completion: int, events: int, seconds: float
) -> None:
    answered = Answered(**{**PLAIN, "events": events, "seconds": seconds, "limit": 1000})
    usage = believable(Usage(prompt, completion), answered)
    assert usage.prompt_tokens is not None
    assert usage.completion_tokens is not None
    assert usage.prompt_tokens <= 100
    assert usage.completion_tokens <= max(1000, events)
    assert usage.completion_tokens >= min(completion, events)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20}, 20),
        ({"max_output_tokens": 30}, 30),
        ({"options": {"num_predict": 40}}, 40),
        ({"n_predict": 50}, 50),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "best_of": 4, "n": 2}, 40),
        ({"max_tokens": None}, None),
        ({"max_tokens": 0}, None),
        ({"options": {"num_predict": -1}}, None),
        ({"max_tokens": "10"}, None),
        ({"max_tokens": [[1]], "options": 5, "n": {}}, None),
    ],
)
def test_the_limit_of_the_client_has_many_names(body: dict[str, Any], limit: int | None) -> None:
    assert output_limit(json.dumps(body).encode()) == limit


@pytest.mark.parametrize("body", [b"", b"max_tokens", b'{"max_tokens":', b'["max_tokens"]'])
def test_a_body_that_can_t_be_read_has_no_limit(body: bytes) -> None:
    assert output_limit(body) is None


@pytest.mark.parametrize("figure", ["-5", "true", '"7"', "1.5", "1e400", "NaN", "[]", "null"])
def test_figures_that_are_no_numbers_are_as_none(figure: str) -> None:
    meter = StreamMeter(usage_requested=True)
    meter.feed(b'data: {"choices":[],"usage":{"completion_tokens":%b}}\n\n' % figure.encode())
    assert meter.usage.completion_tokens is None
    lines = LinesMeter()
    lines.feed(b'{"done":true,"eval_count":%b}\n' % figure.encode())
    assert lines.usage.completion_tokens is None


def test_huge_figures_are_read_so_that_they_can_be_bounded() -> None:
    meter = StreamMeter(usage_requested=True)
    meter.feed(b'data: {"choices":[],"usage":{"completion_tokens":1%b}}\n\n' % (b"0" * 30))
    assert meter.usage.completion_tokens == 10**30
    found = ollama_usage(b'"prompt_eval_count":12,"eval_count":1%b}' % (b"0" * 30))
    assert found is not None
    assert found.completion_tokens == 10**30


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_events_are_counted_however_they_arrive(pieces: int) -> None:
    text = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 60
    meter, size = StreamMeter(usage_requested=True), -(-len(text) // pieces)
    for at in range(0, len(text), size):
        meter.feed(text[at : at + size])
    assert meter.events == 60
