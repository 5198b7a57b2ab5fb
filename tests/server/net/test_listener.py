"""Listeners: slow and hostile peers, crowds, closing, and errors of opening a port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import socket
import ssl
import time

import aiohttp
import pytest
from aiohttp import web

from fabric_server.net import connection_budget
from fabric_server.net.addresses import parse
from fabric_server.net.connection_budget import Places
from fabric_server.net.known_addresses import SECONDS, KnownAddresses
from fabric_server.net.listener import REASONS, Limits, Listener, PortProblem
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
    port,
    raw,
    until,
)
from tests.trust import client_context

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
        talks = [asyncio.create_task(raw(listener, words)) for words in slow]
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
        talks = [asyncio.create_task(raw(listener, words)) for words in garbage]
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
    limits = Limits(seconds=30, total=20, reply_seconds=0.3)
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


async def test_addresses_that_crowd_a_port_are_reported_unless_a_known_user_is_there(
    trust: Trust,
) -> None:
    reported: list[str] = []
    spec = port(trust, on_suspect=reported.append, proxies=TrustedProxies(["198.51.100.0/24"]))
    now = [1000.0]
    known = KnownAddresses(lambda: now[0])
    listener = Listener(spec, Limits(seconds=30), Places(total=50, per_address=3), known)
    listener.open()
    ours = []

    def arrive(address: str, count: int) -> None:
        for _ in range(count):
            mine, theirs = socket.socketpair()
            theirs.setblocking(False)
            ours.append(mine)
            listener.admit(theirs, address)

    office, proxy = "192.0.2.9", "198.51.100.7"
    user = connection_budget.Peer(parse(office), spec.proxies, listener.budget)
    assert user.enter() is None
    user.recognise()
    for address in ("203.0.113.9", "2001:db8::1:0:0:1", office, proxy):
        arrive(address, 5)
    assert reported == ["203.0.113.9"] * 2 + ["2001:db8::1:0:0:1"] * 2
    user.release()
    arrive(office, 1)
    arrive(office, 1)
    assert reported[4:] == []  # a user was there a moment ago
    now[0] += SECONDS
    arrive(office, 1)
    assert reported[4:] == [office]
    await listener.close()
    for mine in ours:
        mine.close()


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
        waiting = [asyncio.create_task(raw(listener, hello[:n])) for n in (0, 1, 90, len(hello))]
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
        older.pause_accepting()
        assert not older.accepting
        queued = socket.create_connection(("127.0.0.1", older.port))
        newer = Listener(port(trust))
        newer.open([one.dup() for one in older.sockets])
        assert newer.port == older.port and not newer.accepting
        older.stop_accepting()
        assert older.accepted == 0
        newer.resume_accepting()
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
                await raw(listener, b"\0garbage")
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
    server = runner.server
    assert server is not None
    spec, context = port(trust, "api", protocol=lambda peer: server()), client_context(trust.ca)
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
