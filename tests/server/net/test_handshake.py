"""Handshakes: who gets through, and who is refused and why."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl

import pytest

from fabric_server.net.listener import Listener
from fabric_server.pki.ca import Authority, node_id
from fabric_server.pki.certificates import Certificates
from protocol.names import CONTROL_ALPN, TUNNEL_ALPN
from tests.loops import on_both_loops
from tests.server.net.ports import (
    HURRY,
    NOW,
    Trust,
    counted,
    dial,
    from_elsewhere,
    listening,
    made_by,
    port,
    raw,
    until,
)
from tests.trust import Papers, client_context, node_papers

# ── who is let through ────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_a_node_is_let_through_and_the_protocol_learns_who_it_is(trust: Trust) -> None:
    spec = port(trust, "control")
    async with listening(spec) as listener:
        node = await dial(listener, trust.node())
        await node.says_back(b"hello")
        assert (listener.accepted, listener.opened, counted(listener)) == (1, 1, {})
        echo = made_by(spec)[0]
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
        sock = made_by(spec)[0].transport.get_extra_info("socket")
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
        assert made_by(spec) == []


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
        answer = await raw(listener, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Content-Type: application/json" in head
        error = json.loads(body)["error"]
        assert error["code"] == "tls_required"
        assert "fabric-client" in error["message"]
        assert counted(listener) == {"plaintext": 1}


@on_both_loops
async def test_http_from_another_machine_is_told_to_use_tls(trust: Trust) -> None:
    async with from_elsewhere(port(trust)) as (listener, send):
        answer = await send(b"POST /v1/chat/completions HTTP/1.1\r\n\r\n" + bytes(200_000))
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "tls_required"
        assert f"https:// on port {listener.port}" in error["message"]
        assert (listener.opened, counted(listener)) == (0, {"plaintext": 1})


@on_both_loops
async def test_garbage_from_another_machine_is_closed_without_a_word(trust: Trust) -> None:
    async with from_elsewhere(port(trust)) as (listener, send):
        for garbage in (
            b"\0",
            b"SSH-2.0-x\r\n",
            b"\x80\x2e\x01",
            b"get / HTTP/1.1",
            b"\xff" * 9000,
        ):
            assert await send(garbage) == b""
        assert counted(listener) == {"garbage": 5}
