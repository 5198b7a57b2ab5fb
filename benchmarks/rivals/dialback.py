"""The dial-back design in its smallest form: the node dials back for every request.

    python -m benchmarks.rivals.dialback server PUBLIC_PORT NODE_PORT CERTIFICATE KEY
    python -m benchmarks.rivals.dialback node   SERVER_ADDRESS NODE_PORT CERTIFICATE ENGINE_PORT

This is a reimplementation of a design, not of a product, and does only what the design makes it
do: no keys, no limits, no metering.  The node holds one control connection.  For each request the
server sends a number over it; the node dials a TLS connection, says the number, and carries that
one request to its engine and the answer back.  Every request costs a handshake, and its first byte
four round trips, where a connection that is already there costs one:

    server ── number ──▶ node          ½
    node ── TCP ──▶ server             1½
    node ── TLS 1.3, number ──▶        3
    server ── request ──▶ node         3½
    node ── answer ──▶ server          4

The end of a request is the end of its connection; the answer's bytes pass unread.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import sys
from typing import cast

import httptools
import uvloop

from benchmarks.processes import raise_file_limit

NUMBER_BYTES = 4
BACKLOG = 2048


class Pipe(asyncio.Protocol):
    """One end of a pair: what comes in here goes out there, with back-pressure."""

    transport: asyncio.Transport

    def __init__(self, other: Pipe | None = None) -> None:
        self.other = other
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def join(self, other: Pipe) -> None:
        self.other, other.other = other, self
        for one in (self, other):
            for data in one.early:
                one.data_received(data)
            one.early.clear()

    def data_received(self, data: bytes) -> None:
        if self.other:
            if not self.other.transport.is_closing():
                self.other.transport.write(data)
        else:
            self.early.append(data)

    def pause_writing(self) -> None:
        if self.other:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other:
            self.other.transport.close()


class Server:
    def __init__(self) -> None:
        self.control: asyncio.Transport | None = None
        self.waiting: dict[bytes, User] = {}
        self._numbers = itertools.count(1)

    def call(self, user: User) -> None:
        if self.control is None:  # no node has come yet
            user.transport.close()
            return
        number = next(self._numbers).to_bytes(NUMBER_BYTES, "big")
        self.waiting[number] = user
        self.control.write(number)


class User(asyncio.Protocol):
    """A user's connection; its requests are taken one at a time."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._request += data
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._server.call(self)

    def take_request(self) -> bytes:
        head, _, rest = self._request.partition(b"\r\n")
        self._request = b""
        return head + b"\r\nConnection: close\r\n" + rest


class Dialled(asyncio.Protocol):
    """A connection from the node: its control connection (number 0), or one for a request."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._number = b""
        self._user: User | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._user:
            if self._user.transport.is_closing():  # the user hung up
                self.transport.abort()
            else:
                self._user.transport.write(data)
            return
        self._number += data
        if len(self._number) < NUMBER_BYTES:
            return
        if self._number == bytes(NUMBER_BYTES):
            self._server.control = self.transport
        else:
            self._user = self._server.waiting.pop(self._number)
            self.transport.write(self._user.take_request())


class Control(asyncio.Protocol):
    """The node's end of the control connection."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._read = b""
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(bytes(NUMBER_BYTES))

    def data_received(self, data: bytes) -> None:
        self._read += data
        while len(self._read) >= NUMBER_BYTES:
            number, self._read = self._read[:NUMBER_BYTES], self._read[NUMBER_BYTES:]
            self._node.dial(number)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class Node:
    def __init__(self, address: str, port: int, trust: ssl.SSLContext, engine_port: int) -> None:
        self._server = (address, port)
        self._trust = trust
        self._engine_port = engine_port
        self._loop = asyncio.get_running_loop()
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        _, control = await self._loop.create_connection(
            lambda: Control(self), *self._server, ssl=self._trust, server_hostname="server"
        )
        await control.lost

    def dial(self, number: bytes) -> None:
        task = self._loop.create_task(self._carry(number))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _carry(self, number: bytes) -> None:
        _, back = await self._loop.create_connection(
            Pipe, *self._server, ssl=self._trust, server_hostname="server"
        )
        back.transport.write(number)
        _, engine = await self._loop.create_connection(Pipe, "127.0.0.1", self._engine_port)
        engine.join(back)


async def serve(public_port: int, node_port: int, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    server, loop = Server(), asyncio.get_running_loop()
    await loop.create_server(
        lambda: Dialled(server), "0.0.0.0", node_port, ssl=context, backlog=BACKLOG
    )
    public = await loop.create_server(
        lambda: User(server), "127.0.0.1", public_port, backlog=BACKLOG
    )
    print("ready", flush=True)
    await public.serve_forever()


async def run_node(address: str, port: int, certificate: str, engine_port: int) -> None:
    trust = ssl.create_default_context(cafile=certificate)
    trust.minimum_version = ssl.TLSVersion.TLSv1_3
    await Node(address, port, trust, engine_port).run()


def main() -> None:
    raise_file_limit()
    match sys.argv[1:]:
        case ["server", public_port, node_port, certificate, key]:
            uvloop.run(serve(int(public_port), int(node_port), certificate, key))
        case ["node", address, port, certificate, engine_port]:
            uvloop.run(run_node(address, int(port), certificate, int(engine_port)))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
