"""Peers that make work for nothing, and heavy honest traffic beside them."""

import pytest

from protocol import messages
from protocol.errors import Code
from protocol.tunnel.base import MAX_CONTROL, Role
from protocol.tunnel.events import (
    DataReceived,
)
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from tests.protocol.tunnel.helpers import KIB, answering, frame, refusal, said_to, window
from tests.pump import ANSWER, FIGURES, HEAD, Pump, frames_in


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (frame("PING", 0, bytes(8)), "too much PING"),
        (frame("PONG", 0, bytes(8)), "too much PONG that nobody asked for"),
        (frame("DATA", 1), "too much DATA that is empty"),
        (window(0, TUNNEL_WINDOW), "too much WINDOW that grants little"),
        (window(1, STREAM_WINDOW), "too much WINDOW that grants little"),
        (
            frame("DRAIN", 0, messages.encode(messages.Drain("", 1))),
            "too much DRAIN while draining",
        ),
    ],
)
def test_a_hundred_frames_that_do_no_work_are_borne_and_no_more(one, words):
    pump = Pump.greeted()
    answering(pump)
    said_to(pump, Role.SERVER, one * 100)
    assert not pump.server.closed
    assert refusal(pump, Role.SERVER, one * 2) == f"calm '{words}'"


def test_the_same_pong_counts_once():
    pump = Pump.greeted()
    pump.server.ping(pump.now)
    pump.run()
    again = frame("PONG", 0, (1).to_bytes(8, "big"))
    assert refusal(pump, Role.SERVER, again * 101) == "calm 'too much PONG that nobody asked for'"


def test_twenty_a_second_are_borne_for_ever():
    pump = Pump.greeted()
    for _ in range(1000):
        pump.now += 0.05
        pump.give(Role.SERVER, frame("PING", 0, bytes(8)))
        pump.run()
    assert not pump.server.closed


def test_answers_that_nobody_fetches_are_bounded():
    pump = Pump.greeted()
    unreadable = [frame("OPEN", id, b"\xc1") for id in range(1, 2 * MAX_CONTROL + 5, 2)]
    for one in unreadable:
        pump.give(Role.NODE, one)
    assert pump.node.closed
    (close,) = frames_in(pump.take(Role.NODE))
    assert str(close) == "CLOSE calm 'too many frames that ask for an answer'"


def test_heavy_honest_traffic_trips_no_rule():
    pump = Pump.greeted()
    chunk, rounds, streams = bytes(64 * KIB), 200, 24
    ids = answering(pump, streams)
    got = 0
    for _ in range(rounds):  # 300 MiB with windows as they come
        for stream in ids:
            pump.node.send_data(stream, chunk)
        while pump.carry(Role.NODE) + pump.carry(Role.SERVER):
            for event in pump.events(Role.SERVER):
                if isinstance(event, DataReceived):
                    got += len(event.data)
                    pump.server.consumed(event.stream_id, len(event.data))
            pump.forget()
    assert got == rounds * streams * len(chunk)
    assert not pump.server.closed
    assert not pump.node.closed


def test_thousands_of_requests_trip_no_rule_and_cost_no_credit():
    pump = Pump.greeted()
    for number in range(5000):
        stream = pump.server.open_stream(HEAD, now=pump.now)
        pump.server.send_data(stream, b"question" * 100, ended=True)
        pump.carry(Role.SERVER)
        pump.node.consumed(stream, 800)
        pump.node.send_head(stream, ANSWER)
        pump.node.send_data(stream, b"answer" * 1000)
        if number % 5 == 0:
            pump.server.reset(stream, Code.CANCELLED)
            pump.carry(Role.SERVER)
            pump.node.confirm_reset(stream)
        else:
            pump.node.end_stream(stream, FIGURES)
        pump.carry(Role.NODE)
        pump.carry(Role.SERVER)
        pump.forget()
    assert not pump.server.closed
    assert not pump.node.closed
    assert pump.server.active == pump.node.active == 0
    assert pump.server.credit >= TUNNEL_WINDOW // 2
    assert pump.node.credit >= TUNNEL_WINDOW // 2
