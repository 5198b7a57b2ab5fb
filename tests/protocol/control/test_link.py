"""What a node and a server say about the node itself, and what neither puts up with."""

from random import Random

import msgspec
import pytest

from protocol import messages
from protocol.control.link import FIRST_MESSAGE_SECONDS, LENGTH, MAX_MESSAGE, Link, LinkClosed
from protocol.errors import Code, LocalError
from protocol.messages import (
    EngineReport,
    Engines,
    Heartbeat,
    Message,
    ModelReport,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    Tunnels,
)
from protocol.tunnel.keepalive import CHALLENGE_SECONDS

MODEL = ModelReport("llama3.2:1b", size=1_300_000_000, loaded=True)
ENGINE = EngineReport("ollama", "ollama", True, 1, [MODEL])
REGISTER = Register(1, "0.1.0", "living room", "linux x86_64", [ENGINE])
REGISTERED = Registered("node_1", 3, b"s" * 32, 17001, 2, 15.0)
HEARTBEAT = Heartbeat(
    seq=1,
    at=1.7e9,
    cpu_percent=3.5,
    memory_bytes=16 << 30,
    memory_used_bytes=4 << 30,
    disk_bytes=1 << 40,
    disk_used_bytes=1 << 39,
    network_in_bytes_per_second=0.0,
    network_out_bytes_per_second=0.0,
    slots=1,
    active=0,
    engines_healthy=1,
    engines=1,
)


