"""A takeover, from the successor's side: nodes first, then clients; and what ends a server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from fabric_server.app.listeners import NODE_PORTS, USER_PORTS, Listeners
from fabric_server.net.takeover import Predecessor, TakeoverProblem

log = logging.getLogger("fabric.server")

NODES_SECONDS = 5.0
"""A takeover stops waiting for nodes when none has come for so long."""


async def take_over(
    predecessor: Predecessor, listeners: Listeners, count_reachable: Callable[[], int]
) -> None:
    """Take the predecessor's nodes, and once they are here, its clients.

    If the predecessor dies meanwhile, its nodes reconnect by themselves.  Raises
    ``TakeoverProblem`` when it has nodes and none comes: it goes on serving then.
    """
    count = await predecessor.yield_nodes()
    listeners.resume(NODE_PORTS)
    arrived = await _wait_for_nodes(count, count_reachable)
    log.info("nodes have moved to this server", extra={"nodes": arrived, "of": count})
    if count and not arrived:
        raise TakeoverProblem(
            f"none of the {count} nodes of the running server connected to this one, so that "
            "one goes on. Check that both use the same store and certificates; if they do, "
            "stop the running server and start this one."
        )
    listeners.resume(USER_PORTS)
    await predecessor.yield_users()


async def _wait_for_nodes(count: int, count_reachable: Callable[[], int]) -> int:
    """Wait until ``count`` nodes are reachable or no more arrive; return how many are."""
    arrived, since = 0, time.monotonic()
    while arrived < count and time.monotonic() - since < NODES_SECONDS:
        await asyncio.sleep(0.05)
        reachable = count_reachable()
        if reachable != arrived:
            arrived, since = reachable, time.monotonic()
    return arrived


async def wait_for_end(stop: asyncio.Event, succeeded: asyncio.Event) -> None:
    """Wait until ``stop`` is set or a successor has taken over."""
    loop = asyncio.get_running_loop()
    ends = [loop.create_task(event.wait()) for event in (stop, succeeded)]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
