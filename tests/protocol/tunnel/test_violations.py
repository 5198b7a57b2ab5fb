"""Frames that a peer must not send, and what each costs."""

import pytest

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.tunnel import frames
from protocol.tunnel.base import Role
from protocol.tunnel.events import (
    StreamReset,
)
from protocol.tunnel.frames import END_FLAG, MAX_DATA, FrameType
from protocol.tunnel.streams import STREAM_WINDOW
from tests.protocol.tunnel.helpers import (
    KIB,
    answering,
    frame,
    hello,
    opened,
    refusal,
    reset,
    said_to,
    window,
)
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, Pump, frames_in


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (hello(2), "obsolete 'protocol 2 is not spoken here, 1 is'"),
        (hello(0), "obsolete 'protocol 0 is not spoken here, 1 is'"),
        (frame("HELLO", 0, b"\xc1"), 'protocol "HELLO: MessagePack data is malformed'),
        (frame("HELLO", 0, messages.encode([1])), "protocol 'HELLO: Expected `array`"),
        (hello(1, "text"), "protocol 'HELLO: Expected `bytes`"),
        (frame("PING", 0, bytes(8)), "protocol 'PING before HELLO'"),
        (frame("DATA", 1, b"x"), "protocol 'DATA before HELLO'"),
        (frame("END", 1, b"x"), "protocol 'END before HELLO'"),
        (window(0, 1), "protocol 'WINDOW before HELLO'"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "protocol 'unknown frame type 71'"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", "protocol 'unknown frame type 22'"),
    ],
)
def test_a_server_hears_hello_first(first, words):
    pump = Pump()
    assert refusal(pump, Role.SERVER, first).startswith(words)


def test_a_hello_with_fields_of_a_newer_release_is_understood():
    pump = Pump()
    assert said_to(pump, Role.SERVER, hello(1, SESSION, 7, [], "a field of 2031")) == [
        "server: hello b'session'"
    ]


def test_a_second_hello_is_refused():
    pump = Pump.greeted()
    assert refusal(pump, Role.SERVER, hello()) == "protocol 'a second HELLO'"


def test_a_peer_may_leave_before_hello():
    pump = Pump()
    said = said_to(pump, Role.SERVER, frame("CLOSE", 0, frames.encode_reason(13, "wrong key")))
    assert said == ["server: closed by peer: unauthorised 'wrong key'"]


def test_no_stream_can_be_opened_before_hello():
    pump = Pump()
    assert not pump.server.usable
    with pytest.raises(LocalError, match="no stream can be opened"):
        pump.server.open_stream(HEAD, now=pump.now)


@pytest.mark.parametrize(
    ("role", "said", "words"),
    [
        (Role.SERVER, frame("OPEN", 1, b"x"), "OPEN from this side"),
        (Role.NODE, hello(), "HELLO from this side"),
        (Role.NODE, frame("HEAD", 1, b"x"), "HEAD from this side"),
        (Role.NODE, frame("END", 1, b"x"), "END from this side"),
    ],
)
def test_frames_from_the_wrong_side_are_refused(role, said, words):
    pump = Pump.greeted()
    opened(pump)
    assert refusal(pump, role, said) == f"protocol '{words}'"


BROKEN_HEADERS = [
    ("00 00 0000 00000000 00000000", "unknown frame type 0"),
    ("0c 00 0000 00000000 00000000", "unknown frame type 12"),  # PACKET, one day
    ("ff 00 0000 00000000 00000000", "unknown frame type 255"),
    ("04 00 0001 00000001 00000001", "DATA with reserved bits 0x0001"),
    ("04 02 0000 00000001 00000001", "DATA with unknown flags 0x02"),
    ("04 00 0000 00000002 00000001", "DATA on stream 2, which can't exist"),
    ("04 00 0000 00000000 00000001", "DATA on stream 0, which can't exist"),
    ("08 00 0000 00000001 00000008", "PING on stream 1, but it belongs to the tunnel"),
    ("08 00 0000 00000000 00000007", "PING of 7 bytes, outside 8 to 8"),
]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("header", "words"), BROKEN_HEADERS)
def test_a_broken_header_closes_the_tunnel_and_says_why(role, header, words):
    pump = Pump.greeted()
    opened(pump)
    assert refusal(pump, role, bytes.fromhex(header)) == f"protocol {words!r}"


