"""Tunnels and links on transports: in memory with a clock that is set, and over TLS for real."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import ipaddress
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol import messages
from protocol.aio.driver import Driver
from protocol.aio.link import LinkDriver
from protocol.aio.memory import MemoryTransport, connect
from protocol.aio.node import NodeStream, NodeTunnel
from protocol.aio.server import ServerStream, ServerTunnel
from protocol.aio.tunnel import StreamHandler, Tunnel
from protocol.control.link import LinkClosed
from protocol.errors import Code
from protocol.messages import Figures, Hello, Leaving, Message, RequestHead, ResponseHead, Tunnels
from protocol.names import TUNNEL_ALPN
from protocol.tunnel.frames import FrameType, encode
from protocol.tunnel.streams import STREAM_WINDOW
from tests.loops import on_both_loops
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, frames_in

KIB, MIB = 1024, 1024 * 1024


class Owner:
    """Remembers what it hears of its tunnel."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.hello = asyncio.Event()
        self.closed = asyncio.Event()

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None:
        self.heard.append(f"hello {hello.session!r}")
        self.hello.set()

    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None:
        self.heard.append(f"drain {reason!r} {seconds:g} s")

    def on_silence(self, tunnel: ServerTunnel) -> None: ...
    def on_pong(self, tunnel: ServerTunnel) -> None: ...

    def on_closed(self, tunnel: Tunnel, code: int, reason: str) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.heard.append(f"closed {Code.name_of(code)} {reason!r}")
        self.closed.set()


class Answer:
    """Server's side of a stream: reads at once, unless told to hold back."""

    def __init__(self, *, hold: bool = False) -> None:
        self.heard: list[str] = []
        self.body = bytearray()
        self.over = asyncio.Event()
        self.hold = hold
        self.stream: ServerStream | None = None

    def on_head(self, head: ResponseHead) -> None:
        self.heard.append(f"head {head.status}")

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        if not self.hold:
            assert self.stream is not None
            self.stream.consumed(len(data))

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_end(self, figures: Figures) -> None:
        self.heard.append("end")
        self.over.set()

    def on_reset(self, code: int, reason: str) -> None:
        self.heard.append(f"reset {Code.name_of(code)}")
        self.over.set()


class Echo:
    """Node's side of a stream: gives the question back when it is complete."""

    def __init__(self, stream: NodeStream) -> None:
        self.stream = stream
        self.body = bytearray()
        self.heard: list[str] = []
        self.written: asyncio.Future[None] | None = None

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        self.stream.consumed(len(data))
        if ended:
            self.answer()

    def answer(self) -> None:
        self.stream.send_head(ANSWER)
        if self.body:
            self.stream.send(bytes(self.body))
        self.stream.end(FIGURES)

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_reset(self, code: int, reason: str) -> None:
        self.heard.append(f"reset {Code.name_of(code)}")
        self.stream.confirm_reset()


class Watched(Driver):
    """Shows its transport, and when that is gone."""

    transport: asyncio.Transport

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


class WatchedServer(Watched, ServerTunnel): ...


class WatchedNode(Watched, NodeTunnel): ...


