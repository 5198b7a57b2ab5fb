"""The whole stack as processes: PostgreSQL, Redis, Kafka, server, consumer and nodes.
``Alone`` is the server and its nodes without the rest.

async with Stack(tmp_path) as stack:
    await stack.join(engine.url)
    key = await stack.command("keys", "create", "alice")
    await stack.parts["kafka"].kill()
    await stack.parts["kafka"].start()
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from fabric_server.storage.connect import open_store
from tests.faults import FaultProxy, redirected
from tests.lab.backends import Daemon, free_port
from tests.lab.kafka_server import KafkaServer
from tests.lab.postgres_server import PostgresServer
from tests.lab.redis_server import RedisServer

PATIENCE = 60.0
READY = '"event":"ready"'


class Part(Protocol):
    """A part of the stack that can be killed and started again."""

    async def start(self) -> None: ...
    async def kill(self) -> None: ...
    async def stop(self) -> None: ...


class Process:
    """One of our programs, and its log."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], ready: str) -> None:
        self._words = words
        self._environ = environ
        self._ready = ready
        self._news = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._from = 0
        self.lines: list[str] = []
        """Output of all its starts."""

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        await self.begin()
        await self.said(self._ready)

    async def begin(self) -> None:
        """Start it without waiting."""
        self._from = len(self.lines)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *self._words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def said(self, text: str) -> str:
        """Wait for a line with ``text`` since the last start, and return it."""
        at = self._from
        try:
            async with asyncio.timeout(PATIENCE), self._news:
                while True:
                    for line in self.lines[at:]:
                        if text in line:
                            return line
                    at = len(self.lines)
                    if self._reading is None or self._reading.done():
                        raise AssertionError(f"ended without {text!r}: {self.lines[-20:]}")
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {text!r} in time: {self.lines[-20:]}") from None

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        assert self._process is not None
        return self._process.returncode

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._ended()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                raise AssertionError(f"did not stop: {self.lines[-20:]}") from None
            finally:
                await self._ended()

    async def ended(self) -> int:
        """Wait for its end, and return the exit code."""
        async with asyncio.timeout(PATIENCE):
            await self._ended()
        assert self.code is not None
        return self.code

    async def _ended(self) -> None:
        assert self._process is not None and self._reading is not None
        await self._process.wait()
        await self._reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            async with self._news:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()


