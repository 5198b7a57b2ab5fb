"""Settings that nodes get when they register."""

from __future__ import annotations

from dataclasses import dataclass
from time import time

from fabric_server.nodes.node import Node
from protocol.messages import Registered
from runtime.version import VERSION


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Settings for the registrations from now on."""

    proxy_port: int
    tunnels: int
    """Tunnels that a node opens at first."""
    max_tunnels: int
    """Tunnels that a busy node may have."""
    heartbeat_seconds: float
    resume: bool = True
    """Nodes that register from now on keep the streams of a lost tunnel, to be resumed."""
    hosts: tuple[str, ...] = ()
    """Names and addresses of this server, all of them in its certificate."""
    control_port: int = 0
    api_port: int = 0
    server_name: str = ""
    """The name by which nodes dial their tunnels to this worker; empty without workers."""

    def registered(self, node: Node, tunnels: int) -> Registered:
        """Return the answer to a node that has registered."""
        return Registered(
            node.id,
            node.epoch,
            node.session,
            self.proxy_port,
            tunnels,
            self.heartbeat_seconds,
            resume=self.resume,
            new_keys=True,
            hosts=list(self.hosts),
            at=time(),
            release=VERSION,
            control_port=self.control_port,
            api_port=self.api_port,
            server_name=self.server_name,
        )
