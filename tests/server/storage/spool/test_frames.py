"""Frames are found again between any bytes."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.storage.spool.frames import Scan, Span, encode_frame, merge_spans, scan
from tests.contracts.samples import entry


@given(
    st.lists(
        st.binary(max_size=20) | st.sampled_from([encode_frame(b'{"a":1}'), encode_frame(b'{"')])
    )
)
def test_any_bytes_are_frames_or_damage_and_nothing_is_left_out(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    found = scan(data)
    assert merge_spans([*found.frames, *found.damaged]) == ([Span(0, len(data))] if data else [])
    for frame in found.frames:
        assert encode_frame(data[frame.begin + 8 : frame.end]) == data[frame.begin : frame.end]


def test_zeroes_are_no_frames() -> None:
    assert scan(bytes(100)) == Scan([], [Span(0, 100)])


def test_a_user_can_not_write_what_looks_like_a_frame() -> None:
    forged = encode_frame(b'{"request_id":"req_forged"}').decode("latin-1")
    frame = encode_frame(msgspec.json.encode(entry(1, model=forged)))
    assert scan(b"damage" + frame[:-1] + b"!").frames == []
