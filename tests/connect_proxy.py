"""A small HTTP proxy that only knows CONNECT, as networks have it that let nothing else out.

async with ConnectProxy(ports={443}, login="alice:secret") as proxy:
    ... proxy.url, proxy.asked ...
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from types import TracebackType
from typing import Self

PATIENCE = 20.0


class ConnectProxy:
    """A proxy on a free port of loopback; ``asked`` has the targets, in order."""

    def __init__(
        self,
        *,
        ports: set[int] | None = None,
        login: str = "",
        answer: bytes = b"",
        tls: ssl.SSLContext | None = None,
        hosts: dict[str, str] | None = None,
    ) -> None:
        """``answer`` is said instead of doing anything; ``hosts`` are names that only it knows."""
        self.asked: list[str] = []
        self.ports = ports
        self.login = login
        self.hosts = hosts or {}
        self.opened = 0
        """Ways that it has opened."""
        self._answer = answer
        self._tls = tls
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"{'http' if self._tls is None else 'https'}://{login}localhost:{self.port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, EOFError):  # either side hangs up when it likes
            return
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.partition("\r\n")[0].split(" ")
        self.asked.append(target)
        host, _, port = target.rpartition(":")
        expected = f"Proxy-Authorization: Basic {b64encode(self.login.encode()).decode()}\r\n"
        if self._answer:
            writer.write(self._answer)
            await asyncio.sleep(PATIENCE)  # it keeps the connection, as a bad one may
        elif self.login and expected not in head:
            refusal = b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\n\r\n<html>"
            await self._refuse(writer, refusal)
        elif method != "CONNECT" or (self.ports is not None and int(port) not in self.ports):
            await self._refuse(writer, b"HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno!")
        else:
            await self._open(reader, writer, self.hosts.get(host, host.strip("[]")), int(port))

    async def _refuse(self, writer: asyncio.StreamWriter, answer: bytes) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _open(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        try:
            theirs, ours = await asyncio.open_connection(host, port)
        except OSError:
            return await self._refuse(writer, b"HTTP/1.1 503 no\r\nX-Squid-Error: x\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connection established\r\nProxy-agent: test\r\n\r\n")
        self.opened += 1
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_copy(reader, ours))
                ways.create_task(_copy(theirs, writer))
        except* (OSError, EOFError):
            pass  # one side has hung up
        finally:
            ours.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    raise EOFError
