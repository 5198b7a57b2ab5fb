"""Dialling a server that has several names: the one that was good last first, others soon after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from fabric_client.identity import explain
from fabric_client.registration.context import NodeContext
from protocol.aio.driver import Driver
from protocol.aio.tls import dial
from protocol.names import SERVER_NAME
from runtime.connecting import first_to_succeed, is_unanswered

NAME_DELAY_SECONDS = 2.0
"""Time before the next address is tried beside the one before, whose handshake is not finished.

They usually lead to the same server, so an early second attempt would only be work for it.
"""

P = TypeVar("P", bound=Driver)


class NotReached(OSError):
    """No address of the server could be dialled; the text has the reasons."""

    def __init__(self, failures: Sequence[tuple[str, Exception]]) -> None:
        texts = [f"{where}: {explain(error)}" for where, error in failures]
        super().__init__("; ".join(texts) if len(failures) > 1 else explain(failures[0][1]))
        self.unanswered = all(is_unanswered(error) for _, error in failures)
        """Nobody has answered at any of them: attempts cost nobody anything."""


async def dial_server(
    factory: Callable[[], P],
    context: NodeContext,
    ports: Sequence[int],
    *alpn: str,
    server_name: str = SERVER_NAME,
) -> tuple[P, str, int]:
    """Connect to the first port and host of the server that answer; return the protocol and both.

    Whichever it is, its certificate must be the fabric's, which proves that it is the server: a
    name that leads elsewhere is passed over.  ``factory`` may be called more than once; protocols
    that are not returned are closed.  Raises ``NotReached`` when none answers.
    """
    identity = context.identity

    def watched() -> P:
        driver = factory()
        context.connections.watch(driver)
        return driver

    addresses = [(host, port) for port in ports for host in identity.hosts]
    tls = identity.context(*alpn)
    attempts = [
        partial(dial, watched, host, port, tls, context.proxies.for_host(host, port), server_name)
        for host, port in addresses
    ]
    try:
        number, protocol = await first_to_succeed(attempts, NAME_DELAY_SECONDS, Driver.hang_up)
    except ExceptionGroup as group:
        for error in group.exceptions:
            if not isinstance(error, OSError | UnicodeError):  # the latter: it can't be a name
                raise error from None
        where = [host if len(ports) == 1 else f"{host} port {port}" for host, port in addresses]
        raise NotReached(list(zip(where, group.exceptions, strict=True))) from None
    return protocol, *addresses[number]
