"""Ports, peers and certificates for the tests of listeners."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from fabric_server.net import connection_budget
from fabric_server.net.listener import Limits, Listener, Port
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.tls_contexts import TlsContexts
from protocol.names import CONTROL_ALPN, SERVER_NAME
from tests.trust import Papers, client_context, node_papers

NOW = time.time()


HURRY = Limits(seconds=1.0, reply_seconds=0.3)


class Trust:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.own = Certificates.open(directory / "certs", now=NOW)
        self.contexts = TlsContexts(self.own)
        self.ca = self.own.authority.pem

    def papers(self, name: str = "node_a", **options: Any) -> Papers:
        return node_papers(self.own.authority, self.directory, name, **{"now": NOW} | options)

    def node(self, alpn: str | None = CONTROL_ALPN) -> ssl.SSLContext:
        return client_context(self.ca, self.papers(), alpn)


class Echo(asyncio.Protocol):
    """What the port is for, here: says things back, and remembers who it served."""

    made: list[Echo]
    peer: connection_budget.Peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.peer.release()


def port(trust: Trust, name: str = "public", **options: Any) -> Port:
    made: list[Echo] = []

    def protocol(peer: connection_budget.Peer) -> Echo:
        echo = Echo()
        echo.peer = peer
        echo.made = made
        return echo

    settings: dict[str, Any] = {
        "hosts": ["127.0.0.1"],
        "number": 0,
        "protocol": protocol,
        "context": trust.contexts.public,
        "plaintext": "loopback",
    }
    if name == "control":
        settings |= {
            "context": trust.contexts.control,
            "plaintext": "never",
            "alpn": CONTROL_ALPN,
        }
    return Port(name=name, **settings | options)


def made_by(spec: Port) -> list[Echo]:
    """The protocols that the port has made."""
    probe = spec.protocol(connection_budget.Peer(ip_address("127.0.0.1")))
    assert isinstance(probe, Echo)
    return probe.made


@contextlib.asynccontextmanager
async def listening(spec: Port, limits: Limits | None = None) -> AsyncIterator[Listener]:
    listener = Listener(spec, limits)
    listener.open()
    try:
        yield listener
    finally:
        await listener.close()
        assert listener.pending == 0


class Peer(asyncio.Protocol):
    """A client: what it received, and how its connection ended."""

    def __init__(self) -> None:
        self.received = b""
        self.arrived = asyncio.Event()
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(error)
        self.arrived.set()

    async def says_back(self, words: bytes) -> None:
        self.received = b""
        self.transport.write(words)
        while len(self.received) < len(words):
            assert not self.ended.done(), f"the connection ended: {self.ended.result()!r}"
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), 5)
        assert self.received == words

    async def end(self) -> Exception | None:
        return await asyncio.wait_for(asyncio.shield(self.ended), 5)

    async def close(self) -> None:
        self.transport.abort()
        await self.end()


async def dial(
    listener: Listener,
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    name: str = SERVER_NAME,
) -> Peer:
    loop = asyncio.get_running_loop()
    asked = name if context else None
    _, peer = await loop.create_connection(
        Peer, host, listener.port, ssl=context, server_hostname=asked
    )
    return peer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - counters are no events
            await asyncio.sleep(0.005)


def counted(listener: Listener) -> dict[str, int]:
    return {reason: count for reason, count in listener.refused.items() if count}


@contextlib.asynccontextmanager
async def from_elsewhere(
    spec: Port,
) -> AsyncIterator[tuple[Listener, Callable[[bytes], Any]]]:
    """Connections that say they come from another machine; a test has but one."""
    async with listening(spec, HURRY) as listener:

        async def send(words: bytes) -> bytes:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            listener.admit(theirs, "203.0.113.9")
            try:
                return await talk(ours, words)
            finally:
                ours.close()

        yield listener, send


async def raw(listener: Listener, words: bytes) -> bytes:
    sock = socket.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", listener.port))
    try:
        return await talk(sock, words)
    finally:
        sock.close()


async def talk(sock: socket.socket, words: bytes) -> bytes:
    """All that comes back until the other side closes."""
    loop = asyncio.get_running_loop()
    received = b""
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(sock, words)
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, 65_536):
                received += data
    return received
