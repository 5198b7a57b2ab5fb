"""``/api/distributed/…``, held against a whole fabric at work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from fabric_server.admin.cluster import ClusterHandlers, ClusterViews
from fabric_server.admin.servers import ServerQuery, Servers
from fabric_server.gateway.active_requests import ActiveRequests
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.metrics import Metrics
from tests.contracts.samples import entry
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric


async def test_the_cluster_is_told_with_true_figures(tmp_path: Path) -> None:
    async with (
        ScriptedEngine() as engine,
        ScriptedEngine(["tiny", "org/large"]) as other,
        Fabric(tmp_path) as fabric,
        aiohttp.ClientSession(
            fabric.api,
            headers={"authorization": f"Bearer {fabric.management_key}"},
            connector=aiohttp.TCPConnector(ssl=fabric.trust()),
        ) as operator,
    ):

        async def get(path: str) -> Any:
            async with operator.get(f"/api/distributed/{path}") as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()

        assert (await get("nodes")) == {"nodes": [], "total": 0}
        assert (await get("models")) == {"models": [], "total": 0}
        assert (await get("requests")) == {"active_requests": [], "total": 0}
        assert "average_latency" not in (await get("metrics"))["inference"]
        first = (await fabric.join(engine.url, name="attic")).id
        second = (await fabric.join(other.url, name="cellar")).id
        both = sorted((first, second))
        status = await get("status")
        assert (status["connected_peers"], status["peers"]) == (2, both)
        assert status["uptime"].endswith("s")
        assert {node["name"]: node["status"] for node in (await get("nodes"))["nodes"]} == {
            "attic": "connected",
            "cellar": "connected",
        }
        models = {model["name"]: model for model in (await get("models"))["models"]}
        assert models["tiny"]["locations"] == both
        assert models["org/large"]["locations"] == [second]
        assert "size" not in models["tiny"]  # these engines don't tell
        assert await get("models/org%2Flarge/replicas") == {
            "model": "org/large",
            "replicas": [second],
            "count": 1,
        }
        async with operator.get("/api/distributed/models/none/replicas") as answer:
            assert answer.status == 404

        hold = asyncio.Event()
        engine.plan = other.plan = Plan(hold=hold)
        async with fabric.openai() as client:
            asking = asyncio.create_task(
                client.chat.completions.create(
                    model="org/large", messages=[{"role": "user", "content": "Hi"}]
                )
            )
            await other.started()
            [request] = (await get("requests"))["active_requests"]
            assert (request["model"], request["status"]) == ("org/large", "executing")
            assert request["nodes_used"] == [second]
            hold.set()
            await asking
        figures = (await get("metrics"))["inference"]
        assert figures["total_inferences"] == figures["successful_inferences"] == 1
        assert figures["failed_inferences"] == 0
        assert figures["total_tokens_processed"] == 10
        assert float(figures["average_latency"].removesuffix("s")) > 0
        async with operator.get(
            "/api/distributed/status", headers={"authorization": f"Bearer {fabric.key}"}
        ) as answer:
            assert answer.status == 403


async def test_refusals_are_no_failed_inferences() -> None:
    counts = {"ok": 4, "refused": 8, "cancelled": 2, "failed": 1, "timeout": 1, "engine_error": 1}
    metrics = Metrics()
    for outcome, count in counts.items():
        for number in range(count):
            seconds = 100.0 if outcome == "refused" else 2.0
            metrics.count(entry(number, outcome=outcome, total_ms=seconds * 1000))
    registry, active = Registry(), ActiveRequests()
    views = ClusterViews(registry, active, metrics, Servers(), lambda: 1.0)
    handlers = ClusterHandlers("here", views, 0.0, lambda: 1.0)
    figures = (await handlers.show_cluster_metrics(ServerQuery())).inference
    assert figures.total_inferences == 9
    assert (figures.successful_inferences, figures.failed_inferences) == (4, 3)
    assert figures.average_latency == "2.000s"
