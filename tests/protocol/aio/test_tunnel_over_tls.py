"""Tunnels over TLS and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import Code
from protocol.names import TUNNEL_ALPN
from protocol.tunnel.streams import STREAM_WINDOW
from tests.loops import on_both_loops
from tests.protocol.aio.ends import (
    KIB,
    MIB,
    Ends,
    turns,
    within,
)
from tests.pump import SESSION, frames_in


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, around a throwaway certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    path = tmp_path_factory.mktemp("certs") / "both.pem"
    path.write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=pem.decode())
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([TUNNEL_ALPN])
    return server, client


@contextlib.asynccontextmanager
async def over_tls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    ends: Ends,
    *,
    dial: Callable[[], asyncio.Protocol] | None = None,
) -> AsyncIterator[Ends]:
    """The ends joined by TLS on loopback, with kernel buffers that fill up soon."""
    loop = asyncio.get_running_loop()
    listening, dialling = (socket.socket() for _ in range(2))
    listening.bind(("127.0.0.1", 0))
    for sock in (listening, dialling):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * KIB)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)
    server = await loop.create_server(lambda: ends.server_side, sock=listening, ssl=contexts[0])
    try:
        await loop.sock_connect(dialling, listening.getsockname())
        transport, _ = await loop.create_connection(
            dial or (lambda: ends.node_side),
            sock=dialling,
            ssl=contexts[1],
            server_hostname="127.0.0.1",
        )
        assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == TUNNEL_ALPN
        if dial is None:
            ends.node.hello(SESSION)
            await within(5, ends.server_owner.hello)
        try:
            yield ends
        finally:
            transport.abort()
            ends.server.close(Code.NONE, "test over")
            await within(10, ends.server_side.gone)
            if dial is None:
                await within(10, ends.node_side.gone)
    finally:
        server.close()
        await server.wait_closed()


@on_both_loops
async def test_a_question_and_its_answer_over_tls(contexts):
    async with over_tls(contexts, Ends()) as ends:
        answer = ends.ask(b"question")
        await within(5, answer.over)
        assert answer.heard == ["head 200", "end"]
        assert bytes(answer.body) == b"question"
        assert ends.server.peer.startswith("127.0.0.1:")
        assert repr(ends.server).startswith("<Tunnel 127.0.0.1:")


@on_both_loops
async def test_a_closed_tunnel_tells_its_peer_until_it_is_gone(contexts):
    async with over_tls(contexts, Ends()) as ends:
        ends.node.close(Code.NONE, "bye")
        turns = 0
        while not ends.server_side.gone.is_set():
            assert ends.server.peer_certificate() == {}, "of a client without a certificate"
            await asyncio.sleep(0)
            turns += 1
        assert turns > 1


@on_both_loops
async def test_many_large_bodies_at_once_arrive_whole_over_tls(contexts):
    rng = Random(5)
    bodies = [rng.randbytes(rng.choice([10, 5_000, 300_000, 1_500_000])) for _ in range(30)]
    async with over_tls(contexts, Ends()) as ends:
        answers = [ends.ask(body) for body in bodies]
        await within(20, *(answer.over for answer in answers))
        assert [bytes(answer.body) for answer in answers] == bodies
        assert ends.server.connection.active == ends.node.connection.active == 0


@on_both_loops
async def test_a_peer_that_stops_reading_fills_no_memory(contexts):
    async with over_tls(contexts, Ends()) as ends:
        ends.node_side.transport.pause_reading()
        answers = [ends.ask(ended=False) for _ in range(12)]
        for answer in answers:
            assert answer.stream is not None
            answer.stream.send(b"x" * STREAM_WINDOW, True)
        await turns(50)
        connection = ends.server.connection
        assert connection.credit > 0, "it is the transport that holds them back"
        assert connection.queued > 2 * MIB
        assert ends.server_side.transport.get_write_buffer_size() < 600 * KIB
        # What is not handed out yet can still be taken back.
        cancelled = answers[-1]
        assert cancelled.stream is not None
        before = connection.queued
        cancelled.stream.reset(Code.CANCELLED)
        assert connection.queued < before
        ends.node_side.transport.resume_reading()
        await within(10, *(answer.over for answer in answers))
        assert [answer.heard for answer in answers[:-1]] == [["head 200", "end"]] * 11
        assert cancelled.heard == ["reset none"]


@on_both_loops
async def test_closing_says_why_over_tls(contexts):
    async with over_tls(contexts, Ends()) as ends:
        running = ends.ask(ended=False)
        await within(5, ends.server_owner.hello)
        ends.server.close(Code.SUPERSEDED, "registered again")
        assert running.heard == ["reset lost"], "told before close returns"
        await within(5, ends.node_owner.closed, ends.node_side.gone, ends.server_side.gone)
        assert ends.node_owner.heard == ["closed superseded 'registered again'"]
        assert ends.server_owner.heard[-1] == "closed superseded 'registered again'"


@on_both_loops
async def test_a_peer_that_does_not_let_go_is_cut_off(contexts):
    ends = Ends()
    ends.server.closing_seconds = ends.node.closing_seconds = 0.1
    async with over_tls(contexts, ends):
        ends.node_side.transport.pause_reading()
        for _ in range(12):
            ends.ask(b"x" * STREAM_WINDOW)
        await turns(50)
        assert ends.server_side.transport.get_write_buffer_size() > 0
        ends.server.close(Code.NONE, "enough")
        await turns()
        assert not ends.server_side.gone.is_set(), (
            "the last words wait behind what the peer won't read"
        )
        await within(5, ends.server_side.gone)


@on_both_loops
async def test_a_cut_connection_ends_every_stream(contexts):
    async with over_tls(contexts, Ends()) as ends:
        answers = [ends.ask(ended=False) for _ in range(3)]
        await turns()
        ends.node_side.transport.abort()
        await within(5, ends.server_owner.closed)
        assert [answer.heard for answer in answers] == [["reset lost"]] * 3
        assert ends.server_owner.heard[-1].startswith("closed lost 'connection")


class Stranger(asyncio.Protocol):
    """Says something that is no tunnel."""

    def __init__(self, words: bytes) -> None:
        self.words = words
        self.got = bytearray()
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self.words)

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


@on_both_loops
async def test_a_stranger_hears_why_it_is_shown_out(contexts):
    stranger = Stranger(b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n")
    ends = Ends()
    async with over_tls(contexts, ends, dial=lambda: stranger):
        await within(5, stranger.gone, ends.server_side.gone)
        (close,) = frames_in(bytes(stranger.got))
        assert str(close) == "CLOSE protocol 'unknown frame type 71'"
        assert ends.server_owner.heard == ["closed protocol 'unknown frame type 71'"]