TOO_LONG = [
    ("HELLO", 0, 257),
    ("OPEN", 3, 48 * KIB + 1),
    ("HEAD", 1, 48 * KIB + 1),
    ("DATA", 1, MAX_DATA + 1),
    ("DATA", 1, 2**32 - 1),
    ("END", 1, 1025),
    ("RESET", 1, 257),
    ("WINDOW", 1, 9),
    ("PING", 0, 9),
    ("PONG", 0, 2**31),
    ("DRAIN", 0, 1281),
    ("CLOSE", 0, 257),
]


@pytest.mark.parametrize(("kind", "stream_id", "length"), TOO_LONG)
@pytest.mark.parametrize("role", Role)
def test_a_header_that_announces_too_much_is_refused_before_its_payload_comes(
    role, kind, stream_id, length
):
    pump = Pump.greeted()
    opened(pump)
    header = frames.HEADER.pack(FrameType[kind], 0, 0, stream_id, length)
    for byte in header[:-1]:
        pump.give(role, bytes([byte]))
        assert not pump.side(role).closed
    assert f"{kind} of {length} bytes" in refusal(pump, role, header[-1:])


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (Role.SERVER, frame("DATA", 99, b"x")),
        (Role.SERVER, frame("HEAD", 99, b"x")),
        (Role.SERVER, frame("END", 99, b"x")),
        (Role.SERVER, reset(99)),
        (Role.SERVER, window(99, 1)),
        (Role.NODE, frame("DATA", 99, b"x")),
        (Role.NODE, reset(99)),
        (Role.NODE, window(99, 1)),
    ],
)
def test_a_stream_that_never_was_ends_the_tunnel(role, said):
    pump = Pump.greeted()
    opened(pump)
    assert refusal(pump, role, said) == "protocol 'stream 99 was never opened'"


def test_nothing_is_said_behind_a_close():
    pump = Pump.greeted()
    ids = answering(pump, 8)
    for stream in ids:
        pump.server.reset(stream, Code.CANCELLED)
    pump.run()
    burst = b"".join(frame("DATA", id, bytes(MAX_DATA)) * 16 for id in ids)
    pump.give(Role.SERVER, burst)
    assert not pump.server.has_output(), "one more byte, and a WINDOW is due"
    pump.give(Role.SERVER, frame("DATA", 99, bytes(MAX_DATA)))
    pump.server.ping(pump.now)
    pump.server.drain("late", 1)
    said = [frame.type for frame in frames_in(pump.take(Role.SERVER))]
    assert said == ["CLOSE"]
    assert pump.server.closed


def test_the_window_that_closes_a_tunnel_releases_no_data():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 5))
    pump.run()
    pump.give(Role.NODE, window(stream, STREAM_WINDOW) * 100)
    assert pump.take(Role.NODE) == b""
    pump.give(Role.NODE, window(stream, STREAM_WINDOW + 5))
    assert [str(frame) for frame in frames_in(pump.take(Role.NODE))] == [
        "CLOSE calm 'too much WINDOW that grants little'"
    ]
    assert not pump.node.has_output()


@pytest.mark.parametrize("stream_id", [1, 3])
def test_a_stream_is_opened_in_order_and_once(stream_id):
    pump = Pump.greeted()
    opened(pump, 2)
    again = frame("OPEN", stream_id, messages.encode(HEAD))
    assert refusal(pump, Role.NODE, again) == f"protocol 'stream {stream_id} opened out of order'"