class Ends:
    """Both ends of one tunnel; what the node accepted stands in ``echoes``."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.echoes: list[Any] = []
        self.server_owner, self.node_owner = Owner(), Owner()
        self.server = WatchedServer(self.server_owner, loop, rng=Random(1))
        self.node = WatchedNode(self.node_owner, loop, rng=Random(2), accept=self.accept)

    def accept(self, stream: NodeStream, head: RequestHead, ended: bool) -> StreamHandler | None:
        echo = Echo(stream)
        self.echoes.append(echo)
        if ended:
            echo.answer()
            return None
        return echo

    def in_memory(self) -> Ends:
        connect(self.server, self.node, asyncio.get_running_loop())
        self.node.hello(SESSION)
        return self

    def ask(self, body: bytes = b"", *, hold: bool = False, ended: bool = True) -> Answer:
        answer = Answer(hold=hold)
        answer.stream = self.server.open(HEAD, answer, ended=ended and not body)
        if body:
            answer.stream.send(body, ended)
        return answer


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def within(seconds: float, *events: asyncio.Event) -> None:
    async with asyncio.timeout(seconds):
        for event in events:
            await event.wait()


# ── TLS for real ──────────────────────────────────────────────────────────────────────────────


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
    server = await loop.create_server(lambda: ends.server, sock=listening, ssl=contexts[0])
    try:
        await loop.sock_connect(dialling, listening.getsockname())
        transport, _ = await loop.create_connection(
            dial or (lambda: ends.node), sock=dialling, ssl=contexts[1], server_hostname="127.0.0.1"
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
            await within(10, ends.server.gone)
            if dial is None:
                await within(10, ends.node.gone)
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
        ends.node.transport.pause_reading()
        answers = [ends.ask(ended=False) for _ in range(12)]
        for answer in answers:
            assert answer.stream is not None
            answer.stream.send(b"x" * STREAM_WINDOW, True)
        await turns(50)
        connection = ends.server.connection
        assert connection.credit > 0, "it is the transport that holds them back"
        assert connection.queued > 2 * MIB
        assert ends.server.transport.get_write_buffer_size() < 600 * KIB
        # What is not handed out yet can still be taken back.
        cancelled = answers[-1]
        assert cancelled.stream is not None
        before = connection.queued
        cancelled.stream.reset(Code.CANCELLED)
        assert connection.queued < before
        ends.node.transport.resume_reading()
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
        await within(5, ends.node_owner.closed, ends.node.gone, ends.server.gone)
        assert ends.node_owner.heard == ["closed superseded 'registered again'"]
        assert ends.server_owner.heard[-1] == "closed superseded 'registered again'"


@on_both_loops
async def test_a_peer_that_does_not_let_go_is_cut_off(contexts):
    ends = Ends()
    ends.server.closing_seconds = ends.node.closing_seconds = 0.1
    async with over_tls(contexts, ends):
        ends.node.transport.pause_reading()
        for _ in range(12):
            ends.ask(b"x" * STREAM_WINDOW)
        await turns(50)
        assert ends.server.transport.get_write_buffer_size() > 0
        ends.server.close(Code.NONE, "enough")
        await turns()
        assert not ends.server.gone.is_set(), "the last words wait behind what the peer won't read"
        await within(5, ends.server.gone)


@on_both_loops
async def test_a_cut_connection_ends_every_stream(contexts):
    async with over_tls(contexts, Ends()) as ends:
        answers = [ends.ask(ended=False) for _ in range(3)]
        await turns()
        ends.node.transport.abort()
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
        await within(5, stranger.gone, ends.server.gone)
        (close,) = frames_in(bytes(stranger.got))
        assert str(close) == "CLOSE protocol 'unknown frame type 71'"
        assert ends.server_owner.heard == ["closed protocol 'unknown frame type 71'"]


# ── in memory ─────────────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_a_question_and_its_answer_in_memory():
    ends = Ends().in_memory()
    await turns()
    assert ends.server_owner.heard == ["hello b'session'"]
    answer = ends.ask(b"question")
    await turns()
    assert answer.heard == ["head 200", "end"]
    assert bytes(answer.body) == b"question"
    assert ends.server.peer == "in process"
    ends.server.drain("restarting", 1)
    await turns()
    assert ends.node_owner.heard == ["drain 'restarting' 1 s", "closed none 'drained'"]


class Counted(MemoryTransport):
    """Remembers every write."""

    def __init__(self, protocol: asyncio.Protocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(protocol, loop)
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.writes.append(bytes(data))
        super().write(data)


def joined(ends: Ends) -> tuple[Counted, Counted]:
    """Like ``in_memory``, with transports that count."""
    loop = asyncio.get_running_loop()
    left, right = Counted(ends.server, loop), Counted(ends.node, loop)
    left.join(right)
    ends.server.connection_made(left)
    ends.node.connection_made(right)
    ends.node.hello(SESSION)
    return left, right


@on_both_loops
async def test_everything_said_in_one_turn_is_one_write():
    ends = Ends()
    left, right = joined(ends)
    await turns()
    left.writes.clear()
    right.writes.clear()
    answers = [ends.ask(b"question") for _ in range(10)]
    await turns()
    assert all(answer.heard == ["head 200", "end"] for answer in answers)
    assert [len(list(frames_in(write))) for write in left.writes] == [20]
    assert [len(list(frames_in(write))) for write in right.writes] == [30]


@on_both_loops
async def test_commands_before_the_connection_is_made_go_out_with_it():
    ends = Ends()
    ends.node.hello(SESSION)
    await turns()
    connect(ends.server, ends.node, asyncio.get_running_loop())
    await turns()
    assert ends.server_owner.heard == ["hello b'session'"]


class Broken(Answer):
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name == super().__getattribute__("where"):

            def fail(*_: object) -> None:
                raise ZeroDivisionError("a defect")

            return fail
        return super().__getattribute__(name)


@pytest.mark.parametrize("where", ["on_head", "on_data", "on_end"])
@on_both_loops
async def test_a_handler_that_fails_costs_only_its_stream(where, caplog):
    ends = Ends().in_memory()
    await turns()
    broken, fine = Broken(where), Answer()
    for answer in (broken, fine):
        answer.stream = ends.server.open(HEAD, answer, ended=False)
        answer.stream.send(b"question", True)
    await turns()
    assert fine.heard == ["head 200", "end"]
    assert "a defect" in caplog.text
    assert ends.server_owner.heard == ["hello b'session'"]
    assert ends.server.connection.active == ends.node.connection.active == 0
    if where != "on_end":
        assert broken.heard[-1] == "reset internal", "whoever waits for it is told"


@on_both_loops
async def test_a_node_that_fails_to_accept_says_so(caplog):
    ends = Ends()

    def accept(stream: NodeStream, head: RequestHead, ended: bool) -> None:
        raise ZeroDivisionError("a defect")

    ends.accept = accept  # type: ignore[method-assign, assignment]
    loop = asyncio.get_running_loop()
    ends.node = WatchedNode(ends.node_owner, loop, rng=Random(1), accept=accept)
    ends.in_memory()
    await turns()
    answer = ends.ask(b"question")
    await turns()
    assert answer.heard == ["reset internal"]
    assert "a defect" in caplog.text
    assert ends.node.connection.active == 0


class Stubborn(Echo):
    def on_reset(self, code: int, reason: str) -> None:
        raise ZeroDivisionError("a defect")


@on_both_loops
async def test_a_node_that_fails_to_stop_still_gives_the_slot_back(caplog):
    ends = Ends()
    ends.accept = lambda stream, head, ended: Stubborn(stream)  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    ends.node = WatchedNode(ends.node_owner, loop, rng=Random(1), accept=ends.accept)
    ends.in_memory()
    await turns()
    answer = ends.ask(b"question", ended=False)
    await turns()
    assert answer.stream is not None
    answer.stream.reset(Code.CANCELLED)
    await turns()
    assert answer.heard == ["reset none"]
    assert "a defect" in caplog.text
    assert ends.server.connection.active == 0


@on_both_loops
async def test_an_owner_that_fails_costs_the_tunnel_and_says_so(caplog):
    ends = Ends()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    ends.server_owner.on_hello = fail  # type: ignore[method-assign]
    ends.in_memory()
    await turns()
    assert ends.node_owner.heard == ["closed internal 'defect'"]
    assert "a defect" in caplog.text


@on_both_loops
async def test_a_cancelled_stream_whose_work_has_ended_is_confirmed():
    ends = Ends().in_memory()
    await turns()
    answer = ends.ask(b"x" * (STREAM_WINDOW + 1), hold=True)
    await turns(40)
    assert answer.heard == ["writable", "head 200"], "the last byte waits for credit"
    assert ends.node.connection.active == 1
    assert answer.stream is not None
    answer.stream.reset(Code.SLOW_READER)
    await turns()
    assert answer.heard[2:] == ["reset none"]
    assert ends.echoes[0].heard == []
    assert ends.node.connection.active == 0


@on_both_loops
async def test_a_reader_that_comes_back_later_gets_the_rest():
    ends = Ends().in_memory()
    await turns()
    answer = ends.ask(b"x" * 2 * STREAM_WINDOW, hold=True)
    await turns(40)
    assert len(answer.body) == STREAM_WINDOW
    assert answer.stream is not None
    answer.stream.consumed(STREAM_WINDOW)
    await turns(40)
    assert len(answer.body) == 2 * STREAM_WINDOW
    assert answer.heard[-1] == "end"


@on_both_loops
async def test_a_close_from_within_a_flush_is_still_said():
    ends = Ends().in_memory()
    await turns()

    class Closing(Answer):
        def on_writable(self) -> None:
            ends.server.close(Code.INTERNAL, "changed my mind")

    answer = Closing()
    stream = answer.stream = ends.server.open(HEAD, answer, ended=False)
    stream.send(b"x" * (STREAM_WINDOW + 1))
    await turns()
    assert ends.node_owner.heard == ["closed internal 'changed my mind'"]


@on_both_loops
async def test_a_writer_hears_when_to_go_on():
    ends = Ends().in_memory()
    await turns()
    answer = Answer()
    stream = answer.stream = ends.server.open(HEAD, answer, ended=False)
    assert stream.send(b"x" * 2 * STREAM_WINDOW) is False
    await turns(40)
    assert answer.heard == ["writable"]
    assert stream.send(b"the end", True) is True
    await turns(40)
    assert answer.heard == ["writable", "head 200", "end"]
    assert len(answer.body) == 2 * STREAM_WINDOW + 7


@on_both_loops
async def test_what_came_before_a_close_is_told_before_it():
    """A handler closes the tunnel; a neighbour's end stood in the same bytes."""
    ends = Ends().in_memory()
    await turns()
    told: list[str] = []

    class Closing(Answer):
        def on_head(self, head: ResponseHead) -> None:
            told.append("head of the first")
            ends.server.close(Code.NONE, "enough")
            told.append("closed")

    class Neighbour(Answer):
        def on_end(self, figures: Figures) -> None:
            told.append("end of the second")

        def on_reset(self, code: int, reason: str) -> None:
            told.append("reset of the second")

    first, second = Closing(), Neighbour()
    for answer in (first, second):
        answer.stream = ends.server.open(HEAD, answer, ended=True)
    await turns()
    assert told == ["head of the first", "end of the second", "closed"]
    assert ends.server_owner.heard[-1] == "closed none 'enough'"


