"""Nodes on the API port: listed, shown and revoked."""

from __future__ import annotations

import asyncio
import time

from protocol.messages import Gpu, ModelReport
from tests.contracts.samples import NOON, digest, invitation, node
from tests.server.admin.server import Server, connected, engine, heartbeat, until


async def test_a_node_is_shown_with_what_it_serves_and_how_it_is(server: Server) -> None:
    nodes = server.app.backends.store
    await nodes.create_invitation(invitation("away"))
    await nodes.redeem_invitation(digest("away"), node("away"), NOON)
    weights = {"digest": "42182419e950" * 5 + "abcd", "quantization": "Q4_K_M"}
    tiny = ModelReport("tiny:latest", size=5, context_length=4096, loaded=True, **weights)
    large = ModelReport("large", loaded=False)
    broken = engine("vllm", kind="vllm", healthy=False, slots=9, problem="out of memory")
    async with connected(server, "node_here", [engine("ollama", tiny, large), broken]) as machine:
        machine.link.send(heartbeat(1, cpu_percent=3.5, gpus=[Gpu("RTX", power_watts=300.0)]))
        await until(lambda: server.app.control_plane.registry.node("node_here").heartbeat)  # type: ignore[union-attr]
        await server.app.backends.writer.flush()

        listed = (await server.get("/api/v1/nodes")).body["data"]
        assert [one["id"] for one in listed] == ["node_here"], "the other one is away for long"
        both = (await server.get("/api/v1/nodes?all=true")).body["data"]
        away, here = both
        assert (away["id"], away["connected"], away["engines"]) == ("node_away", False, [])
        assert (here["id"], here["connected"], here["epoch"]) == ("node_here", True, 1)
        assert (away["region"], here["region"]) == (None, "eu-west")
        assert (here["platform"], here["release"], here["tunnels"]) == ("plan9", "9.9", 1)
        assert (here["slots"], here["active"]) == (11, 0)
        assert here["engines"][0] == {
            "name": "ollama",
            "kind": "ollama",
            "healthy": True,
            "problem": None,
            "slots": 2,
            "reported_slots": 2,
            "active": 0,
            "models": ["tiny:latest", "large"],
            "loaded": ["tiny:latest"],
            "ejected": [],
            "implausible_usage": 0,
        }
        assert here["engines"][1]["problem"] == "out of memory"
        assert here["heartbeat"]["cpu_percent"] == 3.5
        assert here["heartbeat"]["gpus"] == [{"name": "RTX", "power_watts": 300.0}]

        one = (await server.get("/api/v1/nodes/node_here?heartbeats=5")).body
        assert one["node"]["id"] == "node_here"
        assert one["models"]["ollama"][0]["context_length"] == 4096
        assert one["models"]["ollama"][0].items() >= weights.items()
        assert [beat["heartbeat"]["seq"] for beat in one["heartbeats"]] == [1]
        assert (await server.get("/api/v1/nodes/node_here?heartbeats=0")).body["heartbeats"] == []

        for wanted, ids in (("true", ["node_here"]), ("false", ["node_away"])):
            some = await server.get(f"/api/v1/nodes?connected={wanted}&all=true")
            assert [one["id"] for one in some.body["data"]] == ids

        models = (await server.get("/api/v1/models")).body["data"]
        untold = {"quantization": None, "digest": None, "engines": 1}
        common = {"nodes": 1, "slots": 2, "active": 0}
        assert models == [
            {"name": "large", **common, "loaded": 0, "variants": [untold]},
            {"name": "tiny:latest", **common, "loaded": 1, "variants": [{**weights, "engines": 1}]},
        ]
        ready = (await server.get("/health/ready")).body
        assert ready["checks"]["nodes"] == 1


