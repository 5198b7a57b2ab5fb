"""One number for several ports: what comes there gets to its port, however it comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric_server.app.listeners import sort
from fabric_server.net.client_hello import ClientHello
from fabric_server.net.connection_budget import Places
from fabric_server.net.known_addresses import KnownAddresses
from fabric_server.net.listener import Limits, Listener, SharedPort
from fabric_server.net.trusted_proxies import TrustedProxies
from protocol.names import CONTROL_ALPN, SERVER_NAME
from tests.loops import on_both_loops
from tests.server.net.ports import Trust, counted, dial, made_by, port, raw, until
from tests.server.net.test_client_hello import COSTLY, hello
from tests.server.net.test_proxies import HEADER, dial_with
from tests.trust import client_context


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)


class Shared:
    """A shared port and two that have no number of their own."""

    def __init__(self, trust: Trust, *, places: int = 50, limits: Limits | None = None) -> None:
        proxies = TrustedProxies(["127.0.0.1/32"])
        self.behind = {
            "public": Listener(port(trust, proxies=proxies), limits),
            "control": Listener(port(trust, "control", proxies=proxies), limits),
        }
        self.proxies = proxies
        self.suspected: list[str] = []
        self.places = Places(places, places)
        self.limits = limits or Limits(total=places, per_address=places)

    async def choose(self, hello: ClientHello | None) -> Listener:
        return self.behind[sort(hello) if sort(hello) in self.behind else "public"]

    @contextlib.asynccontextmanager
    async def open(self, **options: bool) -> AsyncIterator[Listener]:
        spec = SharedPort(
            "one",
            ["127.0.0.1"],
            0,
            self.choose,
            proxies=self.proxies,
            on_suspect=self.suspected.append,
            **options,
        )
        one = Listener(spec, self.limits, self.places, KnownAddresses())
        one.open()
        for listener in self.behind.values():
            listener.open_behind(one)
        try:
            yield one
        finally:
            for listener in (one, *self.behind.values()):
                await listener.close()
                assert listener.pending == 0


@pytest.mark.parametrize(
    ("hello", "name"),
    [
        (None, "public"),
        (ClientHello(), "public"),
        (ClientHello("gpu.example.org", ("h2", "http/1.1")), "public"),
        (ClientHello("gpu.example.org", ("acme-tls/1",)), "public"),
        (ClientHello("server.fabric", ("http/1.1",)), "api"),
        (ClientHello("server.fabric"), "api"),
        (ClientHello("server.fabric", ("fabric-control/1",)), "control"),
        (ClientHello("server.fabric", ("fabric-tunnel/1",)), "proxy"),
        (ClientHello("gpu.example.org", ("http/1.1", "fabric-tunnel/1")), "proxy"),
        (ClientHello("", ("fabric-control/1", "fabric-tunnel/1")), "control"),
    ],
)
def test_who_names_a_protocol_of_nodes_gets_to_a_port_that_asks_for_a_certificate(
    hello: ClientHello | None, name: str
) -> None:
    assert sort(hello) == name


@on_both_loops
async def test_nodes_and_users_share_a_number(trust: Trust) -> None:
    shared = Shared(trust)
    async with shared.open() as one:
        node = await dial(one, trust.node())
        user = await dial(one, client_context(trust.ca))
        plain = await dial(one)
        for peer in (node, user, plain):
            await peer.says_back(b"hello")
        served = {name: len(made_by(one.spec)) for name, one in _ports(shared).items()}
        assert served == {"control": 1, "public": 2}
        assert (one.accepted, one.opened, one.budget.used) == (3, 3, 0)
        for peer in (node, user, plain):
            await peer.close()
        await until(lambda: not any(one.budget.used for one in shared.behind.values()))


@on_both_loops
async def test_a_message_that_is_made_to_cost_time_is_suspect_and_goes_no_further(
    trust: Trust,
) -> None:
    shared = Shared(trust)
    async with shared.open() as one:
        assert await raw(one, COSTLY["empty protocols"]) == b""
        ours, theirs = socket.socketpair()
        with ours:
            theirs.setblocking(False)
            one.admit(theirs, "203.0.113.9")
            ours.sendall(COSTLY["many extensions"])
            await until(lambda: counted(one) == {"bad_tls": 2})
        assert shared.suspected == ["203.0.113.9"], "loopback is not blocked"
        assert [one.accepted for one in shared.behind.values()] == [0, 0]


@on_both_loops
async def test_nothing_of_a_node_is_reached_without_its_certificate(trust: Trust) -> None:
    shared = Shared(trust)
    async with shared.open() as one:
        for name in (SERVER_NAME, "gpu.example.org", None):
            context = client_context(None, None, CONTROL_ALPN)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            peer = await _dial(one, context, name)
            error = await asyncio.wait_for(peer, 5)
            assert isinstance(error, ssl.SSLError)
            assert error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert counted(shared.behind["control"]) == {"no_certificate": 3}
        assert {name: made_by(one.spec) for name, one in _ports(shared).items()} == {
            "public": [],
            "control": [],
        }


async def _dial(one: Listener, context: ssl.SSLContext, name: str | None) -> asyncio.Future:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Exception | None] = loop.create_future()

    class Client(asyncio.Protocol):
        def connection_lost(self, error: Exception | None) -> None:
            ended.set_result(error)

    await loop.create_connection(
        Client, "127.0.0.1", one.port, ssl=context, server_hostname=name or ""
    )
    return ended


def _ports(shared: Shared) -> dict[str, Listener]:
    return shared.behind


@on_both_loops
async def test_a_first_message_in_pieces_is_waited_for_without_spinning(trust: Trust) -> None:
    shared = Shared(trust)
    loop = asyncio.get_running_loop()
    record = hello(SERVER_NAME, [CONTROL_ALPN])
    async with shared.open() as one:
        sock = socket.create_connection(("127.0.0.1", one.port))
        sock.setblocking(False)
        busy = time.process_time()
        for at in range(0, len(record), 100):
            await loop.sock_sendall(sock, record[at : at + 100])
            await asyncio.sleep(0.02)  # each piece must arrive by itself
        await until(lambda: shared.behind["control"].accepted == 1)
        assert time.process_time() - busy < 0.1 + len(record) / 100 * 0.01
        answer = await asyncio.wait_for(loop.sock_recv(sock, 100), 5)
        assert answer[0] == 0x16, "the server's part of the handshake"
        sock.close()
        await until(lambda: not shared.behind["control"].pending)


@on_both_loops
async def test_what_is_silent_or_stops_is_closed_and_counted_at_the_shared_port(
    trust: Trust,
) -> None:
    shared = Shared(trust, limits=Limits(seconds=0.5, reply_seconds=0.3))
    record = hello(SERVER_NAME, [CONTROL_ALPN])
    async with shared.open() as one:
        words = [b"", record[:3], record[:100], record[:-1]]
        answers = await asyncio.gather(*(raw(one, each) for each in words))
        assert answers == [b""] * 4
        assert counted(one) == {"silent": 1, "slow": 3}
        for each in words:
            sock = socket.create_connection(("127.0.0.1", one.port))
            sock.sendall(each)
            sock.close()
        await until(lambda: counted(one).get("gone") == 4)
        assert await raw(one, b"\x16garbage, not TLS") == b""
        await until(lambda: not shared.behind["public"].pending)


async def test_a_crowd_of_users_takes_no_place_of_a_node(trust: Trust) -> None:
    """Connections that say nothing, and users that are through and hold all of their places."""
    shared = Shared(trust, places=20)
    public = shared.behind["public"]
    public.budget.places = Places(10, 10)
    async with shared.open() as one:
        users = [await dial(one, client_context(trust.ca)) for _ in range(10)]
        await until(lambda: len(made_by(public.spec)) == 10)
        for echo in made_by(public.spec):
            echo.peer.recognise()
        silent = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(60)]
        await until(lambda: one.accepted == 70)
        assert await raw(one, hello("x", [])) == b"", "all places of users are taken"
        assert counted(public) == {"full": 1}
        node = await dial(one, trust.node())
        await node.says_back(b"hello")
        assert one.budget.used <= 20
        for peer in (node, *users):
            await peer.close()
        for sock in silent:
            sock.close()


async def test_a_proxy_header_is_read_once_and_holds_for_the_port_behind(trust: Trust) -> None:
    shared = Shared(trust)
    async with shared.open(proxy_protocol=True) as one:
        user = await dial_with(one, HEADER, client_context(trust.ca))
        await user.says_back(b"hello")
        (echo,) = made_by(shared.behind["public"].spec)
        assert (echo.peer.ip, echo.peer.proxied) == (ip_address("203.0.113.5"), True)
        assert await raw(one, hello("x", [])) == b""
        assert counted(one) == {"proxy_header": 1}
        await user.close()
