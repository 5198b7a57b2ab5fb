"""Connecting to a port of the server: TLS, its certificate, and socket options."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

from protocol.names import SERVER_NAME
from runtime import http_proxy
from runtime.asyncio_protocol import AsyncioProtocol
from runtime.connecting import NoAnswer, connect
from runtime.http_proxy import HttpProxy

DIAL_SECONDS = 10.0
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""
_HAS_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""
_KEEP_UNSENT = 32 * 1024
"""Bytes that the kernel may hold unsent; a RESET can't overtake those."""
_GIVE_UP_MS = 20_000
"""TCP data unacknowledged for this time means that the path is gone."""

P = TypeVar("P", bound=AsyncioProtocol)


def allow_any_beginning(context: ssl.SSLContext) -> None:
    """Verify peers' certificates without their dates; call ``has_expired`` for their end.

    A certificate of the fabric that is not valid yet was made while a clock was wrong, or this
    machine's clock is behind: refusing it protects nobody, and would last until the clocks agree.
    """
    context.verify_flags |= _NO_CHECK_TIME


def has_expired(certificate: dict[str, Any], now: float) -> bool:
    """Return whether a verified certificate, in the form of ``getpeercert()``, has ended.

    True without a certificate.  ``now`` is in Unix seconds.
    """
    ends = certificate.get("notAfter")
    return not isinstance(ends, str) or ssl.cert_time_to_seconds(ends) <= now


class _CheckingObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        if has_expired(self.getpeercert() or {}, time.time()):
            error = ssl.SSLCertVerificationError(1, "certificate has expired")
            error.verify_code, error.verify_message = _HAS_EXPIRED, "certificate has expired"
            raise error


class DialContext(ssl.SSLContext):
    """The TLS of a node that dials: the server's certificate may not have ended, and that is all
    that its dates decide."""

    sslobject_class = _CheckingObject

    def __new__(cls) -> DialContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does itself from 3.13 on
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        allow_any_beginning(context)
        return context


async def dial(
    factory: Callable[[], P],
    host: str,
    port: int,
    context: ssl.SSLContext,
    proxy: HttpProxy | None = None,
    server_name: str = SERVER_NAME,
) -> P:
    """Connect and finish the TLS handshake; the certificate must name ``server_name``.

    Raises OSError (of which ssl.SSLError and ProxyError are) or TimeoutError; ``NoAnswer`` of
    ``runtime.connecting`` when nobody has answered at all.
    """
    loop = asyncio.get_running_loop()
    if proxy is not None:
        async with asyncio.timeout(DIAL_SECONDS + http_proxy.SECONDS):
            _, protocol = await http_proxy.connect(
                factory, (host, port), proxy=proxy, tls=context, server_hostname=server_name
            )
        return protocol
    ends = loop.time() + DIAL_SECONDS
    try:
        async with asyncio.timeout_at(ends):
            sock = await connect(host, port)
    except TimeoutError:
        raise NoAnswer("timed out") from None
    async with asyncio.timeout_at(ends):
        made: Callable[[], Any] = factory
        _, protocol = await loop.create_connection(
            made, sock=sock, ssl=context, server_hostname=server_name
        )
    return protocol


def tune(transport: asyncio.BaseTransport) -> None:
    """Set those of the options above that the platform has."""
    sock = transport.get_extra_info("socket")
    for name, value in (("TCP_NOTSENT_LOWAT", _KEEP_UNSENT), ("TCP_USER_TIMEOUT", _GIVE_UP_MS)):
        if sock is not None and hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
