"""A tunnel's connections as a transcript: ``>`` is sent by the server, ``<`` by the node."""

import msgspec
import pytest

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import Drain, ResponseHead
from protocol.tunnel.base import Role
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    DrainReceived,
)
from protocol.tunnel.frames import CONFIRM_FLAG, END_FLAG, MAX_DATA
from protocol.tunnel.streams import MAX_STREAM_ID, STREAM_WINDOW, TUNNEL_WINDOW
from tests.protocol.tunnel.helpers import KIB, answering, frame, opened, reset, said_to
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, Pump, lines


def test_a_request_and_its_answer():
    pump = Pump()
    pump.node.hello(SESSION)
    assert pump.run() == lines("""
        < HELLO
        server: hello b'session'
    """)
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(stream, b"question", ended=True)
    assert pump.run() == lines("""
        > OPEN 1
        > DATA 1 8 bytes end
        node: opened 1 POST /v1/chat/completions
        node: data 1 b'question', ended
    """)
    pump.node.send_head(stream, ANSWER)
    pump.node.send_data(stream, b"to")
    pump.node.send_data(stream, b"ken")
    assert pump.run() == lines("""
        < HEAD 1
        < DATA 1 5 bytes
        server: head 1 200
        server: data 1 b'token'
    """)
    pump.node.end_stream(stream, FIGURES)
    assert pump.run() == lines("""
        < END 1
        server: ended 1
    """)
    assert pump.server.active == pump.node.active == 0


def test_a_request_without_a_body_is_one_frame():
    pump = Pump.greeted()
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    assert pump.run() == lines("""
        > OPEN 1 end
        node: opened 1 POST /v1/chat/completions, ended
    """)


def test_a_body_may_end_with_an_empty_frame():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(stream, b"all of it")
    pump.run()
    pump.server.send_data(stream, b"", ended=True)
    assert pump.run() == lines("""
        > DATA 1 0 bytes end
        node: data 1 b'', ended
    """)


def test_an_answer_may_have_no_body():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    pump.node.send_head(stream, ResponseHead(204, []))
    pump.node.end_stream(stream, FIGURES)
    assert pump.run() == lines("""
        < HEAD 1
        < END 1
        server: head 1 204
        server: ended 1
    """)


def test_streams_are_odd_and_count_up():
    pump = Pump.greeted()
    assert opened(pump, 4) == [1, 3, 5, 7]


def test_an_answer_that_comes_before_the_whole_question_ends_the_stream():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(stream, bytes(400 * KIB))  # more than the node will take
    pump.run()
    pump.node.send_head(stream, ResponseHead(413, []))
    pump.node.end_stream(stream, FIGURES)
    assert pump.run()[-2:] == ["server: head 1 413", "server: ended 1"]
    assert pump.server.queued == 0
    assert pump.server.send_data(stream, b"nobody wants this") is True
    assert pump.run() == []
    assert not pump.server.has_output()


def test_a_tunnel_shows_where_it_stands():
    pump = Pump.greeted()
    opened(pump, 2)
    assert repr(pump.server) == f"<Connection server open streams=2 credit={TUNNEL_WINDOW}>"


def test_a_node_cannot_answer_without_a_head():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    with pytest.raises(LocalError, match="needs send_head"):
        pump.node.send_data(stream, b"x")
    with pytest.raises(LocalError, match="needs send_head"):
        pump.node.end_stream(stream, FIGURES)
    assert pump.run() == []


def test_a_node_cannot_end_its_answer_with_a_flag():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    with pytest.raises(LocalError, match="end_stream"):
        pump.node.send_data(stream, b"x", ended=True)


def test_a_body_ends_once():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    with pytest.raises(LocalError, match="ended"):
        pump.server.send_data(stream, b"more")
    (other,) = answering(pump)
    pump.node.send_data(other, bytes(STREAM_WINDOW + 1))
    pump.node.end_stream(other, FIGURES)
    pump.run()
    with pytest.raises(LocalError, match="ended"):
        pump.node.end_stream(other, FIGURES)


