"""Joining on the node's side: what it trusts, what it keeps, and what it tells its owner."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509

from fabric_client.identity import Identity, NotJoined, explain
from fabric_client.key_files import request_for as client_request_for
from fabric_client.registration.join import JoinError, join
from fabric_server.net.listener import Listener, Port
from fabric_server.net.tls_alerts import AlertingContext
from fabric_server.pki.ca import DAY, Authority, fingerprint, key_pem, read_request
from protocol.aio.tls import dial
from protocol.join import CA_PATH, ENROL_PATH, BadToken, Token, encode
from protocol.names import CONTROL_ALPN, SERVER_NAME
from tests.door import Door
from tests.loops import on_both_loops
from tests.trust import Papers, client_context, new_key, request_for, server_papers


async def problem(token: str, directory: Path, **options: Any) -> str:
    with pytest.raises(JoinError) as caught:
        await join(token, directory, name="desk", **options)
    return str(caught.value)


def damage(directory: Path) -> str:
    with pytest.raises(NotJoined) as caught:
        Identity.load(directory)
    return str(caught.value)


# ── what a node keeps ─────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_a_machine_joins_and_can_dial_what_it_joined(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        (row,) = await door.store.nodes()
        assert (identity.node_id, row.name) == (row.id, "desk")
        assert (identity.host, identity.control_port) == ("127.0.0.1", door.control.port)
        assert not identity.renewal_due(door.clock.now)
        assert identity.renewal_due(door.clock.now + 11 * DAY)
        assert identity.ends == pytest.approx(door.clock.now + 30 * DAY, abs=1)
        peer = await dial(Peer, "127.0.0.1", identity.control_port, identity.context(CONTROL_ALPN))
        await until(lambda: door.control.opened == 1)
        await peer.close()


async def test_what_is_kept_is_four_files_and_no_secret_of_the_token(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        node = tmp_path / "deep" / "node"
        identity = await join(await door.token(), node, name="desk")
        assert sorted(path.name for path in node.iterdir()) == [
            "ca.pem",
            "node.json",
            "node.key",
            "node.pem",
        ]
        assert (node / "ca.pem").read_text() == door.certificates.authority.pem
        facts = json.loads((node / "node.json").read_text())
        ports = {"api_port", "control_port", "proxy_port", "next_control_port"}
        assert set(facts) == {"node_id", "host", *ports, "name", "models", "hosts"}
        assert facts["node_id"] == identity.node_id
        if os.name == "posix":
            assert (node / "node.key").stat().st_mode & 0o777 == 0o600
            assert node.stat().st_mode & 0o777 == 0o700


async def test_a_machine_joins_a_second_time_only_when_told_to(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        first = await join(await door.token(), tmp_path / "node", name="desk")
        token = await door.token()
        assert "--replace" in await problem(token, tmp_path / "node")
        assert Identity.load(tmp_path / "node").node_id == first.node_id
        second = await join(token, tmp_path / "node", name="desk", replace=True)
        assert second.node_id == Identity.load(tmp_path / "node").node_id != first.node_id


async def test_an_answer_that_is_lost_is_asked_for_again(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:

        def lose_the_first(request: web.Request, answer: web.StreamResponse) -> None:
            if door.asked.count(ENROL_PATH) == 1:
                assert answer.status == 200
                assert request.transport is not None
                request.transport.abort()

        door.before_answer = lose_the_first
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        assert door.asked == [CA_PATH, ENROL_PATH, ENROL_PATH]
        assert [row.id for row in await door.store.nodes()] == [identity.node_id]


# ── what stops a machine from joining ─────────────────────────────────────────────────────────


async def test_what_is_no_token_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(BadToken, match="API key"):
        await join("sk-fab-" + "A" * 43, tmp_path / "node", name="desk")


async def test_an_invitation_that_is_used_expired_or_unknown_asks_for_a_new_one(
    tmp_path: Path,
) -> None:
    async with Door(tmp_path) as door:
        used, expired = await door.token(), await door.token(valid_for=60.0)
        unknown = encode(
            Token("127.0.0.1", door.api.port, door.certificates.fingerprint, bytes(32))
        )
        await join(used, tmp_path / "first", name="desk")
        door.clock.now += 61.0
        for token, says in ((used, "used"), (expired, "expired"), (unknown, "Unknown")):
            message = await problem(token, tmp_path / "node")
            assert says in message
            assert "nodes invite" in message
        assert not (tmp_path / "node").exists()


async def test_a_server_that_is_away_is_named_with_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    message = await problem(encode(Token("127.0.0.1", port, bytes(32), bytes(32))), tmp_path / "n")
    assert f"127.0.0.1:{port}" in message
    assert "is the server running" in message
    name = "no-such-host.invalid"
    message = await problem(encode(Token(name, 18081, bytes(32), bytes(32))), tmp_path / "n")
    assert f"{name}:18081" in message


async def test_another_server_than_the_tokens_is_told_nothing(tmp_path: Path) -> None:
    async with Door(tmp_path / "one") as one, Door(tmp_path / "other") as other:
        token = Token("127.0.0.1", other.api.port, one.certificates.fingerprint, bytes(32))
        message = await problem(encode(token), tmp_path / "node")
        assert "is not the one that made this token" in message
        assert f"127.0.0.1:{other.api.port}" in message
        assert other.asked == [CA_PATH]


async def test_a_second_ca_behind_the_right_one_is_not_trusted(tmp_path: Path) -> None:
    """Python's PEM decoder stops at the padding of the first; OpenSSL would read both."""
    right = Authority.make(time.time())
    while not right.pem.split("-----")[2].strip().endswith("="):
        right = Authority.make(time.time())
    async with Door(tmp_path) as between:

        def both(_: web.Request, answer: web.StreamResponse) -> None:
            assert isinstance(answer, web.Response)
            answer.text = text = right.pem + between.certificates.authority.pem
            answer.headers["Content-Length"] = str(len(text))

        between.before_answer = both
        sha256 = fingerprint(right.certificate)
        token = Token("127.0.0.1", between.api.port, sha256, bytes(32))
        message = await problem(encode(token), tmp_path / "node")
        assert "is intercepted" in message
        assert between.asked == [CA_PATH]