class Pair:
    """A server's link and a node's, and the time both live in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.server = Link(now=self.now, rng=Random(1))
        self.node = Link(now=self.now, rng=Random(2))
        self.cut = False

    @classmethod
    def registered(cls) -> "Pair":
        pair = cls()
        pair.node.send(REGISTER)
        pair.server.send(REGISTERED)
        pair.run()
        pair.server.events()
        pair.node.events()
        return pair

    def run(self) -> list[bytes]:
        """Carry everything; returns the messages that crossed, as bytes."""
        crossed = []
        while self.server.has_output() or self.node.has_output():
            for here, there in ((self.server, self.node), (self.node, self.server)):
                data = b"".join(here.data_to_send())
                if data and not self.cut:
                    crossed.append(data)
                    there.receive(data, self.now)
        return crossed

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := min(self.server.deadline, self.node.deadline)) <= until:
            self.now = max(self.now, due)
            for side in (self.server, self.node):
                if side.deadline <= self.now:
                    side.handle_timer(self.now)
                    assert side.deadline > self.now
            self.run()
        self.now = until


def written(message: object) -> bytes:
    payload = messages.encode(message)
    return LENGTH.pack(len(payload)) + payload


def heard_by_server(*parts: bytes) -> list[Message | LinkClosed]:
    link = Link(now=0.0, rng=Random(1))
    for part in parts:
        link.receive(part, 0.0)
    return link.events()


# ── the story ─────────────────────────────────────────────────────────────────────────────────


def test_a_node_registers_and_is_registered():
    pair = Pair()
    pair.node.send(REGISTER)
    pair.run()
    assert pair.server.events() == [REGISTER]
    pair.server.send(REGISTERED)
    pair.run()
    assert pair.node.events() == [REGISTERED]


@pytest.mark.parametrize(
    "message",
    [
        REGISTER,
        Engines([ENGINE]),
        HEARTBEAT,
        messages.Renew("-----BEGIN CERTIFICATE REQUEST-----"),
        REGISTERED,
        Tunnels(4),
        messages.Renewed("-----BEGIN CERTIFICATE-----"),
        messages.Leaving("restarting", 60.0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_arrives_as_it_was_sent(message):
    assert heard_by_server(written(message)) == [message]


def test_a_message_is_a_length_and_a_map_with_its_type():
    link = Link(now=0.0, rng=Random(1))
    link.send(Tunnels(4))
    (data,) = link.data_to_send()
    assert data == b"\x00\x00\x00\x15" + msgspec.msgpack.encode({"type": "tunnels", "count": 4})


def test_messages_may_come_in_any_pieces():
    data = written(REGISTER) + written(HEARTBEAT) + written(Tunnels(3))
    whole = heard_by_server(data)
    assert len(whole) == 3
    assert heard_by_server(*(data[at : at + 1] for at in range(len(data)))) == whole


def test_fields_of_a_newer_release_are_ignored():
    newer = msgspec.to_builtins(Tunnels(4)) | {"colour": "green", "nested": {"a": [1]}}
    assert heard_by_server(written(newer)) == [Tunnels(4)]


def test_fields_with_a_default_may_be_missing():
    bare = {"name": "m"}
    report = {"name": "e", "kind": "openai", "healthy": True, "slots": 1, "models": [bare]}
    (message,) = heard_by_server(written({"type": "engines", "engines": [report]}))
    assert message == Engines([EngineReport("e", "openai", True, 1, [ModelReport("m")])])


def test_pings_are_answered_here_and_never_come_out():
    pair = Pair.registered()
    pair.server.send(Ping(7))
    pair.server.data_to_send()
    pair.node.receive(written(Ping(7)), 0.0)
    assert pair.node.data_to_send() == [written(Pong(7))]
    assert pair.node.events() == []


# ── refusals and ends ─────────────────────────────────────────────────────────────────────────


def test_a_refusal_ends_both_sides_and_says_whether_to_come_again():
    pair = Pair()
    pair.node.send(REGISTER)
    pair.run()
    pair.server.events()
    pair.server.close(Code.UNAUTHORISED, "this node was revoked", again=False)
    pair.run()
    ended = LinkClosed(Code.UNAUTHORISED, "this node was revoked", again=False, by_peer=True)
    assert pair.node.events() == [ended]
    assert pair.server.events() == [msgspec.structs.replace(ended, by_peer=False)]
    assert pair.server.closed
    assert pair.node.closed


def test_what_was_sent_before_a_close_still_goes_out():
    pair = Pair.registered()
    pair.server.send(Tunnels(3))
    pair.server.close(Code.NONE, "bye")
    pair.run()
    assert pair.node.events() == [Tunnels(3), LinkClosed(Code.NONE, "bye", True, True)]


def test_a_lost_link_may_be_tried_again():
    pair = Pair.registered()
    pair.node.lost("cut")
    assert pair.node.events() == [LinkClosed(Code.LOST, "cut", True, True)]
    assert pair.node.data_to_send() == []


def test_a_reason_in_any_script_arrives():
    pair = Pair.registered()
    pair.server.close(Code.NONE, "終" * 5000)
    pair.run()
    (closed,) = pair.node.events()
    assert closed.reason == "終" * 333


def test_a_reason_that_utf8_cannot_say_still_ends_the_link():
    pair = Pair.registered()
    pair.server.close(Code.NONE, "\udcff")
    pair.run()
    assert pair.node.events() == [LinkClosed(Code.NONE, "?", True, True)]


def test_a_closed_link_takes_every_command_in_its_stride():
    pair = Pair.registered()
    link = pair.server
    link.close(Code.NONE, "bye")
    link.data_to_send()
    link.events()
    link.close(Code.INTERNAL, "again")
    link.lost("again")
    link.send(Tunnels(2))
    link.receive(written(HEARTBEAT), 0.0)
    link.handle_timer(1000.0)
    assert link.events() == []
    assert link.data_to_send() == []
    assert link.deadline == float("inf")


def test_nothing_is_heard_behind_a_refusal():
    events = heard_by_server(written(Refused(1, "no", True)) + written(HEARTBEAT))
    assert events == [LinkClosed(1, "no", True, True)]


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x00\x00\x00", "a message of 0 bytes"),
        (LENGTH.pack(MAX_MESSAGE + 1), f"a message of {MAX_MESSAGE + 1} bytes"),
        (b"GET / HTTP/1.1\r\n", "a message of 1195725856 bytes"),
        (b"\x16\x03\x01\x02\x00\x01", "a message of 369295618 bytes"),
        (b"\x00\x00\x00\x01\xc1", "a message that can't be read"),
        (b"\x00\x00\x00\x01\x90", "a message that can't be read: Expected `object`, got `array`"),
        (written({"type": "surprise"}), "a message that can't be read: Invalid value 'surprise'"),
        (written({"count": 3}), "missing required field `type`"),
        (written({"type": "tunnels"}), "missing required field `count`"),
        (written({"type": "tunnels", "count": 17}), "Expected `int` <= 16"),
        (written({"type": "tunnels", "count": 0}), "Expected `int` >= 1"),
        (written({"type": "tunnels", "count": "3"}), "Expected `int`, got `str`"),
        (written({"type": "engines", "engines": [{}] * 17}), "length <= 16"),
        (written({"type": "renew", "request": "x" * 8193}), "length <= 8192"),
    ],
)
def test_what_cannot_be_understood_closes_the_link_and_says_why(data, words):
    link = Link(now=0.0, rng=Random(1))
    link.receive(data, 0.0)
    (closed,) = link.events()
    assert isinstance(closed, LinkClosed)
    assert closed.code == Code.PROTOCOL
    assert words in closed.reason
    other = Link(now=0.0, rng=Random(1))
    other.receive(b"".join(link.data_to_send()), 0.0)
    (told,) = other.events()
    assert (told.code, told.by_peer) == (Code.PROTOCOL, True)


def test_a_length_over_the_limit_is_refused_before_the_message_comes():
    header = LENGTH.pack(MAX_MESSAGE + 1)
    assert heard_by_server(header[:3]) == []
    assert len(heard_by_server(header[:3], header[3:])) == 1


def test_the_largest_message_is_taken():
    padding = {"type": "tunnels", "count": 2, "x": ""}
    padding["x"] = "x" * (MAX_MESSAGE - len(messages.encode(padding)) - 4)
    data = written(padding)
    assert len(data) == MAX_MESSAGE + 4
    assert heard_by_server(data) == [Tunnels(2)]


def test_a_message_over_the_limit_is_a_defect_of_the_sender():
    models = [ModelReport("m" * 256, capabilities=["c" * 256] * 16)] * 512
    with pytest.raises(LocalError, match="too large"):
        Link(now=0.0, rng=Random(1)).send(
            Engines([EngineReport("e", "openai", True, 1, models)] * 2)
        )


def test_a_flood_of_messages_is_refused():
    link = Link(now=0.0, rng=Random(1))
    link.receive(written(HEARTBEAT) * 200, 0.0)
    assert not link.closed
    link.receive(written(HEARTBEAT), 0.0)
    assert link.events()[-1] == LinkClosed(Code.CALM, "too many messages", True, False)


def test_twenty_messages_a_second_are_borne_for_ever():
    link = Link(now=0.0, rng=Random(1))
    for number in range(1000):
        link.receive(written(HEARTBEAT), number / 20)
    assert not link.closed


# ── time ──────────────────────────────────────────────────────────────────────────────────────


def test_whoever_hears_nothing_at_first_says_so_and_goes():
    pair = Pair()
    pair.wait(FIRST_MESSAGE_SECONDS - 0.1)
    assert not pair.server.closed
    pair.wait(0.2)
    assert LinkClosed(Code.TIMEOUT, "nothing was said in time", True, False) in (
        pair.server.events()
    )


def test_bytes_that_make_no_message_do_not_count_as_the_first():
    link = Link(now=0.0, rng=Random(1))
    link.receive(b"\x00\x00", 4.0)
    link.handle_timer(5.0)
    assert link.closed


def test_an_hour_of_silence_is_bridged_by_pings():
    pair = Pair.registered()
    pair.wait(3600)
    assert not pair.server.closed
    assert not pair.node.closed


def test_a_dead_peer_is_given_up_within_a_minute():
    pair = Pair.registered()
    pair.cut = True
    pair.wait(54.1)
    for side in (pair.server, pair.node):
        (closed,) = side.events()
        assert closed.code == Code.LOST
        assert closed.reason.startswith("silent for ")
        assert side.deadline == float("inf")


# ── after a change of the network ─────────────────────────────────────────────────────────────


def test_a_challenged_link_that_is_silent_is_given_up_after_a_second():
    pair = Pair.registered()
    pair.wait(5.0)
    pair.cut = True
    pair.node.challenge(pair.now)
    pair.wait(CHALLENGE_SECONDS - 0.1)
    assert not pair.node.closed
    pair.wait(0.2)
    (closed,) = pair.node.events()
    assert isinstance(closed, LinkClosed)
    assert (closed.code, closed.again) == (Code.LOST, True)


def test_a_challenged_link_that_answers_stays():
    pair = Pair.registered()
    pair.wait(5.0)
    pair.node.challenge(pair.now)
    pair.run()
    pair.wait(60.0)
    assert not pair.node.closed
    assert pair.node.events() == pair.server.events() == []


def test_a_link_on_which_nothing_was_said_yet_is_challenged_too():
    pair = Pair()
    pair.cut = True
    pair.node.send(REGISTER)
    pair.node.challenge(pair.now)
    pair.wait(CHALLENGE_SECONDS)
    assert pair.node.closed


def test_a_closed_link_is_not_challenged():
    pair = Pair.registered()
    pair.node.close(Code.NONE, "bye")
    pair.run()
    pair.node.challenge(pair.now)
    assert not pair.node.has_output()
    assert pair.node.deadline == float("inf")
