"""A whole fabric in one process: a real server on free ports of loopback, and real nodes.

    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        client = fabric.openai()

Everything goes over real sockets and TLS; only the processes are one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import aiohttp
import openai

from fabric_client.config import Config as NodeConfig
from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity
from fabric_client.registration.join import join
from fabric_client.supervisor import Supervisor
from fabric_server.app import App
from fabric_server.config import Config
from ledger.records import LedgerEntry
from tests.faults import FaultProxy, redirected
from tests.keys import mint_with

QUICK: dict[str, Any] = {
    "host": ("127.0.0.1",),
    "address": ("127.0.0.1",),
    "control_port": 0,
    "proxy_port": 0,
    "public_port": 0,
    "api_port": 0,
    "drain_seconds": 5.0,
}


@dataclass
class RunningNode:
    """One node of the fabric; ``supervisor`` runs in ``task``."""

    id: str
    config: NodeConfig
    supervisor: Supervisor
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


class Fabric:
    """A server and its nodes; ``settings`` are the server's."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.config = Config(data=directory / "server", **{**QUICK, **settings})
        self.app: App
        self.key = ""
        self.management_key = ""
        self.nodes: list[RunningNode] = []
        self._stop: asyncio.Event
        self._running: asyncio.Task[None]

    # ── the server ────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        await self.start()
        self.key = await self.make_key()
        self.management_key = await self.make_key(management=True)
        return self

    async def make_key(self, **properties: Any) -> str:
        new = mint_with("user", now=time.time(), account="tests", **properties)
        await self.app.backends.store.create_key(new.row)
        return new.text

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            await node.stop()
        await self.stop()

    async def start(self) -> None:
        self.app = App(self.config, rng=Random())
        await self.app.start()
        self._stop = asyncio.Event()
        self._running = asyncio.get_running_loop().create_task(self.app.run(self._stop))

    async def stop(self) -> None:
        self._stop.set()
        await self._running
        await self.app.stop()

    @property
    def running(self) -> bool:
        return not self._running.done()

    async def restart(self) -> None:
        """Restart the server on the same ports."""
        ports = {f"{name}_port": port.port for name, port in self.app.listeners.items()}
        await self.stop()
        self.config = Config(
            data=self.directory / "server", **{**QUICK, **ports, "drain_seconds": 5.0}
        )
        await self.start()

    @property
    def public(self) -> str:
        return f"https://127.0.0.1:{self.app.listeners['public'].port}"

    @property
    def plain(self) -> str:
        return f"http://127.0.0.1:{self.app.listeners['public'].port}"

    @property
    def api(self) -> str:
        return f"https://127.0.0.1:{self.app.listeners['api'].port}"

    def trust(self) -> ssl.SSLContext:
        """Return a TLS context that trusts the server's own CA."""
        return ssl.create_default_context(cafile=str(self.app.tls.certificates.ca))

    async def ledger(self) -> list[LedgerEntry]:
        """Return all ledger entries so far, newest first."""
        await self.app.backends.writer.flush()
        return list(await self.app.backends.store.requests(limit=1000))

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────

    async def invite(self, name: str = "attic") -> str:
        invitation = await self.app.control_plane.enrolment.invite(name, 3600.0)
        return invitation.token

    async def enrol(self, name: str = "attic", *, via: str | None = None) -> Path:
        """Join a node, and return its directory.  ``via`` is the address that it dials."""
        directory = self.directory / f"node-{name}-{len(self.nodes)}"
        token = await self.invite(name)
        await join(token if via is None else redirected(token, via), directory, name=name)
        return directory

    async def join(
        self,
        *engines: str,
        name: str = "attic",
        slots: int | None = None,
        via: str | None = None,
        **settings: Any,
    ) -> RunningNode:
        """Join and run a node; return when it gets requests."""
        directory = await self.enrol(name, via=via)
        return await self.run_node(directory, *engines, name=name, slots=slots, **settings)

    async def run_node(
        self,
        directory: Path,
        *engines: str,
        name: str = "attic",
        slots: int | None = None,
        machine: Machine | None = None,
        **settings: Any,
    ) -> RunningNode:
        # The machine that runs the tests may be on battery.
        settings = {"pause_on_battery": False, **settings}
        config = NodeConfig(data=directory, name=name, engine=engines, slots=slots, **settings)
        identity = Identity.load(directory)
        supervisor = Supervisor(config, identity, rng=Random(), machine=machine)
        task = asyncio.get_running_loop().create_task(supervisor.run())
        node = RunningNode(identity.node_id, config, supervisor, task)
        self.nodes.append(node)
        await self.routed(node.id, self.config.tunnels)
        return node

    async def routed(self, node_id: str, tunnels: int | None = None, timeout: float = 10) -> None:
        """Wait until the node is registered with all its tunnels."""
        if tunnels is None:
            tunnels = self.config.tunnels
        async with asyncio.timeout(timeout):
            while True:
                node = self.app.control_plane.registry.node(node_id)
                if node is not None and len(node.tunnels) >= tunnels:
                    return
                await asyncio.sleep(0.01)  # no event for it on this side

    def faults(self, host: str) -> FaultProxy:
        """Return a proxy to this server with faults, on ``host``; enter it."""
        names = ("api", "control", "proxy")
        return FaultProxy(host, {name: self.app.listeners[name].port for name in names})

    # ── users ─────────────────────────────────────────────────────────────────────────────────

    def openai(self, **settings: Any) -> openai.AsyncOpenAI:
        """Return the official client, over TLS."""
        settings = {"max_retries": 0, "timeout": 60.0, **settings}
        return openai.AsyncOpenAI(
            base_url=f"{self.public}/v1",
            api_key=settings.pop("api_key", self.key),
            http_client=openai.DefaultAsyncHttpxClient(verify=self.trust()),
            **settings,
        )

    def user(self, key: str | None = None) -> aiohttp.ClientSession:
        """Return a plain HTTP client of the public port, with the key."""
        return aiohttp.ClientSession(
            self.public,
            headers={"authorization": f"Bearer {self.key if key is None else key}"},
            connector=aiohttp.TCPConnector(ssl=self.trust()),
        )
