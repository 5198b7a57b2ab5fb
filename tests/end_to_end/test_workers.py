"""One server of several processes: ``fabric-server up --workers 2``, with real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiohttp
import msgspec
import pytest

from fabric_client.identity import Identity
from fabric_server.net.takeover import running_server
from protocol.names import CONTROL_ALPN, SERVER_NAME
from tests.engine import Plan, ScriptedEngine
from tests.questions import Crowd, Json, Seen, ask, pieces, question
from tests.servers import Servers

USERS = 16
BURST = 5000
PATIENCE = 30.0


def slow_reply(asked: Json) -> Plan:
    return Plan(chunks=pieces(asked), gap=0.01)


async def workers(servers: Servers) -> list[Json]:
    """Return the workers as ``fabric-server status --json`` shows them."""
    running = await asyncio.to_thread(running_server, servers.data)
    assert running is not None
    return [msgspec.to_builtins(one) for one in running.workers]


async def until(servers: Servers, true: Callable[[list[Json]], bool]) -> list[Json]:
    """Wait until the workers are so, and return them."""
    async with asyncio.timeout(PATIENCE):
        while True:
            seen = await workers(servers)
            if true(seen):
                return seen
            await asyncio.sleep(0.02)  # other processes' doing, seen from here: no event for it


async def with_nodes(exits: AsyncExitStack, servers: Servers, count: int, *words: str) -> None:
    for number in range(count):
        engine = await exits.enter_async_context(ScriptedEngine())
        engine.reply = slow_reply
        await servers.join(engine.url, f"node-{number}", *(words or ("--slots", "16")))


async def by_worker(servers: Servers, name: str, label: str = "") -> dict[str, float]:
    """Return the samples of a metric, by worker: the last one of each that has the label."""
    manager = (await servers.command("keys", "create", "boss", "--management"))["text"]
    headers = {"authorization": f"Bearer {manager}"}
    async with (
        servers.session() as session,
        session.get(f"{servers.api}/metrics", headers=headers) as answer,
    ):
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    begins = f'{name}{{worker="'
    return {
        line[len(begins) :].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(begins) and label in line
    }


async def models(session: aiohttp.ClientSession, servers: Servers, key: str) -> list[str]:
    headers = {"authorization": f"Bearer {key}"}
    async with session.get(f"{servers.public}/v1/models", headers=headers) as answer:
        return [one["id"] for one in (await answer.json())["data"]]


async def ready(servers: Servers) -> tuple[int, Json]:
    """Return the answer of ``/health/ready``."""
    async with (
        servers.session() as session,
        session.get(f"{servers.api}/health/ready") as answer,
    ):
        return answer.status, await answer.json()


async def ask_each_worker(servers: Servers, key: str, token: str, count: int = 3) -> list[Seen]:
    """Ask on new connections, which stay open: they go to both workers in turn."""
    seen = []
    async with AsyncExitStack() as exits:
        for number in range(2 * count):
            session = await exits.enter_async_context(servers.session())
            asked = question(f"{token}{number}", 3, model="tiny", stream=bool(number % 2))
            seen.append(await ask(session, servers.url, key, asked))
    return seen


async def test_two_workers_are_one_server(tmp_path: Path) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2"))
        await with_nodes(exits, servers, 2)
        seen = await ask_each_worker(servers, await servers.key(), "t")
        assert [one.ending for one in seen] == ["complete"] * len(seen), seen
        first, second = await until(servers, lambda all: [one["nodes"] for one in all] == [1, 1])
        assert {first["state"], second["state"]} == {"ready"}
        told = await servers.command("status")
        assert (told["pid"], told["workers"]) == (servers.server.pid, await workers(servers))
        assert len({servers.server.pid, first["pid"], second["pid"]}) == 3
        nodes = await by_worker(servers, "fabric_nodes_connected")
        assert nodes == {"w0": 1, "w1": 1}, "one scrape shows all workers"
        status, health = await ready(servers)
        checks = health["checks"]
        assert (status, health["status"]) == (200, "ready")
        assert (checks["nodes"], checks["workers"]) == (2, {"w0": "ready", "w1": "ready"})
        registered = [line for line in servers.server.lines if '"node registered"' in line]
        assert {json.loads(line)["worker"] for line in registered} == {"w0", "w1"}
        await servers.server.stop()
        assert servers.server.code == 0
        assert sorted(await servers.ledger()) == sorted(one.request_id for one in seen)
        for one in (first, second):
            with pytest.raises(ProcessLookupError):
                os.kill(one["pid"], 0)


async def test_each_worker_reaches_a_node_that_another_has(tmp_path: Path) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2"))
        await with_nodes(exits, servers, 1)
        seen = await ask_each_worker(servers, await servers.key(), "t")
        assert [one.ending for one in seen] == ["complete"] * len(seen), seen
        key = await servers.key()
        async with servers.session() as one, servers.session() as other:
            lists = [await models(session, servers, key) for session in (one, other)]
        assert lists == [["tiny"], ["tiny"]]
        ended = await by_worker(servers, "fabric_requests_total", 'outcome="ok"')
        assert ended == {"w0": 3, "w1": 3}, "both have had requests, and one has the node"
        await servers.server.stop()
        assert sorted(await servers.ledger()) == sorted(one.request_id for one in seen)


async def test_a_node_that_registers_with_another_worker_leaves_the_one_before(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2"))
        await with_nodes(exits, servers, 1)
        await until(servers, lambda all: [one["nodes"] for one in all] == [1, 0])
        (servers.node_data("node-0") / "fabric.toml").write_text('region = "eu-west"\n')
        await until(servers, lambda all: [one["nodes"] for one in all] == [0, 1])
        assert any(
            '"superseded":false' in line and '"node left"' in line and '"w0"' in line
            for line in servers.server.lines
        )
        seen = await ask_each_worker(servers, await servers.key(), "t")
        assert [one.ending for one in seen] == ["complete"] * len(seen), seen


@pytest.mark.parametrize("victim", [0, 1], ids=["the first worker", "the second"])
async def test_a_killed_worker_costs_its_own_connections_and_is_started_again(
    tmp_path: Path, victim: int
) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2"))
        await with_nodes(exits, servers, 2)
        key = await servers.key()
        await until(servers, lambda all: [one["nodes"] for one in all] == [1, 1])
        crowd = Crowd(servers.url, key)
        async with asyncio.TaskGroup() as users:
            for number in range(USERS):
                session = await exits.enter_async_context(servers.session())
                users.create_task(crowd.stay(number, session))
            await crowd.answered(2 * USERS)
            before = await workers(servers)
            os.kill(before[victim]["pid"], signal.SIGKILL)
            after = await until(
                servers,
                lambda all: all[victim]["state"] == "ready" and all[victim]["restarts"] == 1,
            )
            assert after[1 - victim]["pid"] == before[1 - victim]["pid"]
            await until(servers, lambda all: sum(one["nodes"] for one in all) == 2)
            whole = len(crowd.seen)
            await crowd.answered(2 * USERS)
            crowd.leave()
        endings = Counter(seen.ending for seen in crowd.seen)
        # Those that were connected to it see the end of the connection, and connect again.
        lost = {"cut", "unreachable"}
        assert sum(endings[one] for one in lost) <= USERS, endings
        late = [seen for seen in crowd.seen[whole + USERS :] if seen.ending != "complete"]
        assert not late, late
        seen = await ask_each_worker(servers, key, "after")
        assert [one.ending for one in seen] == ["complete"] * len(seen), seen
        await servers.server.stop()
        entries = Counter(await servers.ledger())
        assert set(entries.values()) == {1}, "nothing is written twice"
        done = {one.request_id for one in (*crowd.seen, *seen) if one.ending == "complete"}
        assert done <= set(entries), "what was finished is there, also of the killed worker"


async def test_a_stop_waits_for_the_streams_of_all_workers(tmp_path: Path) -> None:
    more = asyncio.Event()
    async with AsyncExitStack() as exits:
        engine = await exits.enter_async_context(ScriptedEngine())
        servers = await exits.enter_async_context(
            Servers(tmp_path, workers="2", drain_seconds="30")
        )
        engine.plan = Plan(chunks=("to the", " end"), hold=more)
        await servers.join(engine.url, "attic", "--slots", "4")
        key = await servers.key()
        running = []
        for _ in range(2):  # one at each worker
            session = await exits.enter_async_context(servers.session())
            running.append(asyncio.create_task(text_of(session, servers, key)))
            await engine.started()
        await until(servers, lambda all: [one["connections"]["public"] for one in all] == [1, 1])
        servers.server.signal(signal.SIGTERM)
        await servers.server.said("draining")
        status, health = await ready(servers)
        assert (status, health["status"]) == (503, "draining")
        with pytest.raises(aiohttp.ClientConnectorError):
            async with servers.session() as late:
                await text_of(late, servers, key)
        more.set()
        assert await asyncio.gather(*running) == ["to the end"] * 2
        assert await servers.server.ended() == 0


async def text_of(session: aiohttp.ClientSession, servers: Servers, key: str) -> str:
    asked = question("", 1, model="tiny", stream=False)
    headers = {"authorization": f"Bearer {key}"}
    async with session.post(servers.url, json=asked, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["choices"][0]["message"]["content"])


async def test_a_second_signal_ends_all_workers_at_once(tmp_path: Path) -> None:
    async with AsyncExitStack() as exits:
        engine = await exits.enter_async_context(ScriptedEngine())
        servers = await exits.enter_async_context(
            Servers(tmp_path, workers="2", drain_seconds="600")
        )
        engine.plan = Plan(chunks=("never", " ends"), hold=asyncio.Event())
        await servers.join(engine.url)
        pids = [one["pid"] for one in await workers(servers)]
        async with servers.session() as session:
            asked = question("", 1, model="tiny", stream=True)
            running = asyncio.create_task(ask(session, servers.url, await servers.key(), asked))
            await engine.started()
            servers.server.signal(signal.SIGTERM)
            await servers.server.said("draining")
            servers.server.signal(signal.SIGTERM)
            await servers.server.ended()
            assert (await running).ending != "complete"
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def gone(pid: int) -> None:
    """Wait until a process has ended, which is no child of this one."""
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(pid), "rb") as process:
        assert select.select([process], [], [], PATIENCE)[0]


async def test_workers_whose_parent_is_killed_end_by_themselves(tmp_path: Path) -> None:
    async with Servers(tmp_path, workers="2") as servers:
        pids = [one["pid"] for one in await workers(servers)]
        await servers.server.kill()
        await asyncio.gather(*(asyncio.to_thread(gone, pid) for pid in pids))
        await servers.server.start()
        assert [one["state"] for one in await workers(servers)] == ["ready"] * 2


async def test_reload_reaches_all_workers(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('hedge = "off"\n')
    async with Servers(tmp_path, workers="2", config=str(settings)) as servers:
        settings.write_text('hedge = "p95"\nlog_level = "debug"\nconnections = 100\n')
        result = await servers.command("reload")
        assert result["applied"] == ["hedge", "log_level"]
        assert result["needs_restart"] == ["connections"]
        assert result["certificates"] is True
        loaded = [line for line in servers.server.lines if '"settings loaded"' in line]
        assert sorted(json.loads(line)["worker"] for line in loaded) == ["w0", "w1"]
        settings.write_text("hedge = 7\n")
        assert "hedge" in await servers.fails("reload")


def loaded_by(servers: Servers, worker: str) -> list[list[str]]:
    """Return the settings that each reload of the worker has changed, as its log says."""
    lines = [json.loads(line) for line in servers.server.lines if '"settings loaded"' in line]
    return [line["applied"] for line in lines if line["worker"] == worker]


async def test_a_worker_that_is_started_again_has_the_settings_of_the_last_reload(
    tmp_path: Path,
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('hedge = "off"\n')
    async with Servers(tmp_path, workers="2", config=str(settings)) as servers:
        settings.write_text('hedge = "p95"\n')
        await servers.command("reload")
        os.kill((await workers(servers))[1]["pid"], signal.SIGKILL)
        await until(servers, lambda all: (all[1]["state"], all[1]["restarts"]) == ("ready", 1))
        await servers.command("reload")
        assert loaded_by(servers, "w1") == [["hedge"], []], "it had them from its start"


async def test_a_worker_that_starts_during_a_reload_has_its_settings_when_it_serves(
    tmp_path: Path,
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('hedge = "off"\n')
    async with Servers(tmp_path, workers="2", config=str(settings)) as servers:
        killed = (await workers(servers))[1]["pid"]
        os.kill(killed, signal.SIGKILL)
        seen = await until(
            servers, lambda all: all[1]["state"] == "starting" and all[1]["pid"] != killed
        )
        os.kill(seen[1]["pid"], signal.SIGSTOP)
        settings.write_text('hedge = "p95"\n')
        assert (await servers.command("reload"))["applied"] == ["hedge"]
        os.kill(seen[1]["pid"], signal.SIGCONT)
        await until(servers, lambda all: all[1]["state"] == "ready")
        await servers.command("reload")
        assert loaded_by(servers, "w1") == [["hedge"], []]


async def test_a_worker_that_has_ended_twice_gets_nodes_when_it_serves_again(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2"))
        for restarts in (1, 2):
            os.kill((await workers(servers))[1]["pid"], signal.SIGKILL)
            await until(
                servers,
                lambda all, restarts=restarts: (  # type: ignore[misc]
                    (all[1]["state"], all[1]["restarts"]) == ("ready", restarts)
                ),
            )
        await with_nodes(exits, servers, 2)
        await until(servers, lambda all: [one["nodes"] for one in all] == [1, 1])


@pytest.mark.parametrize(
    "counts", [("1", "2"), ("2", "1"), ("2", "3")], ids=["from one", "to one", "to more"]
)
async def test_a_takeover_may_change_the_number_of_workers_and_fails_no_request(
    tmp_path: Path, counts: tuple[str, str]
) -> None:
    before, after = counts
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers=before))
        await with_nodes(exits, servers, 2)
        crowd = Crowd(servers.url, await servers.key())
        async with asyncio.TaskGroup() as users:
            for number in range(USERS):
                session = await exits.enter_async_context(servers.session())
                users.create_task(crowd.stay(number, session))
            await crowd.answered(2 * USERS)
            successor = servers.successor({"workers": after})
            await successor.start()
            assert await servers.server.ended() == 0
            await crowd.answered(2 * USERS)
            crowd.leave()
        failed = [seen for seen in crowd.seen if seen.ending != "complete"]
        assert not failed, (len(failed), len(crowd.seen), failed[:3])
        assert len(await workers(servers)) == (0 if after == "1" else int(after))
        await successor.stop()
        assert sorted(await servers.ledger()) == sorted(seen.request_id for seen in crowd.seen)


async def test_a_burst_of_connections_is_spread_evenly(tmp_path: Path) -> None:
    many = {"connections": "20000", "connections_per_address": "20000", "header_timeout": "60"}
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, workers="2", **many))
        for _ in range(BURST):
            sock = exits.enter_context(closing(socket.socket()))
            await asyncio.to_thread(sock.connect, ("127.0.0.1", servers.ports["public"]))
            sock.sendall(b"GET /")
        seen = await until(
            servers, lambda all: sum(one["connections"]["public"] for one in all) == BURST
        )
        counts = [one["connections"]["public"] for one in seen]
        assert max(counts) <= 1.2 * BURST / 2, counts


def link_of(identity: Identity, port: int, name: str, *alpn: str) -> ssl.SSLSocket:
    """Open a link's connection by a name of the server, or without any, and return it."""
    context = identity.context(*alpn)
    context.check_hostname = bool(name)
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(sock, server_hostname=name or None)


