"""Streams that either side gives up, and what crosses them."""

import gc
import tracemalloc

from protocol.errors import Code
from protocol.tunnel.base import Role
from protocol.tunnel.streams import STREAM_WINDOW
from tests.protocol.tunnel.helpers import (
    KIB,
    answering,
    opened,
)
from tests.pump import ANSWER, FIGURES, HEAD, Pump, lines


def test_a_cancelled_stream_is_gone_when_the_node_confirms():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.reset(stream, Code.CANCELLED, "hung up")
    assert pump.run() == lines("""
        > RESET 1 cancelled 'hung up'
        node: reset 1 cancelled 'hung up'
    """)
    assert pump.server.active == 1, "the engine may still be at work"
    pump.node.confirm_reset(stream)
    assert pump.run() == lines("""
        < RESET 1 none confirm
        server: confirmed 1
    """)
    assert pump.server.active == pump.node.active == 0


def test_a_node_that_ends_or_resets_what_was_cancelled_has_confirmed_it():
    for stop in ("end_stream", "reset"):
        pump = Pump.greeted()
        (stream,) = answering(pump)
        pump.server.reset(stream, Code.CANCELLED)
        pump.run()
        if stop == "reset":
            pump.node.reset(stream, Code.ENGINE_FAILED)
        else:
            pump.node.end_stream(stream, FIGURES)
        assert pump.run() == ["< RESET 1 none confirm", "server: confirmed 1"]


def test_what_a_node_says_on_a_cancelled_stream_is_not_sent():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    pump.server.reset(stream, Code.CANCELLED)
    pump.run()
    pump.node.send_head(stream, ANSWER)
    assert pump.node.send_data(stream, b"too late") is True
    assert pump.run() == []


def test_a_node_gives_a_stream_up_at_once():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    pump.node.reset(stream, Code.ENGINE_DOWN, "connection refused")
    assert pump.node.active == 0
    assert pump.run() == lines("""
        < RESET 1 engine_down 'connection refused'
        server: reset 1 engine_down 'connection refused'
    """)
    assert pump.server.active == 0


def test_a_reset_that_crosses_the_end_is_no_error():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.end_stream(stream, FIGURES)
    ending = pump.take(Role.NODE)
    pump.server.reset(stream, Code.CANCELLED)
    resetting = pump.take(Role.SERVER)
    pump.give(Role.SERVER, ending)
    pump.give(Role.NODE, resetting)
    assert pump.run() == lines("""
        < END 1
        > RESET 1 cancelled
        server: ended 1
    """)
    assert pump.server.active == pump.node.active == 0


def test_a_reset_that_crosses_a_whole_answer_ends_with_the_answer():
    pump = Pump.greeted()
    (stream,) = opened(pump)
    pump.node.send_head(stream, ANSWER)
    pump.node.send_data(stream, b"answer")
    pump.node.end_stream(stream, FIGURES)
    answer = pump.take(Role.NODE)
    pump.server.reset(stream, Code.CANCELLED)
    pump.give(Role.SERVER, answer)
    assert pump.run()[-2:] == ["server: ended 1", "> RESET 1 cancelled"]


def test_resets_that_cross_are_one_end_on_each_side():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.reset(stream, Code.ENGINE_FAILED)
    pump.server.reset(stream, Code.CANCELLED)
    a, b = pump.take(Role.NODE), pump.take(Role.SERVER)
    pump.give(Role.SERVER, a)
    pump.give(Role.NODE, b)
    assert pump.run()[2:] == ["server: confirmed 1"]
    assert pump.server.active == pump.node.active == 0


def test_a_cancelled_stream_whose_end_waits_in_the_queue_is_still_confirmed():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 100))
    pump.node.end_stream(stream, FIGURES)
    pump.run()
    assert pump.node.active == 1, "its last bytes wait for credit"
    pump.server.reset(stream, Code.SLOW_READER)
    assert pump.run() == lines("""
        > RESET 1 slow_reader
        < RESET 1 none confirm
        server: confirmed 1
    """)
    assert pump.node.active == 0


def test_a_stream_that_is_reset_twice_is_reset_once():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.reset(stream, Code.CANCELLED)
    pump.server.reset(stream, Code.TIMEOUT)
    assert pump.run()[0] == "> RESET 1 cancelled"
    pump.node.confirm_reset(stream)
    pump.node.confirm_reset(stream)
    assert pump.run() == ["< RESET 1 none confirm", "server: confirmed 1"]


def test_a_stream_opened_and_reset_in_one_breath_is_opened_and_reset():
    pump = Pump.greeted()
    stream = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(stream, b"never mind", ended=True)
    pump.server.reset(stream, Code.CANCELLED)
    assert pump.run() == lines("""
        > OPEN 1
        > RESET 1 cancelled
        node: opened 1 POST /v1/chat/completions
        node: reset 1 cancelled
    """)


def test_cancelled_streams_hold_their_slots_until_confirmed():
    pump = Pump.greeted(max_streams=2)
    first = opened(pump, 2)[0]
    pump.server.reset(first, Code.CANCELLED)
    pump.run()
    assert not pump.server.usable
    pump.node.confirm_reset(first)
    pump.run()
    assert pump.server.usable


def test_streams_reset_while_the_tunnel_waits_for_credit_leave_nothing_behind():
    pump = Pump.greeted()
    for stream in [pump.server.open_stream(HEAD, now=pump.now) for _ in range(17)]:
        pump.server.send_data(stream, bytes(STREAM_WINDOW))
    pump.run()
    assert pump.server.credit == 0

    def churn(count: int) -> None:
        for _ in range(count):
            stream = pump.server.open_stream(HEAD, now=pump.now)
            pump.server.send_data(stream, b"question", ended=True)
            pump.carry(Role.SERVER)
            pump.server.reset(stream, Code.TIMEOUT)
            pump.carry(Role.SERVER)
            pump.node.confirm_reset(stream)
            pump.carry(Role.NODE)
            pump.forget()

    churn(100)
    gc.collect()
    tracemalloc.start()
    churn(1000)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50 * KIB, "each stream left behind would be about 500 bytes"