def test_a_head_is_sent_once():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    with pytest.raises(LocalError, match="head already"):
        pump.node.send_head(stream, ANSWER)


def test_heads_over_their_limit_are_refused_here_and_not_by_the_peer():
    pump = Pump.greeted()
    large = [("x", "y" * 50_000)]
    with pytest.raises(LocalError, match="over its limit"):
        pump.server.open_stream(msgspec.structs.replace(HEAD, headers=large), now=pump.now)
    assert pump.server.active == 0
    (stream,) = opened(pump)
    with pytest.raises(LocalError, match="over its limit"):
        pump.node.send_head(stream, ResponseHead(200, large))
    pump.node.send_head(stream, ANSWER)
    assert "server: head 1 200" in pump.run()


def test_a_full_tunnel_is_not_usable():
    pump = Pump.greeted(max_streams=3)
    opened(pump, 3)
    assert not pump.server.usable
    with pytest.raises(LocalError, match="no stream can be opened"):
        pump.server.open_stream(HEAD, now=pump.now)


def test_a_tunnel_that_has_used_up_its_stream_ids_drains():
    pump = Pump.greeted(max_stream_id=5)
    assert answering(pump, 3) == [1, 3, 5]
    assert DrainReceived(Drain("stream ids are used up", 60.0)) in pump.events(Role.NODE)
    assert not pump.server.usable
    with pytest.raises(LocalError, match="no stream can be opened"):
        pump.server.open_stream(HEAD, now=pump.now)
    for stream in (1, 3, 5):
        pump.node.end_stream(stream, FIGURES)
    assert pump.run()[-1] == "node: closed by peer: none 'drained'"


def test_the_last_stream_id_is_the_largest_odd_number_of_32_bits():
    pump = Pump.greeted()
    said = said_to(pump, Role.NODE, frame("OPEN", MAX_STREAM_ID, messages.encode(HEAD)))
    assert said == [f"node: opened {MAX_STREAM_ID} POST /v1/chat/completions"]


def test_bytes_and_frames_are_counted():
    pump = Pump.greeted()
    assert pump.node.bytes_sent == pump.server.bytes_received > 0
    before = pump.server.frames_received
    (stream,) = answering(pump)
    pump.node.send_data(stream, b"abc")
    pump.run()
    assert pump.server.frames_received == before + 2
    assert pump.server.bytes_received == pump.node.bytes_sent


def test_tiny_pieces_cost_no_more_than_they_must():
    """A frame that dribbles in byte by byte is buffered once, not once for each byte."""
    pump = Pump.greeted()
    answering(pump)
    data = frame("DATA", 1, bytes(MAX_DATA)) * 8
    for at in range(len(data)):
        pump.server.receive(data[at : at + 1], pump.now)
    got = b"".join(e.data for e in pump.events(Role.SERVER) if isinstance(e, DataReceived))
    assert got == bytes(8 * MAX_DATA)


def test_the_confirm_flag_means_nothing_from_a_server():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    said = said_to(pump, Role.NODE, reset(stream, Code.CANCELLED, CONFIRM_FLAG))
    assert said == [f"node: reset {stream} cancelled"]


def test_unknown_codes_are_kept_as_numbers():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    said = said_to(pump, Role.SERVER, frame("RESET", stream, b"\x27\x0fnovel"))
    assert said == ["server: reset 1 code-9999 'novel'"]


def test_newer_fields_in_heads_are_ignored():
    pump = Pump.greeted()
    newer = messages.encode([*msgspec.structs.astuple(HEAD), "a field of 2031"])
    said = said_to(pump, Role.NODE, frame("OPEN", 1, newer, END_FLAG))
    assert said == ["node: opened 1 POST /v1/chat/completions, ended"]


def test_events_are_told_once():
    pump = Pump.greeted()
    pump.server.close(Code.NONE, "x")
    assert pump.server.events() == [ConnectionClosed(Code.NONE, "x", False)]
    assert pump.server.events() == []
