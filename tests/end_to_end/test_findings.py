"""A closed proxy port and a wrong clock: node and server say it in the same words, and once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from fabric_client.config import Config as NodeConfig
from fabric_client.identity import Identity
from fabric_client.owner import state
from fabric_client.supervisor import Supervisor
from tests.commands import Shell
from tests.fabric import Fabric
from tests.faults import FaultProxy
from tests.lab.wrong_clock import wrong_clock

HOST = "127.0.0.93"


async def until(found: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(60):
        while True:
            if told := await found():
                return told
            await asyncio.sleep(0.2)  # seen from outside: there is no event for it


async def test_a_closed_proxy_port_is_told_by_node_and_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Fabric(tmp_path, address=(HOST,)) as fabric:
        ports = {name: fabric.app.listeners[name].port for name in ("api", "control")}
        async with FaultProxy(HOST, ports):
            directory = await fabric.enrol(via=HOST)
            config = NodeConfig(data=directory, discover=False, pause_on_battery=False)
            node = Supervisor(config, Identity.load(directory), rng=Random())
            running = asyncio.get_running_loop().create_task(node.run())

            async def told_by_node() -> Any:
                now = state.read(directory)
                return now is not None and [one for one in now.findings if one.code]

            async def told_by_server() -> Any:
                headers = {"Authorization": f"Bearer {fabric.management_key}"}
                url = f"{fabric.api}/api/v1/nodes"
                async with aiohttp.ClientSession(headers=headers) as session:
                    answer = await session.get(url, ssl=fabric.trust())
                    (view,) = (await answer.json())["data"]
                    return view["findings"] and view

            async def stored() -> Any:
                (row,) = await fabric.app.backends.store.nodes()
                return "allow TCP" in row.problem and row.problem

            (here,) = await until(told_by_node)
            view = await until(told_by_server)
            (there,) = view["findings"]
            assert (here.code, here.what, here.remedy) == (
                there["code"],
                there["what"],
                there["remedy"],
            )
            port = fabric.app.listeners["proxy"].port
            assert here.code == "no_tunnels"
            assert f"allow TCP {port}" in here.remedy
            assert f"allow TCP {port}" in view["problem"]
            await until(stored)
            metrics = await _metrics(fabric)
            assert 'fabric_node_problems{code="no_tunnels"} 1.0' in metrics
            assert 'fabric_node_problems{code="clock_differs"} 0.0' in metrics
            async with FaultProxy(HOST, {"proxy": port}):  # the port is opened

                async def is_over() -> Any:
                    now = state.read(directory)
                    no_more = now is not None and not now.findings
                    (row,) = await fabric.app.backends.store.nodes()
                    return no_more and "allow TCP" not in row.problem

                await until(is_over)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    for logger in ("fabric.supervisor", "fabric.links"):
        lines = [
            one.levelname
            for one in caplog.records
            if one.name == logger and one.__dict__.get("problem") == "no_tunnels"
        ]
        assert lines == ["ERROR", "INFO"], logger


async def _metrics(fabric: Fabric) -> str:
    headers = {"Authorization": f"Bearer {fabric.management_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        answer = await session.get(f"{fabric.api}/metrics", ssl=fabric.trust())
        return await answer.text()


def test_a_wrong_clock_is_told_by_node_and_server(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with shell.server("--heartbeat-seconds=0.5") as server:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite").strip()
        shell.ok("fabric-client", "join", "-", stdin=token)
        words = ("fabric-client", "run", "--no-discover", "--log-json")
        with shell.start(*words, environ=wrong_clock("+2h")) as node:
            told = node.logged("this machine's clock is 2 h ahead of the server's")
            assert told["problem"] == "clock_differs"
            status = shell.call("fabric-client", "status", environ=wrong_clock("+2h")).stdout
            assert "Problem this machine's clock is 2 h ahead of the server's: set" in status
            listed = server.logged("the node's clock is 2 h ahead of the server's")
            assert listed["node"].startswith("node_")
            for _ in range(20):  # stored with the next look at the node
                (row,) = shell.json("fabric-server", "nodes", "list")
                if "clock" in (row["problem"] or ""):
                    break
            assert "the node's clock is 2 h ahead" in row["problem"]
            node.signal(15)
            node.exit_code()


def test_status_has_the_findings_of_engines_in_the_words_of_the_doctor(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with shell.server() as server:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite").strip()
        shell.ok("fabric-client", "join", "-", stdin=token)
        with shell.start("fabric-client", "run", "--no-discover", "--log-json") as node:
            node.logged("registered")
            for _ in range(20):
                status = json.loads(shell.call("fabric-client", "status", "--json").stdout)
                if status["linked"]:
                    break
            told = json.loads(
                shell.call("fabric-client", "doctor", "--json", "--no-discover").stdout
            )
            (finding,) = status["findings"]
            assert finding["code"] == "no_engine"
            assert {**finding} in told
            node.signal(15)
            node.exit_code()
