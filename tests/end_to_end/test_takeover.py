"""A server is replaced while requests run: separate processes, one after the other."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from fabric_server.net.takeover import Predecessor
from tests.engine import Plan, ScriptedEngine
from tests.questions import Crowd, Json, ask, pieces, question, reply
from tests.servers import Servers

USERS = 20
TAKEOVERS = 3


def slow_reply(asked: Json) -> Plan:
    return Plan(chunks=pieces(asked), gap=0.01)


@pytest.mark.parametrize("slots", [16, 4])
async def test_a_rolling_restart_under_load_fails_no_request(tmp_path: Path, slots: int) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path))
        for number in range(2):
            engine = await exits.enter_async_context(ScriptedEngine())
            engine.reply = slow_reply
            await servers.join(engine.url, f"node-{number}", "--slots", str(slots))
        crowd = Crowd(servers.url, await servers.key())
        server = servers.server
        async with asyncio.TaskGroup() as users:
            for number in range(USERS):
                session = await exits.enter_async_context(servers.session())
                users.create_task(crowd.stay(number, session))
            for _ in range(TAKEOVERS):
                await crowd.answered(2 * USERS)
                successor = servers.successor()
                await successor.start()
                assert await server.ended() == 0
                server = successor
            await crowd.answered(2 * USERS)
            crowd.leave()
        await server.stop()
        failed = [seen for seen in crowd.seen if seen.ending != "complete"]
        assert not failed, (len(failed), len(crowd.seen), failed[:3])
        assert sorted(await servers.ledger()) == sorted(seen.request_id for seen in crowd.seen)


async def test_who_asks_the_successor_waits_in_line_for_the_slot_that_a_stream_of_the_old_holds(
    tmp_path: Path,
) -> None:
    more = asyncio.Event()
    async with ScriptedEngine() as engine, Servers(tmp_path, drain_seconds="30") as servers:
        engine.plan = Plan(chunks=("one", " slot"), hold=more)
        await servers.join(engine.url, "attic", "--slots", "1")
        key = await servers.key()
        async with servers.session() as session, servers.session() as other:
            first = asyncio.create_task(ask_text(session, servers, key))
            await engine.started()
            successor = servers.successor()
            await successor.start()
            second = asyncio.create_task(ask_text(other, servers, key))
            await in_line(servers, other)
            assert not first.done() and not second.done()
            assert len(engine.requests) == 1
            more.set()
            assert (await first, await second) == ("one slot", "one slot")
        assert await servers.server.ended() == 0


async def test_a_stream_ends_where_it_began_while_others_begin_at_the_successor(
    tmp_path: Path,
) -> None:
    more, begun = asyncio.Event(), asyncio.Event()
    async with ScriptedEngine() as engine, Servers(tmp_path) as servers:
        first, *rest = pieces(long := question("t", 5, model="tiny", stream=True))
        engine.reply = reply
        await servers.join(engine.url, "attic", "--slots", "4")
        key = await servers.key()
        async with servers.session() as session:
            engine.reply = None
            engine.plans.append(Plan(chunks=(first, more, *rest)))
            running = asyncio.create_task(
                ask(session, servers.url, key, long, on_text=lambda text: begun.set())
            )
            await begun.wait()
            engine.reply = reply
            await servers.successor().start()
            short = question("u", 3, model="tiny", stream=True)
            for _ in range(3):
                assert (await ask(session, servers.url, key, short)).ending == "complete"
            assert not running.done()
            assert servers.server.code is None
            more.set()
            assert (await running).ending == "complete"
        assert await servers.server.ended() == 0


async def ask_text(session: aiohttp.ClientSession, servers: Servers, key: str) -> str:
    """Return the engine's answer to one request."""
    asked = question("", 1, model="tiny", stream=False)
    headers = {"authorization": f"Bearer {key}"}
    async with session.post(servers.url, json=asked, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        text = (await answer.json())["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text


async def in_line(servers: Servers, session: aiohttp.ClientSession) -> None:
    """Wait until a request is queued at the server that answers now."""
    manager = (await servers.command("keys", "create", "boss", "--management"))["text"]
    headers = {"authorization": f"Bearer {manager}"}
    async with asyncio.timeout(20):
        while True:
            async with session.get(f"{servers.api}/api/v1/queue", headers=headers) as answer:
                if (await answer.json())["data"]:
                    return
            await asyncio.sleep(0.02)  # another process's doing, seen from here: no event for it


async def test_sigterm_lets_running_streams_finish_and_turns_health_checks_away(
    tmp_path: Path,
) -> None:
    more = asyncio.Event()
    async with ScriptedEngine() as engine, Servers(tmp_path, drain_seconds="30") as servers:
        engine.plan = Plan(chunks=("to the", " end"), hold=more)
        await servers.join(engine.url)
        async with servers.session() as session:
            running = asyncio.create_task(ask_text(session, servers, await servers.key()))
            await engine.started()
            servers.server.signal(signal.SIGTERM)
            await servers.server.said("draining")
            async with session.get(f"{servers.api}/health/ready") as answer:
                assert answer.status == 503
                assert (await answer.json())["status"] == "draining"
            with pytest.raises(aiohttp.ClientConnectorError):
                async with servers.session() as late:
                    await ask_text(late, servers, "any")
            more.set()
            assert await running == "to the end"
            assert await servers.server.ended() == 0


async def test_two_servers_by_mistake_are_an_error_that_says_so(tmp_path: Path) -> None:
    async with Servers(tmp_path) as servers:
        same = servers.another({})
        await same.begin()
        assert await same.ended() == 2
        assert any("a server runs with" in line for line in same.lines), same.lines
        other = servers.another({"data": str(tmp_path / "other")})
        await other.begin()
        assert await other.ended() == 2
        assert any("is taken by another program" in line for line in other.lines), other.lines
        assert servers.server.code is None


async def test_with_nobody_to_take_over_from_a_server_starts_as_ever(tmp_path: Path) -> None:
    async with (
        Servers(tmp_path, takeover="true") as servers,
        servers.session() as session,
        session.get(f"{servers.api}/health/ready") as answer,
    ):
        assert answer.status == 200


async def test_a_successor_that_fails_to_start_changes_nothing(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine, Servers(tmp_path) as servers:
        engine.reply = reply
        await servers.join(engine.url)
        away = servers.successor({"store": "postgresql://127.0.0.1:9/nobody"})
        await away.begin()
        assert await away.ended() == 2, away.lines
        await servers.server.said("this server keeps running")
        empty = servers.successor({"store": f"sqlite:///{tmp_path}/empty.sqlite"})
        await empty.begin()
        assert await empty.ended() == 2, empty.lines
        assert any("none of the 1 nodes" in line for line in empty.lines), empty.lines
        key = await servers.key()
        async with servers.session() as session:
            asked = question("t", 3, model="tiny", stream=True)
            assert (await ask(session, servers.url, key, asked)).ending == "complete"


async def test_a_successor_that_dies_with_the_nodes_gives_them_back(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine, Servers(tmp_path) as servers:
        engine.reply = reply
        node = await servers.join(engine.url)
        key = await servers.key()
        predecessor = await Predecessor.find(servers.data)
        assert predecessor is not None
        assert await predecessor.yield_nodes() == 1
        await node.said("server is leaving")
        async with servers.session() as session:
            asked = question("t", 3, model="tiny", stream=True)
            # Meanwhile it is served as before,
            assert (await ask(session, servers.url, key, asked)).ending == "complete"
            predecessor.close()
            await node.said('"epoch":2')
            # and afterwards by a registration of its own.
            assert (await ask(session, servers.url, key, asked)).ending == "complete"
        assert servers.server.code is None


async def test_one_successor_at_a_time(tmp_path: Path) -> None:
    async with Servers(tmp_path) as servers:
        first = await Predecessor.find(servers.data)
        assert first is not None
        second = servers.successor()
        await second.begin()
        assert await second.ended() == 2
        assert any("is already taking over" in line for line in second.lines), second.lines
        first.close()


async def test_a_successor_that_is_killed_is_followed_while_the_first_still_drains(
    tmp_path: Path,
) -> None:
    more = asyncio.Event()
    async with ScriptedEngine() as engine, Servers(tmp_path, drain_seconds="30") as servers:
        engine.plan = Plan(chunks=("to the", " end"), hold=more)
        node = await servers.join(engine.url, "attic", "--slots", "4")
        key = await servers.key()
        async with servers.session() as session, servers.session() as other:
            running = asyncio.create_task(ask_text(session, servers, key))
            await engine.started()
            successor = servers.successor()
            await successor.start()
            await successor.kill()
            await servers.successor().start()
            await node.said('"epoch":3')
            engine.plan = Plan(chunks=("of", " the next"))
            assert await ask_text(other, servers, key) == "of the next"
            assert not running.done()
            more.set()
            assert await running == "to the end"
        assert await servers.server.ended() == 0
