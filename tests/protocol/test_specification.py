"""protocol/README.md says what the code does: its bytes are made anew and compared."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any, get_args

import msgspec
import pytest

import protocol
from protocol import messages
from protocol.control import link
from protocol.errors import Code
from protocol.messages import Figures, Message, RequestHead, ResponseHead
from protocol.tunnel import base, frames, keepalive, resume, streams, unacknowledged
from protocol.tunnel.base import Role
from protocol.tunnel.connection import Connection
from protocol.tunnel.frames import FrameType
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import GREETING_SECONDS, ServerConnection
from tests.pump import SESSION, Frame, Pump, frames_in

README = Path(protocol.__file__).with_name("README.md").read_text()

QUESTION = b'{"model":"llama3.2:1b","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
EVENTS = [b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\n', b"data: [DONE]\n\n"]
HEAD = RequestHead(
    "req_1",
    "ollama",
    "POST",
    "/v1/chat/completions",
    [("content-type", "application/json")],
    len(QUESTION),
    60_000,
)
ANSWER = ResponseHead(200, [("content-type", "text/event-stream")])
FIGURES = Figures(210.5, 233.25, sum(map(len, EVENTS)))


def block(name: str) -> str:
    """What stands in the README between ``<!-- name -->`` and the end of the code behind it."""
    found = re.search(rf"<!-- {name} -->\n```\n(.*?)```", README, re.DOTALL)
    assert found, f"no block {name!r}"
    return found[1]


def rows(name: str) -> list[list[str]]:
    """The cells of the table behind ``<!-- name -->``, without its head."""
    found = re.search(rf"<!-- {name} -->\n((?:\|.*\n)+)", README)
    assert found, f"no table {name!r}"
    lines = found[1].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def drawn(data: bytes) -> list[str]:
    """Sixteen bytes a line, and what they say."""
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"    {piece.hex(' '):<47}  {text}")
    return lines


def drawn_frame(arrow: str, frame: Frame) -> list[str]:
    kind = FrameType[frame.type]
    header = frames.HEADER.pack(kind, frame.flags, 0, frame.stream_id, len(frame.payload))
    parts = (header[:1], header[1:2], header[2:4], header[4:8], header[8:])
    return [f"{arrow} {' '.join(part.hex() for part in parts):<50} {frame}", *drawn(frame.payload)]


def exchange() -> str:
    """A question answered, a second one cancelled, a sign of life, and the end."""
    pump, lines = Pump(), list[str]()

    def said(role: Role) -> None:
        data = pump.take(role)
        arrow = ">" if role is Role.SERVER else "<"
        for frame in frames_in(data):
            lines.extend(drawn_frame(arrow, frame))
        pump.give(pump.other(role), data)

    pump.node.hello(SESSION)
    said(Role.NODE)
    first = pump.server.open_stream(HEAD, now=pump.now)
    pump.server.send_data(first, QUESTION, ended=True)
    said(Role.SERVER)
    pump.node.send_head(first, ANSWER)
    for event in EVENTS:
        pump.node.send_data(first, event)
        said(Role.NODE)
    pump.node.end_stream(first, FIGURES)
    said(Role.NODE)
    late = msgspec.structs.replace(HEAD, request_id="req_2", body_size=0)
    second = pump.server.open_stream(late, now=pump.now, ended=True)
    said(Role.SERVER)
    pump.server.reset(second, Code.CANCELLED, "hung up")
    said(Role.SERVER)
    pump.node.confirm_reset(second)
    said(Role.NODE)
    pump.server.ping(pump.now)
    said(Role.SERVER)
    said(Role.NODE)
    pump.server.drain("restarting", 30.0)
    said(Role.SERVER)
    said(Role.SERVER)
    assert pump.server.closed
    assert pump.node.closed
    return "\n".join(lines) + "\n"


def resumption() -> str:
    """The first question on a tunnel of its own, cut behind the first event, and the next one."""
    resume_table, lines = resume.ResumeTable(), list[str]()

    def tunnel(number: int) -> tuple[ServerConnection, NodeConnection]:
        server = ServerConnection(now=0.0, rng=Random(1), resumes=True)
        node = NodeConnection(now=0.0, rng=Random(1), number=number, resume_table=resume_table)
        node.hello(SESSION)
        carry("<", node, server)
        return server, node

    def carry(arrow: str, sender: Connection, receiver: Connection) -> None:
        data = b"".join(sender.data_to_send())
        receiver.receive(data, 0.0)
        for frame in frames_in(data):
            lines.extend(drawn_frame(arrow, frame))

    server, node = tunnel(7)
    first = server.open_stream(HEAD, now=0.0)
    server.send_data(first, QUESTION, ended=True)
    carry(">", server, node)
    node.send_head(first, ANSWER)
    node.send_data(first, EVENTS[0])
    carry("<", node, server)
    node.send_data(first, EVENTS[1])
    node.end_stream(first, FIGURES)
    node.data_to_send()
    server.lost("cut")
    node.lost("cut")
    lines.clear()
    another, other = tunnel(9)
    another.resume_stream(server, first, now=0.0)
    carry(">", another, other)
    carry("<", other, another)
    return "\n".join(lines) + "\n"


def spoken() -> str:
    """The same for a link: a registration and its answer."""
    model = messages.ModelReport("llama3.2:1b", size=1_321_098_329, loaded=True)
    engine = messages.EngineReport("ollama", "ollama", True, 1, [model])
    register = messages.Register(1, "0.1.0", "den", "Linux x86_64", [engine])
    registered = messages.Registered("node_1", 3, SESSION, 17001, 2, 15.0, resume=True)
    lines = []
    for arrow, message in (("<", register), (">", registered)):
        payload = messages.encode(message)
        head = f"{arrow} {link.LENGTH.pack(len(payload)).hex():<50} {type(message).__name__}"
        lines += [head, *drawn(payload)]
    return "\n".join(lines) + "\n"


def test_the_exchange_in_hex_is_what_the_code_says():
    assert block("exchange") == exchange()


def test_the_resumption_in_hex_is_what_the_code_says():
    assert block("resumption") == resumption()


def test_the_registration_in_hex_is_what_the_code_says():
    assert block("registration") == spoken()


def test_every_error_code_is_listed():
    listed = {int(number): name for number, name, *_ in rows("codes")}
    assert listed == {code.value: code.name for code in Code}


def test_every_frame_type_is_listed_with_its_limits():
    listed = {
        int(number): (name, int(least.replace(",", "")), int(most.replace(",", "")))
        for number, name, _, _, least, most, *_ in rows("frames")
        if least
    }
    known = {
        kind.value: (kind.name, rule[0], rule[1])
        for kind in FrameType
        if (rule := frames.RULES[kind]) is not None
    }
    assert listed == known


def fields_of(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize("kind", get_args(Message), ids=lambda kind: kind.__name__)
def test_every_message_is_listed_with_its_fields(kind: Any):
    tag = kind.__struct_config__.tag
    (fields,) = (cells[2] for cells in rows("messages") if cells[0] == tag)
    assert re.findall(r"`?(\w+)`?:", fields) == fields_of(kind)


@pytest.mark.parametrize(
    "kind",
    [messages.ModelReport, messages.EngineReport, messages.Gpu],
    ids=lambda kind: kind.__name__,
)
def test_every_report_is_listed_with_its_fields(kind: Any):
    (fields,) = (cells[1] for cells in rows("reports") if cells[0] == kind.__name__)
    assert re.findall(r"`?(\w+)`?:", fields) == fields_of(kind)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        ("HELLO", messages.Hello),
        ("OPEN", messages.RequestHead),
        ("HEAD", messages.ResponseHead),
        ("END", messages.Figures),
        ("DRAIN", messages.Drain),
        ("RESUME", messages.Resume),
    ],
)
def test_every_array_is_listed_in_its_order(frame: str, kind: Any):
    (fields,) = (cells[1] for cells in rows("arrays") if cells[0] == frame)
    assert re.findall(r"`?(\w+)`?:", fields) == fields_of(kind)


def test_the_numbers_in_the_text_are_the_code_s():
    numbers = {name: value for name, value, *_ in rows("numbers")}
    assert numbers == {
        "stream window": f"{streams.STREAM_WINDOW:,} bytes",
        "tunnel window": f"{streams.TUNNEL_WINDOW:,} bytes",
        "streams at once": str(streams.MAX_STREAMS),
        "HELLO, first link message": f"{GREETING_SECONDS:g} s",
        "idle interval": f"{keepalive.IDLE_SECONDS:g} s ± 20 %",
        "busy interval": f"{keepalive.BUSY_SECONDS:g} s",
        "quiet for": f"{keepalive.QUIET_SECONDS:g} s",
        "suspected after": f"{keepalive.SUSPECT_SECONDS:g} s",
        "challenged for": f"{keepalive.CHALLENGE_SECONDS:g} s",
        "link message": f"{link.MAX_MESSAGE:,} bytes",
        "tunnel flood budget": f"{base.FLOOD_BURST:g}, then {base.FLOOD_PER_SECOND:g}/s",
        "link flood budget": f"{link.FLOOD_BURST:g}, then {link.FLOOD_PER_SECOND:g}/s",
        "link bytes": f"{link.FLOOD_BYTES:,.0f}, then {link.FLOOD_BYTES_PER_SECOND:,.0f}/s",
        "control frames waiting": f"{base.MAX_CONTROL:,}",
        "resumed within": f"{resume.RESUME_SECONDS:g} s",
        "held for RESUME": f"{resume.KEEP_SECONDS:g} s",
        "ACK": f"{unacknowledged.ACK_BYTES:,} bytes",
        "ENDs not acknowledged": f"{unacknowledged.MAX_UNACKNOWLEDGED:,}",
    }


if __name__ == "__main__":  # to be pasted when the protocol has changed on purpose
    print(spoken())
    print(exchange())
    print(resumption())
