"""Any bytes in any pieces: the same events, and never an exception."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import messages
from protocol.messages import Drain, Hello
from protocol.tunnel import frames
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    Event,
    ResetConfirmed,
    StreamEnded,
    StreamOpened,
    StreamReset,
)
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import STREAM_WINDOW
from tests.protocol.pieces import broken, cuts, pieces_of, unhurried
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, frames_in

PAYLOADS = [
    messages.encode(Hello(1, SESSION)),
    messages.encode(Hello(2, SESSION)),
    messages.encode(HEAD),
    messages.encode(ANSWER),
    messages.encode(FIGURES),
    messages.encode(Drain("restarting", 3.0)),
    frames.encode_reason(1, "hung up"),
    (STREAM_WINDOW + 5).to_bytes(8, "big"),
    bytes(8),
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 3000,
    b"x" * frames.MAX_DATA,
]

payloads = st.sampled_from(PAYLOADS) | st.binary(max_size=40)
stream_ids = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 7, 2, 99, 2**32 - 1])
sane_frames = st.builds(
    frames.encode,
    st.sampled_from(list(frames.FrameType)),
    st.sampled_from([0, 0, 0, 1]),
    stream_ids,
    payloads,
)
either = [
    frames.encode(frames.FrameType.RESET, 0, 1, PAYLOADS[6]),
    frames.encode(frames.FrameType.RESET, 1, 3, PAYLOADS[6]),
    frames.encode(frames.FrameType.WINDOW, 0, 3, PAYLOADS[7]),
    frames.encode(frames.FrameType.WINDOW, 0, 0, PAYLOADS[8]),
    frames.encode(frames.FrameType.PING, 0, 0, PAYLOADS[8]),
    frames.encode(frames.FrameType.PONG, 0, 0, (1).to_bytes(8, "big")),
    frames.encode(frames.FrameType.DRAIN, 0, 0, PAYLOADS[5]),
    frames.encode(frames.FrameType.DATA, 0, 1, b"some data"),
    frames.encode(frames.FrameType.DATA, 0, 1, PAYLOADS[-1]),
]
from_nodes = [
    frames.encode(frames.FrameType.HEAD, 0, 3, PAYLOADS[3]),
    frames.encode(frames.FrameType.DATA, 0, 3, b"after the head or before"),
    frames.encode(frames.FrameType.END, 0, 1, PAYLOADS[4]),
    frames.encode(frames.FrameType.RESET, 1, 5, PAYLOADS[6]),
]
from_servers = [
    frames.encode(frames.FrameType.OPEN, 0, 5, PAYLOADS[2]),
    frames.encode(frames.FrameType.OPEN, 1, 7, PAYLOADS[2]),
    frames.encode(frames.FrameType.DATA, 1, 3, b"the last"),
]
fitting_frames = st.sampled_from(either + from_nodes + from_servers)
raw_frames = st.builds(
    lambda type, flags, reserved, id, length, payload: (
        frames.HEADER.pack(type, flags, reserved, id, length) + payload
    ),
    st.integers(0, 255),
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1, 0xFFFF]),
    stream_ids,
    st.integers(0, 2**32 - 1) | st.integers(0, 50),
    payloads,
)


traffic = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(either + from_nodes), max_size=12).map(b"".join),
    st.lists(st.sampled_from(either + from_servers), max_size=12).map(b"".join),
    st.lists(fitting_frames | sane_frames, max_size=12).map(b"".join),
    st.lists(fitting_frames | sane_frames | raw_frames, max_size=12).map(b"".join),
    st.lists(fitting_frames | sane_frames, max_size=8).map(b"".join).flatmap(broken),
)


def a_server(busy: bool) -> ServerConnection:
    """Fresh, or greeted and with stream 1 answered, 3 and 5 open, 5 given up, data waiting."""
    server = ServerConnection(now=0.0, rng=Random(1))
    if busy:
        server.receive(frames.encode(frames.FrameType.HELLO, 0, 0, PAYLOADS[0]), 0.0)
        for _ in range(3):
            server.open_stream(HEAD, now=0.0)
        server.send_data(3, b"y" * (STREAM_WINDOW + 10))
        server.reset(5, 1)
        server.ping(0.0)
        server.receive(frames.encode(frames.FrameType.HEAD, 0, 1, PAYLOADS[3]), 0.0)
    return server


def a_node(busy: bool) -> NodeConnection:
    node = NodeConnection(now=0.0, rng=Random(1))
    node.hello(SESSION)
    if busy:
        for id in (1, 3):
            node.receive(frames.encode(frames.FrameType.OPEN, 0, id, PAYLOADS[2]), 0.0)
            node.send_head(id, ANSWER)
        node.send_data(3, b"y" * (STREAM_WINDOW + 10))
        node.end_stream(3, FIGURES)
        node.ping(0.0)
        node.events()
    return node


SIDES = {
    "fresh server": lambda: a_server(False),
    "busy server": lambda: a_server(True),
    "fresh node": lambda: a_node(False),
    "busy node": lambda: a_node(True),
}


def check_order(events: list[Event]) -> None:
    """Nothing behind the end of a stream or of the connection."""
    gone: set[int] = set()
    for at, event in enumerate(events):
        if isinstance(event, ConnectionClosed):
            assert at == len(events) - 1
        stream_id = getattr(event, "stream_id", None)
        assert stream_id not in gone
        if isinstance(event, StreamEnded | StreamReset | ResetConfirmed):
            gone.add(stream_id)


@pytest.mark.parametrize("side", SIDES)
@unhurried
@given(data=traffic, sizes=cuts)
def test_any_bytes_in_any_pieces_give_the_same_events_and_the_same_answer(side, data, sizes):
    whole, cut = SIDES[side](), SIDES[side]()
    whole.receive(data, 1.0)
    for piece in pieces_of(data, sizes):
        cut.receive(piece, 1.0)
    events = whole.events()
    assert cut.events() == events
    answer = b"".join(whole.data_to_send())
    assert b"".join(cut.data_to_send()) == answer
    assert (cut.closed, cut.active, cut.queued, cut.credit) == (
        whole.closed,
        whole.active,
        whole.queued,
        whole.credit,
    )
    check_order(events)
    said = [frame.type for frame in frames_in(answer)]
    assert "CLOSE" not in said[:-1], "nothing is said behind a CLOSE"
    if whole.closed:
        assert isinstance(events[-1], ConnectionClosed)
        assert said == ([] if events[-1].by_peer else ["CLOSE"])


@unhurried
@given(said=st.lists(st.sampled_from(either + from_nodes), max_size=12), sizes=cuts)
def test_every_frame_is_heard_with_its_last_byte(said, sizes):
    server = a_server(True)
    before, carried, ends = server.frames_received, 0, []
    for frame in said:
        ends.append(len(frame) + (ends[-1] if ends else 0))
    for piece in pieces_of(b"".join(said), sizes):
        server.receive(piece, 1.0)
        carried += len(piece)
        if server.closed:
            break
        assert server.frames_received - before == sum(end <= carried for end in ends)


@pytest.mark.parametrize("side", SIDES)
@unhurried
@given(data=traffic, sizes=cuts, waits=st.lists(st.floats(0.0, 20.0), max_size=20))
def test_any_bytes_at_any_time_never_raise(side, data, sizes, waits):
    connection = SIDES[side]()
    now, events, pauses = 0.0, [], deque(waits)
    for piece in pieces_of(data, sizes):
        if pauses:
            now += pauses.popleft()
            connection.handle_timer(now)
        connection.receive(piece, now)
        for event in connection.events():
            events.append(event)
            match event:
                case DataReceived(id, payload):
                    connection.consumed(id, len(payload))
                case StreamOpened(id):
                    connection.send_head(id, ANSWER)
                    connection.send_data(id, b"z" * 30_000)
                case StreamReset(id):
                    if isinstance(connection, NodeConnection):
                        connection.confirm_reset(id)
        list(frames_in(b"".join(connection.data_to_send())))
    connection.lost("cut")
    events += connection.events()
    assert sum(isinstance(event, ConnectionClosed) for event in events) == 1
    assert isinstance(events[-1], ConnectionClosed)
    check_order(events)