class Backend:
    """A server of tests/lab; its blocking calls run in threads."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    async def start(self) -> None:
        await asyncio.to_thread(self.daemon.start)

    async def kill(self) -> None:
        await asyncio.to_thread(self.daemon.kill)

    async def stop(self) -> None:
        await asyncio.to_thread(self.daemon.stop)


class Stack:
    """All parts, started and stopped together."""

    server_words: Sequence[str] = ("fabric_server", "up")

    def __init__(self, directory: Path, **settings: str) -> None:
        """``settings`` are the server's, as in its environment: ``spool_limit="2MiB"``."""
        self.directory = directory
        self.data = directory / "server"
        self.ports = {
            name: free_port() for name in ("control", "proxy", "public", "api", "consumer")
        }
        self._settings = settings
        self._more: list[Process] = []
        self._servers: dict[str, dict[str, int]] = {}
        self._exits = AsyncExitStack()
        self.parts: dict[str, Part] = {}
        self._make_back_ends()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            async with asyncio.TaskGroup() as group:
                for part in self.parts.values():
                    exits.push_async_callback(part.stop)
                    group.create_task(part.start())
            await asyncio.to_thread(self._make_programs)
            for name in self._programs:
                exits.push_async_callback(self.parts[name].stop)
                await self.parts[name].start()
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._more):
            await process.stop()
        await self._exits.aclose()

    def _make_back_ends(self) -> None:
        self.postgres = PostgresServer(self.directory / "postgres")
        self.redis = RedisServer(self.directory / "redis")
        self.kafka = KafkaServer(self.directory / "kafka")
        self.parts |= {
            "postgres": Backend(self.postgres),
            "redis": Backend(self.redis),
            "kafka": Backend(self.kafka),
        }
        self._programs = ["server", "consumer"]

    def _urls(self) -> dict[str, str]:
        """Return the settings that server and consumer share."""
        self.store_url = self.postgres.url
        return {"store": self.store_url, "bus": self.kafka.url, "wait_for_backends": "true"}

    def _own(self) -> dict[str, str]:
        """Return the settings that only the server has."""
        return {"cache": self.redis.url}

    def _make_programs(self) -> None:
        server = {
            f"{name}_port": str(self.ports[name]) for name in self.ports if name != "consumer"
        }
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
        urls = self._urls()
        self._add(
            "FABRIC_SERVER_",
            {
                **server,
                **urls,
                **self._own(),
                "data": str(self.data),
                "host": "127.0.0.1",
                "address": "127.0.0.1",
                "drain_seconds": "5",
                **self._settings,
            },
        )
        self._add("FABRIC_CONSUMER_", {**urls, "port": str(self.ports["consumer"])})
        self.server = Process(self.server_words, self.environ, READY)
        self.consumer = Process(("consumer",), self.environ, READY)
        programs = {"server": self.server, "consumer": self.consumer}
        self.parts |= {name: programs[name] for name in self._programs}

    def _add(self, prefix: str, settings: Mapping[str, str]) -> None:
        self.environ |= {f"{prefix}{name.upper()}": value for name, value in settings.items()}

    @property
    def public(self) -> str:
        return f"https://127.0.0.1:{self.ports['public']}"

    @property
    def api(self) -> str:
        return f"https://127.0.0.1:{self.ports['api']}"

    @property
    def figures(self) -> str:
        return f"http://127.0.0.1:{self.ports['consumer']}"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.data / "certs" / "ca.pem"))

    def session(self) -> aiohttp.ClientSession:
        """Return a client of this stack; close it."""
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.trust()))

    async def command(self, *words: str) -> Any:
        """Run ``fabric-server …`` with ``--json``, and return the output."""
        return json.loads(await self._run("fabric_server", *words, "--json"))

    async def join(
        self,
        engine: str,
        name: str = "attic",
        *flags: str,
        via: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Process:
        """Join and run a node; return when it is registered.

        ``via`` is the address it dials; ``environ`` is added to its environment.
        """
        environ = {**self.environ, **(environ or {})}
        data = self.node_data(name)
        token = (await self.command("nodes", "invite", "--name", name))["token"]
        token = token if via is None else redirected(token, via)
        await self._run("fabric_client", "join", token, "--data", str(data), environ=environ)
        own = ("--data", str(data), "--engine", engine, "--no-discover")
        words = ("fabric_client", "run", *own, *flags)
        node = Process(words, environ, "registered")
        self._more.append(node)
        await node.start()
        return node

    def node_data(self, name: str) -> Path:
        return self.directory / f"node-{name}"

    def faults(self, host: str) -> FaultProxy:
        """Return a proxy to the server with faults, on ``host``; enter it."""
        names = ("api", "control", "proxy")
        return FaultProxy(host, {name: self.ports[name] for name in names})

    async def join_server(self, name: str) -> Process:
        """Start another server on the same back ends, with data and ports of its own."""
        ports = self._servers[name] = {
            kind: free_port() for kind in ("control", "proxy", "public", "api")
        }
        settings = {f"{kind}_port": str(port) for kind, port in ports.items()}
        settings["data"] = str(self.directory / name)
        own = {f"FABRIC_SERVER_{key.upper()}": value for key, value in settings.items()}
        server = Process(("fabric_server", "up"), {**self.environ, **own}, READY)
        self._more.append(server)
        await server.start()
        return server

    def successor(self, settings: Mapping[str, str] | None = None) -> Process:
        """Return a server that takes over; start it."""
        return self.another({"takeover": "true", **(settings or {})})

    def another(self, settings: Mapping[str, str]) -> Process:
        environ = {f"FABRIC_SERVER_{name.upper()}": value for name, value in settings.items()}
        server = Process(("fabric_server", "up"), {**self.environ, **environ}, READY)
        self._more.append(server)
        return server

    async def ledger(self) -> list[str]:
        """Return the request ids in the ledger."""
        store = await open_store(self.store_url)
        try:
            return [entry.request_id for entry in await store.requests(limit=1_000_000)]
        finally:
            await store.close()

    def addresses(self, name: str) -> tuple[str, str]:
        """Return the public and the API address of a server started by ``join_server``."""
        ports = self._servers[name]
        # Plain HTTP, as loopback allows: the server has a CA of its own.
        return f"http://127.0.0.1:{ports['public']}", f"http://127.0.0.1:{ports['api']}"

    async def join_consumer(self) -> str:
        """Start another consumer of the same group; return the URL of its metrics."""
        port = free_port()
        environ = {**self.environ, "FABRIC_CONSUMER_PORT": str(port)}
        consumer = Process(("consumer",), environ, READY)
        self._more.append(consumer)
        await consumer.start()
        return f"http://127.0.0.1:{port}"

    async def _run(self, *words: str, environ: Mapping[str, str] | None = None) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ or self.environ,
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()


class Alone(Stack):
    """A server with the embedded back ends, and nodes."""

    def _make_back_ends(self) -> None:
        self._programs = ["server"]

    def _urls(self) -> dict[str, str]:
        self.store_url = f"sqlite:///{self.data / 'fabric.sqlite'}"
        return {}

    def _own(self) -> dict[str, str]:
        return {}
