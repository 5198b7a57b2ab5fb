"""The interface between jobs and the rest of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.edge.router import Router
from fabric_server.gateway.gateway import Gateway
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.nodes.registry import Registry
from fabric_server.routing.admission import Admission
from fabric_server.storage.store import SqlStore
from runtime.outage import Outage


@dataclass(frozen=True, kw_only=True)
class JobsContext:
    """The parts of one server that jobs, files and batches use; ``DataPlane`` builds it."""

    store: SqlStore
    authenticator: KeyAuthenticator
    registry: Registry
    admission: Admission
    router: Router
    """The routes of the public port: jobs' requests go through it, and jobs' own are added."""
    memory: MemoryBudget
    """Counts what jobs' requests hold, as it does for clients' own."""
    new_request_id: Callable[[], str]
    outage: Outage
    """The store's outage."""
    gateway: Gateway
