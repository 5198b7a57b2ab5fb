"""One function per reader: it makes its case from a ``Random`` and raises what it finds wrong."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol import messages
from protocol.control.link import Link, LinkClosed
from protocol.tunnel.base import Role
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    ResetConfirmed,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamResumed,
)
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from tests.fuzz.traffic import broken, pieces_of, some_traffic
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, SIDES, frames_in

LINK_MESSAGES = [
    messages.encode(message)
    for message in (
        messages.Register(1, "0.1.0", "den", "linux", []),
        messages.Registered("node_1", 1, b"s", 17001, 2, 15.0),
        messages.Tunnels(3),
        messages.Engines(
            [messages.EngineReport("e", "openai", True, 1, [messages.ModelReport("m", size=3)])]
        ),
        messages.Leaving("restarting", 1.0),
        messages.Refused(13, "revoked", False),
        messages.Renew("-----BEGIN"),
        messages.Ping(1),
        messages.Pong(2**63),
    )
]


def same_in_any_pieces(rng: Random) -> None:
    """Both roles: whole or cut, the same bytes give the same events, answer and state."""
    role, data = rng.choice(list(Role)), some_traffic(rng)
    numbered = rng.random() < 0.5
    whole, cut = (_a_connection(role, numbered) for _ in range(2))
    whole.receive(data, 1.0)
    for piece in pieces_of(rng, data):
        cut.receive(piece, 1.0)
    assert whole.events() == cut.events()
    answers = [b"".join(side.data_to_send()) for side in (whole, cut)]
    assert answers[0] == answers[1]
    assert repr(whole) == repr(cut)
    assert "CLOSE" not in [frame.type for frame in frames_in(answers[0])][:-1]


def living_with_a_stranger(rng: Random) -> None:
    """An owner that does its part, a peer that does anything, and time that passes."""
    role = rng.choice(list(Role))
    connection = _a_connection(role, rng.random() < 0.5)
    now, gone, over = 0.0, set[int](), False
    carried = set[int]()

    def listen() -> None:
        nonlocal over
        ended = set[int]()  # by us; what happened before is still told
        for event in connection.events():
            assert not over, f"{event} behind the end"
            stream_id = getattr(event, "stream_id", None)
            assert stream_id not in gone, f"{event} behind the stream's end"
            match event:
                case ConnectionClosed():
                    over = True
                case DataReceived(id, data):
                    if rng.random() < 0.7:
                        connection.consumed(id, len(data))
                case StreamOpened(id):
                    carried.add(id)
                    connection.set_owner(id, "somebody")
                    connection.send_head(id, ANSWER)
                    connection.send_data(id, bytes(rng.choice([0, 10, 100_000, 300_000])))
                    if rng.random() < 0.5:
                        connection.end_stream(id, FIGURES)
                        ended.add(id)
                case StreamResumed(id):  # the one that went on has left its old id
                    for former in set(carried) - {id}:
                        if connection.owner(former) is None:
                            gone.add(former)
                    if connection.owner(id) is not None:
                        carried.add(id)
                case StreamReset(id):
                    gone.add(id)
                    if role is Role.NODE:
                        connection.confirm_reset(id)
                case StreamEnded(id) | ResetConfirmed(id):
                    gone.add(id)
        gone.update(ended)

    for _ in range(rng.randint(1, 5)):
        for piece in pieces_of(rng, some_traffic(rng)):
            connection.receive(piece, now)
            listen()
            if rng.random() < 0.1:
                now += rng.choice([0.0, 1.0, 5.0, 20.0])
                connection.handle_timer(now)
                assert connection.deadline > now
                listen()
            if rng.random() < 0.5:
                list(frames_in(b"".join(connection.data_to_send())))
                listen()
        if role is Role.SERVER and connection.usable:
            id = connection.open_stream(HEAD, now=now)
            if rng.random() < 0.5:
                connection.send_data(id, bytes(rng.choice([1, 300_000])), ended=True)
            if rng.random() < 0.2:
                connection.reset(id, 1)
        listen()
    connection.lost("cut")
    listen()
    assert over
    over = False  # what it has suspended ends now
    connection.abandon("nobody came")
    listen()
    assert connection.active == 0
    assert not connection.has_output or connection.data_to_send()


def link(rng: Random) -> None:
    data = b""
    for _ in range(rng.randint(1, 8)):
        payload = rng.choice(LINK_MESSAGES)
        if rng.random() < 0.4:
            payload = broken(rng, payload)
        data += len(payload).to_bytes(4, "big") + payload
    if rng.random() < 0.2:
        data = broken(rng, data)
    whole, cut = (Link(now=0.0, rng=Random(1)) for _ in range(2))
    whole.receive(data, 1.0)
    for piece in pieces_of(rng, data):
        cut.receive(piece, 1.0)
    events = whole.events()
    assert events == cut.events()
    assert b"".join(whole.data_to_send()) == b"".join(cut.data_to_send())
    assert not any(isinstance(event, LinkClosed) for event in events[:-1])


def _a_connection(role: Role, numbered: bool) -> ServerConnection | NodeConnection:
    """``numbered``: one whose streams may go on elsewhere, or come from itself."""
    if not numbered:
        connection = SIDES[role](now=0.0, rng=Random(1))
    elif role is Role.SERVER:
        connection = ServerConnection(now=0.0, rng=Random(1), resumes=True)
    else:
        connection = NodeConnection(now=0.0, rng=Random(1), number=7, resume_table=ResumeTable())
    if role is Role.NODE:
        connection.hello(SESSION)
    return connection


TARGETS: dict[str, Callable[[Random], None]] = {
    "pieces": same_in_any_pieces,
    "stranger": living_with_a_stranger,
    "link": link,
}
