"""One connection from its first byte until it belongs to the port's protocol, or is refused.

The first byte tells TLS (0x16) from plain text; after that

    TLS      handshake ── ALPN is what the port wants ──> the port's protocol
    plain    the peer is this machine, and the port allows it ──> the port's protocol
             else, if it looks like HTTP: a refusal that says what to do
    neither  closed

Nothing of the port's protocol is made before the handshake is done.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Literal, Protocol, cast

from fabric_server.dialects.errors import ApiError
from fabric_server.net.tls_alerts import handshaking

REASONS = (
    "silent",  # no first byte in time
    "slow",  # the handshake took too long
    "gone",  # hung up before it was through
    "plaintext",  # HTTP without TLS from another machine
    "garbage",  # neither TLS nor HTTP
    "tls_version",  # older than TLS 1.3
    "bad_tls",  # began like TLS and was not
    "no_certificate",  # none sent where one is needed
    "certificate",  # expired, of another CA, or not a node's
    "distrust",  # the client did not accept our certificate
    "alpn",  # wants another protocol than this port's, or does not say
    "crowded",  # pushed out by newer ones, too many being under way
    "crowded_address",  # too many under way from this one address
)
"""Why a connection may be refused: all there are."""

TLS_HANDSHAKE = b"\x16"
FAREWELL_READS = 16
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
    """``control``, ``proxy``, ``public`` or ``api``; ``<name>_port`` is its setting."""
    hosts: Sequence[str]
    number: int
    """0 takes any free one, the same for every host."""
    protocol: Callable[[], asyncio.BaseProtocol]
    context: Callable[[], ssl.SSLContext]
    """Asked for every connection.  An ``AlertingContext`` tells refused clients why."""
    plaintext: Literal["loopback", "never"] = "never"
    alpn: str | None = None
    """What must have been agreed; None takes whatever was."""
    reuse_port: bool = False


@dataclass(frozen=True)
class Limits:
    seconds: float = 5.0
    """From accepting a connection to the end of its handshake."""
    per_address: int = 64
    """Connections under way from one address (one /64 of IPv6), once half of ``total`` is taken;
    before that, and for this machine itself, there is room for more."""
    total: int = 1024
    """Connections under way; beyond that a new one pushes out the oldest."""
    farewell: float = 1.0
    """Seconds for a refused peer to read why."""


class Host(Protocol):
    """Who took the connection and keeps the count."""

    spec: Port
    limits: Limits
    opened: int

    @property
    def port(self) -> int: ...
    def refuse(self, reason: str, address: str, error: object = None) -> None: ...


class Handshake:
    """``task`` runs ``welcome``; whoever made it calls ``release`` when the task has ended."""

    __slots__ = (
        "_alert",
        "_given",
        "_last",
        "_refused",
        "_sock",
        "address",
        "host",
        "local",
        "origin",
        "task",
    )

    def __init__(self, host: Host, sock: socket.socket, address: str) -> None:
        ip = _ip(address)
        self.host = host
        self.address = address
        self.local = ip.is_loopback
        self.origin = _origin(ip)
        """What limits count by."""
        self.task: asyncio.Task[None]
        self._sock = sock
        self._given = False
        self._refused = False
        self._alert = b""
        self._last: socket.socket | None = None

    def refuse(self, reason: str, error: object = None) -> None:
        if not self._refused:
            self._refused = True
            self.host.refuse(reason, self.address, error)

    def release(self) -> None:
        """Close what no transport will close."""
        if not self._given:
            self._sock.close()
        if self._last is not None:
            self._last.close()

    async def welcome(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.host.limits.seconds
        try:
            async with asyncio.timeout_at(deadline):
                start = await self._peek(loop)
        except TimeoutError:
            return self.refuse("silent")
        except OSError as error:
            return self.refuse("gone", error)
        if not start:
            return self.refuse("gone")
        port = self.host.spec
        if start.startswith(TLS_HANDSHAKE):
            await self._shake_hands(loop, deadline)
        elif self.local and port.plaintext == "loopback":
            self.host.opened += 1
            self._given = True
            await loop.connect_accepted_socket(port.protocol, self._sock)
        elif _HTTP.match(start):
            self.refuse("plaintext")
            await self._farewell(loop, self._sock, _answer(port, self.host.port))
        else:
            self.refuse("garbage")
        return None

    async def _peek(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """The first bytes, which stay where they are."""
        sock = self._sock
        try:
            return sock.recv(16, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            pass
        readable = loop.create_future()

        def on_readable() -> None:
            # Off at once: the bytes are left in the kernel, so it would be called again and again.
            loop.remove_reader(sock)
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(sock, on_readable)
        try:
            await readable
        finally:
            loop.remove_reader(sock)
        return sock.recv(16, socket.MSG_PEEK)

    async def _shake_hands(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        port, limits = self.host.spec, self.host.limits
        handshaking.set(self)
        context = port.context()
        self._given = True
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
        except ConnectionAbortedError as error:  # how both loops say that time is up
            self.refuse("slow", error)
        except OSError as error:
            self.refuse("gone", error)
        if self._last is not None:
            await self._farewell(loop, self._last, self._alert)

    def on_alert(self, alert: bytes) -> None:
        # The loop closes the socket before anything else can run; a duplicate keeps the
        # connection, so that the alert still gets out.
        self._alert = alert
        try:
            self._last = self._sock.dup()
            self._last.setblocking(False)
        except OSError:
            self._last = None

    def passed(self, transport: asyncio.BaseTransport) -> asyncio.BaseProtocol | None:
        """The handshake is done: what speaks from here on, or None after a refusal."""
        port = self.host.spec
        conversation: ssl.SSLObject = transport.get_extra_info("ssl_object")
        agreed = conversation.selected_alpn_protocol()
        if port.alpn is not None and agreed != port.alpn:
            self.refuse("alpn")
            return None
        self.host.opened += 1
        return port.protocol()

    async def _farewell(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, words: bytes
    ) -> None:
        """Closing with bytes unread resets the connection, and the words are lost: read on."""
        try:
            async with asyncio.timeout(self.host.limits.farewell):
                await loop.sock_sendall(sock, words)
                sock.shutdown(socket.SHUT_WR)
                for _ in range(FAREWELL_READS):
                    if not await loop.sock_recv(sock, 65_536):
                        return
        except OSError:  # TimeoutError is one
            pass


class _Gate(asyncio.Protocol):
    """Waits for the handshake in the place of the port's protocol."""

    __slots__ = ("_arrival",)

    def __init__(self, arrival: Handshake) -> None:
        self._arrival = arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own TLS transport inherits from none of asyncio's.
        transport = cast(asyncio.Transport, transport)
        try:
            protocol = self._arrival.passed(transport)
        except BaseException:
            transport.abort()
            raise
        if protocol is None:
            transport.abort()
            return
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
        words = "This port is for fabric-client, not for HTTP."
    else:
        words = (
            "Plain HTTP is answered only to programs on the server's own machine. "
            f"From anywhere else use https:// on port {number}."
        )
    body = ApiError(400, "tls_required", words).body()
    head = (
        "HTTP/1.1 400 Bad Request\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def origin(address: str) -> str:
    """What limits count by: an IPv4 address, or the /64 that one customer of IPv6 has."""
    return _origin(_ip(address))


def _origin(ip: IPv4Address | IPv6Address) -> str:
    return str(ip) if isinstance(ip, IPv4Address) else f"{int(ip) >> 64:x}"


def _ip(address: str) -> IPv4Address | IPv6Address:
    ip: Any = ip_address(address.partition("%")[0])
    mapped: IPv4Address | None = getattr(ip, "ipv4_mapped", None)
    return mapped or ip
