"""One accepted connection, from its first byte to the port's protocol or to a refusal.

Where the port requires the PROXY protocol, its header comes first, and only from trusted proxies.
The first byte then distinguishes TLS (0x16) from plain text; after that

    TLS      handshake ── ALPN matches the port ──> the port's protocol
    plain    the port allows it to this peer ──> the port's protocol
             else, if it looks like HTTP: an error that says what to do
    neither  closed

The port's protocol object is made only after the handshake.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from fabric_server.dialects.errors import ApiError
from fabric_server.net import proxy_protocol
from fabric_server.net.connection_budget import Peer
from fabric_server.net.proxy_protocol import ProxyProtocolError
from fabric_server.net.tls_alerts import ACME_ALPN, handshaking
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
MAX_REPLY_READS = 16
_HTTP = re.compile(rb"[A-Z]{3,10}( |$)")

_TLS_REASONS = {
    "UNSUPPORTED_PROTOCOL": "tls_version",
    "WRONG_SSL_VERSION": "tls_version",
    "VERSION_TOO_LOW": "tls_version",
    "TLSV1_ALERT_PROTOCOL_VERSION": "tls_version",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "CERTIFICATE_VERIFY_FAILED": "certificate",
}


@dataclass(frozen=True)
class Port:
    name: str
    """``control``, ``proxy``, ``public`` or ``api``; its setting is ``<name>_port``."""
    hosts: Sequence[str]
    number: int
    """The port number; 0 takes any free one, the same for every host."""
    protocol: Callable[[Peer], asyncio.BaseProtocol]
    """Makes the protocol of a connection; when that is lost, the protocol releases the peer."""
    context: Callable[[], ssl.SSLContext]
    """Called for every connection.  An ``AlertingContext`` lets refused clients know why."""
    plaintext: Literal["loopback", "proxies", "never"] = "never"
    """Peers that may do without TLS: those of this machine; with ``proxies``, trusted ones, too."""
    alpn: str | None = None
    """The required protocol; None accepts any."""
    reuse_port: bool = False
    proxies: TrustedProxies = NO_PROXIES
    proxy_protocol: bool = False
    """Connections begin with a header of the PROXY protocol."""
    on_suspect: Callable[[str], None] = lambda address: None
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

    spec: Port
    limits: Limits
    opened: int

    @property
    def port(self) -> int: ...
    def refuse(self, reason: str, address: str, error: object = None) -> None: ...


class Handshake:
    """The handshake of one connection; ``task`` runs ``run``, and ``release`` follows its end."""

    __slots__ = (
        "_alert",
        "_alert_socket",
        "_handed_over",
        "_refused",
        "_sock",
        "host",
        "local",
        "opened",
        "origin",
        "peer",
        "task",
        "trusted",
    )

    def __init__(self, host: Host, sock: socket.socket, peer: Peer) -> None:
        self.host = host
        self.peer = peer
        self.local = peer.ip.is_loopback
        self.trusted = host.spec.proxies.trusts(peer.ip)
        """The peer is a trusted proxy."""
        self.origin = ""
        """The key by which handshakes are counted."""
        self.opened = False
        """The port's protocol has the connection, and releases the peer."""
        self.task: asyncio.Task[None]
        self._sock = sock
        self._handed_over = False
        self._refused = False
        self._alert = b""
        self._alert_socket: socket.socket | None = None

    def refuse(self, reason: str, error: object = None) -> None:
        if not self._refused:
            self._refused = True
            self.host.refuse(reason, str(self.peer.ip), error)

    def drop(self) -> None:
        """End it without another word: it was shed."""
        self._refused = True
        self.task.cancel()

    def release(self) -> None:
        """Close the sockets that no transport will close."""
        if not self._handed_over:
            self._sock.close()
        if self._alert_socket is not None:
            self._alert_socket.close()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.host.limits.seconds
        port = self.host.spec
        try:
            async with asyncio.timeout_at(deadline):
                if port.proxy_protocol and not await self._read_proxy_header(loop):
                    return None
                start = await self._peek(loop)
        except TimeoutError:
            return self.refuse("silent")
        except OSError as error:
            return self.refuse("gone", error)
        if not start:
            return self.refuse("gone")
        if start.startswith(TLS_HANDSHAKE):
            await self._tls(loop, deadline)
        elif self._may_be_plain:
            self._handed_over = True
            transport, _ = await loop.connect_accepted_socket(self._make_protocol, self._sock)
            self.peer.drop = transport.abort
        elif _HTTP.match(start):
            self.refuse("plaintext")
            await self._reply_and_close(loop, self._sock, _answer(port, self.host.port))
        else:
            self.refuse("garbage")
        return None

    @property
    def _may_be_plain(self) -> bool:
        allowed = self.host.spec.plaintext
        return (self.local and allowed != "never") or (self.trusted and allowed == "proxies")

    def _make_protocol(self) -> asyncio.BaseProtocol:
        protocol = self.host.spec.protocol(self.peer)
        self.host.opened += 1
        self.opened = True
        return protocol

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
        sock = self._sock
        try:
            return sock.recv(16, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            pass
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
        return sock.recv(16, socket.MSG_PEEK)

    async def _tls(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        port, limits = self.host.spec, self.host.limits
        handshaking.set(self)
        context = port.context()
        self._handed_over = True
        try:
            await loop.connect_accepted_socket(
                lambda: _Gate(self),
                self._sock,
                ssl=context,
                ssl_handshake_timeout=max(deadline - loop.time(), 0.01),
                ssl_shutdown_timeout=limits.seconds,
            )
        except ssl.SSLError as error:
            self.refuse(_tls_reason(error), error)
        except ConnectionAbortedError as error:  # how both loops report the timeout
            self.refuse("slow", error)
        except OSError as error:
            self.refuse("gone", error)
        if self._alert_socket is not None:
            await self._reply_and_close(loop, self._alert_socket, self._alert)

    def on_alert(self, alert: bytes) -> None:
        # The loop closes the socket before anything else can run; a duplicate keeps the
        # connection, so that the alert still gets out.
        self._alert = alert
        try:
            self._alert_socket = self._sock.dup()
            self._alert_socket.setblocking(False)
        except OSError:
            self._alert_socket = None

    def on_handshake_done(self, transport: asyncio.BaseTransport) -> asyncio.BaseProtocol | None:
        """Return the port's protocol for a finished handshake; None when it is refused."""
        port = self.host.spec
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        agreed = tls.selected_alpn_protocol()
        if port.alpn is not None and agreed != port.alpn:
            self.refuse("alpn")
            return None
        if agreed == ACME_ALPN:
            self.refuse("acme")
            return None
        return self._make_protocol()

    async def _reply_and_close(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, text: bytes
    ) -> None:
        """Send ``text``, then read on: closing with unread bytes would reset the connection."""
        try:
            async with asyncio.timeout(self.host.limits.reply_seconds):
                await loop.sock_sendall(sock, text)
                sock.shutdown(socket.SHUT_WR)
                for _ in range(MAX_REPLY_READS):
                    if not await loop.sock_recv(sock, 65_536):
                        return
        except OSError:  # TimeoutError is one
            pass


class _Gate(asyncio.Protocol):
    """Stands in for the port's protocol during the handshake."""

    __slots__ = ("_handshake",)

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own TLS transport inherits from none of asyncio's.
        transport = cast(asyncio.Transport, transport)
        try:
            protocol = self._handshake.on_handshake_done(transport)
        except BaseException:
            transport.abort()
            raise
        if protocol is None:
            transport.abort()
            return
        self._handshake.peer.drop = transport.abort
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _tls_reason(error: ssl.SSLError) -> str:
    name = error.reason or ""
    if name in _TLS_REASONS:
        return _TLS_REASONS[name]
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "gone"
    return "distrust" if "_ALERT_" in name else "bad_tls"


def _answer(port: Port, number: int) -> bytes:
    if port.plaintext == "never":
        text = "This port serves fabric-client, not HTTP."
    else:
        text = (
            "Plain HTTP is allowed only from the server's own machine, or from a trusted proxy "
            "where the server is set to allow it. "
            f"Use https:// on port {number}."
        )
    body = ApiError(400, "tls_required", text).body()
    head = (
        "HTTP/1.1 400 Bad Request\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