async def test_a_server_of_another_kind_is_called_that(tmp_path: Path) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/{tail:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    papers = server_papers(Authority.make(time.time()), tmp_path, "x", now=time.time())
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(papers.certificate, papers.key)
    old = AlertingContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(papers.certificate, papers.key)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context, says in (
        (secure, "no Fabric server"),
        (old, "does not speak TLS 1.3"),
        (None, "does not speak TLS"),
    ):
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        token = encode(Token("127.0.0.1", port, bytes(32), bytes(32)))
        message = await problem(token, tmp_path / "node")
        if context is not old:  # aiohttp's own acceptor sends no alert
            assert says in message
        assert f"127.0.0.1:{port}" in message
        await site.stop()
    await runner.cleanup()


async def test_a_directory_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        (tmp_path / "file").write_text("in the way")
        message = await problem(await door.token(), tmp_path / "file" / "node")
        assert str(tmp_path / "file") in message
        assert "--data" in message


# ── an identity that is damaged or renewed ────────────────────────────────────────────────────


def test_a_machine_that_has_not_joined_is_told_how_to(tmp_path: Path) -> None:
    assert "fabric-client join" in damage(tmp_path / "node")


async def test_damage_is_noticed_before_a_server_is_asked(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        node = tmp_path / "node"
        await join(await door.token(), node, name="desk")
        await join(await door.token(), tmp_path / "second", name="attic")
        for name, text, says in (
            ("node.key", key_pem(new_key()), "for another key"),
            ("node.key", "nothing", "no readable key"),
            ("node.pem", "nothing", "can't be used"),
            ("node.json", "{", "can't be used"),
            ("node.json", (tmp_path / "second" / "node.json").read_text(), "for another node"),
            ("ca.pem", Authority.make(time.time()).pem, "by another authority"),
        ):
            good = (node / name).read_text()
            (node / name).write_text(text)
            message = damage(node)
            assert says in message, (name, message)
            assert "--replace" in message
            (node / name).write_text(good)
        Identity.load(node)


async def test_a_renewed_certificate_is_kept_and_used(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        before = (tmp_path / "node" / "node.key").read_text()
        door.clock.now += 10.5 * DAY
        assert identity.renewal_due(door.clock.now)
        identity.store_certificate(await door.enrolment.renew(identity.node_id, identity.request()))
        assert not identity.renewal_due(door.clock.now)
        assert Identity.load(tmp_path / "node").ends == identity.ends
        assert (tmp_path / "node" / "node.key").read_text() == before


async def test_a_renewed_certificate_that_is_not_ours_changes_nothing(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        before = (tmp_path / "node" / "node.pem").read_text()
        authority, mine = door.certificates.authority, read_request(identity.request())
        now = door.clock.now
        for pem, says in (
            ("nothing", "PEM"),
            (authority.sign_node(request_for(new_key()), identity.node_id, now, DAY), "key"),
            (authority.sign_node(mine, "node_other", now, DAY), "node"),
            (Authority.make(now).sign_node(mine, identity.node_id, now, DAY), "authority"),
        ):
            with pytest.raises(ValueError, match=says):
                identity.store_certificate(pem)
        assert (tmp_path / "node" / "node.pem").read_text() == before


# ── what a node tells its owner when it is refused ────────────────────────────────────────────


class Peer(asyncio.Protocol):
    def __init__(self) -> None:
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.write(b"hello")  # type: ignore[attr-defined]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(error)

    async def close(self) -> None:
        self.transport.abort()
        await self.ended


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - counters are no events
            await asyncio.sleep(0.005)


@on_both_loops
async def test_a_refused_certificate_is_explained(tmp_path: Path) -> None:
    """The server's alert comes when the node's handshake is done, with the connection's end."""
    now = time.time()
    async with Door(tmp_path) as door:
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        key, mine = tmp_path / "node" / "node.key", read_request(identity.request())
        authority, foreign = door.certificates.authority, Authority.make(now)

        def papers(name: str, pem: str) -> Papers:
            path = tmp_path / f"{name}.pem"
            path.write_text(pem)
            return Papers(path, key)

        node_id = identity.node_id
        strange = foreign.sign_node(mine, node_id, now, DAY)
        for shown, says in (
            (papers("strange", strange), "does not trust the authority"),
            (
                server_papers(authority, tmp_path / "x", node_id, now=now),
                "not issued for a node",
            ),
            (None, "got no certificate"),
        ):
            context = client_context(authority.pem, shown, CONTROL_ALPN)
            peer = await dial(Peer, "127.0.0.1", door.control.port, context)
            async with asyncio.timeout(5):
                error = await peer.ended
            assert isinstance(error, OSError), (says, error)  # what a node's owner is told of
            message = explain(error)
            assert says in message, message
            assert "join again with --replace" in message


@on_both_loops
async def test_a_server_that_is_not_to_be_trusted_is_explained(tmp_path: Path) -> None:
    now = time.time()
    async with Door(tmp_path) as door:
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        authority = door.certificates.authority
        for papers, says in (
            (_server(Authority.make(now), tmp_path / "1", now), "is intercepted"),
            (_server(authority, tmp_path / "2", now - 40 * DAY), "clock"),
            (server_papers(authority, tmp_path, "other.name", now=now), "another server"),
        ):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(papers.certificate, papers.key)

            def current(context: ssl.SSLContext = context) -> ssl.SSLContext:
                return context

            listener = Listener(
                Port("control", ["127.0.0.1"], 0, lambda peer: asyncio.Protocol(), current)
            )
            listener.open()
            with pytest.raises(OSError) as caught:
                await dial(Peer, "127.0.0.1", listener.port, identity.context(CONTROL_ALPN))
            assert says in explain(caught.value)
            await listener.close()


@on_both_loops
async def test_a_server_whose_clock_was_ahead_is_trusted(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        identity = await join(await door.token(), tmp_path / "node", name="desk")
        papers = _server(door.certificates.authority, tmp_path / "1", time.time() + 70 * DAY)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(papers.certificate, papers.key)
        listener = Listener(
            Port("control", ["127.0.0.1"], 0, lambda peer: asyncio.Protocol(), lambda: context)
        )
        listener.open()
        peer = await dial(Peer, "127.0.0.1", listener.port, identity.context(CONTROL_ALPN))
        assert not peer.ended.done()
        await listener.close()


def _server(authority: Authority, directory: Path, now: float) -> Papers:
    return server_papers(authority, directory, SERVER_NAME, now=now)


@on_both_loops
async def test_a_server_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OSError) as caught:
        await dial(Peer, "127.0.0.1", port, client_context(None))
    assert "is the server running" in explain(caught.value)
    with pytest.raises(OSError) as caught:
        await dial(Peer, "no-such-host.invalid", port, client_context(None))
    assert "name can't be resolved" in explain(caught.value)


def test_whatever_happens_is_explained_with_some_words() -> None:
    for error in (
        TimeoutError(),
        ConnectionResetError(),
        BrokenPipeError(32, "Broken pipe"),
        ssl.SSLError("odd"),
        OSError(113, "No route to host"),
        RuntimeError(),
    ):
        assert len(explain(error)) > 2


def test_a_certificate_request_says_nothing_but_its_key() -> None:
    request = x509.load_pem_x509_csr(client_request_for(new_key()).encode())
    assert request.subject.rfc4514_string() == ""
    assert list(request.extensions) == []
