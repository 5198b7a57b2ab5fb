"""The first bytes of an accepted connection, on any port.

Where the port requires the PROXY protocol, its header comes first, and only from trusted proxies.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fabric_server.net import proxy_protocol
from fabric_server.net.addresses import IpAddress
from fabric_server.net.connection_budget import Peer
from fabric_server.net.proxy_protocol import ProxyProtocolError
from fabric_server.net.trusted_proxies import NO_PROXIES, TrustedProxies

REASONS = (
    "silent",  # no first byte in time
    "slow",  # the handshake took too long
    "gone",  # hung up before the end of the handshake
    "plaintext",  # HTTP without TLS from another machine
    "garbage",  # neither TLS nor HTTP
    "tls_version",  # older than TLS 1.3
    "bad_tls",  # first byte of TLS, but invalid
    "no_certificate",  # none sent where one is required
    "certificate",  # expired, from another CA, or not a node's
    "distrust",  # the client rejected our certificate
    "alpn",  # another protocol than this port's, or none
    "crowded",  # dropped for newer ones: too many handshakes at once
    "crowded_address",  # too many handshakes from one address
    "proxy_header",  # no valid header of the PROXY protocol, where it is required
    "untrusted_proxy",  # a header of the PROXY protocol is required, but not believed from there
    "shed",  # a stranger, dropped for a newer one: all places of the port were taken
    "shed_address",  # the same, because all places of one address were taken
    "full",  # all places of the port are taken, and none by a stranger
    "full_address",  # all places of one address are taken, and none by a stranger
    "acme",  # a certificate authority has checked our name, and has its answer
)
"""All reasons for which a connection may be refused."""

TLS_HANDSHAKE = b"\x16"


@dataclass(frozen=True)
class Door:
    """Part of a port that is the same whatever it is for."""

    name: str
    """``control``, ``proxy``, ``public``, ``api`` or ``one``; its setting is ``<name>_port``."""
    hosts: Sequence[str]
    number: int
    """The port number; 0 takes any free one, the same for every host."""
    reuse_port: bool = field(default=False, kw_only=True)
    proxies: TrustedProxies = field(default=NO_PROXIES, kw_only=True)
    proxy_protocol: bool = field(default=False, kw_only=True)
    """Connections begin with a header of the PROXY protocol."""
    on_suspect: Callable[[str], None] = field(default=lambda address: None, kw_only=True)
    """Called for each connection that is refused or dropped because its address has too many, and
    for each wrong key after too many of an address, unless somebody known is there.  Never waits or
    raises."""


@dataclass(frozen=True)
class Limits:
    """Limits of the handshakes on one port."""

    seconds: float = 5.0
    """From accepting a connection to the end of its handshake."""
    per_address: int = 64
    """Handshakes at once from one address (one /64 of IPv6), once half of ``total`` is in use;
    before that, and for loopback peers, there is no such limit."""
    total: int = 1024
    """Handshakes at once; beyond that a new one drops the oldest."""
    reply_seconds: float = 1.0
    """Seconds for a refused peer to read the reason."""


class Host(Protocol):
    """The listener that accepted the connection and counts it."""

    limits: Limits
    opened: int

    @property
    def port(self) -> int: ...
    def refuse(self, reason: str, address: str, error: object = None) -> None: ...


class Arrival:
    """The first bytes of one connection; ``task`` runs ``run``, and ``release`` follows its end."""

    __slots__ = (
        "_handed_over",
        "_refused",
        "_sock",
        "door",
        "header_due",
        "host",
        "opened",
        "origin",
        "peer",
        "task",
        "trusted",
    )

    def __init__(
        self, host: Host, door: Door, sock: socket.socket, peer: Peer, ip: IpAddress
    ) -> None:
        """``ip`` is that of the socket; the peer's may be what a proxy said."""
        self.host = host
        self.door = door
        self.peer = peer
        self.trusted = door.proxies.trusts(ip)
        """The machine at the other end is a trusted proxy."""
        self.header_due = door.proxy_protocol
        """A header of the PROXY protocol comes first."""
        self.origin = ""
        """The key by which handshakes are counted."""
        self.opened = False
        """The port's protocol has the connection, and releases the peer."""
        self.task: asyncio.Task[None]
        self._sock = sock
        self._handed_over = False
        self._refused = False

    def refuse(self, reason: str, error: object = None) -> None:
        if not self._refused:
            self._refused = True
            self.host.refuse(reason, str(self.peer.ip), error)

    def drop(self) -> None:
        """End it without another word: it was shed."""
        self._refused = True
        self.task.cancel()

    def release(self) -> None:
        """Close the socket if nothing else will."""
        if not self._handed_over:
            self._sock.close()

    async def run(self) -> None:
        raise NotImplementedError

    async def _read_proxy_header(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Take the client's address from the header; return False when it is refused."""
        if not self.trusted:
            self.refuse("untrusted_proxy")
            return False
        try:
            fixed = proxy_protocol.parse_fixed(
                await self._read_exactly(loop, proxy_protocol.FIXED_SIZE)
            )
            client = proxy_protocol.parse_rest(fixed, await self._read_exactly(loop, fixed.length))
        except ProxyProtocolError as error:
            self.refuse("proxy_header", error)
            return False
        reason = None if client is None else self.peer.move(client)
        if reason is not None:
            self.refuse(reason)
        return reason is None

    async def _read_exactly(self, loop: asyncio.AbstractEventLoop, size: int) -> bytes:
        """Read ``size`` bytes and not one more: what follows is for TLS."""
        data = b""
        while len(data) < size:
            piece = await loop.sock_recv(self._sock, size - len(data))
            if not piece:
                raise ConnectionResetError("hung up in its PROXY protocol header")
            data += piece
        return data

    async def _peek(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """Return the first bytes, leaving them in the kernel's buffer."""
        try:
            return self._sock.recv(16, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await self._readable(loop)
        return self._sock.recv(16, socket.MSG_PEEK)

    async def _readable(self, loop: asyncio.AbstractEventLoop) -> None:
        sock = self._sock
        readable = loop.create_future()

        def on_readable() -> None:
            # Removed at once: the bytes stay in the kernel, so it would be called repeatedly.
            loop.remove_reader(sock)
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(sock, on_readable)
        try:
            await readable
        finally:
            loop.remove_reader(sock)
