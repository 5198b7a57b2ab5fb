"""What a tunnel says and hears.  ``>`` goes from the server to the node, ``<`` comes back."""

import gc
import tracemalloc

import msgspec
import pytest

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import Drain, ResponseHead
from protocol.tunnel import frames
from protocol.tunnel.base import MAX_CONTROL, Role, State
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    DrainReceived,
    StreamReset,
    StreamWritable,
)
from protocol.tunnel.frames import CONFIRM_FLAG, END_FLAG, MAX_DATA, FrameType
from protocol.tunnel.streams import MAX_STREAM_ID, STREAM_WINDOW, TUNNEL_WINDOW
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, Pump, frames_in, lines

KIB, MIB = 1024, 1024 * 1024


def frame(kind: str, stream_id: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return frames.encode(FrameType[kind], flags, stream_id, payload)


def window(stream_id: int, offset: int) -> bytes:
    return frame("WINDOW", stream_id, offset.to_bytes(8, "big"))


def reset(stream_id: int, code: Code = Code.CANCELLED, flags: int = 0) -> bytes:
    return frame("RESET", stream_id, frames.encode_reason(code, ""), flags)


def opened(pump: Pump, count: int = 1, *, ended: bool = True) -> list[int]:
    """So many streams, known on both sides."""
    ids = [pump.server.open_stream(HEAD, now=pump.now, ended=ended) for _ in range(count)]
    pump.run()
    return ids


def answering(pump: Pump, count: int = 1) -> list[int]:
    ids = opened(pump, count)
    for stream in ids:
        pump.node.send_head(stream, ANSWER)
    pump.run()
    return ids


def said_to(pump: Pump, role: Role, data: bytes) -> list[str]:
    """Everything that follows when ``role`` is given these bytes."""
    pump.give(role, data)
    return pump.run()


def refusal(pump: Pump, role: Role, data: bytes) -> str:
    """The CLOSE that these bytes earn, as the log would show it."""
    arrow = ">" if role is Role.SERVER else "<"
    said = said_to(pump, role, data)
    assert pump.side(role).closed, said
    closes = [line for line in said if line.startswith(f"{arrow} CLOSE ")]
    assert len(closes) == 1, said
    return closes[0].removeprefix(f"{arrow} CLOSE ")


# ── the story ─────────────────────────────────────────────────────────────────────────────────


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
    assert not pump.server.has_output


def test_a_tunnel_shows_where_it_stands():
    pump = Pump.greeted()
    opened(pump, 2)
    assert repr(pump.server) == f"<Connection server open streams=2 credit={TUNNEL_WINDOW}>"


# ── who comes first ───────────────────────────────────────────────────────────────────────────


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


# ── credit ────────────────────────────────────────────────────────────────────────────────────


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


# ── resets ────────────────────────────────────────────────────────────────────────────────────


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


# ── what a server may be told, and a node ─────────────────────────────────────────────────────


def hello(version: int = messages.VERSION, session: object = SESSION, *more: object) -> bytes:
    return frame("HELLO", 0, messages.encode([version, session, *more]))


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
    assert not pump.server.has_output, "one more byte, and a WINDOW is due"
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
    assert not pump.node.has_output


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


# ── floods ────────────────────────────────────────────────────────────────────────────────────


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


# ── leaving ───────────────────────────────────────────────────────────────────────────────────


def test_a_draining_server_opens_nothing_and_lets_what_runs_finish():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.drain("restarting", 30)
    assert pump.run() == lines("""
        > DRAIN 'restarting'
        node: drain 'restarting' 30 s
    """)
    assert pump.server.state is pump.node.state is State.DRAINING
    assert not pump.server.usable
    pump.node.send_data(stream, b"the rest")
    pump.node.end_stream(stream, FIGURES)
    assert pump.run() == lines("""
        < DATA 1 8 bytes
        < END 1
        server: data 1 b'the rest'
        server: ended 1
        > CLOSE none 'drained'
        server: closed by us: none 'drained'
        node: closed by peer: none 'drained'
    """)


def test_a_draining_node_lets_what_runs_finish_and_leaves_behind_it():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.drain("shutting down", 30)
    assert pump.run() == lines("""
        < DRAIN 'shutting down'
        server: drain 'shutting down' 30 s
    """)
    assert not pump.server.usable
    pump.node.send_data(stream, b"the rest")
    pump.node.end_stream(stream, FIGURES)
    assert pump.run() == lines("""
        < DATA 1 8 bytes
        < END 1
        server: data 1 b'the rest'
        server: ended 1
        < CLOSE none 'drained'
        node: closed by us: none 'drained'
        server: closed by peer: none 'drained'
    """)


def test_an_idle_tunnel_that_drains_is_closed_at_once():
    pump = Pump.greeted()
    pump.server.drain("restarting", 30)
    assert pump.run() == lines("""
        > DRAIN 'restarting'
        node: drain 'restarting' 30 s
        > CLOSE none 'drained'
        server: closed by us: none 'drained'
        node: closed by peer: none 'drained'
    """)


def test_a_cancelled_stream_is_waited_for_by_a_tunnel_that_drains():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.drain("restarting", 30)
    pump.server.reset(stream, Code.DRAINING)
    pump.run()
    assert not pump.server.closed
    pump.node.confirm_reset(stream)
    assert pump.run()[-1] == "node: closed by peer: none 'drained'"


def test_a_stream_that_crosses_the_drain_is_sent_back():
    pump = Pump.greeted()
    opened(pump)
    pump.node.drain("shutting down", 30)
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    crossing = pump.take(Role.SERVER)
    pump.give(Role.NODE, crossing)
    assert pump.run()[-2:] == lines("""
        server: drain 'shutting down' 30 s
        server: reset 3 draining 'this node is draining'
    """)


def test_a_tunnel_that_drains_before_hello_says_so_and_goes():
    pump = Pump()
    pump.server.drain("restarting", 30)
    assert pump.run()[:2] == [
        "server: closed by us: draining 'restarting'",
        "> CLOSE draining 'restarting'",
    ]


def test_a_long_reason_in_any_script_fits_into_a_drain():
    pump = Pump.greeted()
    opened(pump)
    pump.server.drain("再起動中" * 500, -3.0)
    assert pump.run()[-1].startswith("node: drain '再起動中")
    assert not pump.node.closed


def test_closing_ends_every_stream_first_and_says_why():
    pump = Pump.greeted()
    answering(pump, 2)
    pump.server.close(Code.SUPERSEDED, "registered again")
    assert pump.run() == lines("""
        server: reset 1 lost 'registered again'
        server: reset 3 lost 'registered again'
        server: closed by us: superseded 'registered again'
        > CLOSE superseded 'registered again'
        node: reset 1 lost 'registered again'
        node: reset 3 lost 'registered again'
        node: closed by peer: superseded 'registered again'
    """)
    assert pump.server.active == pump.node.active == 0
    assert pump.server.queued == pump.node.queued == 0


def test_a_lost_tunnel_ends_every_stream_and_says_nothing():
    pump = Pump.greeted()
    answering(pump)
    pump.node.lost("cut")
    assert pump.run() == lines("""
        node: reset 1 lost 'cut'
        node: closed by peer: lost 'cut'
    """)


def test_a_node_hears_once_of_a_stream_that_was_reset_before_the_tunnel_was_lost():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.server.reset(stream, Code.CANCELLED)
    pump.run()
    pump.node.lost("cut")
    assert pump.run() == ["node: closed by peer: lost 'cut'"]


def test_a_node_hears_nothing_of_a_stream_it_has_ended_itself():
    pump = Pump.greeted()
    (stream,) = answering(pump)
    pump.node.send_data(stream, bytes(STREAM_WINDOW + 1))
    pump.node.end_stream(stream, FIGURES)
    pump.run()
    pump.node.lost("cut")
    assert pump.run() == ["node: closed by peer: lost 'cut'"]


def test_a_closed_tunnel_takes_every_command_in_its_stride():
    for role in Role:
        pump = Pump.greeted()
        (stream,) = answering(pump)
        side = pump.side(role)
        side.close(Code.NONE)
        pump.run()
        side.close(Code.INTERNAL, "again")
        side.lost("again")
        side.receive(frame("PING", 0, bytes(8)), pump.now)
        side.handle_timer(pump.now + 100)
        side.ping(pump.now)
        side.drain("x", 1)
        side.reset(stream, 1)
        side.consumed(stream, 1)
        assert side.send_data(stream, b"x") is True
        assert side.events() == []
        assert side.data_to_send() == []
        assert not side.has_output
        if side is pump.server:
            assert not pump.server.usable


# ── the caller's own mistakes ─────────────────────────────────────────────────────────────────


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


# ── counting ──────────────────────────────────────────────────────────────────────────────────


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