@on_both_loops
async def test_a_tunnel_that_is_over_is_held_by_nothing():
    ends = Ends().in_memory()
    await turns()
    answer = ends.ask(b"question")
    await within(5, answer.over)
    ends.server.close(Code.NONE, "bye")
    await within(5, ends.server.gone, ends.node.gone)
    await turns()
    refs = [weakref.ref(ends.server), weakref.ref(ends.node)]
    answer.stream = None
    del ends, answer
    gc.collect()
    assert [ref() for ref in refs] == [None, None], "a timer still holds it"


# ── time, set by hand ─────────────────────────────────────────────────────────────────────────


class SetClock(asyncio.SelectorEventLoop):
    """A loop whose clock the test moves."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class Deaf(Counted):
    """Loses everything written to it."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.writes.append(bytes(data))


def by_hand(story: Callable[[SetClock], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        with asyncio.Runner(debug=True, loop_factory=SetClock) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, SetClock)
            loop.slow_callback_duration = float("inf")  # jumping clocks are meant
            runner.run(story(loop))

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    return test


async def later(loop: SetClock, seconds: float, step: float = 0.5) -> None:
    for _ in range(int(seconds / step)):
        loop.ahead += step
        await turns(4)


@by_hand
async def test_a_node_that_hears_only_the_request_notices_within_ten_seconds(loop):
    ends = Ends()
    transport = Deaf(ends.node, loop)
    transport.join(Deaf(asyncio.Protocol(), loop))
    ends.node.connection_made(transport)
    await turns()
    ends.node.data_received(encode(FrameType.OPEN, 0, 1, messages.encode(HEAD)))
    await turns()
    assert ends.node.connection.active == 1
    await later(loop, 9.5)
    assert not ends.node.connection.closed
    await later(loop, 1)
    assert ends.node_owner.heard == ["closed lost 'silent for 10 s'"]
    await turns()
    assert ends.node.gone.is_set()


@by_hand
async def test_a_server_that_opens_a_stream_into_the_void_notices_within_ten_seconds(loop):
    ends = Ends()
    transport = Deaf(ends.server, loop)
    transport.join(Deaf(asyncio.Protocol(), loop))
    ends.server.connection_made(transport)
    ends.server.data_received(encode(FrameType.HELLO, 0, 0, messages.encode(Hello(1, SESSION))))
    await later(loop, 6)  # past the timer of the greeting
    answer = ends.ask(b"question")
    await turns()
    await later(loop, 9.5)
    assert answer.heard == []
    await later(loop, 1)
    assert answer.heard == ["reset lost"]
    assert ends.server_owner.heard[-1] == "closed lost 'silent for 16 s'"
    await turns()
    assert ends.server.gone.is_set()


@by_hand
async def test_an_idle_hour_over_transports_costs_some_hundred_writes(loop):
    ends = Ends()
    left, right = joined(ends)
    await later(loop, 3600, step=1.0)
    assert not ends.server.connection.closed
    assert 400 <= len(left.writes) + len(right.writes) <= 700
    ends.server.close(Code.NONE, "bye")
    await turns()


@by_hand
async def test_a_dead_idle_tunnel_is_given_up_once_and_does_not_spin(loop):
    ends = Ends()
    left, right = Deaf(ends.server, loop), Deaf(ends.node, loop)
    left.join(right)
    ends.server.connection_made(left)
    ends.node.connection_made(right)
    await later(loop, 4)
    assert ends.server_owner.heard == []
    await later(loop, 2)
    assert ends.server_owner.heard == ["closed timeout 'no HELLO in time'"]
    assert "CLOSE timeout" in str(list(frames_in(left.writes[-1]))[-1])
    await later(loop, 55)
    assert ends.node_owner.closed.is_set()
    assert ends.node.gone.is_set()


# ── links ─────────────────────────────────────────────────────────────────────────────────────


class LinkWatch:
    def __init__(self) -> None:
        self.heard: list[Message | LinkClosed] = []

    def on_message(self, link: LinkDriver, message: Message) -> None:
        self.heard.append(message)

    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None:
        self.heard.append(closed)


def link_ends() -> tuple[LinkDriver, LinkWatch, LinkDriver, LinkWatch]:
    loop = asyncio.get_running_loop()
    owners = LinkWatch(), LinkWatch()
    server, node = (LinkDriver(owner, loop, rng=Random(1)) for owner in owners)
    connect(server, node, loop)
    return server, owners[0], node, owners[1]


@on_both_loops
async def test_messages_cross_a_link_and_a_refusal_ends_it():
    server, server_owner, node, node_owner = link_ends()
    node.send(Leaving("going home", 3.0))
    await turns()
    assert server_owner.heard == [Leaving("going home", 3.0)]
    server.send(Tunnels(4))
    server.close(Code.UNAUTHORISED, "revoked", again=False)
    assert server_owner.heard[-1] == LinkClosed(Code.UNAUTHORISED, "revoked", False, False)
    await turns()
    assert node_owner.heard == [
        Tunnels(4),
        LinkClosed(Code.UNAUTHORISED, "revoked", False, True),
    ]
    assert server.peer_certificate() == node.peer_certificate() == {}
    assert repr(server) == "<LinkDriver in process <Link closed>>"


@on_both_loops
async def test_an_owner_that_fails_costs_the_link_and_says_so(caplog):
    server, _, node, node_owner = link_ends()

    class Failing(LinkWatch):
        def on_message(self, link: LinkDriver, message: Message) -> None:
            raise ZeroDivisionError("a defect")

    failing = server.owner = Failing()
    node.send(Tunnels(3))
    node.send(Tunnels(4))
    await turns()
    closed = LinkClosed(Code.INTERNAL, "defect", True, True)
    assert node_owner.heard == [closed]
    assert [type(heard) for heard in failing.heard] == [LinkClosed]
    assert "a defect" in caplog.text
