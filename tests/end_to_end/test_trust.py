"""Admission of nodes, and the errors of those that are rejected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from cryptography import x509

from fabric_client.config import Config as NodeConfig
from fabric_client.identity import Facts, Identity
from fabric_client.owner import state
from fabric_client.registration.join import JoinError, join
from fabric_client.supervisor import Supervisor
from fabric_server.pki.ca import read_request
from protocol.aio.link import LinkDriver
from protocol.aio.node import NodeTunnel
from protocol.aio.tls import dial
from protocol.control.link import LinkClosed
from protocol.errors import Code, RemoteError
from protocol.messages import Message, Register
from protocol.names import CONTROL_ALPN, TUNNEL_ALPN
from tests.engine import ScriptedEngine
from tests.fabric import Fabric, RunningNode

ASK = {"model": "tiny", "messages": []}


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path / "one") as fabric:
        yield fabric


async def answers(fabric: Fabric) -> bool:
    async with fabric.user() as user, user.post("/v1/chat/completions", json=ASK) as answer:
        return answer.status == 200


async def complaint(directory: Path) -> str:
    """Return the reason that a node gives for not being connected."""
    config = NodeConfig(data=directory, name="attic", discover=False)
    supervisor = Supervisor(config, Identity.load(directory), rng=Random())
    state.path_in(directory).unlink(missing_ok=True)
    task = asyncio.get_running_loop().create_task(supervisor.run())
    try:
        async with asyncio.timeout(10):
            while True:
                told = state.read(directory)
                if task.done() or (told is not None and told.reason not in ("", "starting")):
                    break
                await asyncio.sleep(0.01)  # a file tells no event
        await asyncio.wait([task], timeout=0.1)
        if task.done():
            error = task.exception()
            assert isinstance(error, RemoteError)
            return f"for good: {error.reason}"
        assert told is not None
        return told.reason
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_token_is_good_for_one_machine(fabric: Fabric, tmp_path: Path) -> None:
    token = await fabric.invite()
    await join(token, tmp_path / "first", name="first")
    with pytest.raises(JoinError, match=r"already used.*Ask the operator"):
        await join(token, tmp_path / "second", name="second")
    assert not (tmp_path / "second").exists()


async def test_a_machine_that_has_joined_joins_again_only_when_told(
    fabric: Fabric, tmp_path: Path
) -> None:
    first = await join(await fabric.invite(), tmp_path / "node", name="attic")
    with pytest.raises(JoinError, match="--replace"):
        await join(await fabric.invite(), tmp_path / "node", name="attic")
    again = await join(await fabric.invite(), tmp_path / "node", name="attic", replace=True)
    assert again.node_id != first.node_id


async def test_a_token_for_another_server_sends_it_no_secret(
    fabric: Fabric, tmp_path: Path
) -> None:
    from protocol import join as joining

    async with Fabric(tmp_path / "other") as other:
        token = joining.parse(await fabric.invite())
        port = other.app.listeners["api"].port
        crossed = joining.Token("127.0.0.1", port, token.ca_sha256, token.secret)
        with pytest.raises(JoinError, match="not the one that made this token"):
            await join(joining.encode(crossed), tmp_path / "node", name="attic")


async def test_keys_are_for_their_owner_s_eyes_only(fabric: Fabric) -> None:
    directory = await fabric.enrol()
    if os.name == "posix":
        assert (directory / "node.key").stat().st_mode & 0o777 == 0o600
        secret = fabric.config.data / "certs" / "ca.key"
        assert secret.stat().st_mode & 0o777 == 0o600


async def test_an_expired_certificate_is_refused_and_says_so(fabric: Fabric) -> None:
    directory = await fabric.enrol()
    identity = Identity.load(directory)
    authority = fabric.app.tls.certificates.authority
    long_ago = time.time() - 40 * 86_400
    request = read_request(identity.request())
    expired = authority.sign_node(request, identity.node_id, long_ago, 30 * 86_400)
    (directory / "node.pem").write_text(expired)
    assert "certificate has expired" in await complaint(directory)
    assert fabric.app.control_plane.links.refused >= 1


async def test_a_certificate_of_a_time_when_the_clock_was_ahead_is_replaced(
    fabric: Fabric,
) -> None:
    directory = await fabric.enrol()
    identity = Identity.load(directory)
    authority = fabric.app.tls.certificates.authority
    ahead = time.time() + 70 * 86_400
    early = authority.sign_node(
        read_request(identity.request()), identity.node_id, ahead, 30 * 86_400
    )
    (directory / "node.pem").write_text(early)
    assert Identity.load(directory).renewal_due(time.time())
    async with renewing(directory):
        pass
    assert not Identity.load(directory).renewal_due(time.time())


async def test_a_node_of_another_fabric_trusts_this_server_as_little(
    fabric: Fabric, tmp_path: Path
) -> None:
    async with Fabric(tmp_path / "other") as other:
        directory = await other.enrol()
        facts = msgspec.json.decode((directory / "node.json").read_bytes(), type=Facts)
        here = msgspec.structs.replace(facts, control_port=fabric.app.listeners["control"].port)
        (directory / "node.json").write_bytes(msgspec.json.encode(here))
        assert "not issued by the authority that this node joined" in await complaint(directory)


async def test_a_revoked_node_is_cut_off_at_once_and_told_for_good(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    gone = await fabric.join(engine.url, name="gone")
    await fabric.join(engine.url, name="stays")
    await fabric.app.backends.store.revoke_node(gone.id, time.time())
    with pytest.raises(RemoteError, match="revoked"):
        async with asyncio.timeout(2):
            await gone.task
    fabric.nodes.remove(gone)
    assert fabric.app.control_plane.registry.node(gone.id) is None
    assert fabric.app.control_plane.registry.departed_models() == set(), "it does not come back"
    assert await answers(fabric)
    assert await complaint(gone.config.data) == "for good: this node was revoked"


async def test_a_certificate_is_renewed_over_the_link(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        directory = await fabric.enrol()
        identity = Identity.load(directory)
        assert not identity.renewal_due(time.time())
        old = fabric.app.tls.certificates.authority.sign_node(
            read_request(identity.request()),
            identity.node_id,
            time.time() - 11 * 86_400,
            30 * 86_400,
        )
        (directory / "node.pem").write_text(old)
        copy = shutil.copytree(directory, tmp_path / "copy")
        async with renewing(directory):
            pass
        node = await fabric.run_node(directory, name="attic")  # with the new one
        assert node.id == identity.node_id
        assert (directory / "node.key").read_text() != (copy / "node.key").read_text()
        assert "this node's key was replaced" in await complaint(copy)
        assert fabric.app.control_plane.registry.node(node.id) is not None


async def test_two_nodes_with_one_key_are_noticed_and_neither_is_asked(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path) as fabric:
        store = fabric.app.backends.store
        honest = await fabric.join(engine.url, name="attic")
        copy = shutil.copytree(honest.config.data, tmp_path / "copy")
        thief = await fabric.run_node(copy, engine.url, name="attic")
        async with asyncio.timeout(10):
            while True:
                row = await store.node(honest.id)
                if row is not None and row.state == "contested":
                    break
                await asyncio.sleep(0.02)  # no event for it here
        registry = fabric.app.control_plane.registry
        assert registry.node(honest.id) is None
        async with asyncio.timeout(10):
            for node in (honest, thief):
                while "two machines use this node's key" not in shown(node):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # a file tells no event
        await thief.stop()
        await store.settle_node(honest.id)
        await fabric.routed(honest.id, timeout=40)
        assert await answers(fabric)


def shown(node: RunningNode) -> str:
    """What ``fabric-client status`` shows for a reason."""
    found = state.read(node.config.data)
    return "" if found is None else found.reason


@contextlib.asynccontextmanager
async def renewing(directory: Path) -> AsyncIterator[None]:
    """Run a node until its certificate has been replaced."""
    before = serial(directory)
    config = NodeConfig(data=directory, name="attic", discover=False)
    task = asyncio.get_running_loop().create_task(
        Supervisor(config, Identity.load(directory), rng=Random()).run()
    )
    try:
        async with asyncio.timeout(10):
            while serial(directory) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # a file tells no event
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def serial(directory: Path) -> int:
    return x509.load_pem_x509_certificate((directory / "node.pem").read_bytes()).serial_number


# ── a peer that speaks for itself ─────────────────────────────────────────────────────────────


class Peer:
    """A link or tunnel that the test opened itself; records how it was closed."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def on_message(self, link: LinkDriver, message: Message) -> None: ...
    def on_drain(self, *_: Any) -> None: ...

    def on_closed(self, _: object, how: LinkClosed | int, reason: str = "") -> None:
        code, reason = (how.code, how.reason) if isinstance(how, LinkClosed) else (how, reason)
        if not self.closed.done():
            self.closed.set_result((code, reason))


