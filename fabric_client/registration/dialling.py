"""Dialling a server that has several names: each in turn, the one that was good last first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from fabric_client.identity import explain
from fabric_client.registration.context import NodeContext
from protocol.aio.tls import dial

log = logging.getLogger("fabric.agent")

P = TypeVar("P", bound=asyncio.Protocol)


async def dial_server(
    factory: Callable[[], P], context: NodeContext, ports: Sequence[int], alpn: str
) -> tuple[P, str, int]:
    """Connect to the first port and host of the server that answer; return the protocol and both.

    Whichever it is, its certificate must be the fabric's, which proves that it is the server: a
    name that leads elsewhere is passed over.  Raises OSError or TimeoutError when none answers.
    """
    reasons = []
    identity = context.identity
    addresses = [(host, port) for port in ports for host in identity.hosts]
    for host, port in addresses:
        try:
            proxy = context.proxies.for_host(host, port)
            return await dial(factory, host, port, identity.context(alpn), proxy), host, port
        except (OSError, TimeoutError, UnicodeError) as error:  # the last: it can't be a name
            if len(addresses) == 1:
                raise
            where = host if len(ports) == 1 else f"{host} port {port}"
            reasons.append(f"{where}: {explain(error)}")
    raise OSError("; ".join(reasons))
