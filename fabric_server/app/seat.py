"""A worker's place among the others, as the server in it sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Protocol

from fabric_server.auth.leases import Leases


class Seat(Protocol):
    """The place of one worker; ``fabric_server.workers`` has the real one."""

    @property
    def name(self) -> str:
        """Its id, ``w0`` and so on."""

    @property
    def count(self) -> int:
        """The number of workers."""

    @property
    def leases(self) -> Leases:
        """Its part of the limits of keys."""

    @property
    def first(self) -> bool:
        """The worker does what only one of them does, and has the API port's connections."""

    @property
    def server_name(self) -> str:
        """The name by which nodes dial their tunnels to it."""

    @property
    def ports(self) -> Mapping[str, int]:
        """The numbers of the ports whose connections it is handed."""

    @property
    def states(self) -> Mapping[str, str]:
        """The state of each worker, by its id, as ``/health/ready`` says."""

    @property
    def nodes(self) -> int:
        """Nodes that requests can be sent to, of all workers."""

    def metrics_of_others(self) -> Awaitable[Mapping[str, bytes]]:
        """Return the metrics of the other workers and of the parent, in Prometheus' format."""
