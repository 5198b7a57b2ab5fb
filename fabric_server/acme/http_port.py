"""The port for challenges of HTTP-01: open while there is one, and answers nothing else."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

from fabric_server.net.addresses import NO_ADDRESS, origin_of, peer_of
from fabric_server.net.sockets import PortProblem, bind

__all__ = ["HttpPort", "PortProblem", "asked_token"]

log = logging.getLogger("fabric.acme")

MAX_CONNECTIONS = 64
"""Beyond, the oldest of the address that holds most is dropped for a new one: a CA asks from some
addresses, and needs two round trips."""
MAX_HEAD = 4096
SECONDS = 5.0
"""How long a connection may take, in all."""

_REQUEST = re.compile(rb"GET /\.well-known/acme-challenge/([A-Za-z0-9_-]{1,256}) HTTP/1\.[01]\r\n")


def asked_token(head: bytes) -> str | None:
    """Return the token that a request asks for; None if it asks for anything else."""
    found = _REQUEST.match(head)
    return None if found is None else found[1].decode()


class HttpPort:
    """A listener that serves the answers which ``authorization`` finds by their tokens."""

    def __init__(
        self,
        hosts: Sequence[str],
        number: int,
        authorization: Callable[[str], str | None],
        *,
        seconds: float = SECONDS,
    ) -> None:
        self.seconds = seconds
        self._hosts = hosts
        self._number = number
        self._authorization = authorization
        self._servers: list[asyncio.Server] = []
        self._connections: dict[_Connection, None] = {}  # oldest first
        self.port = number
        """The actual number, also when 0 was configured."""

    @property
    def open(self) -> bool:
        return bool(self._servers)

    async def start(self) -> None:
        """Listen, if it doesn't yet.  Raises ``PortProblem``."""
        if self._servers:
            return
        sockets, self.port = bind(self._hosts, self._number, setting="acme_http_port")
        loop = asyncio.get_running_loop()
        for sock in sockets:
            self._servers.append(await loop.create_server(lambda: _Connection(self), sock=sock))
        log.debug("listening for challenges", extra={"number": self.port})

    def stop(self) -> None:
        """Close the port and its connections."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for connection in list(self._connections):
            connection.drop()

    def enter(self, connection: _Connection) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            [(most, _)] = Counter(one.origin for one in self._connections).most_common(1)
            next(one for one in self._connections if one.origin == most).drop()
        self._connections[connection] = None

    def leave(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    def answer(self, head: bytes) -> bytes:
        """Return the response to a request."""
        token = asked_token(head)
        found = None if token is None else self._authorization(token)
        if found is None:
            return _response("404 Not Found", "This port answers a certificate authority only.\n")
        return _response("200 OK", found)


class _Connection(asyncio.Protocol):
    """One request, and its answer."""

    def __init__(self, port: HttpPort) -> None:
        self.origin = ""
        """The client's address; of IPv6 its /64."""
        self._port = port
        self._head = b""
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's inherits from none
        self._deadline = asyncio.get_running_loop().call_later(self._port.seconds, self.drop)
        self.origin = origin_of(peer_of(transport) or NO_ADDRESS)
        self._port.enter(self)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._transport.write(self._port.answer(self._head))
            self._transport.close()
        elif len(self._head) > MAX_HEAD:
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._port.leave(self)

    def drop(self) -> None:
        self._port.leave(self)
        self._transport.abort()


def _response(status: str, text: str) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
