"""The twelve bytes in front of everything, and what may follow them."""

import pytest

from protocol.tunnel import frames
from protocol.tunnel.frames import FrameType


def test_a_header_is_twelve_big_endian_bytes():
    frame = frames.encode(FrameType.DATA, frames.END_FLAG, 0x01020305, b"hello")
    assert frame == bytes.fromhex("04 01 0000 01020305 00000005") + b"hello"


def test_a_full_data_frame_is_one_tls_record():
    assert frames.HEADER.size + frames.MAX_DATA == 16 * 1024


LIMITS = [
    (FrameType.HELLO, 0, 1, 256),
    (FrameType.OPEN, 1, 1, 48 * 1024),
    (FrameType.HEAD, 1, 1, 48 * 1024),
    (FrameType.DATA, 1, 0, 16_372),
    (FrameType.END, 1, 1, 1024),
    (FrameType.RESET, 1, 2, 256),
    (FrameType.WINDOW, 1, 8, 8),
    (FrameType.WINDOW, 0, 8, 8),
    (FrameType.PING, 0, 8, 8),
    (FrameType.PONG, 0, 8, 8),
    (FrameType.DRAIN, 0, 1, 1280),
    (FrameType.CLOSE, 0, 2, 256),
    (FrameType.RESUME, 1, 1, 256),
    (FrameType.ACK, 0, 8, 8),
]


@pytest.mark.parametrize(("kind", "stream_id", "least", "most"), LIMITS)
def test_every_type_has_a_least_and_a_most_length(kind, stream_id, least, most):
    assert frames.problem_with(kind, 0, 0, stream_id, least) is None
    assert frames.problem_with(kind, 0, 0, stream_id, most) is None
    assert f"{kind.name} of {most + 1} bytes" in str(
        frames.problem_with(kind, 0, 0, stream_id, most + 1)
    )
    if least:
        assert f"{kind.name} of {least - 1} bytes" in str(
            frames.problem_with(kind, 0, 0, stream_id, least - 1)
        )


def test_every_type_stands_in_the_table_of_limits():
    assert {kind for kind, *_ in LIMITS} == set(FrameType)


@pytest.mark.parametrize("kind", [0, 12, 15, 99, 255])
def test_a_type_the_specification_does_not_know_is_refused(kind):
    assert frames.problem_with(kind, 0, 0, 1, 8) == f"unknown frame type {kind}"


@pytest.mark.parametrize("kind", FrameType)
def test_reserved_bits_are_refused_in_every_type(kind):
    assert "reserved bits 0x8000" in str(frames.problem_with(kind, 0, 0x8000, 1, 8))


@pytest.mark.parametrize("kind", FrameType)
def test_flags_are_refused_where_they_mean_nothing(kind):
    meaningful = kind in (FrameType.OPEN, FrameType.DATA, FrameType.RESET)
    problem = frames.problem_with(kind, 1, 0, 1, 8)
    assert (problem is None) if meaningful else ("unknown flags 0x01" in str(problem))
    assert "unknown flags 0x02" in str(frames.problem_with(kind, 2, 0, 1, 8))


@pytest.mark.parametrize("kind", ["OPEN", "HEAD", "DATA", "END", "RESET"])
@pytest.mark.parametrize("stream_id", [0, 2, 2**32 - 2])
def test_even_stream_ids_are_kept_for_later(kind, stream_id):
    problem = frames.problem_with(FrameType[kind], 0, 0, stream_id, 8)
    assert problem == f"{kind} on stream {stream_id}, which can't exist"


@pytest.mark.parametrize("kind", ["HELLO", "PING", "PONG", "DRAIN", "CLOSE"])
def test_frames_of_the_tunnel_name_no_stream(kind):
    problem = frames.problem_with(FrameType[kind], 0, 0, 1, 8)
    assert problem == f"{kind} on stream 1, but it belongs to the tunnel"


def test_a_reason_travels_behind_its_code():
    assert frames.encode_reason(11, "going") == b"\x00\x0bgoing"
    assert frames.parse_reason(b"\x00\x0bgoing") == (11, "going")


def test_a_long_reason_is_cut_between_characters():
    payload = frames.encode_reason(1, "é" * 200)
    assert len(payload) == 2 + 254
    assert frames.parse_reason(payload) == (1, "é" * 127)
    assert frames.parse_reason(frames.encode_reason(1, "x" + "é" * 200)) == (1, "x" + "é" * 126)


def test_words_that_utf8_cannot_say_do_not_stop_a_reason():
    broken = b"no such file: \xff".decode(errors="surrogateescape")
    assert frames.parse_reason(frames.encode_reason(5, broken)) == (5, "no such file: ?")


def test_a_reason_in_broken_utf8_is_still_read():
    assert frames.parse_reason(b"\xff\xffbad \xff\xfe") == (65535, "bad ��")
