"""Dialling a server that has several names: each in turn, the one that was good last first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from fabric_client.identity import Identity, explain
from protocol.aio.tls import dial

log = logging.getLogger("fabric.agent")

P = TypeVar("P", bound=asyncio.Protocol)


async def dial_server(
    factory: Callable[[], P], identity: Identity, port: int, alpn: str
) -> tuple[P, str]:
    """Connect to the first host of the server that answers; return the protocol and the host.

    Whichever it is, its certificate must be the fabric's, which proves that it is the server: a
    name that leads elsewhere is passed over.  Raises OSError or TimeoutError when none answers.
    """
    reasons = []
    for host in identity.hosts:
        try:
            return await dial(factory, host, port, identity.context(alpn)), host
        except (OSError, TimeoutError, UnicodeError) as error:  # the last: it can't be a name
            if len(identity.hosts) == 1:
                raise
            reasons.append(f"{host}: {explain(error)}")
    raise OSError("; ".join(reasons))
