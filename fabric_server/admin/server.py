"""The HTTP server of the API port: the table of its routes, and the runner that serves them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from fabric_server.admin.accounts import AccountHandlers
from fabric_server.admin.cluster import ClusterHandlers, ClusterViews
from fabric_server.admin.context import AdminContext
from fabric_server.admin.enrolment import EnrolmentRoute
from fabric_server.admin.health import HealthHandlers
from fabric_server.admin.keys import KeyHandlers
from fabric_server.admin.live_nodes import LiveNodes
from fabric_server.admin.metrics_handlers import MetricsHandlers
from fabric_server.admin.middleware import (
    ApiClient,
    HttpConnection,
    connection_factory,
    handle_errors,
)
from fabric_server.admin.nodes import NodeHandlers
from fabric_server.admin.openapi import document
from fabric_server.admin.parameters import MAX_BODY, ClientTimeouts
from fabric_server.admin.queue import QueueHandlers
from fabric_server.admin.reports import ReportHandlers
from fabric_server.admin.routes import Operation, Route, mount
from fabric_server.admin.servers import ChangesEverywhere
from fabric_server.dialects.errors import ApiError
from fabric_server.net.connection_budget import Peer
from fabric_server.pki import enrolment
from runtime.asyncio_protocol import AsyncioProtocol
from runtime.version import VERSION

SHUTDOWN_SECONDS = 5.0
"""Timeout for running requests when the server stops."""


class AdminServer:
    """The API port's requests and connections, between ``start`` and ``close``."""

    def __init__(self, context: AdminContext) -> None:
        self.context = context
        self.metrics = MetricsHandlers(context.request_metrics, context.metrics)
        self._runner = web.AppRunner(
            make_application(context, self.metrics),
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )

    async def start(self) -> Callable[[Peer], AsyncioProtocol]:
        """Get ready to serve; return what makes the protocol of each new connection."""
        await self._runner.setup()
        assert self._runner.server is not None
        return connection_factory(self._runner.server)

    def close_connections(self) -> None:
        """Close the connections that exist, idle or not."""
        if self._runner.server is not None:
            for connection in self._runner.server.connections:
                connection.close()

    async def close(self) -> None:
        """Finish the requests under way, and close all connections."""
        if self._runner.server is not None:
            for connection in self._runner.server.connections:
                if isinstance(connection, HttpConnection):
                    connection.end_pauses()
        await self._runner.cleanup()


def make_application(
    context: AdminContext,
    metrics: MetricsHandlers | None = None,
    *,
    timeouts: ClientTimeouts | None = None,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """Make the application for an ``AppRunner``; ``connection_factory`` makes its connections."""
    application = web.Application(middlewares=[handle_errors], client_max_size=MAX_BODY)
    metrics = metrics or MetricsHandlers(context.request_metrics, context.metrics)
    table = make_table(context, metrics, clock)
    timeouts = timeouts or ClientTimeouts()
    mount(application, table, context.authenticator, timeouts, context.throttle)
    return application


def make_table(
    context: AdminContext, metrics: MetricsHandlers, clock: Callable[[], float]
) -> list[Operation]:
    """List every operation of the port, in the order of its description."""
    store, registry, servers = context.store, context.registry, context.servers
    feed = ChangesEverywhere(servers, context.change_feed)
    health = HealthHandlers(context.health)
    nodes = NodeHandlers(
        store,
        LiveNodes(registry, servers),
        feed,
        context.enrolment,
        clock,
        listed_days=context.node_days,
    )
    accounts = AccountHandlers(store, feed, clock)
    keys = KeyHandlers(store, feed, clock)
    reports = ReportHandlers(store, registry, context.active_requests, servers, clock)
    queues = QueueHandlers(context.admission, servers)
    views = ClusterViews(registry, context.active_requests, context.request_metrics, servers, clock)
    cluster = ClusterHandlers(context.server_name, views, context.started_at, clock)

    async def openapi() -> dict[str, Any]:
        """Describe this API, as an OpenAPI document."""
        return description

    async def hold_joining(request: web.Request, error: ApiError) -> None:
        await context.throttle.hold("invitation", error.code, ApiClient(request))

    table: list[Operation] = [
        Route("GET", "/health/live", health.live, public=True),
        Route("GET", "/health/ready", health.ready, public=True),
        Route("GET", "/metrics", metrics.metrics, scope="metrics"),
        Route("GET", "/api/v1/openapi.json", openapi),
        Route("GET", "/api/v1/nodes", nodes.list_nodes),
        Route("GET", "/api/v1/nodes/{id}", nodes.show_node),
        Route("POST", "/api/v1/nodes/{id}/drain", nodes.drain_node),
        Route("POST", "/api/v1/nodes/{id}/undrain", nodes.undrain_node),
        Route("POST", "/api/v1/nodes/{id}/settle", nodes.settle_node),
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
        *map(EnrolmentRoute, enrolment.routes(context.enrolment, hold_joining)),
    ]
    description = document(table, VERSION)
    return table
