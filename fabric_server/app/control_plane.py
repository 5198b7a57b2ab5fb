"""The nodes' side of a server: who is connected, how they register, join and leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from fabric_server.app.backends import Backends
from fabric_server.config import Config
from fabric_server.nodes.link_settings import LinkSettings
from fabric_server.nodes.links import BUSY_TUNNEL, Links
from fabric_server.nodes.registrar import CONTESTED
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.tunnels import Tunnels
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.enrolment import Enrolment
from fabric_server.pki.names import spelled
from fabric_server.storage.rows import Changes
from protocol.messages import MAX_HOSTS

LOAD_SECONDS = 0.25
"""Interval at which busy nodes that need one tunnel more are looked for."""
WATCH_SECONDS = 2.0
"""Interval at which connected nodes are looked at for problems that they don't report."""
DAY = 86_400.0


def dialable_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of a server's names that nodes are told, as its certificate has them.

    A pattern of names can't be dialled.
    """
    hosts = dict.fromkeys(spelled(name) for name in names if "*" not in name)
    return tuple(hosts)[:MAX_HOSTS]


class ControlPlane:
    """Links, tunnels and enrolment, and the registry of nodes that they keep up to date."""

    def __init__(
        self,
        config: Config,
        backends: Backends,
        registry: Registry,
        certificates: Certificates,
        *,
        port: Callable[[str], int],
        rng: Random,
    ) -> None:
        """``port`` gives the number of an open port by its name."""
        self.registry = registry
        self.tunnels = Tunnels(registry, rng)
        self.enrolment = Enrolment(
            backends.store,
            certificates,
            host=config.names()[0],
            port=port,
            lifetime=config.node_certificate_days * DAY,
        )
        self.links = Links(
            registry=registry,
            store=backends.store,
            renewals=self.enrolment,
            bus=backends.bus,
            rng=rng,
            settings=LinkSettings(
                0,  # the real number, once that port is open
                config.tunnels,
                config.tunnels_most,
                config.heartbeat_seconds,
                hosts=dialable_hosts(config.names()),
            ),
        )
        self.links.outage = backends.outages.store

    def configure(self, config: Config) -> None:
        """Apply the settings that can change at run time."""
        self.links.settings = replace(
            self.links.settings,
            tunnels=config.tunnels,
            max_tunnels=config.tunnels_most,
            heartbeat_seconds=config.heartbeat_seconds,
        )
        self.enrolment.lifetime = config.node_certificate_days * DAY

    def on_changes(self, changes: Changes) -> None:
        """Drop nodes that were revoked or that a restored store never knew; drain others."""
        lasting = {node.id for node in changes.nodes if node.revoked_at is None}
        gone = {node.id for node in changes.nodes if node.revoked_at is not None}
        if changes.everything:
            gone |= {node.id for node in self.registry.nodes()} - lasting
        for node_id in gone:
            self.links.revoke(node_id)
        for node in changes.nodes:
            if node.contested_at is not None:
                self.links.registrar.forget(node.id)
                self.links.disconnect(node.id, CONTESTED)
            self.links.set_drained(node.id, node.draining)

    async def add_tunnels(self, active: Callable[[], int]) -> None:
        """Ask busy nodes for one tunnel more, until cancelled; ``active`` counts requests."""
        while True:
            await asyncio.sleep(LOAD_SECONDS)
            if active() > BUSY_TUNNEL:  # fewer can't fill any node's tunnels
                self.links.request_more_tunnels()

    async def watch_nodes(self) -> None:
        """Look for problems of nodes that they don't report, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.links.check_nodes()

    def count_reachable(self) -> int:
        """Count the nodes that requests can be sent to."""
        return sum(node.reachable for node in self.registry.nodes())

    def close(self) -> None:
        """Close every tunnel and every link."""
        self.tunnels.close()
        self.links.close()
