"""Steps and frames that tests of a tunnel's connection share."""

from protocol import messages
from protocol.errors import Code
from protocol.tunnel import frames
from protocol.tunnel.base import Role
from protocol.tunnel.frames import FrameType
from tests.pump import ANSWER, HEAD, SESSION, Pump

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


def hello(version: int = messages.VERSION, session: object = SESSION, *more: object) -> bytes:
    return frame("HELLO", 0, messages.encode([version, session, *more]))
