"""The interface between the API port and the rest of the server."""

from __future__ import annotations

from dataclasses import dataclass

from fabric_server.admin import health, metrics
from fabric_server.admin.servers import Servers
from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.gateway.active_requests import ActiveRequests
from fabric_server.net.failure_throttle import FailureThrottle
from fabric_server.nodes.registry import Registry
from fabric_server.pki.enrolment import Enrolment
from fabric_server.proxy.metrics import Metrics
from fabric_server.routing.admission import Admission
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.store import SqlStore


@dataclass(frozen=True, kw_only=True)
class AdminContext:
    """The parts of one server that its API port reads and changes; ``App`` builds it."""

    server_name: str
    """The first address of the server."""
    started_at: float
    """Unix seconds."""
    store: SqlStore
    authenticator: KeyAuthenticator
    throttle: FailureThrottle
    change_feed: ChangeFeed
    registry: Registry
    node_days: float
    """Time after which nodes that are away leave the list; 0: never."""
    enrolment: Enrolment
    active_requests: ActiveRequests
    admission: Admission
    servers: Servers
    request_metrics: Metrics
    health: health.Sources
    metrics: metrics.Sources
