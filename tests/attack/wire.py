"""Connections of attackers and of the user beside them: TLS over sockets, HTTP by hand."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import Any

HOST = "198.18.0.1"
"""The server's address in the namespace (RFC 2544: for benchmarks of networks)."""
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Target:
    """What an attacker knows of the fabric."""

    ports: dict[str, int]
    keys: dict[str, str]
    """Texts of keys by their names: ``victim``, ``attacker``, ``boss``."""
    origin: str = "198.18.2.1"
    """The address to come from."""


def anybody() -> ssl.SSLContext:
    """Return a context that trusts any server: an attacker does not care."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(
        cls,
        target: Target,
        port: str = "public",
        *,
        origin: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Wire:
        """Connect.  Raises OSError or TimeoutError."""
        async with asyncio.timeout(10):
            return cls(
                *await asyncio.open_connection(
                    HOST,
                    target.ports[port],
                    ssl=tls or anybody(),
                    local_addr=(origin or target.origin, 0),
                    limit=2**20,
                )
            )

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send a request; return the status and the body.  Raises OSError at a connection's end."""
        self.writer.write(data)
        await self.writer.drain()
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        """Read one answer, of a known length or in chunks."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ", 2)[1])
            if b"transfer-encoding: chunked" in head:
                return status, await self._chunks()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            return status, await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise ConnectionError(f"no answer: {error}") from None

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            size = int((await self.reader.readline()).strip() or b"0", 16)
            body += (await self.reader.readexactly(size + 2))[:-2]
            if size == 0:
                return body

    def close(self) -> None:
        self.writer.transport.abort()


def request(
    path: str, key: str, body: bytes | dict[str, Any] | None = None, *more: str, method: str = ""
) -> bytes:
    """Return a request; ``more`` are header lines."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [
        f"{method or ('GET' if data is None else 'POST')} {path} HTTP/1.1",
        f"Host: {HOST}",
        *([f"Authorization: Bearer {key}"] if key else []),
        *more,
    ]
    if data is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (data or b"")


def head(path: str, key: str, length: int, *more: str) -> bytes:
    """Return the head of a request whose body of ``length`` bytes is sent by hand."""
    return request(path, key, None, f"Content-Length: {length}", *more, method="POST")


def chat(model: str = "tiny", text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}
