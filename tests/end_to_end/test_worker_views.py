"""The live views of a server of two workers, with real processes: of both, and when one hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from fabric_server.net.takeover import running_server
from tests.engine import Plan, ScriptedEngine
from tests.questions import ask, question
from tests.servers import Servers

PATIENCE = 30.0


class Operator:
    """A client of the API port, with a management key."""

    def __init__(self, servers: Servers, session: aiohttp.ClientSession, key: str) -> None:
        self._api = servers.api
        self._session = session
        self._headers = {"authorization": f"Bearer {key}"}

    async def ask(self, path: str, method: str = "GET", status: int = 200) -> Any:
        url = f"{self._api}/api/v1/{path}"
        async with self._session.request(method, url, headers=self._headers) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()


@asynccontextmanager
async def operator(servers: Servers) -> AsyncIterator[Operator]:
    made = await servers.command("keys", "create", "boss", "--management")
    async with servers.session() as session:
        yield Operator(servers, session, made["text"])


async def process_of(servers: Servers, worker: str) -> int:
    running = await asyncio.to_thread(running_server, servers.data)
    assert running is not None
    return next(one.pid for one in running.workers if one.name == worker)


async def test_live_views_are_of_both_workers_and_tell_when_one_is_silent(tmp_path: Path) -> None:
    async with AsyncExitStack() as exits:
        engine = await exits.enter_async_context(ScriptedEngine())
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2"))
        engine.plan = Plan(chunks=("never", " ends"), hold=asyncio.Event())
        for name in ("attic", "cellar"):  # one at each worker
            await servers.join(engine.url, name, "--slots", "8")
        boss = await exits.enter_async_context(operator(servers))
        key, running = await servers.key(), list[asyncio.Task[Any]]()
        for number in range(4):  # clients go to both workers in turn
            session = await exits.enter_async_context(servers.session())
            asked = question("", 1, model="tiny", stream=bool(number % 2))
            running.append(asyncio.create_task(ask(session, servers.url, key, asked)))
            await engine.started()
        told = await boss.ask("running")
        rows = told["data"]
        assert sorted(row["server"] for row in rows) == ["w0", "w0", "w1", "w1"]
        assert [row["seconds"] for row in rows] == sorted(
            (row["seconds"] for row in rows), reverse=True
        )
        assert [(one["name"], one["problem"]) for one in told["servers"]] == [
            ("w0", None),
            ("w1", None),
        ]
        nodes = {one["server"]: one for one in (await boss.ask("nodes"))["data"]}
        shown = {server: (one["active"], one["problem"]) for server, one in nodes.items()}
        assert shown == {"w0": (2, None), "w1": (2, None)}
        models = (await boss.ask("models"))["data"]
        assert [(one["name"], one["server"]) for one in models] == [("tiny", "w0"), ("tiny", "w1")]
        far = f"nodes/{nodes['w1']['id']}"
        assert (await boss.ask(far))["node"]["server"] == "w1"

        # The API port is the first worker's: this one runs at the other.
        first, second = (row["request_id"] for row in rows if row["server"] == "w1")
        shown = await boss.ask(f"requests/{first}/cancel", "POST")
        assert (shown["request_id"], shown["server"]) == (first, "w1")
        async with asyncio.timeout(PATIENCE):
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        (ended,) = done
        assert ended.result().ending != "complete"
        assert sum(task.done() for task in running) == 1

        pid = await process_of(servers, "w1")
        os.kill(pid, signal.SIGSTOP)
        try:
            told = await boss.ask("running")
            assert [row["server"] for row in told["data"]] == ["w0", "w0"]
            here, silent = told["servers"]
            assert (here["name"], here["problem"]) == ("w0", None)
            assert (silent["name"], silent["age_seconds"]) == ("w1", None)
            assert "not answered within" in silent["problem"]
            assert [one["name"] for one in (await boss.ask("running?server=w0"))["servers"]] == [
                "w0"
            ]
            refused = await boss.ask(f"requests/{second}/cancel", "POST", 503)
            assert refused["error"]["code"] == "server_silent"
            assert "w1" in refused["error"]["message"]
            known = {one["id"]: one for one in (await boss.ask("nodes"))["data"]}
            assert known[nodes["w0"]["id"]]["connected"]
            lost = known[nodes["w1"]["id"]]
            assert (lost["connected"], "w1" in lost["problem"]) == (False, True)
            own = next(row["request_id"] for row in told["data"])
            assert (await boss.ask(f"requests/{own}/cancel", "POST"))["server"] == "w0"
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            while True:
                if not any(one["problem"] for one in (await boss.ask("running"))["servers"]):
                    break
                await asyncio.sleep(0.02)  # another process goes on: no event for it
        async with asyncio.timeout(PATIENCE):
            while sum(task.done() for task in running) < 2:
                await asyncio.wait(
                    [task for task in running if not task.done()],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        told = await boss.ask("running")
        assert sorted(row["server"] for row in told["data"]) == ["w0", "w1"]
        assert (await boss.ask(f"requests/{second}/cancel", "POST"))["server"] == "w1"
        drained = await boss.ask(f"{far}/drain", "POST")
        assert (drained["server"], drained["draining"]) == ("w1", True)
        revoked = await boss.ask(f"{far}/revoke", "POST")
        assert (revoked["connected"], revoked["state"]) == (False, "revoked")
        servers.server.signal(signal.SIGTERM)
        servers.server.signal(signal.SIGTERM)
        await servers.server.ended()
        await asyncio.gather(*running)
