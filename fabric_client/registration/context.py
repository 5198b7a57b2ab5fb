"""The parts of a node that each of its registrations uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.registration.pace import NetworkSignal
from protocol.aio.connections import Connections
from protocol.messages import EngineReport
from protocol.tunnel.resume import ResumeTable
from runtime.http_proxy import DIRECT, Proxies


@dataclass(frozen=True, kw_only=True)
class NodeContext:
    """Made once by the supervisor, and shared by one registration after the other."""

    identity: Identity
    name: str
    region: str
    machine: Machine
    forwarder: Forwarder
    reports: Callable[[], list[EngineReport]]
    """Returns what servers should know of the engines now."""
    resume_table: ResumeTable
    """The streams of lost tunnels, until a server resumes them on another tunnel."""
    rng: Random
    proxies: Proxies = DIRECT
    """The way to the server."""
    network: NetworkSignal = field(default_factory=NetworkSignal)
    connections: Connections = field(default_factory=Connections)
    """All links and tunnels, until they are closed."""
    instance: str = ""
    """Random id of this run, by which servers tell a restart from a second machine."""
