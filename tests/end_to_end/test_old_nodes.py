"""Nodes of an earlier commit with a server of this one, and the other way round."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.test_workers import until, workers
from tests.engine import Plan, ScriptedEngine
from tests.lab import old_release
from tests.questions import Crowd, Json, Seen, ask, is_question, pieces, question
from tests.servers import Servers

USERS = 8
BOTH = pytest.mark.parametrize("count", ["1", "2"], ids=["one worker", "two workers"])


@pytest.fixture(scope="module", autouse=True)
def history() -> Iterator[None]:
    try:
        old_release.tree()
    except old_release.NoHistory as error:
        pytest.skip(f"NO OLD NODES HERE: {error}")
    yield


def reply(asked: Json) -> Plan:
    return Plan(chunks=pieces(asked), gap=0.01) if is_question(asked) else Plan()


async def join_old(exits: AsyncExitStack, servers: Servers, name: str) -> ScriptedEngine:
    """Join and run a node of the earlier commit; return its engine."""
    engine = await exits.enter_async_context(ScriptedEngine())
    engine.reply = reply
    environ = old_release.environ()
    await servers.join(engine.url, name, "--slots", "16", environ=environ)
    return engine


async def connections(exits: AsyncExitStack, servers: Servers) -> list[aiohttp.ClientSession]:
    """Return two clients; with two workers, their connections go to one each."""
    return [await exits.enter_async_context(servers.session()) for _ in range(2)]


async def ask_all(servers: Servers, sessions: list[aiohttp.ClientSession], key: str) -> list[Seen]:
    """Ask each in turn, whole and streamed; all must be answered."""
    seen = []
    for number, session in enumerate(sessions):
        for stream in (False, True):
            asked = question(f"t{number}", 3, model="tiny", stream=stream)
            seen.append(await ask(session, servers.url, key, asked))
    assert [one.ending for one in seen] == ["complete"] * len(seen), seen
    return seen


async def public(servers: Servers, *counts: int) -> None:
    """Wait until the workers, if there are any, have so many connections of clients."""
    await until(
        servers, lambda all: [one["connections"]["public"] for one in all] in ([], list(counts))
    )


@BOTH
async def test_an_old_node_serves_the_clients_of_all_workers(tmp_path: Path, count: str) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers=count))
        engine = await join_old(exits, servers, "old")
        key = await servers.key()
        sessions = await connections(exits, servers)
        seen = await ask_all(servers, sessions, key)
        await public(servers, 1, 1)
        assert [one["nodes"] for one in await workers(servers)] in ([], [1, 0])
        headers = {"authorization": f"Bearer {key}"}
        for session in sessions:
            body = {"model": "tiny", "input": ["a", "b"]}
            url = f"{servers.public}/v1/embeddings"
            async with session.post(url, json=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                assert len((await answer.json())["data"]) == 2
                seen.append(Seen("complete", request_id=answer.headers["x-request-id"]))
        [node] = await servers.command("nodes", "list")
        assert node["version"] == "0.1.0", "this is not the old node"
        await servers.server.stop()
        assert sorted(await servers.ledger()) == sorted(one.request_id for one in seen)
        assert not engine.errors


@BOTH
async def test_a_request_that_is_cancelled_ends_at_an_old_node(tmp_path: Path, count: str) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers=count))
        engine = await join_old(exits, servers, "old")
        key = await servers.key()
        engine.reply, never = None, asyncio.Event()
        for stream in (False, True):
            await public(servers, 0, 0)
            engine.plan = Plan(chunks=("t:0 ", never, "t:1 "), hold=None if stream else never)
            asked = question("t", 2, model="tiny", stream=stream)
            running = []
            for session in await connections(exits, servers):
                running.append(asyncio.create_task(ask(session, servers.url, key, asked)))
                await engine.started()
            await public(servers, 1, 1)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for request in engine.requests:
                await request.aborted()
        assert len(engine.requests) == 4
        engine.reply = reply
        await ask_all(servers, await connections(exits, servers), key)


async def test_takeovers_with_old_nodes_fail_no_request(tmp_path: Path) -> None:
    counts = ("1", "2", "2", "1", "1")
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers=counts[0]))
        for name in ("old-1", "old-2"):
            await join_old(exits, servers, name)
        crowd = Crowd(servers.url, await servers.key())
        server = servers.server
        async with asyncio.TaskGroup() as users:
            for number in range(USERS):
                # Half of them connect anew for each request, and may come to a new worker first.
                connector = aiohttp.TCPConnector(ssl=servers.trust(), force_close=bool(number % 2))
                session = aiohttp.ClientSession(connector=connector)
                users.create_task(crowd.stay(number, await exits.enter_async_context(session)))
            for _, count in pairwise(counts):
                await crowd.answered(2 * USERS)
                successor = servers.successor({"workers": count})
                await successor.start()
                assert await server.ended() == 0
                server = successor
                nodes = [one["nodes"] for one in await workers(servers)]
                assert nodes == ([] if count == "1" else [2, 0])
            await crowd.answered(2 * USERS)
            crowd.leave()
        failed = [seen for seen in crowd.seen if seen.ending != "complete"]
        assert not failed, (len(failed), len(crowd.seen), failed[:3])
        await server.stop()
        assert sorted(await servers.ledger()) == sorted(seen.request_id for seen in crowd.seen)


@BOTH
async def test_an_old_node_comes_back_to_a_first_worker_that_was_killed(
    tmp_path: Path, count: str
) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers=count))
        engine = await join_old(exits, servers, "old")
        key = await servers.key()
        asked = question("t", 2, model="tiny", stream=True)
        engine.reply = None
        engine.plan = Plan(chunks=("t:0 ", asyncio.Event(), "t:1 "))
        running = []
        for session in await connections(exits, servers):
            begun = asyncio.Event()
            running.append(
                asyncio.create_task(
                    ask(
                        session, servers.url, key, asked, on_text=lambda _, begun=begun: begun.set()
                    )
                )
            )
            await begun.wait()
        await public(servers, 1, 1)
        engine.reply = reply
        if count == "1":
            await servers.server.kill()
            await servers.server.start()
            await servers.server.said("node registered")
        else:
            os.kill((await workers(servers))[0]["pid"], signal.SIGKILL)
            after = await until(
                servers,
                lambda all: [one["nodes"] for one in all] == [1, 0] and all[0]["restarts"] == 1,
            )
            assert [one["restarts"] for one in after] == [1, 0]
        endings = [(await task).ending for task in running]
        assert set(endings) <= {"cut", "broken"}, endings
        await ask_all(servers, await connections(exits, servers), key)
