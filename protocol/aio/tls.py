"""Connecting to a port of the server: TLS, its certificate, and socket options."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from protocol.names import SERVER_NAME

DIAL_SECONDS = 10.0
_KEEP_UNSENT = 32 * 1024
"""Bytes that the kernel may hold unsent; a RESET can't overtake those."""
_GIVE_UP_MS = 20_000
"""TCP data unacknowledged for this time means that the path is gone."""

P = TypeVar("P", bound=asyncio.Protocol)


async def dial(factory: Callable[[], P], host: str, port: int, context: ssl.SSLContext) -> P:
    """Connect and finish the TLS handshake; the certificate must name ``SERVER_NAME``.

    Raises OSError (of which ssl.SSLError is one) or TimeoutError.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DIAL_SECONDS):
        _, protocol = await loop.create_connection(
            factory, host, port, ssl=context, server_hostname=SERVER_NAME
        )
    return protocol


def tune(transport: asyncio.BaseTransport) -> None:
    """Set those of the options above that the platform has."""
    sock = transport.get_extra_info("socket")
    for name, value in (("TCP_NOTSENT_LOWAT", _KEEP_UNSENT), ("TCP_USER_TIMEOUT", _GIVE_UP_MS)):
        if sock is not None and hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
