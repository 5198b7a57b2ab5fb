"""Streams that outlive their tunnels, one rule at a time."""

from __future__ import annotations

from random import Random

import pytest

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import MAX_LOST, Resume
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    HelloReceived,
)
from protocol.tunnel.frames import FrameType, encode
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from protocol.tunnel.unacknowledged import ACK_BYTES, MAX_UNACKNOWLEDGED
from tests.protocol.tunnel.pairs import Pair
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, frames_in, words_of


class Site:
    """A server's and a node's side of as many tunnels as a test asks for."""

    def __init__(self) -> None:
        self.resume_table = ResumeTable()
        self.count = 0

    def tunnel(self) -> Pair:
        pair = self.dial()
        up(pair)
        return pair

    def dial(self) -> Pair:
        """HELLO has been made, and not been sent."""
        self.count += 1
        pair = Pair(
            ServerConnection(now=0.0, rng=Random(1), resumes=True),
            NodeConnection(
                now=0.0, rng=Random(1), number=self.count, resume_table=self.resume_table
            ),
        )
        pair.node.hello(SESSION)
        return pair

    def answering(self, *, ended: bool = True) -> tuple[Pair, int]:
        pair = self.tunnel()
        stream = pair.server.open_stream(HEAD, now=0.0, ended=ended)
        down(pair)
        pair.node.send_head(stream, ANSWER)
        up(pair)
        return pair, stream


def down(pair: Pair) -> list[str]:
    """What the server says reaches the node; returns what that hears."""
    pair.node.receive(b"".join(pair.server.data_to_send()), 0.0)
    return [words_of(event) for event in pair.node.events()]


def up(pair: Pair) -> list[str]:
    pair.server.receive(b"".join(pair.node.data_to_send()), 0.0)
    return [words_of(event) for event in pair.server.events()]


def cut(pair: Pair) -> None:
    for side in (pair.server, pair.node):
        side.lost("cut")
        assert [type(event) for event in side.events()] == [ConnectionClosed]


def test_without_a_number_a_cut_ends_the_streams_of_both_sides_as_ever():
    for resumes in (True, False):
        pair = Pair(
            ServerConnection(now=0.0, rng=Random(1), resumes=resumes),
            NodeConnection(now=0.0, rng=Random(1)),
        )
        pair.node.hello(SESSION)
        up(pair)
        pair.server.open_stream(HEAD, now=0.0, ended=True)
        down(pair)
        for side in (pair.server, pair.node):
            side.lost("cut")
            assert [words_of(event) for event in side.events()] == [
                "reset 1 lost 'cut'",
                "closed by peer: lost 'cut'",
            ]
        assert pair.node.replay_bytes == 0


def test_a_node_without_a_number_takes_resume_for_the_breach_that_it_is():
    for kind, stream in ((FrameType.RESUME, 1), (FrameType.ACK, 0)):
        node = NodeConnection(now=0.0, rng=Random(1))
        node.receive(encode(kind, 0, stream, bytes(8)), 0.0)
        assert node.closed


def test_a_number_is_for_servers_that_resume_and_others_ignore_it():
    pair = Pair(
        ServerConnection(now=0.0, rng=Random(1)),
        NodeConnection(now=0.0, rng=Random(1), number=1, resume_table=ResumeTable()),
    )
    pair.node.hello(SESSION)
    assert up(pair) == ["hello b'session'"]
    pair.server.open_stream(HEAD, now=0.0, ended=True)
    down(pair)
    pair.node.send_head(1, ANSWER)
    pair.node.end_stream(1, FIGURES)
    assert up(pair) == ["head 1 200", "ended 1"]
    assert not pair.server.has_output(), "no ACK"


def lost_in_hello(pair: Pair) -> list[int]:
    """What the node says it has lost."""
    pair.server.receive(b"".join(pair.node.data_to_send()), 0.0)
    [event] = pair.server.events()
    assert isinstance(event, HelloReceived)
    return event.hello.lost


def test_a_node_says_which_tunnels_it_has_lost_until_it_forgets_them():
    site = Site()
    first, second = site.tunnel(), site.tunnel()
    assert lost_in_hello(site.dial()) == []
    first.node.lost("connection reset")
    assert lost_in_hello(site.dial()) == [1]
    second.node.lost("connection reset")
    assert lost_in_hello(site.dial()) == [1, 2]
    first.node.abandon("nobody asked for it any more")
    assert lost_in_hello(site.dial()) == [2]


def test_a_hello_has_room_for_the_newest_of_many_lost_tunnels():
    site = Site()
    site.count = 2**62
    lost = [site.dial() for _ in range(MAX_LOST + 4)]
    for pair in lost:
        pair.node.data_to_send()
        pair.node.lost("connection reset")
    numbers = [pair.node.number for pair in lost]
    assert lost_in_hello(site.dial()) == numbers[-MAX_LOST:]


