"""Settings change while a server runs; requests in progress are unaffected."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp

from tests.engine import Plan, ScriptedEngine
from tests.questions import question
from tests.servers import Servers


def write(servers: Servers, text: str) -> None:
    servers.data.mkdir(exist_ok=True)
    (servers.data / "fabric.toml").write_text(text)


async def ask_model(session: aiohttp.ClientSession, servers: Servers, key: str, model: str) -> Any:
    body = question("", 1, model=model, stream=False)
    headers = {"authorization": f"Bearer {key}"}
    async with session.post(servers.url, json=body, headers=headers) as answer:
        return answer.status, (await answer.json()).get("error", {}).get("code")


async def test_aliases_change_while_a_stream_runs(tmp_path: Path) -> None:
    more = asyncio.Event()
    servers = Servers(tmp_path)
    write(servers, 'aliases = ["old=tiny"]\n')
    async with ScriptedEngine() as engine, servers, servers.session() as session:
        await servers.join(engine.url, "attic", "--slots", "4")
        key = await servers.key()
        engine.plans.append(Plan(hold=more))
        running = asyncio.create_task(ask_model(session, servers, key, "old"))
        await engine.started()
        write(servers, 'aliases = ["new=tiny"]\nbody_limit = "1MiB"\ncache = "redis://nobody"\n')
        told = await servers.command("reload")
        assert told["error"] is None and told["certificates"] is True
        assert sorted(told["applied"]) == ["aliases", "body_limit"]
        assert told["needs_restart"] == ["cache"]
        assert await ask_model(session, servers, key, "new") == (200, None)
        assert await ask_model(session, servers, key, "old") == (404, "model_not_found")
        # What needs a restart still does, and what was applied is no news.
        told = await servers.command("reload")
        assert (told["applied"], told["needs_restart"]) == ([], ["cache"])
        assert not running.done()
        more.set()
        assert await running == (200, None)


async def test_a_wrong_file_is_refused_whole_and_what_was_stays(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    write(servers, 'aliases = ["old=tiny"]\n')
    async with ScriptedEngine() as engine, servers, servers.session() as session:
        await servers.join(engine.url)
        key = await servers.key()
        write(servers, 'aliases = ["new=tiny"]\nbody_limit = "plenty"\n')
        servers.server.signal(signal.SIGHUP)
        line = await servers.server.said("settings not replaced")
        assert "body_limit is 'plenty' in" in line
        assert "body_limit is 'plenty' in" in await servers.fails("reload")
        assert await ask_model(session, servers, key, "old") == (200, None)
        assert await ask_model(session, servers, key, "new") == (404, "model_not_found")


async def test_sighup_does_the_same(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    write(servers, "")
    async with servers:
        write(servers, 'queue_timeout = 5\nhedge = "p95"\nhost = ["127.0.0.1", "::1"]\n')
        servers.server.signal(signal.SIGHUP)
        line = await servers.server.said("settings loaded")
        assert '"applied":["hedge","queue_timeout"]' in line
        await servers.server.said("certificates loaded")


async def test_reloading_what_does_not_run_says_so(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    async with servers:
        await servers.server.stop()
        assert "no server runs with" in await servers.fails("reload")
