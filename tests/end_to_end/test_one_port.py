"""One port for users, nodes, joining and operators; and nodes that get out by a proxy only."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fabric_client.identity import Identity
from fabric_client.registration.join import JoinError, join
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from runtime.http_proxy import Proxies
from tests.connect_proxy import ConnectProxy
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.lab.backends import free_port
from tests.questions import Crowd, Json, pieces
from tests.servers import Servers
from tests.trust import client_context

ONE: dict[str, Any] = {
    "one_port": 0,
    "control_port": None,
    "proxy_port": None,
    "public_port": None,
    "api_port": None,
}
QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]


async def stream(fabric: Fabric) -> str:
    async with fabric.openai() as client:
        chunks = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
        return "".join([one.choices[0].delta.content or "" async for one in chunks if one.choices])


async def test_everything_goes_by_one_port_and_for_a_node_by_a_proxy_that_knows_only_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedEngine() as engine, Fabric(tmp_path, **ONE) as fabric:
        engine.plan = Plan(chunks=("Hello", " there"))
        number = fabric.app.listeners["one"].port
        assert {one.port for one in fabric.app.listeners.values()} == {number}
        assert [name for name, one in fabric.app.listeners.items() if one.sockets] == ["one"]
        async with ConnectProxy(ports={number}, login="attic:secret") as proxy:
            # An engine is never reached through the proxy, whatever the environment says.
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            directory = tmp_path / "node"
            proxies = Proxies.of(proxy.url, {})
            await join(await fabric.invite(), directory, name="attic", proxies=proxies)
            await fabric.run_node(directory, engine.url, proxy=proxy.url)
            assert await stream(fabric) == "Hello there"
            assert set(proxy.asked) == {f"127.0.0.1:{number}"}
            opened = {name: one.opened for name, one in fabric.app.listeners.items()}
            assert (opened["control"], opened["api"]) == (1, 2)
            assert opened["proxy"] >= fabric.config.tunnels
            nodes = sum(opened[name] for name in ("control", "proxy", "api"))
            assert len(proxy.asked) >= nodes, "and perhaps one tunnel that is being opened"
            assert opened["public"] == 1, "the user, who came directly"


async def test_a_proxy_that_refuses_is_told_with_its_remedy(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric, ConnectProxy(ports={443}) as proxy:
        proxies = Proxies.of(proxy.url, {})
        with pytest.raises(JoinError, match=r"refuses a connection to 127.0.0.1:\d+ \(403\).*443"):
            await join(await fabric.invite(), tmp_path / "node", name="attic", proxies=proxies)


async def test_operators_name_the_fabric_and_users_get_nothing_of_theirs(tmp_path: Path) -> None:
    async with Fabric(tmp_path, **ONE) as fabric:
        url = f"https://127.0.0.1:{fabric.app.listeners['one'].port}"
        headers = {"authorization": f"Bearer {fabric.management_key}"}
        async with aiohttp.ClientSession(headers=headers) as session:

            async def status(path: str, name: str) -> int:
                context = fabric.trust()
                async with session.get(f"{url}{path}", ssl=context, server_hostname=name) as answer:
                    return answer.status

            assert await status("/api/v1/nodes", SERVER_NAME) == 200
            assert await status("/api/v1/nodes", "127.0.0.1") == 404
            assert await status("/metrics", SERVER_NAME) == 200
            assert await status("/v1/models", SERVER_NAME) == 404
            assert await status("/v1/models", "127.0.0.1") in (401, 403)


async def test_nodes_get_in_while_strangers_flood_the_port(tmp_path: Path) -> None:
    """Silent ones, and those whose first message stops; more than all places together."""
    async with AsyncExitStack() as exits:
        fabric = await exits.enter_async_context(Fabric(tmp_path, **ONE))
        engine = await exits.enter_async_context(ScriptedEngine())
        number = fabric.app.listeners["one"].port
        one = fabric.app.listeners["one"].budget
        one.places = type(one.places)(40, 40)
        crowd = [
            exits.enter_context(socket.create_connection(("127.0.0.1", number))) for _ in range(200)
        ]
        for sock in crowd[::2]:
            sock.send(b"\x16\x03\x01\x02\x00\x01")
        node = await fabric.join(engine.url)
        engine.plan = Plan(chunks=("still", " here"))
        assert await stream(fabric) == "still here"
        assert one.used <= 40
        assert fabric.app.listeners["one"].refused["shed"] >= 150
        await fabric.routed(node.id)


@pytest.mark.parametrize("alpn", [CONTROL_ALPN, TUNNEL_ALPN])
async def test_a_protocol_of_nodes_needs_a_nodes_certificate_under_any_name(
    tmp_path: Path, alpn: str
) -> None:
    async with Fabric(tmp_path, **ONE) as fabric:
        loop = asyncio.get_running_loop()
        for name in (SERVER_NAME, "gpu.example.org"):
            context = client_context(None, None, alpn)
            ended = loop.create_future()

            class Client(asyncio.Protocol):
                def __init__(self, ended: asyncio.Future[Exception | None]) -> None:
                    self.connection_lost = ended.set_result  # type: ignore[assignment]

            await loop.create_connection(
                lambda ended=ended: Client(ended),  # type: ignore[misc]
                "127.0.0.1",
                fabric.app.listeners["one"].port,
                ssl=context,
                server_hostname=name,
            )
            error = await asyncio.wait_for(ended, 5)
            assert isinstance(error, ssl.SSLError) and "CERTIFICATE_REQUIRED" in str(error.reason)


async def test_nodes_of_the_four_ports_learn_the_one_port_and_find_it_when_the_four_are_gone(
    tmp_path: Path,
) -> None:
    async with ScriptedEngine() as engine, Fabric(tmp_path) as fabric:
        engine.plan = Plan(chunks=("same", " node"))
        directory = await fabric.enrol()
        four = {f"{name}_port": one.port for name, one in fabric.app.listeners.items()}
        one = {"one_port": free_port()}
        await fabric.stop()
        fabric.config = type(fabric.config)(
            data=tmp_path / "server", host=("127.0.0.1",), address=("127.0.0.1",), **four, **one
        )
        await fabric.start()  # both: the nodes are told the one port
        node = await fabric.run_node(directory, engine.url)
        assert Identity.load(directory).control_ports == (four["control_port"], one["one_port"])
        await fabric.stop()
        fabric.config = type(fabric.config)(
            data=tmp_path / "server", host=("127.0.0.1",), address=("127.0.0.1",), **one
        )
        await fabric.start()
        await fabric.routed(node.id, timeout=30)
        assert await stream(fabric) == "same node"
        identity = Identity.load(directory)
        assert (identity.control_ports, identity.api_port) == ((one["one_port"],), one["one_port"])


def slow_reply(asked: Json) -> Plan:
    return Plan(chunks=pieces(asked), gap=0.01)


async def test_a_takeover_of_the_one_port_fails_no_request(tmp_path: Path) -> None:
    number = free_port()
    none = {f"{name}_port": "" for name in ("control", "proxy", "public", "api")}
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(Servers(tmp_path, one_port=str(number), **none))
        servers.ports["public"] = number
        engine = await exits.enter_async_context(ScriptedEngine())
        engine.reply = slow_reply
        await servers.join(engine.url, "attic", "--slots", "8")
        crowd = Crowd(servers.url, await servers.key())
        async with asyncio.TaskGroup() as users:
            for user in range(4):
                session = await exits.enter_async_context(servers.session())
                users.create_task(crowd.stay(user, session))
            await crowd.answered(8)
            successor = servers.successor()
            await successor.start()
            assert await servers.server.ended() == 0
            await crowd.answered(8)
            crowd.leave()
        await successor.stop()
        failed = [seen for seen in crowd.seen if seen.ending != "complete"]
        assert not failed, (len(failed), len(crowd.seen), failed[:3])