def test_what_came_over_the_old_tunnel_is_not_credited_to_the_new_one():
    site = Site()
    old, stream = site.answering()
    old.node.send_data(stream, bytes(200_000))
    up(old)
    cut(old)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    down(new)
    new.node.send_data(stream, bytes(50_000))
    assert up(new) == [f"data {stream} 16372 bytes"] * 3 + [f"data {stream} 884 bytes"]
    new.server.consumed(stream, 200_000)
    new.server.consumed(stream, 50_000)
    assert new.server._inbound.consumed == new.server._inbound.received == 50_000


def test_the_newer_of_two_claims_holds_whichever_comes_last():
    site = Site()
    old, stream = site.answering()
    old.node.send_data(stream, b"one")
    up(old)
    old.server.lost("silent")
    slow, quick = site.tunnel(), site.tunnel()
    first = slow.server.resume_stream(old.server, stream, now=0.0)
    late = b"".join(slow.server.data_to_send())
    slow.server.lost("silent")
    second = quick.server.resume_stream(slow.server, first, now=0.0)
    assert down(quick) == [f"resumed {second}"]
    quick.node.send_data(second, b"two")
    slow.node.receive(late, 0.0)
    assert slow.node.events() == []
    assert [str(frame) for frame in frames_in(b"".join(slow.node.data_to_send()))] == [
        "RESET 1 unknown 'this stream is not here any more'"
    ]
    assert up(quick) == [f"data {second} b'two'"]
    assert old.node.active == slow.node.active == 0


def test_a_question_that_lost_a_part_is_given_up_on_both_sides():
    site = Site()
    old, stream = site.answering(ended=False)
    old.server.send_data(stream, b"half of it")
    old.server.data_to_send()
    cut(old)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    words = "'a part of the request was lost with its tunnel'"
    assert down(new) == [f"resumed {stream}", f"reset {stream} unknown {words}"]
    new.node.confirm_reset(stream)
    assert up(new) == [f"reset {stream} lost {words}"]
    assert new.server.active == new.node.active == 0


def test_a_question_that_lost_nothing_goes_on_where_it_was():
    site = Site()
    old, stream = site.answering(ended=False)
    old.server.send_data(stream, bytes(STREAM_WINDOW))
    down(old)
    old.node.consumed(stream, STREAM_WINDOW)
    old.node.data_to_send()  # the WINDOW is lost
    cut(old)
    old.server.send_data(stream, b"and the rest")
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == [f"resumed {stream}"]
    assert up(new) == []
    assert down(new) == [f"data {stream} b'and the rest'"]
    new.server.send_data(stream, b"", ended=True)
    assert down(new) == [f"data {stream} b'', ended"]


def test_the_end_of_a_question_said_between_tunnels_is_said_on_the_next_one():
    site = Site()
    old, stream = site.answering(ended=False)
    cut(old)
    old.server.send_data(stream, b"", ended=True)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == [f"resumed {stream}", f"data {stream} b'', ended"]


def test_what_was_granted_may_be_dropped_and_nothing_else_is():
    site = Site()
    pair, stream = site.answering()
    for _ in range(16):
        pair.node.send_data(stream, bytes(16_000))
    up(pair)
    assert pair.node.replay_bytes > 256_000
    sent = 256_000
    for consumed in range(140_000, 2_000_000, 140_000):
        pair.server.consumed(stream, 140_000)
        down(pair)
        assert sent - consumed <= pair.node.replay_bytes <= 2 * STREAM_WINDOW
        for _ in range(8):
            pair.node.send_data(stream, bytes(17_500))
        sent += 140_000
        up(pair)


def test_an_end_is_kept_until_it_is_acknowledged():
    site = Site()
    pair, stream = site.answering()
    for size in (10, 60_000):
        pair.node.send_data(stream, bytes(size))
        pair.node.end_stream(stream, FIGURES)
        up(pair)
        assert pair.node.active == 0
        assert pair.node.replay_bytes > size
        down(pair)
        if size == 10:
            assert pair.node.replay_bytes > size, "too little to be worth a frame"
            stream = pair.server.open_stream(HEAD, now=0.0, ended=True)
            down(pair)
            pair.node.send_head(stream, ANSWER)
    assert pair.node.replay_bytes == 0


def test_what_was_ignored_of_a_cancelled_answer_is_acknowledged_like_any_other():
    site = Site()
    pair, stream = site.answering()
    pair.node.send_data(stream, bytes(ACK_BYTES))
    pair.node.end_stream(stream, FIGURES)
    answer = b"".join(pair.node.data_to_send())
    pair.server.reset(stream, Code.CANCELLED)
    pair.server.receive(answer, 0.0)
    assert [words_of(event) for event in pair.server.events()] == [f"ended {stream}"]
    assert pair.node.replay_bytes > ACK_BYTES
    down(pair)
    assert pair.node.replay_bytes == 0


