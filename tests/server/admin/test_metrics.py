"""Figures for Prometheus on the API port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from fabric_server.admin.server import make_application
from fabric_server.net.listener import REASONS
from ledger.records import HEARTBEATS
from protocol.messages import ModelReport
from tests.server.admin.server import Server, connected, engine, figures, fill, heartbeat, until


async def test_metrics_tell_what_goes_on_and_never_name_a_model_a_key_or_a_node(
    server: Server,
) -> None:
    with contextlib.suppress(ConnectionError), socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", server.app.listeners["control"].port))
        await loop.sock_sendall(sock, b"\x00\x00\x00\x00")
        await loop.sock_recv(sock, 1)
    served = [engine("ollama", ModelReport("secret-model"))]
    async with connected(server, "node_here", served) as machine:
        machine.link.send(heartbeat(1))
        await until(lambda: server.app.backends.bus.waiting[HEARTBEATS])  # type: ignore[attr-defined]
        await fill(server)
        assert await server.public("/v1/models", server.user) == 200
        assert await server.public("/v1/nothing", server.user) == 404
        await until(lambda: server.app.backends.retention.report is not None)
        seen = await figures(server)
    for name, value in {
        "fabric_nodes_connected": 1,
        "fabric_tunnels": 1,
        "fabric_streams": 0,
        "fabric_slots": 2,
        "fabric_slots_active": 0,
        "fabric_models": 1,
        "fabric_requests_active": 0,
        "fabric_requests_waiting": 0,
        "fabric_records_written_total": 11,
        "fabric_records_failing": 0,
        "fabric_draining": 0,
    }.items():
        assert seen[name,] == value, name
    assert seen["fabric_store_bytes",] > 0
    assert seen["fabric_retention_failures_total",] == 0
    assert seen["fabric_engines", "healthy"] == 1
    assert seen["fabric_connections_opened_total", "control"] == 1
    assert seen["fabric_connections_refused_total", "control", "garbage"] == 1
    assert seen["fabric_public_connections",] == 1
    assert seen["fabric_refusals_total", "unknown_path"] == 1
    assert seen["fabric_bus_waiting", "request-ledger"] == 0
    assert seen["fabric_tunnel_bytes_total", "in"] > 0
    assert 0 <= seen["fabric_event_loop_lag_seconds",] < 5
    assert seen["process_resident_memory_bytes",] > 1_000_000
    text = (await server.get("/metrics")).body.decode()
    for name in ("secret-model", "node_here", "attic", server.user[:13], "key_"):
        assert name not in text
    # Labels have few values, all known beforehand.
    known = {*server.app.listeners, *REASONS, "healthy", "failing", "in", "out"}
    ours = {
        label
        for sample in seen
        if sample[0].startswith(("fabric_connections", "fabric_engines", "fabric_tunnel_bytes"))
        for label in sample[1:]
    }
    assert ours <= known


async def test_two_servers_in_one_process_have_figures_of_their_own(
    server: Server, tmp_path: Path
) -> None:
    assert (await server.get("/metrics")).body
    make_application(server.app.admin.context)  # registers all metrics again, elsewhere
