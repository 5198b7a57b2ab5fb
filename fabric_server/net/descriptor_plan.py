"""The plan of a server's file descriptors: how many connections each port may have.

    limit of open files (ulimit -n)
    ├── reserved   store, cache, bus, spool, certificates, webhooks, logs
    ├── one        with one_port, an eighth of the rest, up to MAX_ONE: connections to be sorted
    ├── nodes      a quarter of the rest: links on the control port, tunnels on the proxy port
    ├── api        a sixteenth of the rest
    └── public     what is left, up to MAX_PUBLIC

Each port stays within its share, so that none can take what another needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fabric_server.net.connection_budget import Places

MIN_RESERVED, MAX_RESERVED = 64, 1024
MAX_PUBLIC = 16_384
"""More than one process can serve at once; the setting ``connections`` may say more."""
MAX_API = 1024
MAX_ONE = 1024
"""A connection is sorted by its first message, so it has such a place for milliseconds."""
MIN_NODES, MIN_API, MIN_PUBLIC, MIN_ONE = 16, 8, 16, 16
MIN_PER_ADDRESS = 16
MAX_STRANGE_NODES = 64
"""Connections of one address to a node port that have not registered."""


class Settings(Protocol):
    """The settings that the plan goes by; None leaves it to the plan."""

    @property
    def connections(self) -> int | None: ...
    @property
    def connections_per_address(self) -> int | None: ...
    @property
    def api_connections(self) -> int | None: ...
    @property
    def node_connections(self) -> int | None: ...
    @property
    def tunnels(self) -> int: ...
    @property
    def one_port(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The places of each port."""

    limit: int
    reserved: int
    ports: dict[str, Places]
    cut: tuple[str, ...] = ()
    """The settings that ask for more than ``limit`` allows, and got less."""

    @property
    def settings(self) -> dict[str, int]:
        """The values that the settings have by this plan."""
        public = self.ports["public"]
        return {
            "connections": public.total,
            "connections_per_address": public.per_address,
            "api_connections": self.ports["api"].total,
            "node_connections": self.ports["control"].total + self.ports["proxy"].total,
        }


def make_plan(limit: int, settings: Settings) -> Plan:
    """Divide ``limit`` descriptors among the ports."""
    reserved = min(max(limit // 8, MIN_RESERVED), MAX_RESERVED)
    one = 0
    if settings.one_port is not None:
        one = min(max((limit - reserved) // 8, MIN_ONE), MAX_ONE)
    rest = max(limit - reserved - one, MIN_NODES + MIN_API + MIN_PUBLIC)
    cut = []

    def grant(setting: str, asked: int | None, default: int, most: int) -> int:
        if asked is not None and asked > most:
            cut.append(setting)
        return min(default if asked is None else asked, most)

    nodes = grant(
        "node_connections",
        settings.node_connections,
        max(rest // 4, MIN_NODES),
        rest - MIN_API - MIN_PUBLIC,
    )
    api = grant(
        "api_connections",
        settings.api_connections,
        min(max(rest // 16, MIN_API), MAX_API),
        rest - nodes - MIN_PUBLIC,
    )
    left = rest - nodes - api
    public = grant("connections", settings.connections, min(left, MAX_PUBLIC), left)
    per_address = settings.connections_per_address or max(public // 4, MIN_PER_ADDRESS)
    control = max(nodes // (settings.tunnels + 1), 1)
    proxy = max(nodes - control, 1)
    ports = {
        "control": _node_port(control),
        "proxy": _node_port(proxy),
        "public": Places(public, min(per_address, public)),
        "api": Places(api, max(api // 4, min(api, MIN_API))),
    }
    if one:
        ports["one"] = Places(one, one)
    return Plan(limit=limit, reserved=reserved, ports=ports, cut=tuple(cut))


def _node_port(total: int) -> Places:
    return Places(total, max(min(total // 4, MAX_STRANGE_NODES), 4), strangers_only=True)