def test_a_request_head_that_cannot_be_read_costs_its_stream_only():
    pump = Pump.greeted()
    opened(pump)
    pump.give(Role.NODE, frame("OPEN", 3, messages.encode(["req", 7])))
    (answer,) = frames_in(pump.take(Role.NODE))
    assert str(answer).startswith("RESET 3 protocol 'OPEN: Expected `array` of at least length 7")
    assert not pump.node.closed
    assert pump.node.active == 1


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (["r" * 257, "e", "POST", "/", [], None, 1], "length <= 256"),
        (["r", "e", "P" * 17, "/", [], None, 1], "length <= 16"),
        (["r", "e", "POST", "/" * 2049, [], None, 1], "length <= 2048"),
        (["r", "e", "POST", "/", [["a", "b"]] * 101, None, 1], "length <= 100"),
        (["r", "e", "POST", "/", [["a", "b", "c"]], None, 1], "length 2"),
        (["r", "e", "POST", "/", [], -1, 1], ">= 0"),
        (["r", "e", "POST", "/", []], "array"),
        ({"request_id": "r"}, "Expected `array`"),
    ],
)
def test_request_heads_have_limits(head, words):
    pump = Pump.greeted()
    said = said_to(pump, Role.NODE, frame("OPEN", 1, messages.encode(head)))
    assert said[0].startswith("< RESET 1 protocol 'OPEN: ")
    assert words in said[0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (frame("HEAD", 1, messages.encode([99, []])), "HEAD: Expected `int` >= 200"),
        (frame("HEAD", 1, messages.encode([100, []])), "HEAD: Expected `int` >= 200"),
        (frame("HEAD", 1, b"\xc1"), "HEAD: "),
        (frame("HEAD", 1, messages.encode(ANSWER)) * 2, "a second HEAD"),
        (frame("DATA", 1, b"x"), "DATA before HEAD"),
        (frame("END", 1, messages.encode(FIGURES)), "END before HEAD"),
        (frame("HEAD", 1, messages.encode(ANSWER)) + frame("END", 1, b"\xc1"), "END: "),
    ],
)
def test_a_node_that_breaks_a_rule_on_a_stream_loses_that_stream(said, words):
    pump = Pump.greeted()
    opened(pump, 2)
    pump.give(Role.SERVER, said)
    resets = [e for e in pump.heard[Role.SERVER] if isinstance(e, StreamReset)]
    assert [(event.stream_id, event.code) for event in resets] == [(1, Code.PROTOCOL)]
    assert resets[0].reason.startswith(words)
    pump.run()
    assert not pump.server.closed
    assert pump.server.active == 1
    assert pump.node.active == 2
    pump.node.confirm_reset(1)
    pump.run()
    assert not pump.server.closed, "a confirmation of what is gone here is no error"


def test_data_behind_the_end_of_a_body_costs_its_stream():
    pump = Pump.greeted()
    opened(pump)
    said = said_to(pump, Role.NODE, frame("DATA", 1, b"more"))
    assert said[0] == "node: reset 1 protocol 'DATA after the end of the body'"
    assert said[-1] == "server: reset 1 protocol 'DATA after the end of the body'"
    pump.node.confirm_reset(1)
    pump.run()
    assert pump.node.active == 0


def test_an_answer_ends_with_figures_and_not_with_a_flag():
    pump = Pump.greeted()
    answering(pump)
    words = refusal(pump, Role.SERVER, frame("DATA", 1, b"x", END_FLAG))
    assert words == "protocol 'DATA with the end flag from a node'"


def test_a_full_node_refuses_further_streams():
    pump = Pump.greeted(max_streams=2)
    opened(pump, 2)
    said = said_to(pump, Role.NODE, frame("OPEN", 5, messages.encode(HEAD)))
    assert said[0] == "< RESET 5 refused 'too many streams on this tunnel'"


def test_bytes_behind_a_close_are_not_read():
    pump = Pump.greeted()
    close = frame("CLOSE", 0, frames.encode_reason(0, ""))
    assert said_to(pump, Role.SERVER, close + b"\xff" * 100) == ["server: closed by peer: none"]
    pump.give(Role.SERVER, b"\xff" * 100)
    assert pump.run() == []
