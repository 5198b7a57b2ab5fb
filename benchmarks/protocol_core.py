"""What the sans-I/O core costs: ``python -m benchmarks.protocol_core``.

One process, one core, no sockets; the best of several rounds, since everything else that runs on
the machine only ever adds.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from random import Random

from protocol import messages
from protocol.control.link import Link
from protocol.messages import Figures, RequestHead, ResponseHead
from protocol.tunnel import frames
from protocol.tunnel.events import DataReceived
from protocol.tunnel.frames import MAX_DATA, FrameType
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from runtime.version import COMPILED

ROUNDS = 7
HEADERS = [("content-type", "application/json"), ("accept", "text/event-stream")]
HEAD = RequestHead(
    "req_0123456789abcdef", "ollama", "POST", "/v1/chat/completions", HEADERS, 900, 60_000
)
ANSWER = ResponseHead(200, HEADERS[:1])
FIGURES = Figures(12.5, 80.0, 1100)
TOKEN = b"data: " + b"x" * 192 + b"\n\n"


def pair() -> tuple[ServerConnection, NodeConnection]:
    server = ServerConnection(now=0.0, rng=Random(1), resumes=True)
    node = NodeConnection(now=0.0, rng=Random(2), number=1, resume_table=ResumeTable())
    node.hello(b"session")
    server.receive(b"".join(node.data_to_send()), 0.0)
    server.events()
    return server, node


def answering(server: ServerConnection, node: NodeConnection, count: int) -> list[int]:
    ids = [server.open_stream(HEAD, now=0.0, ended=True) for _ in range(count)]
    node.receive(b"".join(server.data_to_send()), 0.0)
    node.events()
    for id in ids:
        node.send_head(id, ANSWER)
    server.receive(b"".join(node.data_to_send()), 0.0)
    server.events()
    return ids


def demultiplexed() -> tuple[int, Callable[[], None]]:
    """16 streams, one frame of 200 bytes each per receive: events made, read and consumed."""
    server, node = pair()
    ids = answering(server, node, 16)
    batch = b"".join(frames.encode(FrameType.DATA, 0, id, TOKEN) for id in ids)
    receive, events, consumed = server.receive, server.events, server.consumed
    count = 500

    def run() -> None:
        for _ in range(count):
            receive(batch, 1.0)
            for event in events():
                if type(event) is DataReceived:
                    consumed(event.stream_id, len(event.data))
            if server.has_output():
                server.data_to_send()

    return count * 16, run


def packed() -> tuple[int, Callable[[], None]]:
    """16 streams, one chunk of 200 bytes each per flush: queued, framed, joined."""
    server, node = pair()
    ids = answering(server, node, 16)
    send, flush = node.send_data, node.data_to_send
    count, offset = 500, 0

    def run() -> None:
        nonlocal offset
        for _ in range(count):
            for id in ids:
                send(id, TOKEN)
            b"".join(flush())
        offset += count * len(TOKEN)
        grants = [(id, offset) for id in ids] + [(0, offset * 16)]
        for id, grant in grants:
            payload = (grant + 100_000).to_bytes(8, "big")
            node.receive(frames.encode(FrameType.WINDOW, 0, id, payload), time.monotonic())

    return count * 16, run


def round_trip() -> tuple[int, Callable[[], None]]:
    """A request of 900 bytes and its answer of 1,100, through both sides."""
    server, node = pair()
    question, answer = b"q" * 900, b"a" * 1100
    count = 500

    def run() -> None:
        for _ in range(count):
            id = server.open_stream(HEAD, now=0.0, body=question, ended=True)
            node.receive(b"".join(server.data_to_send()), 0.0)
            node.events()
            node.consumed(id, 900)
            node.send_answer(id, ANSWER, answer, FIGURES)
            server.receive(b"".join(node.data_to_send()), 0.0)
            server.events()

    return count, run


def bulk_in() -> tuple[int, Callable[[], None]]:
    """Full frames, 112 KiB per receive; counted in bytes."""
    server, node = pair()
    (id,) = answering(server, node, 1)
    batch = frames.encode(FrameType.DATA, 0, id, bytes(MAX_DATA)) * 7
    count = 200

    def run() -> None:
        for _ in range(count):
            server.receive(batch, 1.0)
            for event in server.events():
                server.consumed(id, len(event.data))  # type: ignore[union-attr]
            if server.has_output():
                server.data_to_send()

    return count * len(batch), run


def bulk_in_pieces() -> tuple[int, Callable[[], None]]:
    """Full frames that come in pieces of 16 KiB which don't fit them, as from TLS records."""
    server, node = pair()
    (id,) = answering(server, node, 1)
    batch = frames.encode(FrameType.DATA, 0, id, bytes(MAX_DATA - 300)) * 7
    pieces = [batch[at : at + 16_384] for at in range(0, len(batch), 16_384)]
    count = 200

    def run() -> None:
        for _ in range(count):
            for piece in pieces:
                server.receive(piece, 1.0)
                for event in server.events():
                    server.consumed(id, len(event.data))  # type: ignore[union-attr]
                if server.has_output():
                    server.data_to_send()

    return count * len(batch), run


def heartbeat() -> tuple[int, Callable[[], None]]:
    """A message packed on one link and read on the other."""
    message = messages.Tunnels(3)
    here, there = (Link(now=0.0, rng=Random(1)) for _ in range(2))
    now = 0.0
    count = 500

    def run() -> None:
        nonlocal now
        for _ in range(count):
            now += 1.0  # within what the flood rule allows
            here.send(message)
            there.receive(b"".join(here.data_to_send()), now)
            there.events()

    return count, run


def best(make: Callable[[], tuple[int, Callable[[], None]]]) -> float:
    """Seconds per unit."""
    count, run = make()
    run()
    spent = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return min(spent) / count


ROWS: list[tuple[str, Callable[[], tuple[int, Callable[[], None]]], str]] = [
    ("DATA frame of 200 B demultiplexed, heard, consumed", demultiplexed, "ns"),
    ("DATA frame of 200 B queued, packed, joined", packed, "ns"),
    ("request and answer through both sides", round_trip, "us"),
    ("bulk received, whole frames", bulk_in, "MB/s"),
    ("bulk received, frames cut by records", bulk_in_pieces, "MB/s"),
    ("link message sent and read", heartbeat, "us"),
]


def main() -> int:
    build = "compiled" if COMPILED else "not compiled"
    version = platform.python_version()
    print(f"{platform.machine()}, Python {version}, {build}, {time.strftime('%Y-%m-%d')}")
    for name, make, unit in ROWS:
        seconds = best(make)
        figure = {"ns": seconds * 1e9, "us": seconds * 1e6, "MB/s": 1e-6 / seconds}[unit]
        print(f"  {name:<52} {figure:>10,.1f} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
