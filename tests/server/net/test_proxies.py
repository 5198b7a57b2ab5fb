"""Ports behind proxies: PROXY protocol, plain HTTP, and places, with real sockets and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_server.net.connection_budget import Peer as Place
from fabric_server.net.connection_budget import Places
from fabric_server.net.listener import Limits, Listener, Port
from fabric_server.net.proxy_protocol import SIGNATURE
from fabric_server.net.trusted_proxies import TrustedProxies
from protocol.names import SERVER_NAME
from tests.loops import on_both_loops
from tests.server.net.ports import (
    HURRY,
    Peer,
    Trust,
    counted,
    dial,
    listening,
    made_by,
    port,
    raw,
    until,
)

LOOPBACK = TrustedProxies(["127.0.0.0/8"])
HEADER = SIGNATURE + bytes.fromhex("2111000c cb007105 0a000002 d903 01bb")  # from 203.0.113.5
LOCAL = SIGNATURE + bytes.fromhex("20000000")


def behind(trust: Trust, name: str = "public", **options: Any) -> Port:
    return port(trust, name, proxy_protocol=True, **{"proxies": LOOPBACK} | options)


async def dial_with(listener: Listener, header: bytes, context: ssl.SSLContext) -> Peer:
    """TLS that begins behind the bytes of a proxy."""
    loop = asyncio.get_running_loop()
    sock = socket.create_connection(("127.0.0.1", listener.port))
    sock.setblocking(False)
    await loop.sock_sendall(sock, header)
    _, peer = await loop.create_connection(
        Peer, sock=sock, ssl=context, server_hostname=SERVER_NAME
    )
    return peer


@on_both_loops
@pytest.mark.parametrize(("header", "address"), [(HEADER, "203.0.113.5"), (LOCAL, "127.0.0.1")])
@pytest.mark.parametrize("name", ["public", "control"])
async def test_the_proxys_header_says_who_connects_before_tls(
    trust: Trust, header: bytes, address: str, name: str
) -> None:
    spec = behind(trust, name)
    async with listening(spec) as listener:
        peer = await dial_with(listener, header, trust.node())
        await peer.says_back(b"hello")
        assert made_by(spec)[0].peer.client_address(None) == address
        await peer.close()


@on_both_loops
@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PROXY TCP4 203.0.113.5 10.0.0.2 55555 443\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(1000),
    ],
)
async def test_without_a_valid_header_a_connection_is_refused(trust: Trust, words: bytes) -> None:
    async with listening(behind(trust), HURRY) as listener:
        assert await raw(listener, words) == b""
        assert counted(listener) == {"proxy_header": 1}
        assert listener.opened == 0


@on_both_loops
async def test_a_header_from_elsewhere_is_not_believed_and_a_slow_one_times_out(
    trust: Trust,
) -> None:
    strangers = behind(trust, proxies=TrustedProxies(["192.0.2.0/24"]))
    async with listening(strangers, HURRY) as listener:
        assert await raw(listener, HEADER + b"GET") == b""
        assert counted(listener) == {"untrusted_proxy": 1}
    async with listening(behind(trust), HURRY) as listener:
        assert await raw(listener, HEADER[:20]) == b""
        assert counted(listener) == {"silent": 1}


async def test_a_header_where_none_is_expected_is_garbage(trust: Trust) -> None:
    spec = port(trust, proxies=LOOPBACK, plaintext="never")
    async with listening(spec, HURRY) as listener:
        assert await raw(listener, HEADER) == b""
        assert counted(listener) == {"garbage": 1}


@contextlib.asynccontextmanager
async def elsewhere(
    spec: Port, places: Places, limits: Limits = HURRY
) -> AsyncIterator[tuple[Listener, Any]]:
    """Connections from any address: a test has but one of its own."""
    async with contextlib.AsyncExitStack() as stack:
        listener = Listener(spec, limits, places)
        listener.open()
        stack.push_async_callback(listener.close)

        def connect(address: str) -> socket.socket:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            stack.callback(ours.close)
            listener.admit(theirs, address)
            return ours

        yield listener, connect


MANY = Places(100, 100)


@pytest.mark.parametrize(
    ("plaintext", "address", "served"),
    [
        ("proxies", "10.0.0.1", True),
        ("proxies", "203.0.113.5", False),
        ("loopback", "10.0.0.1", False),
        ("never", "10.0.0.1", False),
    ],
)
async def test_plain_http_is_for_trusted_proxies_where_it_is_allowed(
    trust: Trust, plaintext: str, address: str, served: bool
) -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    async with elsewhere(port(trust, plaintext=plaintext, proxies=proxies), MANY) as (_, connect):
        client = connect(address)
        words = b"GET / HTTP/1.1\r\n\r\n"
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, words)
        answer = await asyncio.wait_for(loop.sock_recv(client, 1000), 5)
        assert (answer == words) is served
        assert (b"tls_required" in answer) is not served


@on_both_loops
async def test_a_stranger_gives_way_to_a_newcomer_and_a_user_does_not(trust: Trust) -> None:
    spec = port(trust)
    listener = Listener(spec, Limits(seconds=30), Places(4, 4))
    listener.open()
    context = trust.node(None)
    user = await dial(listener, context)
    await user.says_back(b"hello")
    made_by(spec)[0].peer.recognise()
    idle = [await dial(listener, context) for _ in range(2)]  # through with TLS, but no key
    await until(lambda: listener.opened == 3)
    silent = socket.create_connection(("127.0.0.1", listener.port))
    await until(lambda: listener.budget.used == 4)
    newcomers = [await dial(listener, context) for _ in range(3)]
    for one in idle:
        await one.end()
    silent.settimeout(5)
    assert silent.recv(1) == b""
    assert counted(listener) == {"shed": 3}
    for one in (user, *newcomers):
        await one.says_back(b"still here")
    for made in made_by(spec):
        made.peer.recognise()
    refused = await asyncio.gather(dial(listener, context), return_exceptions=True)
    assert isinstance(refused[0], OSError)
    assert counted(listener) == {"shed": 3, "full": 1}
    for one in (user, *newcomers):
        await one.close()
    await until(lambda: listener.budget.used == 0)
    silent.close()
    await listener.close()


@on_both_loops
async def test_every_way_to_fail_gives_the_place_back(trust: Trust) -> None:
    strict = port(trust, plaintext="never"), behind(trust, plaintext="never")
    for spec in (*strict, port(trust, "control")):
        async with listening(spec, HURRY) as listener:
            for words in (b"", b"\x16\x03garbage", b"SSH-2.0", HEADER[:16], HEADER + b"x" * 20):
                await raw(listener, words)
            await until(lambda: listener.pending == 0)
            assert listener.budget.used == 0, listener


async def test_a_protocol_that_can_not_be_made_gives_the_place_back(trust: Trust) -> None:
    def fail(peer: Place) -> asyncio.BaseProtocol:
        raise RuntimeError("a defect")

    defects: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: defects.append(context))
    async with listening(port(trust, protocol=fail), HURRY) as listener:
        with contextlib.suppress(OSError):
            peer = await dial(listener, trust.node(None))
            await peer.end()
        await until(lambda: listener.pending == 0)
        assert listener.budget.used == 0
    assert defects
