"""Names that both sides use in TLS."""

from __future__ import annotations

import re

SERVER_NAME = "server.fabric"
"""Name in the server's certificate for nodes, whatever address they connect to."""

CONTROL_ALPN = "fabric-control/1"
TUNNEL_ALPN = "fabric-tunnel/1"
NAMED_ALPN = "fabric-named/1"
"""Offered beside ``CONTROL_ALPN`` by nodes that dial tunnels by the name that ``Registered`` tells,
so that any worker of the server may have their link.  No server chooses it."""

_WORKER = re.compile(r"w([0-9]{1,3})\.server\.fabric")
ALL_WORKERS = f"*.{SERVER_NAME}"
"""The name in the server's certificate that stands for those of all its workers."""


def worker_name(number: int) -> str:
    """Return the name by which nodes dial their tunnels to a worker."""
    return f"w{number}.{SERVER_NAME}"


def tunnels_name(told: str) -> str:
    """Return the name by which a node dials tunnels, given what ``Registered`` tells."""
    return SERVER_NAME if worker_of(told) is None else told


def worker_of(server_name: str) -> int | None:
    """Return the number of the worker that a TLS client asks for; None if it asks for none."""
    found = _WORKER.fullmatch(server_name)
    return None if found is None else int(found[1])
