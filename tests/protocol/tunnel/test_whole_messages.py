"""A request or an answer that is given whole arrives as one that is given in pieces does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Code
from protocol.messages import RequestHead
from protocol.tunnel.base import Role
from protocol.tunnel.events import DataReceived
from protocol.tunnel.frames import MAX_DATA
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from tests.protocol.pieces import unhurried
from tests.protocol.tunnel.helpers import answering, opened
from tests.protocol.tunnel.pairs import Pair
from tests.protocol.tunnel.test_resume import Site, cut, down
from tests.pump import ANSWER, FIGURES, HEAD, Pump, lines, words_of

sizes = st.sampled_from([0, 1, 1000, MAX_DATA, MAX_DATA + 1, 3 * MAX_DATA, STREAM_WINDOW + 1])
few = settings(unhurried, max_examples=25)
spent = st.sampled_from([0, 0, 0, TUNNEL_WINDOW - 1000, TUNNEL_WINDOW - 999, TUNNEL_WINDOW])
"""Bytes of the tunnel's credit that other streams have used up."""


def spend(pump: Pump, role: Role, count: int) -> None:
    """Use up credit of the sender's tunnel."""
    while count:
        (stream,) = answering(pump) if role is Role.NODE else opened(pump, ended=False)
        piece = min(count, STREAM_WINDOW)
        pump.side(role).send_data(stream, bytes(piece))
        count -= piece
    pump.run()
    for side in Role:
        pump.events(side)


def heard(pump: Pump, role: Role) -> tuple[list[str], bytes]:
    """What happened, with neighbouring pieces of a body as one, and the whole body."""
    pump.run()
    events = pump.events(role)
    body = b"".join(one.data for one in events if type(one) is DataReceived)
    words = [f"data {one.ended}" if type(one) is DataReceived else words_of(one) for one in events]
    return [word for word in words if word != "data False"], body


@few
@given(size=sizes, used=spent, ended=st.booleans())
def test_a_request_that_is_opened_with_its_body(size: int, used: int, ended: bool) -> None:
    body = bytes(size)
    whole, pieces = Pump.greeted(), Pump.greeted()
    for pump in (whole, pieces):
        spend(pump, Role.SERVER, used)
    whole.server.open_stream(HEAD, now=whole.now, body=body, ended=ended)
    stream = pieces.server.open_stream(HEAD, now=pieces.now, ended=ended and not body)
    if body:
        pieces.server.send_data(stream, body, ended=ended)
    assert heard(whole, Role.NODE) == heard(pieces, Role.NODE)
    assert (whole.server.credit, whole.server.queued) == (
        pieces.server.credit,
        pieces.server.queued,
    )


@few
@given(size=sizes, used=spent)
def test_an_answer_that_is_sent_whole(size: int, used: int) -> None:
    body = bytes(size)
    whole, pieces = Pump.greeted(), Pump.greeted()
    for pump in (whole, pieces):
        spend(pump, Role.NODE, used)
        (stream,) = opened(pump)
        pump.events(Role.NODE)
    whole.node.send_answer(stream, ANSWER, body, FIGURES)
    pieces.node.send_head(stream, ANSWER)
    pieces.node.send_data(stream, body)
    pieces.node.end_stream(stream, FIGURES)
    assert heard(whole, Role.SERVER) == heard(pieces, Role.SERVER)
    assert (whole.node.credit, whole.node.queued) == (pieces.node.credit, pieces.node.queued)
    assert whole.node.active == pieces.node.active


@settings(unhurried, max_examples=60)
@given(size=sizes, share=st.floats(0, 1), sent=st.booleans(), before=st.booleans())
def test_a_whole_answer_survives_a_cut_anywhere(
    size: int, share: float, sent: bool, before: bool
) -> None:
    """``before``: the tunnel is lost before the answer is given; ``sent``: a part has arrived."""
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    site = Site()
    first = site.tunnel()
    stream = first.server.open_stream(HEAD, now=0.0, ended=True)
    down(first)
    if before:
        cut(first)
    first.node.send_answer(stream, ANSWER, body, FIGURES)
    got, over = b"", False
    if sent and not before:
        wire = b"".join(first.node.data_to_send())
        first.server.receive(wire[: int(len(wire) * share)], 0.0)
        got, over = collected(first)
    if not before:
        cut(first)
    if over:  # its END had come
        assert got == body
        return
    second = site.tunnel()
    second.server.resume_stream(first.server, stream, now=0.0)
    while not over:
        down(second)
        second.server.receive(b"".join(second.node.data_to_send()), 0.0)
        more, over = collected(second)
        got += more
    assert got == body


def collected(pair: Pair) -> tuple[bytes, bool]:
    """Consume what has come; return it, and whether the answer is complete."""
    got, over = b"", False
    for event in pair.server.events():
        if type(event) is DataReceived:
            got += event.data
            pair.server.consumed(event.stream_id, len(event.data))
        over = over or words_of(event).startswith("ended")
    return got, over


def test_an_answer_whose_request_was_reset_confirms_that() -> None:
    pump = Pump.greeted()
    (stream,) = opened(pump)
    pump.server.reset(stream, Code.CANCELLED)
    pump.run()
    pump.node.send_answer(stream, ANSWER, b"late", FIGURES)
    assert pump.run() == lines(f"< RESET {stream} none confirm\nserver: confirmed {stream}")


def test_a_request_with_its_body_is_one_flight() -> None:
    pump = Pump.greeted()
    head = RequestHead("r", "e", "POST", "/v1/chat/completions", [], 3, 60_000)
    pump.server.open_stream(head, now=pump.now, body=b"abc", ended=True)
    assert pump.run() == lines(
        """
        > OPEN 1
        > DATA 1 3 bytes end
        node: opened 1 POST /v1/chat/completions
        node: data 1 b'abc', ended
        """
    )
    pump.node.send_answer(1, ANSWER, b"whole", FIGURES)
    assert pump.run() == lines(
        """
        < HEAD 1
        < DATA 1 5 bytes
        < END 1
        server: head 1 200
        server: data 1 b'whole'
        server: ended 1
        """
    )
    assert (pump.server.active, pump.node.active) == (0, 0)
