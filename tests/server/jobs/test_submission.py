"""What the server makes of a job's body before it is stored."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest

from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.submission import MAX_BODY, digest, read_submission

BEGIN = b'{"model":"tiny",'
SHAPES = {
    "messages": BEGIN + b'"messages":[' + b"{}," * (MAX_BODY // 3 - 20) + b"{}]}",
    "metadata": BEGIN + b'"prompt":"x","metadata":{"a":[' + b"0," * (MAX_BODY // 2 - 40) + b"0]}}",
    "another": BEGIN + b'"prompt":"x","another":[' + b"{}," * (MAX_BODY // 3 - 20) + b"{}]}",
    "depth": BEGIN + b'"messages":' + b"[" * (MAX_BODY - 40),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hostile_body_does_not_become_millions_of_objects(shape: str) -> None:
    data = SHAPES[shape]
    assert MAX_BODY - 100 < len(data) <= MAX_BODY
    tracemalloc.start()
    try:
        with contextlib.suppress(ApiError):
            submission = read_submission(data)
            assert submission.chat_request()
            assert digest(data, b"")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_BODY


def test_white_space_makes_no_other_job() -> None:
    one = b'{"model":"tiny","messages":[{"role":"user","content":"a b"}]}'
    two = b'{ "model" : "tiny",\n"messages":[ {"role": "user", "content":"a b"} ]}'
    assert digest(one, b"") == digest(two, b"")
    assert digest(one, b"") != digest(one, b"x") != digest(one.replace(b"a b", b"ab"), b"x")
