"""Credit of streams and of the tunnel, in both directions."""

import pytest

from protocol.errors import Code, LocalError
from protocol.tunnel.base import Role
from protocol.tunnel.events import (
    DataReceived,
    StreamWritable,
)
from protocol.tunnel.frames import MAX_DATA
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from tests.protocol.tunnel.helpers import KIB, answering, frame, opened, refusal, said_to, window
from tests.pump import ANSWER, FIGURES, HEAD, Pump, frames_in, lines


def test_a_stream_may_send_its_window_and_no_more():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 1))
    pump.run()
    assert pump.node.queued == 1


def test_half_a_window_consumed_is_granted_again():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    pump.server.consumed(stream, STREAM_WINDOW // 2 - 1)
    assert pump.run() == []
    pump.server.consumed(stream, 1)
    assert pump.run() == [f"> WINDOW 1 {STREAM_WINDOW * 3 // 2:,}"]


def test_a_stalled_stream_does_not_hold_its_neighbours():
    pump = Pump.greeted()
    stalled, lively = answering(pump, 2)
    pump.node.send_data(stalled, bytes(2 * STREAM_WINDOW))
    got = 0
    for _ in range(100):
        pump.node.send_data(lively, bytes(100 * KIB))
        pump.run()
        for event in pump.events(Role.SERVER):
            if isinstance(event, DataReceived) and event.stream_id == lively:
                got += len(event.data)
                pump.server.consumed(lively, len(event.data))
    pump.run()
    assert got == 100 * 100 * KIB
    assert pump.node.queued == STREAM_WINDOW


def test_the_tunnel_may_hold_its_window_and_no_more():
    pump = Pump.greeted()
    ids = answering(pump, 20)
    for stream in ids:
        pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    assert pump.node.queued == 20 * STREAM_WINDOW - TUNNEL_WINDOW
    assert pump.node.credit == 0


def test_credit_for_the_tunnel_wakes_every_stream_that_waited_for_it():
    pump = Pump.greeted()
    ids = answering(pump, 20)
    for stream in ids:
        pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    got = dict.fromkeys(ids, 0)
    while events := [e for e in pump.events(Role.SERVER) if isinstance(e, DataReceived)]:
        for event in events:
            got[event.stream_id] += len(event.data)
            pump.server.consumed(event.stream_id, len(event.data))
        pump.run()
    assert got == dict.fromkeys(ids, STREAM_WINDOW)


def test_a_stream_that_found_the_tunnel_full_before_its_first_byte_gets_its_turn():
    pump = Pump.greeted()
    *early, late = answering(pump, 17)
    for stream in early:
        pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    assert pump.node.credit == 0
    pump.node.send_data(late, b"at last")
    assert pump.run() == []
    for stream in early[:8]:
        pump.server.consumed(stream, STREAM_WINDOW)
    assert f"server: data {late} b'at last'" in pump.run()


def test_the_turn_goes_on_where_the_tunnel_was_full():
    pump = Pump.greeted()
    *early, a, b, c = answering(pump, 19)
    for stream in early[:15]:
        pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.node.send_data(early[15], bytes(STREAM_WINDOW - 10_000))
    pump.run()
    for stream in (a, b, c):
        pump.node.send_data(stream, bytes(8000))
    assert [str(frame) for frame in frames_in(pump.take(Role.NODE))] == [
        f"DATA {a} 8000 bytes",
        f"DATA {b} 2000 bytes",
    ]
    for stream in early[:8]:
        pump.server.consumed(stream, STREAM_WINDOW)
    pump.carry(Role.SERVER)
    assert [str(frame) for frame in frames_in(pump.take(Role.NODE))] == [
        f"DATA {c} 8000 bytes",
        f"DATA {b} 6000 bytes",
    ]


def test_what_a_gone_stream_has_not_consumed_is_given_back():
    pump = Pump.greeted()
    for round in range(100):
        (stream,) = answering(pump)
        pump.node.send_data(stream, bytes(200 * KIB))
        pump.run()
        if round % 3 == 0:
            pump.node.end_stream(stream, FIGURES)
        elif round % 3 == 1:
            pump.node.reset(stream, Code.ENGINE_FAILED)
        else:
            pump.server.reset(stream, Code.CANCELLED)
            pump.run()
            pump.node.confirm_reset(stream)
        pump.run()
        assert pump.node.credit >= TUNNEL_WINDOW // 2, "20 MB in all went through 4 MiB of credit"
    assert pump.server.active == pump.node.active == 0


def test_data_that_crosses_a_reset_is_given_back():
    pump = Pump.greeted()
    for _ in range(100):
        (stream,) = answering(pump)
        pump.node.send_data(stream, bytes(STREAM_WINDOW))
        on_its_way = pump.take(Role.NODE)
        pump.server.reset(stream, Code.CANCELLED)
        pump.give(Role.SERVER, on_its_way)
        pump.run()
        pump.node.confirm_reset(stream)
        pump.run()
        assert not [e for e in pump.events(Role.SERVER) if isinstance(e, DataReceived)]
        assert pump.node.credit >= TUNNEL_WINDOW // 2


def test_a_question_that_is_not_read_gives_its_credit_back_with_the_answer():
    pump = Pump.greeted()
    for _ in range(100):
        stream = pump.server.open_stream(HEAD, now=pump.now)
        pump.server.send_data(stream, bytes(STREAM_WINDOW))
        pump.run()
        pump.node.send_head(stream, ANSWER)
        pump.node.end_stream(stream, FIGURES)
        pump.run()
        assert pump.server.credit >= TUNNEL_WINDOW // 2


def test_the_rest_of_a_question_that_was_answered_already_is_not_heard_and_costs_no_credit():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.run()
    pump.node.send_head(stream, ANSWER)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 1))
    pump.node.end_stream(stream, FIGURES)
    pump.run()
    assert pump.node.active == 1, "the last byte of the answer waits for credit"
    pump.events(Role.NODE)
    pump.server.send_data(stream, bytes(3 * STREAM_WINDOW), ended=True)
    pump.run()
    assert pump.server.queued == 0
    assert not [e for e in pump.events(Role.NODE) if isinstance(e, DataReceived)]


