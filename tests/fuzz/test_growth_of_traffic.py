"""What a peer says by the rules, for as long as it likes, costs no more than it sends.

Tunnels and links get runs of n and of 4n frames or messages that are valid: for streams that run,
for streams that are gone, and for the connection itself.  Time passes between them, so that the
bounds of floods end none of the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from protocol import messages
from protocol.control.link import LENGTH, Link
from protocol.errors import Code
from protocol.messages import Drain, Resume
from protocol.tunnel.base import Role
from protocol.tunnel.events import DataReceived, Event, StreamOpened, StreamReset
from protocol.tunnel.frames import (
    CONFIRM_FLAG,
    END_FLAG,
    OFFSET,
    FrameType,
    encode,
    encode_reason,
)
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from tests.fuzz.test_growth import PIECE, Pieces, calls, faster_than_input, seconds
from tests.pump import ANSWER, FIGURES, HEAD, SESSION

RUN = 200
"""Frames of the shorter run whose work is counted."""
TIMED = 4000
"""Frames of the shorter run whose work is timed."""
TICK = 1.0
"""Seconds between two of them."""
GONE, RUNS = 1, 3
"""Ids of streams."""
HEAD_BYTES, ANSWER_BYTES = messages.encode(HEAD), messages.encode(ANSWER)
RESET = encode_reason(Code.CANCELLED, "gone")

Make = Callable[[int], bytes]
"""Makes the frames of one number of a run."""


def claim(number: int) -> bytes:
    return messages.encode(Resume(7, 1, number, False, 0, 0, 0, False))


def later(number: int) -> int:
    """Return the id of a stream that a server opens in a run."""
    return 2 * number + 5


BOTH: dict[str, Make] = {
    "pings": lambda n: encode(FrameType.PING, 0, 0, OFFSET.pack(n)),
    "pongs": lambda n: encode(FrameType.PONG, 0, 0, OFFSET.pack(n)),
    "drains": lambda n: encode(FrameType.DRAIN, 0, 0, messages.encode(Drain("later", 1.0))),
    "credit of the tunnel": lambda n: encode(FrameType.WINDOW, 0, 0, OFFSET.pack(2**21 + n)),
    "credit of a stream": lambda n: encode(FrameType.WINDOW, 0, RUNS, OFFSET.pack(n)),
    "credit of one that is gone": lambda n: encode(FrameType.WINDOW, 0, GONE, OFFSET.pack(n)),
    "data": lambda n: encode(FrameType.DATA, 0, RUNS, b"x" * 100),
    "empty data": lambda n: encode(FrameType.DATA, 0, RUNS),
    "data of one that is gone": lambda n: encode(FrameType.DATA, 0, GONE, b"x" * 100),
    "resets of one that is gone": lambda n: encode(FrameType.RESET, 0, GONE, RESET),
    "confirmations": lambda n: encode(FrameType.RESET, CONFIRM_FLAG, GONE, RESET),
}
TO_SERVER: dict[str, Make] = {
    **BOTH,
    "heads of one that is gone": lambda n: encode(FrameType.HEAD, 0, GONE, ANSWER_BYTES),
    "ends of one that is gone": lambda n: encode(FrameType.END, 0, GONE, messages.encode(FIGURES)),
}
TO_NODE: dict[str, Make] = {
    **BOTH,
    "streams": lambda n: encode(FrameType.OPEN, END_FLAG, later(n), HEAD_BYTES),
    "streams given up": lambda n: (
        encode(FrameType.OPEN, 0, later(n), HEAD_BYTES)
        + encode(FrameType.DATA, 0, later(n), b"x" * 100)
        + encode(FrameType.RESET, 0, later(n), RESET)
    ),
    "claims of streams that are not here": lambda n: encode(
        FrameType.RESUME, 0, later(n), claim(n)
    ),
    "acknowledgements": lambda n: encode(FrameType.ACK, 0, 0, OFFSET.pack(0)),
}


def server() -> ServerConnection:
    connection = ServerConnection(now=0.0, rng=Random(1))
    hello = messages.encode(messages.Hello(messages.VERSION, SESSION, 7))
    connection.receive(encode(FrameType.HELLO, 0, 0, hello), 0.0)
    for id in (GONE, RUNS):
        assert connection.open_stream(HEAD, now=0.0, ended=id == GONE) == id
        connection.receive(encode(FrameType.HEAD, 0, id, ANSWER_BYTES), 0.0)
    connection.receive(encode(FrameType.END, 0, GONE, messages.encode(FIGURES)), 0.0)
    connection.events()
    return connection


def node() -> NodeConnection:
    connection = NodeConnection(now=0.0, rng=Random(1), number=9, resume_table=ResumeTable())
    connection.hello(SESSION)
    for id in (GONE, RUNS):
        connection.receive(encode(FrameType.OPEN, 0, id, HEAD_BYTES), 0.0)
    connection.receive(encode(FrameType.RESET, 0, GONE, RESET), 0.0)
    connection.confirm_reset(GONE)
    connection.events()
    return connection


def handle(connection: ServerConnection | NodeConnection, event: Event) -> None:
    if isinstance(event, DataReceived):
        connection.consumed(event.stream_id, len(event.data))
    elif isinstance(connection, NodeConnection):
        if isinstance(event, StreamReset):
            connection.confirm_reset(event.stream_id)
        elif isinstance(event, StreamOpened) and event.ended:
            connection.send_head(event.stream_id, ANSWER)
            connection.end_stream(event.stream_id, FIGURES)


def tunnel(role: Role, pieces: Pieces) -> None:
    """Take a run as a program does: events are heard, answers sent, data consumed."""
    connection = server() if role is Role.SERVER else node()
    for number, piece in enumerate(pieces):
        connection.receive(piece, number * TICK)
        for event in connection.events():
            handle(connection, event)
        connection.data_to_send(1 << 20)
    assert not connection.closed


def link(pieces: Pieces) -> None:
    one = Link(now=0.0, rng=Random(1))
    for number, piece in enumerate(pieces):
        one.receive(piece, number * TICK)
        one.events()
        one.data_to_send()
    assert not one.closed


def framed(message: messages.Message) -> bytes:
    payload = messages.encode(message)
    return LENGTH.pack(len(payload)) + payload


MODELS = [messages.ModelReport(f"m{one}", size=one) for one in range(20)]
ENGINES = [messages.EngineReport("e", "openai", True, 1, MODELS)]
SAID: dict[str, Callable[[int], messages.Message]] = {
    "heartbeats": lambda n: messages.Heartbeat(n, 1.0, 1.0, *[1] * 4, 1.0, 1.0, *[1] * 4),
    "registrations": lambda n: messages.Register(1, "0.1.0", "den", f"linux {n}", []),
    "answers to them": lambda n: messages.Registered("node_1", n, b"s", 17001, 2, 15.0),
    "engines": lambda n: messages.Engines(ENGINES),
    "counts of tunnels": lambda n: messages.Tunnels(1 + n % 16),
    "renewals": lambda n: messages.Renew(f"-----BEGIN {n}"),
    "certificates": lambda n: messages.Renewed(f"-----BEGIN {n}"),
    "farewells": lambda n: messages.Leaving("restarting", 1.0),
    "pings": messages.Ping,
    "pongs": messages.Pong,
}


def said(make: Callable[[int], messages.Message]) -> Make:
    return lambda number: framed(make(number))


RUNS_OF: dict[str, tuple[Callable[[Pieces], None], Make]] = {
    **{f"server: {name}": (partial(tunnel, Role.SERVER), make) for name, make in TO_SERVER.items()},
    **{f"node: {name}": (partial(tunnel, Role.NODE), make) for name, make in TO_NODE.items()},
    **{f"link: {name}": (link, said(make)) for name, make in SAID.items()},
}


@pytest.mark.parametrize("run", RUNS_OF)
def test_the_calls_of_a_long_run_grow_with_its_length(run: str) -> None:
    read, make = RUNS_OF[run]
    read([make(0)])  # what is made at the first call only
    counted = [calls(read, [make(n) for n in range(count)]) for count in (RUN, 4 * RUN)]
    assert counted[0] > RUN
    assert not faster_than_input([(run, *counted)], 4.2, 2000)


@pytest.mark.parametrize("run", RUNS_OF)
def test_the_time_of_a_long_run_grows_with_its_length(run: str) -> None:
    read, make = RUNS_OF[run]
    small, large = ([make(n) for n in range(count)] for count in (TIMED, 4 * TIMED))
    for attempt in range(4):
        found = (run, seconds(read, small), seconds(read, large))
        if not faster_than_input([found], 8, 0.05):
            break
        assert attempt < 3, found


@pytest.mark.parametrize("run", RUNS_OF)
def test_frames_cut_small_cost_by_their_number_and_not_by_what_came_before(run: str) -> None:
    read, make = RUNS_OF[run]
    counted = []
    for count in (RUN, 4 * RUN):
        data = b"".join(make(n) for n in range(count))
        pieces = [data[at : at + PIECE // 4] for at in range(0, len(data), PIECE // 4)]
        counted.append(calls(read, pieces))
    assert not faster_than_input([(run, *counted)], 4.2, 2000)