async def open_link(fabric: Fabric, identity: Identity, peer: Peer) -> LinkDriver:
    loop = asyncio.get_running_loop()
    return await dial(
        lambda: LinkDriver(peer, loop, rng=Random()),  # type: ignore[arg-type]
        "127.0.0.1",
        identity.control_port,
        identity.context(CONTROL_ALPN),
    )


async def test_an_old_protocol_version_is_refused_with_both_numbers(fabric: Fabric) -> None:
    identity = Identity.load(await fabric.enrol())
    peer = Peer()
    link = await open_link(fabric, identity, peer)
    link.send(Register(0, "0.0.1", "old", "", []))
    code, reason = await asyncio.wait_for(peer.closed, 5)
    assert code == Code.OBSOLETE
    assert "protocol version 0 is not supported, only 1" in reason


async def test_a_tunnel_needs_the_session_of_its_own_node(fabric: Fabric) -> None:
    other = await fabric.join(name="other")
    registered = fabric.app.control_plane.registry.node(other.id)
    assert registered is not None
    identity = Identity.load(await fabric.enrol("thief"))
    loop = asyncio.get_running_loop()
    for session in (b"guess", registered.session):
        peer = Peer()
        tunnel = await dial(
            lambda peer=peer: NodeTunnel(peer, loop, rng=Random(), accept=lambda *_: None),  # type: ignore[misc]
            "127.0.0.1",
            fabric.app.listeners["proxy"].port,
            identity.context(TUNNEL_ALPN),
        )
        tunnel.hello(session)
        assert (await asyncio.wait_for(peer.closed, 5))[0] == Code.UNAUTHORISED
    assert len(registered.tunnels) == 2


async def test_an_old_link_that_dies_late_evicts_nothing(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    directory = await fabric.enrol()
    identity = Identity.load(directory)
    old_peer = Peer()
    old = await open_link(fabric, identity, old_peer)
    old.send(Register(1, "0.1", "attic", "", []))
    node = await fabric.run_node(directory, engine.url)
    assert (await asyncio.wait_for(old_peer.closed, 5))[0] == Code.SUPERSEDED
    assert fabric.app.control_plane.registry.node(node.id) is not None
    assert await answers(fabric)


@pytest.mark.parametrize("port", ["control", "proxy", "public", "api"])
@pytest.mark.parametrize("bytes_", [b"\x00" * 64, b"\x16\x03\x01\xff\xff" + b"x" * 200, b"\xff"])
async def test_garbage_on_a_port_is_closed_and_counted_and_disturbs_nobody(
    fabric: Fabric, engine: ScriptedEngine, port: str, bytes_: bytes
) -> None:
    await fabric.join(engine.url)
    listener = fabric.app.listeners[port]
    before = listener.refused.total() + listener.opened
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(bytes_)
    writer.write_eof()
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    assert listener.refused.total() + listener.opened > before
    assert await answers(fabric)
