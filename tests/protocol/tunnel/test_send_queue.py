"""The order in which frames leave: control first, DATA in turn, END behind its data."""

from protocol.errors import Code
from protocol.tunnel.base import Role
from protocol.tunnel.frames import MAX_DATA
from protocol.tunnel.streams import STREAM_WINDOW
from tests.protocol.tunnel.helpers import KIB, answering
from tests.pump import FIGURES, HEAD, Pump, frames_in, lines


def test_the_end_goes_behind_the_last_byte():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(40 * KIB))
    pump.node.end_stream(stream, FIGURES)
    assert [line for line in pump.run() if line.startswith("<")] == lines("""
        < DATA 1 16372 bytes
        < DATA 1 16372 bytes
        < DATA 1 8216 bytes
        < END 1
    """)


def test_the_end_waits_for_credit_behind_its_data():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 1))
    pump.node.end_stream(stream, FIGURES)
    assert "< END 1" not in pump.run()
    assert pump.node.active == 1
    pump.server.consumed(stream, STREAM_WINDOW)
    assert (
        pump.run()
        == lines("""
        > WINDOW 0 4,456,448
        > WINDOW 1 524,288
        < DATA 1 1 bytes
        < END 1
        server: data 1 b'\\x00'
        server: ended 1
    """)[1:]
    )


def test_an_end_with_nothing_queued_does_not_wait_for_the_credit_of_others():
    pump = Pump.greeted()
    ids = answering(pump, 18)
    for stream in ids[:17]:  # 17 × 256 KiB: the tunnel's credit is gone
        pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    assert pump.node.credit == 0
    pump.node.end_stream(ids[17], FIGURES)
    assert f"server: ended {ids[17]}" in pump.run()


def test_the_last_data_frame_of_a_body_carries_its_end():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(stream, bytes(MAX_DATA + 1), ended=True)
    assert [line for line in pump.run() if line.startswith(">")] == lines("""
        > OPEN 1
        > DATA 1 16372 bytes
        > DATA 1 1 bytes end
    """)


def test_control_overtakes_data():
    pump = Pump.greeted()
    streaming, other = answering(pump, 2)
    pump.node.send_data(streaming, bytes(100 * KIB))
    pump.node.end_stream(other, FIGURES)
    pump.node.ping(pump.now)
    said = list(frames_in(pump.take(Role.NODE)))
    assert [frame.type for frame in said[:3]] == ["END", "PING", "DATA"]


def test_a_reset_overtakes_what_its_stream_has_queued():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.run()
    pump.server.send_data(stream, bytes(200 * KIB))
    pump.server.reset(stream, Code.CANCELLED, "hung up")
    assert pump.run() == lines("""
        > RESET 1 cancelled 'hung up'
        node: reset 1 cancelled 'hung up'
    """)
    assert pump.server.queued == 0


def test_a_reset_overtakes_what_other_streams_have_queued():
    pump = Pump.greeted()
    first, second = answering(pump, 2)
    pump.node.send_data(first, bytes(200 * KIB))
    pump.take(Role.NODE, most=16 * KIB)  # some of it is on its way
    pump.node.reset(second, Code.ENGINE_FAILED)
    assert next(frames_in(pump.take(Role.NODE))).type == "RESET"


def test_data_goes_one_frame_per_stream_in_turn():
    pump = Pump.greeted()
    ids = answering(pump, 3)
    for stream in ids:
        pump.node.send_data(stream, bytes(3 * MAX_DATA))
    order = [frame.stream_id for frame in frames_in(pump.take(Role.NODE))]
    assert order == [1, 3, 5] * 3


def test_the_turn_goes_on_where_the_last_flush_stopped():
    pump = Pump.greeted()
    ids = answering(pump, 3)
    for stream in ids:
        pump.node.send_data(stream, bytes(4 * MAX_DATA))
    order = []
    while data := pump.take(Role.NODE, most=1):
        order += [frame.stream_id for frame in frames_in(data)]
    assert order == [1, 3, 5] * 4


def test_a_small_answer_passes_a_large_one():
    pump = Pump.greeted()
    large, small = answering(pump, 2)
    pump.node.send_data(large, bytes(200 * KIB))
    pump.node.send_data(small, b"token")
    order = [frame.stream_id for frame in frames_in(pump.take(Role.NODE))]
    assert order.index(small) == 1


def test_one_flush_is_about_as_large_as_asked_for():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(200 * KIB))
    assert 64 * KIB <= len(pump.take(Role.NODE, most=64 * KIB)) <= 64 * KIB + 16 * KIB + 100


def test_chunks_that_wait_together_travel_together():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    for _ in range(100):
        pump.node.send_data(stream, b"data: token\n\n")
    assert [str(frame) for frame in frames_in(pump.take(Role.NODE))] == ["DATA 1 1300 bytes"]
