"""Finds what is wrong with a node's registration while it runs: tunnels, clock, versions."""

from __future__ import annotations

import asyncio
import time

from fabric_client.findings import releases
from fabric_client.identity import Identity
from fabric_client.registration.agent import Agent
from protocol.findings import NO_TUNNELS_SECONDS, clock, no_tunnels
from runtime.findings import Finding
from runtime.version import VERSION


def find(agent: Agent, identity: Identity) -> list[Finding]:
    """Return what is found of a registration; nothing while there is none."""
    registered, tunnels = agent.registered, agent.tunnels
    if registered is None or tunnels is None:
        return []
    now = asyncio.get_running_loop().time()
    remedy = "it is asked for at each start: restart the node, and see its log and the server's"
    found = [
        releases(VERSION, registered.release),
        identity.judge_dates(time.time(), remedy),
    ]
    if registered.at:
        ahead = time.time() - registered.at - (now - agent.registered_at)
        found.append(clock(ahead, "this machine's", "the server's"))
    if not agent.leaving.is_set() and tunnels.seconds_without(now) >= NO_TUNNELS_SECONDS:
        found.append(no_tunnels(registered.proxy_port))
    return found
