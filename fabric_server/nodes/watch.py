"""Watches connected nodes for problems that they don't report: no tunnel, a clock that differs."""

from __future__ import annotations

import logging

from fabric_server.nodes.node import Node
from fabric_server.nodes.registry import Registry
from protocol.findings import NO_TUNNELS_SECONDS, clock, no_tunnels
from runtime.findings import Finding, FindingLog, problems

log = logging.getLogger("fabric.links")

CODES = ("no_tunnels", "clock_differs")
"""The problems that are found here."""


class NodeWatch:
    """Keeps ``Registry.findings`` up to date, and logs each problem once each way."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._alone: dict[Node, float] = {}
        """Registrations without a tunnel, and since when, in monotonic seconds."""
        self._ahead: dict[Node, float] = {}
        """By how many seconds their clocks were ahead at the last heartbeat."""
        self._log = FindingLog(log)

    def heartbeat(self, node: Node, ahead: float) -> None:
        """Take by how many seconds the clock of a node is ahead of this machine's."""
        self._ahead[node] = ahead

    def check(self, now: float, proxy_port: int) -> None:
        """Look at all connected nodes.  ``now`` is in monotonic seconds."""
        nodes = self._registry.nodes()
        self._alone = {
            node: self._alone.get(node, now)
            for node in nodes
            if not node.tunnels and node.connected
        }
        self._ahead = {node: self._ahead[node] for node in nodes if node in self._ahead}
        found: dict[str, tuple[Finding, ...]] = {}
        for node in nodes:
            if of_node := tuple(problems(self._find(node, now, proxy_port))):
                found[node.id] = of_node
        for id in found.keys() | self._registry.findings.keys():
            if self._registry.node(id) is None:
                self._log.forget(id)
            else:
                self._log.update(found.get(id, ()), of=id, fields={"node": id})
        self._registry.findings = found

    def _find(self, node: Node, now: float, proxy_port: int) -> list[Finding]:
        found = []
        if now - self._alone.get(node, now) >= NO_TUNNELS_SECONDS:
            found.append(no_tunnels(proxy_port))
        if node in self._ahead:
            found.append(clock(self._ahead[node], "the node's", "the server's"))
        return found
