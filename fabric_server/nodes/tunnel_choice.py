"""The choice among a node's tunnels for a new stream, where none of them is to be filled first."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.aio.server import ServerTunnel

SHARED_STREAMS = 32
"""Streams up to which a tunnel is filled before the node's next one gets some."""


def idlest_tunnel(tunnels: Iterable[ServerTunnel]) -> ServerTunnel | None:
    """Return the usable tunnel with the fewest streams; None if none is usable.

    Of several, return the one that last received something: it is the least likely to be dead
    without notice.
    """
    best, fewest, heard = None, 1 << 30, 0.0
    for tunnel in tunnels:
        connection = tunnel.connection
        active = connection.active
        if active > fewest or not connection.usable:
            continue
        if active < fewest or connection.keepalive.last_received > heard:
            best, fewest, heard = tunnel, active, connection.keepalive.last_received
    return best
