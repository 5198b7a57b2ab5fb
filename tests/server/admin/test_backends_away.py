"""Readiness and metrics of a server whose real back ends are killed, without requests."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import aiohttp
import pytest

from fabric_server.app import App
from fabric_server.config import Config
from ledger.records import LEDGER
from tests.contracts.samples import entry
from tests.lab.postgres_server import PostgresServer
from tests.lab.redis_server import RedisServer
from tests.server.admin.server import Server, figures

PATIENCE = 20.0


@asynccontextmanager
async def serving(directory: Path, **settings: str) -> AsyncIterator[Server]:
    config = Config(
        data=directory / "data",
        host=("127.0.0.1",),
        address=("127.0.0.1",),
        control_port=0,
        proxy_port=0,
        public_port=0,
        api_port=0,
        drain_seconds=0.1,
        **settings,  # type: ignore[arg-type]
    )
    app = App(config, rng=Random(1))
    try:
        await app.start()
        async with aiohttp.ClientSession() as session:
            server = Server(app, session, directory)
            await server.prepare()
            yield server
    finally:
        await app.stop()


async def until_said(server: Server, name: str, state: str) -> None:
    """Return when readiness has this state; fail if the metrics or the status differ from it."""
    async with asyncio.timeout(PATIENCE):
        while (ready := await server.get("/health/ready")).body["checks"][name] != state:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
    if name == "cache":
        assert ready.body["status"] == ("ready" if state == "ok" else "degraded")
    assert (await figures(server))["fabric_backend_available", name] == (state == "ok")


async def test_readiness_follows_three_kills_of_redis_without_a_look_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fabric")
    with RedisServer(tmp_path / "redis") as redis:
        async with serving(tmp_path, cache=redis.url) as server:
            await until_said(server, "cache", "ok")
            for _ in range(3):
                redis.kill()
                await until_said(server, "cache", "away")
                redis.start()
                await until_said(server, "cache", "ok")
            redis.pause()
            await until_said(server, "cache", "away")
            redis.resume()
            await until_said(server, "cache", "ok")
    said = outages(caplog)
    assert [record.message for record in said] == 4 * ["the cache is away", "the cache is back"]
    assert "can't be reached" in said[0].__dict__["reason"]
    assert "keys are looked up in the store" in said[0].__dict__["meanwhile"]
    assert not any(record.exc_info for record in caplog.records)


async def test_readiness_follows_the_kills_of_postgresql(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fabric")
    with PostgresServer(tmp_path / "postgres") as postgres:
        async with serving(tmp_path, store=postgres.new_database()) as server:
            await until_said(server, "store", "ok")
            for _ in range(2):
                postgres.kill()
                await until_gone(server)
                postgres.start()
                async with asyncio.timeout(PATIENCE):
                    while (await server.get("/health/ready")).body["status"] != "ready":  # noqa: ASYNC110 - nothing tells
                        await asyncio.sleep(0.05)
                await until_said(server, "store", "ok")
                await until_said(server, "bus", "ok")
    assert not any(record.exc_info for record in caplog.records)
    said = outages(caplog)
    assert [one.message for one in said] == 2 * ["the store is away", "the store is back"]
    told = said[0].__dict__
    assert "PostgreSQL at" in told["reason"]
    assert "keys that were used in the last minutes work" in told["meanwhile"]
    assert "start it" in told["remedy"]
    parts = {one.message for one in caplog.records if one.levelno == logging.DEBUG}
    assert {"jobs wait for the store", "batches wait for the store"} <= parts


async def test_a_locked_sqlite_is_an_outage_until_it_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fabric")
    async with serving(tmp_path) as server:
        await until_said(server, "bus", "ok")
        other = sqlite3.connect(server.app.config.data / "fabric.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        server.app.backends.bus.publish(LEDGER, entry())
        await until_said(server, "bus", "away")
        other.execute("ROLLBACK")
        other.close()
        await until_said(server, "bus", "ok")
    said = outages(caplog)
    assert [one.message for one in said] == ["the store is away", "the store is back"]
    assert "locked" in said[0].__dict__["reason"]


def outages(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the lines about back ends, and everything else that is a warning or worse.

    asyncio warns of a loop that a slow machine holds up.
    """
    return [
        one
        for one in caplog.records
        if one.name != "asyncio"
        and one.levelno >= (logging.INFO if one.name == "fabric.backends" else logging.WARNING)
    ]


async def until_gone(server: Server) -> None:
    """Return when readiness says that neither keys nor records can be had."""
    async with asyncio.timeout(PATIENCE):
        while True:
            checks = (await server.get("/health/ready")).body["checks"]
            if (checks["store"], checks["bus"]) == ("away", "away"):
                return
            await asyncio.sleep(0.05)
