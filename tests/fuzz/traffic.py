"""Bytes as a peer might send them: whole, wrong, and whole until something broke them."""

from __future__ import annotations

from random import Random

from protocol import messages
from protocol.messages import Drain, Hello, Resume
from protocol.tunnel import frames
from protocol.tunnel.frames import FrameType
from tests.pump import ANSWER, FIGURES, HEAD, SESSION

PAYLOADS: dict[FrameType, list[bytes]] = {
    FrameType.HELLO: [messages.encode(Hello(*said)) for said in ((1, SESSION, 7), (9, SESSION))],
    FrameType.OPEN: [messages.encode(HEAD)],
    FrameType.HEAD: [messages.encode(ANSWER)],
    FrameType.DATA: [b"", b"data: token\n\n", bytes(1000), bytes(frames.MAX_DATA)],
    FrameType.END: [messages.encode(FIGURES)],
    FrameType.RESET: [frames.encode_reason(1, "hung up"), b"\xff\xff\xff"],
    FrameType.WINDOW: [
        offset.to_bytes(8, "big") for offset in (0, 5, 300_000, 400_000, 5_000_000, 2**63)
    ],
    FrameType.PING: [bytes(8), b"12345678"],
    FrameType.PONG: [(1).to_bytes(8, "big"), bytes(8)],
    FrameType.DRAIN: [messages.encode(Drain("restarting", 1.0))],
    FrameType.CLOSE: [frames.encode_reason(0, "bye")],
    FrameType.RESUME: [
        messages.encode(Resume(tunnel, stream, attempt, head, received, allowed, sent, ended))
        for tunnel, stream, attempt in ((7, 1, 1), (7, 3, 2), (8, 1, 1))
        for head, received, allowed in ((True, 10, 262_144), (False, 0, 262_154), (True, 0, 2**63))
        for sent, ended in ((0, True), (1000, False))
    ],
    FrameType.ACK: [count.to_bytes(8, "big") for count in (0, 1, 2, 2**63)],
}
STREAMS = [1, 1, 1, 3, 3, 5, 7, 9, 0, 2, 2**32 - 1]
MSGPACK = bytes(
    [0x80, 0x90, 0xA1, 0xC0, 0xC1, 0xC4, 0xC6, 0xCA, 0xCB, 0xCF, 0xDB, 0xDD, 0xDF, 0xFF]
)


def a_frame(rng: Random) -> bytes:
    kind = rng.choice(list(FrameType))
    if kind is FrameType.CLOSE and rng.random() < 0.9:
        kind = FrameType.DATA
    payload = rng.choice(PAYLOADS[kind])
    if rng.random() < 0.1:
        payload = broken(rng, payload)
    tunnel = kind in (
        FrameType.HELLO,
        FrameType.PING,
        FrameType.PONG,
        FrameType.DRAIN,
        FrameType.ACK,
    )
    stream = 0 if (tunnel or kind is FrameType.CLOSE) else rng.choice(STREAMS)
    flags = rng.choice([0, 0, 0, 1])
    if rng.random() < 0.02:
        return frames.HEADER.pack(
            rng.randrange(256), rng.randrange(4), rng.choice([0, 1]), stream, rng.randrange(2**32)
        )
    return frames.encode(kind, flags, stream, payload)


def broken(rng: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + 1] = bytes([rng.choice(MSGPACK)])
            case 2:
                del out[at : at + rng.randint(1, 20)]
            case 3:
                out[at:at] = out[at : at + rng.randint(1, 40)]
            case 4:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(out)


def some_traffic(rng: Random) -> bytes:
    data = b"".join(a_frame(rng) for _ in range(rng.randint(1, 25)))
    if rng.random() < 0.5:
        data = frames.encode(FrameType.HELLO, 0, 0, PAYLOADS[FrameType.HELLO][0]) + data
    if rng.random() < 0.3:
        data = broken(rng, data)
    return data


def pieces_of(rng: Random, data: bytes) -> list[bytes]:
    most = rng.choice([1, 3, 13, 100, 20_000]) if len(data) < 5000 else rng.choice([100, 20_000])
    pieces, at = [], 0
    while at < len(data):
        size = rng.randint(1, most)
        pieces.append(data[at : at + size])
        at += size
    return pieces