async def test_a_revoked_node_is_cut_off_at_once(server: Server) -> None:
    async with connected(server, "node_here", [engine()]) as machine:
        gone = await server.post("/api/v1/nodes/node_here/revoke")
        assert (gone.status, gone.body["state"]) == (200, "revoked")
        closed = await asyncio.wait_for(machine.closed, 5)
        assert "revoked" in closed.reason
    listed = (await server.get("/api/v1/nodes")).body["data"]
    assert [(one["state"], one["connected"]) for one in listed] == [("revoked", False)]
    again = await server.post("/api/v1/nodes/node_here/revoke")
    assert again.body["revoked_at"] == gone.body["revoked_at"]


async def test_a_contested_node_is_shown_cut_off_and_settled(server: Server) -> None:
    store = server.app.backends.store
    async with connected(server, "node_here", [engine()]) as machine:
        await store.contest_node("node_here", NOON, "192.0.2.1 and 192.0.2.2")
        closed = await asyncio.wait_for(machine.closed, 5)
        assert "two machines use this node's key" in closed.reason
        assert closed.again
    (shown,) = (await server.get("/api/v1/nodes")).body["data"]
    assert (shown["state"], shown["contested_at"]) == ("contested", NOON)
    assert shown["contested_by"] == "192.0.2.1 and 192.0.2.2"
    assert "settle or revoke" in shown["problem"]
    settled = await server.post("/api/v1/nodes/node_here/settle")
    assert (settled.status, settled.body["state"]) == (200, "good")
    assert settled.body["contested_by"] is None


async def test_a_node_that_is_not_there_is_told(server: Server) -> None:
    for nothing in (
        await server.get("/api/v1/nodes/node_nothing"),
        await server.post("/api/v1/nodes/node_nothing/revoke"),
        await server.post("/api/v1/nodes/node_nothing/settle"),
    ):
        assert (nothing.status, nothing.code) == (404, "node_not_found")


async def test_an_engine_s_ejections_are_shown_with_their_end_and_reason(server: Server) -> None:
    tiny = ModelReport("tiny")
    registry = server.app.control_plane.registry
    now = asyncio.get_running_loop().time()
    async with connected(server, "node_here", [engine("bad", tiny), engine("good", tiny)]):
        bad = registry.engine("node_here", "bad")
        assert bad is not None
        for _ in range(3):
            bad.breaker(("tiny", "/v1/completions")).record_failure(now, "the engine answered 401")
        [node] = (await server.get("/api/v1/nodes")).body["data"]
        shown = {one["name"]: one["ejected"] for one in node["engines"]}
        assert shown["good"] == []
        [ejection] = shown["bad"]
        assert (ejection["model"], ejection["path"]) == ("tiny", "/v1/completions")
        assert ejection["reason"] == "the engine answered 401"
        assert 0 < ejection["until"] - time.time() < 6
        assert b"fabric_breakers_open 1.0" in (await server.get("/metrics")).body


async def test_connected_nodes_are_shown_while_the_store_is_away(server: Server) -> None:
    async with connected(server, "node_here", [engine("ollama", ModelReport("tiny"))]):
        before = (await server.get("/api/v1/nodes")).body
        assert (before["complete"], before["problem"]) == (True, None)
        app = server.app
        assert (await server.get("/api/v1/nodes/node_gone")).status == 404
        await app.backends.store.close()

        listed = await server.get("/api/v1/nodes")
        assert (listed.status, listed.body["complete"]) == (200, False)
        assert listed.body["problem"], "the operator learns why"
        [known], [node] = before["data"], listed.body["data"]
        unknown = {"created_at": None, "last_seen_at": None}
        assert node == {**known, **unknown, "name": "attic"}, "the name that it registered with"
        assert (await server.get("/api/v1/nodes?connected=false")).body["data"] == []

        one = (await server.get("/api/v1/nodes/node_here")).body
        assert (one["node"], one["heartbeats"], one["complete"]) == (node, [], False)
        assert one["models"]["ollama"][0]["name"] == "tiny"
        assert (await server.get("/api/v1/nodes/node_gone")).status == 503, "it may exist"

        for path in ("models", "queue", "running"):
            assert (await server.get(f"/api/v1/{path}")).status == 200
        for path in ("status", "nodes", "models", "requests", "metrics"):
            assert (await server.get(f"/api/distributed/{path}")).status == 200
