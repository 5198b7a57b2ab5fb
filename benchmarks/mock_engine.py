"""An engine that computes nothing, as cheap as Python can be, so that what is measured is the way.

    python -m benchmarks.mock_engine [--host 127.0.0.1] [--port N] [--seconds 60]

Prints its URL when it listens.  Which answer is given depends on the model and on `stream`, both
looked for in the body's bytes; see canned.py.  Any GET is answered with the list of models, which
also satisfies the health checks of routers.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from typing import cast

import httptools
import uvloop

from benchmarks import canned
from benchmarks.processes import raise_file_limit

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
SMALL = JSON_HEAD % len(canned.SMALL) + canned.SMALL
MODELS = JSON_HEAD % len(canned.MODELS) + canned.MODELS
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def writes(events: int) -> list[bytes]:
    """An unpaced stream's events, so many in a write."""
    chunks, size = canned.token_chunks(canned.FAST_EVENTS), events * canned.CHUNK_BYTES
    return [chunks[start : start + size] for start in range(0, len(chunks), size)]


WRITES = writes(1)
BURST_WRITES = writes(canned.BURST)
TICK = 0.001


class Pacer:
    """One timer for all streams of a pace: each is due once in so many ticks, by its start.

    A tick that comes late sends what is due by now in one write, so the rate holds.
    """

    def __init__(self, seconds: float, pace: float) -> None:
        self.total = round(seconds / pace)
        self._chunks = canned.token_chunks(self.total)
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._turn = 0
        self._ticks_per_event = round(pace / TICK)
        self._wheel: list[dict[Connection, None]] = [{} for _ in range(self._ticks_per_event)]
        self._tick()

    def add(self, stream: Connection) -> None:
        stream.first_turn, stream.sent = self._turn + 1, 0
        self._wheel[stream.first_turn % self._ticks_per_event][stream] = None

    def remove(self, stream: Connection) -> None:
        self._wheel[stream.first_turn % self._ticks_per_event].pop(stream, None)

    def _tick(self) -> None:
        now, ticks = self._loop.time(), self._ticks_per_event
        last, self._turn = self._turn, int((now - self._began) / TICK)
        for turn in range(max(last, self._turn - ticks) + 1, self._turn + 1):
            for stream in list(self._wheel[turn % ticks]):
                self._send_due(stream)
        self._loop.call_at(self._began + (self._turn + 1) * TICK, self._tick)

    def _send_due(self, stream: Connection) -> None:
        due = min((self._turn - stream.first_turn) // self._ticks_per_event + 1, self.total)
        size = canned.CHUNK_BYTES
        stream.transport.write(self._chunks[stream.sent * size : due * size])
        stream.sent = due
        if due == self.total:
            self.remove(stream)
            stream.end(canned.last_chunks(stream.usage))


class Connection(asyncio.Protocol):
    transport: asyncio.Transport
    first_turn = sent = 0
    usage = False

    def __init__(self, pacers: dict[bytes, Pacer]) -> None:
        """``pacers``: by the model that they are for."""
        self._pacers = pacers
        self._pacer: Pacer | None = None
        self._writes: Iterator[bytes] = iter(())
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pacer is not None:
            self._pacer.remove(self)
        self._writes = iter(())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body = self._body
        if self._parser.get_method() == b"GET":
            self.end(MODELS)
        elif b'"stream":true' not in body and b'"stream": true' not in body:
            self.end(SMALL)
        else:
            self.usage = b"include_usage" in body
            self.transport.write(STREAM_HEAD)
            self._pacer = next((one for name, one in self._pacers.items() if name in body), None)
            if self._pacer is not None:
                self._pacer.add(self)
            else:
                self._writes = iter(WRITES if b"mock-burst" not in body else BURST_WRITES)
                self._write_next()

    def _write_next(self) -> None:
        """As fast as it can, but others have their turn between two writes."""
        if events := next(self._writes, None):
            self.transport.write(events)
            asyncio.get_running_loop().call_soon(self._write_next)
        elif not self.transport.is_closing():
            self.end(canned.last_chunks(self.usage))

    def end(self, last: bytes) -> None:
        self.transport.write(last)
        if not self._parser.should_keep_alive():
            self.transport.close()


async def serve(host: str, port: int, seconds: float) -> None:
    pacers = {name.encode(): Pacer(seconds, pace) for name, pace in canned.PACES.items()}
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(pacers), host, port, backlog=2048
    )
    print(f"http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="An engine that computes nothing.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="length of a paced stream")
    given = parser.parse_args()
    raise_file_limit()
    uvloop.run(serve(given.host, given.port, given.seconds))


if __name__ == "__main__":
    main()
