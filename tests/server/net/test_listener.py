"""The ports: who is let through, who is refused and why, and that nobody disturbs anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from fabric_server.net.listener import REASONS, Limits, Listener, Port, PortProblem
from fabric_server.pki.ca import Authority, node_id
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.tls_contexts import TlsContexts
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from tests.loops import on_both_loops
from tests.trust import Papers, client_context, node_papers

NOW = time.time()
HURRY = Limits(seconds=1.0, farewell=0.3)


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


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)


class Echo(asyncio.Protocol):
    """What the port is for, here: says things back, and remembers who it served."""

    made: list[Echo]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def port(trust: Trust, name: str = "public", **options: Any) -> Port:
    made: list[Echo] = []

    def protocol() -> Echo:
        echo = Echo()
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
    listener: Listener, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Peer:
    loop = asyncio.get_running_loop()
    name = SERVER_NAME if context else None
    _, peer = await loop.create_connection(
        Peer, host, listener.port, ssl=context, server_hostname=name
    )
    return peer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - counters are no events
            await asyncio.sleep(0.005)


def counted(listener: Listener) -> dict[str, int]:
    return {reason: count for reason, count in listener.refused.items() if count}


# ── who is let through ────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_a_node_is_let_through_and_the_protocol_learns_who_it_is(trust: Trust) -> None:
    spec = port(trust, "control")
    async with listening(spec) as listener:
        node = await dial(listener, trust.node())
        await node.says_back(b"hello")
        assert (listener.accepted, listener.opened, counted(listener)) == (1, 1, {})
        echo = spec.protocol().made[0]  # type: ignore[attr-defined]
        assert node_id(echo.transport.get_extra_info("peercert")) == "node_a"
        conversation = echo.transport.get_extra_info("ssl_object")
        assert conversation.version() == "TLSv1.3"
        assert conversation.selected_alpn_protocol() == CONTROL_ALPN
        await node.close()


@on_both_loops
async def test_what_comes_with_the_last_of_the_handshake_is_not_lost(trust: Trust) -> None:
    big = os.urandom(300_000)
    async with listening(port(trust, "control")) as listener:
        nodes = [await dial(listener, trust.node()) for _ in range(5)]
        await asyncio.gather(*(node.says_back(big) for node in nodes))
        for node in nodes:
            await node.close()


@on_both_loops
async def test_plaintext_from_this_machine_is_let_through_where_allowed(trust: Trust) -> None:
    async with listening(port(trust)) as listener:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"anything at all"):
            user = await dial(listener)
            await user.says_back(words)
            await user.close()
        user = await dial(listener, client_context(trust.ca))
        await user.says_back(b"and TLS")
        await user.close()
        assert (listener.opened, counted(listener)) == (3, {})


@on_both_loops
async def test_one_number_serves_both_address_families(trust: Trust) -> None:
    async with listening(port(trust, hosts=["127.0.0.1", "::1"])) as listener:
        for host in ("127.0.0.1", "::1"):
            user = await dial(listener, client_context(trust.ca), host)
            await user.says_back(b"hello")
            await user.close()


@on_both_loops
async def test_an_accepted_connection_sends_at_once_and_is_kept_alive(trust: Trust) -> None:
    spec = port(trust)
    async with listening(spec) as listener:
        user = await dial(listener)
        await user.says_back(b"hello")
        sock = spec.protocol().made[0].transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await user.close()


@on_both_loops
async def test_a_replaced_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    trust: Trust,
) -> None:
    async with listening(port(trust)) as listener:
        before = await dial(listener, client_context(trust.ca))
        other = Certificates.open(trust.directory / "other", now=NOW)
        for mine, theirs in zip(trust.own.files, other.files, strict=True):
            mine.write_bytes(theirs.read_bytes())
        assert trust.contexts.check(NOW + 1)
        after = await dial(listener, client_context(other.authority.pem))
        await before.says_back(b"still here")
        await after.says_back(b"here now")
        await before.close()
        await after.close()


# ── who is refused ────────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_an_expired_certificate_is_refused_and_the_node_learns_why(trust: Trust) -> None:
    papers = trust.papers(now=NOW - 40 * 86_400)
    await _refused(trust, papers, "certificate", "SSLV3_ALERT_CERTIFICATE_EXPIRED")


@on_both_loops
async def test_a_certificate_of_another_fabric_is_refused_and_the_node_learns_why(
    trust: Trust,
) -> None:
    papers = node_papers(Authority.make(NOW), trust.directory, now=NOW)
    await _refused(trust, papers, "certificate", "TLSV1_ALERT_UNKNOWN_CA")


@on_both_loops
async def test_a_missing_certificate_is_refused_and_the_node_learns_why(trust: Trust) -> None:
    await _refused(trust, None, "no_certificate", "TLSV13_ALERT_CERTIFICATE_REQUIRED")


async def _refused(trust: Trust, papers: Papers | None, reason: str, alert: str) -> None:
    """With words sent at once, which the server never reads, and without."""
    spec = port(trust, "control")
    async with listening(spec) as listener:
        for words in (b"", b"hello", bytes(100_000)):
            # In TLS 1.3 a client is done before the server has looked at its certificate.
            node = await dial(listener, client_context(trust.ca, papers, CONTROL_ALPN))
            if words:
                node.transport.write(words)
            error = await node.end()
            assert isinstance(error, ssl.SSLError), (len(words), error)
            assert error.reason == alert
        await until(lambda: listener.pending == 0)
        assert counted(listener) == {reason: 3}
        assert spec.protocol().made == []  # type: ignore[attr-defined]


@on_both_loops
async def test_tls_before_1_3_is_refused_and_the_client_learns_why(trust: Trust) -> None:
    old = trust.node()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for name in ("public", "control"):
        listener = Listener(port(trust, name))
        listener.open()
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            await dial(listener, old)
        await listener.close()
        assert counted(listener) == {"tls_version": 1}


@on_both_loops
async def test_another_alpn_or_none_is_closed_and_counted(trust: Trust) -> None:
    async with listening(port(trust, "control")) as listener:
        for alpn in (None, TUNNEL_ALPN, "h2"):
            node = await dial(listener, trust.node(alpn))
            await node.end()
        assert (listener.opened, counted(listener)) == (0, {"alpn": 3})


@on_both_loops
async def test_a_client_that_does_not_trust_the_server_is_counted(trust: Trust) -> None:
    async with listening(port(trust)) as listener:
        stranger = client_context(Authority.make(NOW).pem)
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(listener, stranger)
        await until(lambda: listener.pending == 0)
        # asyncio hangs up without a word, like the server side's; curl says why.
        assert sum(counted(listener).values()) == 1
        assert set(counted(listener)) <= {"gone", "distrust"}


@on_both_loops
async def test_http_on_a_port_for_nodes_is_told_so(trust: Trust) -> None:
    async with listening(port(trust, "control"), HURRY) as listener:
        answer = await _raw(listener, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Content-Type: application/json" in head
        error = json.loads(body)["error"]
        assert error["code"] == "tls_required"
        assert "fabric-client" in error["message"]
        assert counted(listener) == {"plaintext": 1}


@on_both_loops
async def test_http_from_another_machine_is_told_to_use_tls(trust: Trust) -> None:
    async with _from_elsewhere(port(trust)) as (listener, send):
        answer = await send(b"POST /v1/chat/completions HTTP/1.1\r\n\r\n" + bytes(200_000))
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "tls_required"
        assert f"https:// on port {listener.port}" in error["message"]
        assert (listener.opened, counted(listener)) == (0, {"plaintext": 1})


@on_both_loops
async def test_garbage_from_another_machine_is_closed_without_a_word(trust: Trust) -> None:
    async with _from_elsewhere(port(trust)) as (listener, send):
        for garbage in (
            b"\0",
            b"SSH-2.0-x\r\n",
            b"\x80\x2e\x01",
            b"get / HTTP/1.1",
            b"\xff" * 9000,
        ):
            assert await send(garbage) == b""
        assert counted(listener) == {"garbage": 5}


@contextlib.asynccontextmanager
async def _from_elsewhere(
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
                return await _talk(ours, words)
            finally:
                ours.close()

        yield listener, send


async def _raw(listener: Listener, words: bytes) -> bytes:
    sock = socket.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", listener.port))
    try:
        return await _talk(sock, words)
    finally:
        sock.close()


async def _talk(sock: socket.socket, words: bytes) -> bytes:
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


# ── slow and hostile ──────────────────────────────────────────────────────────────────────────


def client_hello() -> bytes:
    out = ssl.MemoryBIO()
    conversation = client_context(None).wrap_bio(ssl.MemoryBIO(), out, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        conversation.do_handshake()
    return out.read()


@on_both_loops
async def test_a_peer_that_is_silent_or_stops_in_mid_handshake_is_closed_in_time(
    trust: Trust,
) -> None:
    hello = client_hello()
    async with listening(port(trust, "control"), HURRY) as listener:
        well = await dial(listener, trust.node())
        began = time.monotonic()
        slow = [b"", hello[:1], hello[:100], hello[:-1], hello]
        talks = [asyncio.create_task(_raw(listener, words)) for words in slow]
        while not all(talk.done() for talk in talks):
            await well.says_back(b"undisturbed")
            await asyncio.sleep(0.01)
        assert 0.9 < time.monotonic() - began < 4
        assert counted(listener) == {"silent": 1, "slow": 4}
        await well.close()


@on_both_loops
async def test_a_peer_that_hangs_up_before_it_is_through_is_counted(trust: Trust) -> None:
    hello = client_hello()
    async with listening(port(trust, "control")) as listener:
        for words in (b"", hello[:50]):
            sock = socket.create_connection(("127.0.0.1", listener.port))
            sock.sendall(words)
            sock.close()
        await until(lambda: listener.accepted == 2 and listener.pending == 0)
        assert counted(listener) == {"gone": 2}


@on_both_loops
async def test_garbage_on_a_port_is_closed_and_counted_and_disturbs_nobody(trust: Trust) -> None:
    rng = random.Random(7)
    hello = client_hello()
    garbage = [
        b"\x16garbage, not TLS",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\xff" * 3000,
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\0" * 100,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        *(rng.randbytes(rng.randint(1, 2000)) for _ in range(40)),
        *(b"\x16\x03" + rng.randbytes(rng.randint(1, 2000)) for _ in range(40)),
        *(_spoiled(hello, rng) for _ in range(40)),
    ]
    async with listening(port(trust, "control"), HURRY) as listener:
        well = await dial(listener, trust.node())
        talks = [asyncio.create_task(_raw(listener, words)) for words in garbage]
        while not all(talk.done() for talk in talks):
            await well.says_back(b"undisturbed")
        answers = [await talk for talk in talks]
        await until(lambda: listener.pending == 0)
        # Random bytes are cut short as "slow", or refused; some of the spoiled hellos are only odd.
        assert sum(counted(listener).values()) == len(garbage)
        assert set(counted(listener)) <= set(REASONS)
        assert listener.opened == 1
        assert all(not answer or answer[0] in (0x15, 0x16) for answer in answers)
        await well.close()


def _spoiled(hello: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(5, len(hello))
    return hello[:at] + rng.randbytes(4) + hello[at + 4 :]


@on_both_loops
async def test_a_crowd_pushes_out_the_oldest_and_an_honest_peer_still_gets_in(
    trust: Trust,
) -> None:
    limits = Limits(seconds=30, total=20, farewell=0.3)
    async with listening(port(trust, "control"), limits) as listener:
        crowd = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(50)]
        await until(lambda: listener.accepted == 50)
        node = await dial(listener, trust.node())
        await node.says_back(b"hello")
        assert counted(listener) == {"crowded": 31}
        assert listener.pending == 19
        crowd[0].settimeout(5)
        assert crowd[0].recv(1) == b""
        for sock in crowd:
            sock.close()
        await node.close()


@on_both_loops
async def test_in_a_crowd_one_address_has_only_its_share(trust: Trust) -> None:
    listener = Listener(port(trust), Limits(seconds=30, total=20, per_address=3))
    listener.open()
    ours = []

    def arrive(address: str) -> None:
        mine, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.append(mine)
        listener.admit(theirs, address)

    for _ in range(12):
        arrive("203.0.113.9")
    assert (listener.pending, counted(listener)) == (10, {"crowded_address": 2})
    for last in range(4):  # one /64 is one address
        arrive(f"2001:db8::{last}:0:0:1")
    assert (listener.pending, counted(listener)) == (13, {"crowded_address": 3})
    for _ in range(4):
        arrive("127.0.0.1")
    arrive("::ffff:127.0.0.1")
    assert listener.pending == 18
    await listener.close()
    for sock in ours:
        sock.close()


@on_both_loops
async def test_closing_ends_what_is_under_way_and_leaves_what_was_let_through(
    trust: Trust,
) -> None:
    hello = client_hello()
    async with listening(port(trust, "control")) as listener:
        node = await dial(listener, trust.node())
        waiting = [asyncio.create_task(_raw(listener, hello[:n])) for n in (0, 1, 90, len(hello))]
        await until(lambda: listener.accepted == 5)
        await asyncio.sleep(0.05)
        assert listener.pending == 4
        await listener.close()
        await asyncio.gather(*waiting)
        await node.says_back(b"still here")
        await node.close()


@on_both_loops
async def test_a_closing_right_after_the_connections_came_leaks_nothing(trust: Trust) -> None:
    async with listening(port(trust, "control")) as listener:
        nodes = [asyncio.create_task(dial(listener, trust.node())) for _ in range(10)]
        await until(lambda: listener.accepted)
        await listener.close()
        for result in await asyncio.gather(*nodes, return_exceptions=True):
            if isinstance(result, Peer):
                await result.close()


@on_both_loops
async def test_to_stop_accepting_closes_the_port_and_nothing_else(trust: Trust) -> None:
    async with listening(port(trust)) as listener:
        before = await dial(listener, client_context(trust.ca))
        half = socket.create_connection(("127.0.0.1", listener.port))
        await until(lambda: listener.accepted == 2)
        queued = socket.create_connection(("127.0.0.1", listener.port))
        listener.stop_accepting()
        assert not listener.accepting
        with pytest.raises(ConnectionRefusedError):
            await dial(listener)
        await before.says_back(b"still here")
        for sock in (half, queued):
            sock.sendall(b"hello")
            sock.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"hello"
            sock.close()
        await before.close()


@on_both_loops
async def test_sockets_that_are_handed_over_lose_nobody_who_waits_in_their_queue(
    trust: Trust,
) -> None:
    async with listening(port(trust)) as older:
        older.rest()
        assert not older.accepting
        queued = socket.create_connection(("127.0.0.1", older.port))
        newer = Listener(port(trust))
        newer.open([one.dup() for one in older.sockets])
        assert newer.port == older.port and not newer.accepting
        older.stop_accepting()
        assert older.accepted == 0
        newer.begin()
        assert newer.accepting
        queued.sendall(b"hello")
        queued.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(queued, 100) == b"hello"
        queued.close()
        await newer.close()


@on_both_loops
async def test_without_file_descriptors_accepting_pauses_and_goes_on_later(
    trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(port(trust)) as listener:
        user = await dial(listener)
        await user.says_back(b"hello")
        late = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            with caplog.at_level(logging.INFO):
                late.connect(("127.0.0.1", listener.port))
                await until(lambda: "can't accept" in caplog.text)
                used = time.process_time()
                await asyncio.sleep(0.2)
                assert time.process_time() - used < 0.15
                await user.says_back(b"undisturbed")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with caplog.at_level(logging.INFO):
            late.sendall(b"late")
            late.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(late, 10) == b"late"
        assert caplog.text.count("can't accept") == 1
        assert caplog.text.count("accepting again") == 1
        late.close()
        await user.close()


@on_both_loops
async def test_refusals_are_logged_once_per_reason_and_not_once_per_stranger(
    trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(port(trust, "control"), HURRY) as listener:
        with caplog.at_level(logging.INFO):
            for _ in range(20):
                await _raw(listener, b"\0garbage")
        assert counted(listener) == {"garbage": 20}
        assert len([1 for record in caplog.records if record.msg == "connection refused"]) == 1


# ── opening ───────────────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_a_port_in_use_is_one_sentence_with_the_settings_name(trust: Trust) -> None:
    async with listening(port(trust)) as listener:
        second = Listener(port(trust, number=listener.port))
        with pytest.raises(PortProblem) as caught:
            second.open()
        assert str(caught.value) == (
            f"public_port {listener.port} on 127.0.0.1 is taken by another program: stop that "
            "one, or set public_port to another number (0 takes any free one)."
        )
        assert not second.accepting
        await second.close()


@on_both_loops
async def test_a_host_that_is_not_this_machines_is_one_sentence(trust: Trust) -> None:
    for host, says in (
        ("203.0.113.9", "no such address"),
        ("no.such.host.invalid", "has no address here"),
    ):
        with pytest.raises(PortProblem, match=says):
            Listener(port(trust, hosts=[host])).open()


@on_both_loops
async def test_processes_may_share_a_port_when_asked_to(trust: Trust) -> None:
    async with (
        listening(port(trust, reuse_port=True)) as first,
        listening(port(trust, reuse_port=True, number=first.port)) as second,
    ):
        assert second.port == first.port


@on_both_loops
async def test_a_port_can_be_opened_again_at_once(trust: Trust) -> None:
    async with listening(port(trust)) as first:
        user = await dial(first)
        await user.says_back(b"hello")
        number = first.port
    async with listening(port(trust, number=number)) as second:
        assert second.port == number
    await user.close()


# ── aiohttp behind it ─────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_an_aiohttp_application_runs_behind_a_port(trust: Trust) -> None:
    async def hello(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        body = await request.read()
        secure = request.transport is not None and request.transport.get_extra_info("ssl_object")
        await answer.write(f"{bool(secure)} {request.remote} {len(body)}\n".encode())
        await answer.write(b"end")
        return answer

    app = web.Application()
    app.router.add_post("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    spec, context = port(trust, "api", protocol=runner.server), client_context(trust.ca)
    async with listening(spec) as listener, aiohttp.ClientSession() as session:
        for scheme in ("http", "https"):
            url, secure = f"{scheme}://127.0.0.1:{listener.port}/", scheme == "https"
            for size in (0, 500_000):
                async with session.post(
                    url, data=bytes(size), ssl=context, server_hostname=SERVER_NAME
                ) as answer:
                    assert await answer.text() == f"{secure} 127.0.0.1 {size}\nend"
        # Two connections, each used twice.
        assert (listener.opened, counted(listener)) == (2, {})
        listener.stop_accepting()
        await runner.cleanup()