async def test_older_nodes_come_to_the_first_worker_and_the_others_to_the_one_they_name(
    tmp_path: Path,
) -> None:
    async with Servers(tmp_path, workers="3") as servers:
        token = (await servers.command("nodes", "invite", "--name", "old"))["token"]
        data = servers.node_data("old")
        await servers._run("fabric_client", "join", token, "--data", str(data))
        identity = Identity.load(data)

        async def control(*names: str) -> list[int]:
            links = [
                await asyncio.to_thread(
                    link_of, identity, servers.ports["control"], name, CONTROL_ALPN
                )
                for name in names
            ]
            seen = await until(
                servers, lambda all: sum(one["connections"]["control"] for one in all) == len(links)
            )
            for link in links:
                link.close()
            await until(servers, lambda all: not any(one["connections"]["control"] for one in all))
            return [one["connections"]["control"] for one in seen]

        assert await control(SERVER_NAME, SERVER_NAME, "") == [3, 0, 0]
        assert await control("w2.server.fabric", "w1.server.fabric") == [0, 1, 1]
        assert await control("w9.server.fabric") == [1, 0, 0]


class OnePort(Servers):
    """A server with one port."""

    def _make_programs(self) -> None:
        one, ports = self.ports["public"], self.ports
        self.ports = {"one": one, "consumer": ports["consumer"]}
        super()._make_programs()
        self.ports = dict.fromkeys(ports, one)


async def test_one_port_is_sorted_to_workers(tmp_path: Path) -> None:
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(OnePort(tmp_path, workers="2"))
        await with_nodes(exits, servers, 2)
        seen = await ask_each_worker(servers, await servers.key(), "t")
        assert [one.ending for one in seen] == ["complete"] * len(seen), seen
        await until(servers, lambda all: [one["nodes"] for one in all] == [1, 1])


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_one_worker_is_this_process_alone(tmp_path: Path) -> None:
    async with Servers(tmp_path, workers="1") as servers:
        assert await workers(servers) == []
        assert children(servers.server.pid) == []
