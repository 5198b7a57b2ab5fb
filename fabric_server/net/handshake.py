"""One accepted connection, from its first byte to the port's protocol or to a refusal.

The first byte distinguishes TLS (0x16) from plain text; after that

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from fabric_server.dialects.errors import ApiError
from fabric_server.net.addresses import IpAddress
from fabric_server.net.arrival import TLS_HANDSHAKE, Arrival, Door, Host
from fabric_server.net.connection_budget import Peer
from fabric_server.net.tls_alerts import ACME_ALPN, handshaking
from runtime.asyncio_protocol import AsyncioProtocol

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
class Port(Door):
    """Port that serves its connections."""

    protocol: Callable[[Peer], AsyncioProtocol]
    """Makes the protocol of a connection; when that is lost, the protocol releases the peer."""
    context: Callable[[], ssl.SSLContext]
    """Called for every connection.  An ``AlertingContext`` lets refused clients know why."""
    plaintext: Literal["loopback", "proxies", "never"] = "never"
    """Peers that may do without TLS: those of this machine; with ``proxies``, trusted ones, too."""
    alpn: str | None = None
    """The required protocol; None accepts any."""


class Handshake(Arrival):
    """The handshake of one connection, up to the port's protocol."""

    __slots__ = ("_alert", "_alert_socket", "_local")
    door: Port

    def __init__(
        self, host: Host, door: Port, sock: socket.socket, peer: Peer, ip: IpAddress
    ) -> None:
        super().__init__(host, door, sock, peer, ip)
        self._local = ip.is_loopback
        self._alert = b""
        self._alert_socket: socket.socket | None = None

    def release(self) -> None:
        """Close the sockets that no transport will close."""
        super().release()
        if self._alert_socket is not None:
            self._alert_socket.close()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.host.limits.seconds
        port = self.door
        try:
            async with asyncio.timeout_at(deadline):
                if self.header_due and not await self._read_proxy_header(loop):
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
        allowed = self.door.plaintext
        return (self._local and allowed != "never") or (self.trusted and allowed == "proxies")

    def _make_protocol(self) -> asyncio.BaseProtocol:
        protocol = self.door.protocol(self.peer)
        self.host.opened += 1
        self.opened = True
        return cast(asyncio.BaseProtocol, protocol)

    async def _tls(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        port, limits = self.door, self.host.limits
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
        port = self.door
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
