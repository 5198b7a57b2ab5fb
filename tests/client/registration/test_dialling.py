"""Dialling a server that has several names, of which some lead nowhere."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from random import Random

import pytest

from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.registration.context import NodeContext
from fabric_client.registration.dialling import NAME_DELAY_SECONDS, NotReached, dial_server
from protocol.names import CONTROL_ALPN
from protocol.tunnel.resume import ResumeTable
from tests.fabric import Fabric

SILENT = "127.0.4.9"
ELSEWHERE = "127.0.4.10"


class Peer(asyncio.Protocol):
    """Keeps its transport."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def dialled(identity: Identity) -> tuple[Peer, str, int]:
    context = NodeContext(
        identity=identity,
        name="attic",
        region="",
        machine=Machine(identity.directory, now=0.0),
        forwarder=Forwarder(lambda name: None),
        reports=list,
        resume_table=ResumeTable(),
        rng=Random(1),
    )
    return await dial_server(Peer, context, (identity.control_ports[0],), CONTROL_ALPN)


async def test_a_name_that_takes_connections_and_says_nothing_costs_two_seconds(
    tmp_path: Path,
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.faults(SILENT) as proxy:
        proxy.dark = True
        identity = Identity.load(await fabric.enrol())
        identity.learn_hosts(SILENT, ["127.0.0.1"])
        assert identity.hosts == (SILENT, "127.0.0.1")
        began = time.monotonic()
        peer, host, _ = await dialled(identity)
        assert host == "127.0.0.1"
        assert NAME_DELAY_SECONDS <= time.monotonic() - began < NAME_DELAY_SECONDS + 3
        assert peer.transport is not None
        peer.transport.close()
        await peer.lost.wait()


async def test_a_node_registers_beside_a_name_that_says_nothing(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric, fabric.faults(SILENT) as proxy:
        directory = await fabric.enrol()
        identity = Identity.load(directory)
        identity.learn_hosts(SILENT, ["127.0.0.1"])
        proxy.dark = True
        node = await fabric.run_node(directory, discover=False)
        assert Identity.load(directory).hosts[0] == "127.0.0.1", "it is tried first from now on"
        assert node.supervisor.tasks.problems == {}


async def test_a_name_where_another_program_answers_is_passed_over_at_once(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        identity = Identity.load(await fabric.enrol())

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-elsewhere\r\n")
            writer.close()

        other = await asyncio.start_server(greet, ELSEWHERE, identity.control_ports[0])
        async with other:
            identity.learn_hosts(ELSEWHERE, ["127.0.0.1"])
            began = time.monotonic()
            peer, host, _ = await dialled(identity)
            assert host == "127.0.0.1"
            assert time.monotonic() - began < NAME_DELAY_SECONDS
            assert peer.transport is not None
            peer.transport.close()
            await peer.lost.wait()


async def test_who_has_answered_decides_how_soon_it_is_tried_again(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        identity = Identity.load(await fabric.enrol())
    with pytest.raises(NotReached, match="is the server running") as caught:
        await dialled(identity)
    assert not caught.value.unanswered
    identity.learn_hosts("gone.invalid", ["a..b"])
    identity.put_last("127.0.0.1")
    with pytest.raises(NotReached, match="the host name can't be resolved") as caught:
        await dialled(identity)
    assert not caught.value.unanswered