def test_what_is_consumed_after_the_stream_has_gone_is_not_counted_twice():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(200 * KIB))
    pump.node.end_stream(stream, FIGURES)
    pump.run()
    pump.server.consumed(stream, 200 * KIB)
    assert pump.run() == []
    assert pump.node.credit <= TUNNEL_WINDOW


def test_consuming_more_than_came_is_a_defect_of_the_caller():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, b"12345")
    pump.run()
    with pytest.raises(LocalError, match="not received"):
        pump.server.consumed(stream, 6)
    pump.server.consumed(stream, 5)


def test_no_window_is_sent_for_a_body_that_has_ended():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(stream, bytes(STREAM_WINDOW), ended=True)
    pump.run()
    pump.node.consumed(stream, STREAM_WINDOW)
    assert pump.run() == []


def test_a_writer_is_asked_to_wait_and_told_when_to_go_on():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    assert pump.node.send_data(stream, bytes(STREAM_WINDOW)) is True
    assert pump.node.send_data(stream, bytes(100 * KIB)) is False
    pump.run()
    assert pump.node.queued == 100 * KIB
    pump.server.consumed(stream, STREAM_WINDOW)
    assert "node: writable 1" in pump.run()
    assert pump.node.queued == 0


def test_a_writer_may_go_on_before_the_last_byte_has_gone():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 10_000))
    pump.run()
    assert pump.node.queued == 10_000
    assert pump.events(Role.NODE)[-1] == StreamWritable(stream)


def test_a_writer_is_told_once():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(600 * KIB))
    for _ in range(10):
        pump.run()
        for event in pump.events(Role.SERVER):
            if isinstance(event, DataReceived):
                pump.server.consumed(stream, len(event.data))
    writable = [e for e in pump.events(Role.NODE) if isinstance(e, StreamWritable)]
    assert writable == [StreamWritable(stream)]


def test_a_peer_that_sends_more_than_a_stream_may_hold_loses_that_stream():
    pump = Pump.greeted()
    greedy, modest = answering(pump, 2)
    data = frame("DATA", greedy, bytes(MAX_DATA)) * 17
    assert said_to(pump, Role.SERVER, data)[-3:] == lines("""
        server: reset 1 flow 'more DATA than the stream was granted'
        > RESET 1 flow 'more DATA than the stream was granted'
        node: reset 1 flow 'more DATA than the stream was granted'
    """)
    pump.node.send_data(modest, b"fine")
    assert f"server: data {modest} b'fine'" in pump.run()


def test_a_second_time_costs_the_tunnel():
    pump = Pump.greeted()
    first, second = answering(pump, 2)
    said_to(pump, Role.SERVER, frame("DATA", first, bytes(MAX_DATA)) * 17)
    words = refusal(pump, Role.SERVER, frame("DATA", second, bytes(MAX_DATA)) * 17)
    assert words == "flow 'more DATA than the stream was granted'"


def test_a_peer_that_sends_more_than_the_tunnel_may_hold_is_closed():
    pump = Pump.greeted()
    ids = answering(pump, 17)
    burst = b"".join(frame("DATA", id, bytes(MAX_DATA)) * 16 for id in ids)
    assert refusal(pump, Role.SERVER, burst) == "flow 'more DATA than the tunnel was granted'"


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        (window(1, STREAM_WINDOW + 1), "flow 'WINDOW beyond what the stream may hold'"),
        (window(1, 2**64 - 1), "flow 'WINDOW beyond what the stream may hold'"),
        (window(0, TUNNEL_WINDOW + 1), "flow 'WINDOW beyond what the tunnel may hold'"),
        (window(0, 2**64 - 1), "flow 'WINDOW beyond what the tunnel may hold'"),
    ],
)
def test_a_grant_beyond_the_window_is_refused(grant, words):
    pump = Pump.greeted()
    opened(pump, ended=False)
    assert refusal(pump, Role.SERVER, grant) == words


def test_an_old_grant_takes_nothing_back():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    pump.server.consumed(stream, STREAM_WINDOW)
    pump.run()
    pump.give(Role.NODE, window(stream, STREAM_WINDOW) + window(0, 0))
    pump.node.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    assert pump.node.queued == 0
