"""The API port's health checks."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

from ledger.records import LEDGER
from tests.contracts.samples import entry
from tests.server.admin.server import NOBODY, Server, figures, until


async def test_health_needs_no_key(server: Server) -> None:
    live = await server.get("/health/live", key=NOBODY)
    assert (live.status, live.body) == (200, {"status": "alive"})
    ready = await server.get("/health/ready", key=NOBODY)
    assert ready.status == 200
    assert ready.body == {
        "status": "ready",
        "checks": {
            "store": "ok",
            "cache": "ok",
            "bus": "ok",
            "public_port": "open",
            "certificate": "ok",
            "nodes": 0,
            "background": [],
            "workers": {},
        },
    }


async def test_a_draining_server_is_not_ready(server: Server) -> None:
    await server.app.drain()
    ready = await server.get("/health/ready")
    assert (ready.status, ready.body["status"]) == (503, "draining")
    assert (await server.get("/health/live")).status == 200


async def test_a_server_whose_public_port_is_closed_is_not_ready(server: Server) -> None:
    server.app.listeners["public"].stop_accepting()
    ready = await server.get("/health/ready")
    assert (ready.status, ready.body["status"]) == (503, "not_ready")
    assert ready.body["checks"]["public_port"] == "closed"


async def test_a_server_without_its_store_is_degraded_and_says_why_only_to_operators(
    server: Server,
) -> None:
    await server.app.backends.store.close()
    await server.app.change_feed.sync()
    ready = await server.get("/health/ready", key=NOBODY)
    assert (ready.status, ready.body["status"]) == (200, "degraded")
    assert ready.body["checks"]["store"] == "away"
    keys = await server.get("/api/v1/keys")
    assert (keys.status, keys.code) == (503, "store_unavailable")
    assert keys.headers["Retry-After"] == "5"
    assert "closed" in keys.message
    # A key that this process does not know can't be checked.
    other = await server.get("/api/v1/nodes", key="mk-fab-" + "B" * 43)
    assert (other.status, other.code) == (503, "keys_unavailable")


async def test_a_background_task_that_fails_is_named_until_it_is_sound_again(
    server: Server,
) -> None:
    failed = False

    async def work() -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError("no room for it")
        await asyncio.Event().wait()

    server.app.tasks.start("housekeeping", work)
    async with asyncio.timeout(5):
        while not server.app.tasks.problems:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    ready = await server.get("/health/ready", key=NOBODY)
    assert (ready.status, ready.body["status"]) == (200, "degraded")
    assert ready.body["checks"]["background"] == ["housekeeping"]
    assert (await server.get("/health/live")).status == 200


async def test_a_server_that_can_store_nothing_is_degraded_until_it_can(server: Server) -> None:
    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(server.directory / "data/fabric.sqlite")) as other:
            other.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("ledger", "elsewhere")
    server.app.backends.bus.publish(LEDGER, entry(1))
    await until(lambda: server.app.backends.writer.problem)
    ready = await server.get("/health/ready")
    assert (ready.status, ready.body["status"]) == (200, "degraded")
    assert (ready.body["checks"]["store"], ready.body["checks"]["bus"]) == ("ok", "away")
    assert (await figures(server))["fabric_records_failing",] == 1
    assert (await server.get("/api/v1/requests")).code == "store_unavailable"

    rename("elsewhere", "ledger")
    await server.app.backends.writer.flush()
    assert (await server.get("/health/ready")).body["status"] == "ready"
    assert len((await server.get("/api/v1/requests")).body["data"]) == 1
