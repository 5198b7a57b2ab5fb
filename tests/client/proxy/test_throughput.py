"""How fast a node is, by what its engines say."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric_client.proxy.throughput import Throughput, tokens_in


@pytest.mark.parametrize(
    ("end", "tokens"),
    [
        (b'"usage":{"prompt_tokens":7,"completion_tokens":12,"total_tokens":19}}', 12),
        (b'data: {"usage":{"completion_tokens": 12}}\n\ndata: [DONE]\n\n', 12),
        (b'{"done":true,"prompt_eval_count":7,"eval_count":5,"eval_duration":9}\n', 5),
        (b'"usage":{"input_tokens":1,"output_tokens":3}}', 3),
        (b'{"output_tokens":1} then {"output_tokens":9}', 9),
        (b'{"prompt_eval_count":7}', 0),
        (b'{"completion_tokens":' + b"9" * 4000, 0),
        (b'{"completion_tokens":null}', 0),
        (b"", 0),
    ],
)
def test_the_engines_own_count_is_read_from_the_end_of_its_answer(end: bytes, tokens: int) -> None:
    assert tokens_in(end) == tokens


counts = st.sampled_from(
    [
        *(b'"completion_tokens"', b'"output_tokens"', b'"eval_count"', b'"total_tokens"', b'"'),
        *(b":", b" ", b"\n", b"12", b"-1", b"3.5", b"0", b"9" * 15, b"9" * 16, b"null", b",", b"a"),
    ]
)


@given(st.lists(counts | st.binary(max_size=3), max_size=20).map(b"".join))
@example(b'"eval_count":1,"eval_count":2x')
@example(b'"eval_count":1,"eval_count"eval_count":3')
def test_of_several_counts_the_last_one_is_read(end: bytes) -> None:
    plain = rb'"(?:completion_tokens|output_tokens|eval_count)"\s*:\s*(\d{1,15})\b'
    assert tokens_in(end) == int([b"0", *re.findall(plain, end)][-1])


def test_one_answer_is_as_fast_as_its_tokens_by_its_time() -> None:
    speed = Throughput()
    speed.add(100, 10.0, 14.0)
    assert speed.per_second(20.0) == 25.0


def test_answers_made_at_once_share_their_time() -> None:
    speed = Throughput()
    speed.add(100, 10.0, 14.0)
    speed.add(100, 12.0, 14.0)
    speed.add(100, 20.0, 24.0)
    assert speed.per_second(30.0) == 300 / 8


def test_what_ended_over_a_minute_ago_is_forgotten_but_counted() -> None:
    speed = Throughput()
    speed.add(100, 10.0, 14.0)
    assert speed.per_second(74.1) == 0.0
    assert speed.tokens == 100


def test_answers_that_took_no_time_are_no_division_by_zero() -> None:
    speed = Throughput()
    speed.add(5, 1.0, 1.0)
    assert speed.per_second(2.0) == 0.0
