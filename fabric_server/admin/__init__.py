"""Port 18081: what operators, monitoring and joining nodes ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from fabric_server.admin.accounts import Accounts
from fabric_server.admin.cluster import Cluster
from fabric_server.admin.enrolment import Joining
from fabric_server.admin.health import Health
from fabric_server.admin.keys import Keys
from fabric_server.admin.metrics import Exposition, Sources
from fabric_server.admin.middleware import answer, protocol
from fabric_server.admin.nodes import Nodes
from fabric_server.admin.openapi import document
from fabric_server.admin.parameters import MAX_BODY, Timeouts
from fabric_server.admin.queue import Queues
from fabric_server.admin.reports import Reports
from fabric_server.admin.routes import Route, Row, mount
from fabric_server.pki.enrolment import routes as joining
from runtime.version import VERSION

if TYPE_CHECKING:
    from fabric_server.app import App

__all__ = ["Timeouts", "make", "protocol", "routes"]


def make(
    app: App, *, timeouts: Timeouts | None = None, clock: Callable[[], float] = time.time
) -> web.Application:
    """What an ``AppRunner`` runs; ``protocol`` makes the connections from its server."""
    application = web.Application(middlewares=[answer], client_max_size=MAX_BODY)
    mount(application, routes(app, clock), app.accounts, timeouts or Timeouts())
    return application


def routes(app: App, clock: Callable[[], float]) -> list[Row]:
    """All there is on this port."""
    health = Health(
        app.watch,
        app.accounts,
        app.worker,
        app.bus,
        app.registry,
        app.listeners,
        lambda: app.draining,
    )
    nodes = Nodes(app.store, app.registry, app.watch, app.enrolment, clock)
    accounts = Accounts(app.store, app.watch, clock)
    keys = Keys(app.store, app.watch, clock)
    reports = Reports(app.store, app.registry, app.gateway, clock)
    queues = Queues(app.admission)
    name = app.config.names()[0]
    cluster = Cluster(name, app.registry, app.gateway, app.metrics, app.started_at, clock)
    exposition = Exposition(app.metrics, _sources(app))

    async def openapi() -> dict[str, Any]:
        """This description, for programs."""
        return description

    table: list[Row] = [
        Route("GET", "/health/live", health.live, public=True),
        Route("GET", "/health/ready", health.ready, public=True),
        Route("GET", "/metrics", exposition.metrics),
        Route("GET", "/api/v1/openapi.json", openapi),
        Route("GET", "/api/v1/nodes", nodes.list_nodes),
        Route("GET", "/api/v1/nodes/{id}", nodes.show_node),
        Route("POST", "/api/v1/nodes/{id}/drain", nodes.drain_node),
        Route("POST", "/api/v1/nodes/{id}/undrain", nodes.undrain_node),
        Route("POST", "/api/v1/nodes/{id}/revoke", nodes.revoke_node),
        Route("POST", "/api/v1/invitations", nodes.invite_node, status=201),
        Route("GET", "/api/v1/accounts", accounts.list_accounts),
        Route("POST", "/api/v1/accounts", accounts.create_account, status=201),
        Route("GET", "/api/v1/accounts/{name}", accounts.show_account),
        Route("POST", "/api/v1/accounts/{name}/disable", accounts.disable_account),
        Route("POST", "/api/v1/accounts/{name}/enable", accounts.enable_account),
        Route("GET", "/api/v1/keys", keys.list_keys),
        Route("POST", "/api/v1/keys", keys.create_key, status=201),
        Route("PATCH", "/api/v1/keys/{id}", keys.edit_key),
        Route("POST", "/api/v1/keys/{id}/disable", keys.disable_key),
        Route("POST", "/api/v1/keys/{id}/enable", keys.enable_key),
        Route("POST", "/api/v1/keys/{id}/revoke", keys.revoke_key),
        Route("GET", "/api/v1/models", reports.list_models),
        Route("GET", "/api/v1/queue", queues.show_queue),
        Route("GET", "/api/v1/queue/{id}", queues.show_place),
        Route("GET", "/api/v1/requests", reports.list_requests),
        Route("GET", "/api/v1/requests/{id}", reports.show_request),
        Route("POST", "/api/v1/requests/{id}/cancel", reports.cancel_request),
        Route("GET", "/api/v1/running", reports.list_running),
        Route("GET", "/api/v1/usage", reports.usage),
        Route("GET", "/api/distributed/status", cluster.show_cluster),
        Route("GET", "/api/distributed/nodes", cluster.list_cluster_nodes),
        Route("GET", "/api/distributed/models", cluster.list_cluster_models),
        Route("GET", "/api/distributed/models/{name}/replicas", cluster.list_replicas),
        Route("GET", "/api/distributed/metrics", cluster.show_cluster_metrics),
        Route("GET", "/api/distributed/requests", cluster.list_cluster_requests),
        *map(Joining, joining(app.enrolment)),
    ]
    description = document(table, VERSION)
    return table


def _sources(app: App) -> Sources:
    return Sources(
        registry=app.registry,
        ports=app.listeners,
        tunnels=app.tunnels,
        links=app.links,
        worker=app.worker,
        bus=app.bus,
        jobs=app.jobs,
        public_connections=lambda: app.edge.connections,
        requests_active=lambda: app.gateway.active,
        requests_waiting=lambda: app.admission.waiting,
        draining=lambda: app.draining,
    )