def test_small_answers_are_acknowledged_sixteen_at_a_time():
    site = Site()
    pair = site.tunnel()
    acknowledged = []
    for _ in range(48):
        stream = pair.server.open_stream(HEAD, now=0.0, ended=True)
        down(pair)
        pair.node.send_head(stream, ANSWER)
        pair.node.end_stream(stream, FIGURES)
        up(pair)
        if pair.server.has_output():
            acknowledged.append(stream)
        down(pair)
    assert acknowledged == [31, 63, 95]


def test_an_acknowledgement_of_what_was_never_sent_closes():
    site = Site()
    pair, _ = site.answering()
    pair.node.receive(encode(FrameType.ACK, 0, 0, (1).to_bytes(8, "big")), 0.0)
    assert pair.node.closed


def test_acknowledgements_that_tell_nothing_are_a_flood():
    site = Site()
    pair, _ = site.answering()
    pair.node.receive(encode(FrameType.ACK, 0, 0, bytes(8)) * 101, 0.0)
    closed = pair.node.events()[-1]
    assert words_of(closed) == "closed by us: calm 'too much ACK that tells nothing'"


def test_ends_that_nobody_acknowledges_are_kept_up_to_a_limit():
    site = Site()
    pair = site.tunnel()
    for _ in range(2 * MAX_UNACKNOWLEDGED):
        stream = pair.server.open_stream(HEAD, now=0.0, ended=True)
        pieces = pair.server.data_to_send()
        pair.node.receive(b"".join(one for one in pieces if one[0] != FrameType.ACK), 0.0)
        pair.node.send_head(stream, ANSWER)
        pair.node.send_data(stream, bytes(10_000))
        pair.node.end_stream(stream, FIGURES)
        data = b"".join(pair.node.data_to_send())
        pair.server.receive(data, 0.0)
        for event in pair.server.events():
            if isinstance(event, DataReceived):
                pair.server.consumed(stream, len(event.data))
        assert pair.node.replay_bytes <= TUNNEL_WINDOW
        assert pair.node.unacknowledged <= MAX_UNACKNOWLEDGED


def test_a_claim_of_bytes_that_are_not_kept_breaks_that_stream_alone():
    site = Site()
    pair, stream = site.answering()
    pair.node.send_data(stream, b"ten bytes.")
    up(pair)
    for attempt, (received, allowed) in enumerate([(11, 262_144), (5, 262_150)], 1):
        claim = Resume(1, 1, attempt, True, received, allowed, 0, True)
        frame = encode(FrameType.RESUME, 0, 1 + 2 * attempt, messages.encode(claim))
        pair.node.receive(frame, 0.0)
        if attempt == 1:
            assert words_of(pair.node.events()[-1]).startswith("reset 3 protocol")
            pair.node.confirm_reset(3)
            assert not pair.node.closed


def test_a_close_is_no_cut_but_crosses_a_resume():
    site = Site()
    old, stream = site.answering()
    cut(old)
    new, last = site.tunnel(), site.tunnel()
    new.node.drain("restarting", 1.0)
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    up(new)
    up(new)
    assert new.server.closed
    assert new.server.active == 1
    stream = last.server.resume_stream(new.server, stream, now=0.0)
    assert down(last) == [f"resumed {stream}"]


def test_one_that_is_being_stopped_moves_and_is_confirmed_where_it_is():
    site = Site()
    old, stream = site.answering()
    old.server.reset(stream, Code.CANCELLED)
    assert down(old) == ["reset 1 cancelled"]
    cut(old)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == [f"resumed {stream}"]
    new.node.confirm_reset(stream)
    assert up(new) == [f"confirmed {stream}"]


def test_one_that_the_node_gave_up_is_lost_though_its_work_is_still_being_stopped():
    site = Site()
    old, stream = site.answering(ended=False)
    old.server.send_data(stream, b"is lost with its tunnel")
    old.server.data_to_send()
    cut(old)
    new, last = site.tunnel(), site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    [resumed, given_up] = down(new)
    assert resumed == f"resumed {stream}"
    assert given_up.startswith(f"reset {stream} unknown")
    new.node.data_to_send()  # so is the RESET
    cut(new)
    moved = last.server.resume_stream(new.server, stream, now=0.0)
    assert down(last) == []
    [lost] = up(last)
    assert lost.startswith(f"reset {moved} lost")
    new.node.confirm_reset(stream)
    assert new.node.active == 0


def test_one_that_was_confirmed_on_the_way_is_confirmed_by_being_unknown():
    site = Site()
    old, stream = site.answering()
    cut(old)
    old.server.reset(stream, Code.CANCELLED)
    old.node.reset(stream, Code.ENGINE_FAILED)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == []
    assert up(new) == [f"confirmed {stream}"]


def test_a_stream_can_only_be_resumed_where_streams_can_be_opened_and_are_numbered():
    site = Site()
    old, stream = site.answering()
    cut(old)
    with pytest.raises(LocalError, match="no stream can be resumed"):
        old.server.resume_stream(old.server, stream, now=0.0)
    with pytest.raises(LocalError, match="is not closed"):
        site.tunnel().server.abandon("too early")
