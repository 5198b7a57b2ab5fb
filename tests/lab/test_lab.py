"""The parts tests are made with do what they promise."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.engine import UNREAD, BusyEngine, Json, Plan, ScriptedEngine
from tests.lab.llama import LlamaServer
from tests.lab.netlab import NatLab

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
LISTEN = """
import socket
listener = socket.create_server(("", 7000))
print("ready", flush=True)
peer = listener.accept()[1]
print(peer[0], flush=True)
"""
CONNECT = """
import socket, sys, time
begin = time.perf_counter()
socket.create_connection((sys.argv[1], 7000), timeout=1).close()
print(time.perf_counter() - begin)
"""


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_scripted_engine_streams_what_its_plan_says(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    engine.plan = Plan(chunks=("a", b": note\n\n", "b"), usage=(3, 4))
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with http.post(f"{engine.url}/v1/chat/completions", json=body) as answer:
        events = (await answer.text()).split("\n\n")
    assert '"content": "a"' in events[0]
    assert events[1] == ": note"
    assert '"content": "b"' in events[2]
    assert '"finish_reason": "stop"' in events[3]
    assert '"choices": [], "usage": {"prompt_tokens": 3' in events[4]
    assert events[5:] == ["data: [DONE]", ""]
    request = await engine.started()
    assert request.json == body
    assert await request.ended() == "answered"


async def test_scripted_engine_tells_when_it_was_hung_up_on(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    engine.plans.append(Plan(stall_after=1))
    answer = await http.post(f"{engine.url}/v1/chat/completions", json={**CHAT, "stream": True})
    await answer.content.readline()
    request = await engine.started()
    assert request.outcome is None
    answer.close()
    await request.aborted()


async def test_scripted_engine_notices_a_hang_up_before_it_answered(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    asking = asyncio.create_task(http.post(f"{engine.url}/v1/completions", json=CHAT))
    request = await engine.started()
    asking.cancel()
    await request.aborted()


async def test_scripted_engine_ends_a_request_that_its_test_can_not_answer(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    mistake = ValueError("not asked so")

    def reply(asked: Json) -> Plan:
        raise mistake

    engine.reply = reply
    async with http.post(f"{engine.url}/v1/completions", json=CHAT) as answer:
        assert answer.status == 500
    [request] = engine.requests
    assert await request.ended() == "failed"
    assert engine.errors == [mistake]


async def test_busy_engine_keeps_no_large_body_and_only_requests_under_way(
    http: aiohttp.ClientSession,
) -> None:
    asked: list[Json] = []

    def reply(question: Json) -> Plan:
        asked.append(question)
        return Plan()

    async with BusyEngine() as engine:
        engine.reply, engine.large = reply, 1000
        for padding in (0, engine.large):
            body = {**CHAT, "padding": "x" * padding}
            async with http.post(f"{engine.url}/v1/completions", json=body) as answer:
                assert answer.status == 200
        [last] = engine.requests
        assert await engine.started() is last
        assert [last.body, asked] == [UNREAD, [{**CHAT, "padding": ""}, json.loads(UNREAD)]]
        assert await last.ended() == "answered"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("plan", [Plan(refuse=True), Plan(cut_after=0), Plan(cut_after=2)])
async def test_scripted_engine_cuts_connections(
    engine: ScriptedEngine, http: aiohttp.ClientSession, plan: Plan, stream: bool
) -> None:
    engine.plan = plan
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        async with http.post(
            f"{engine.url}/v1/chat/completions", json={**CHAT, "stream": stream}
        ) as answer:
            await answer.read()
    assert await (await engine.started()).ended() == "cut"


async def test_scripted_engine_comes_back_on_its_port(
    engine: ScriptedEngine, http: aiohttp.ClientSession
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    asking = asyncio.create_task(http.post(f"{engine.url}/v1/completions", json=CHAT))
    request = await engine.started()
    url = engine.url
    await engine.stop()
    assert await request.ended() == "stopped"
    with pytest.raises(aiohttp.ClientError):
        await asking
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"{url}/v1/models")
    await engine.start()
    async with http.get(f"{url}/v1/models") as answer:
        assert [row["id"] for row in (await answer.json())["data"]] == ["tiny"]


async def test_scripted_ollama_refuses_a_foreign_host(http: aiohttp.ClientSession) -> None:
    async with ScriptedEngine(ollama=True) as engine:
        for headers, status in (({}, 200), ({"Host": "fabric.example"}, 403)):
            async with http.get(f"{engine.url}/api/tags", headers=headers) as answer:
                assert answer.status == status


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaServer]:
    with LlamaServer() as engine:
        yield engine


@pytest.mark.parametrize(
    ("path", "ask", "expected"),
    [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 8}, '"role":"assistant"'),
        ("/v1/completions", {"model": "tiny", "prompt": "To", "max_tokens": 8}, '"text":'),
        ("/v1/embeddings", {"model": "tiny", "input": "hello"}, '"embedding":[0.'),
    ],
)
async def test_llama_server_answers(
    llama: LlamaServer, http: aiohttp.ClientSession, path: str, ask: object, expected: str
) -> None:
    async with http.post(llama.url + path, json=ask) as answer:
        assert answer.status == 200
        assert expected in await answer.text()


async def test_llama_server_goes_on_until_it_is_hung_up_on(
    llama: LlamaServer, http: aiohttp.ClientSession
) -> None:
    ask = {**CHAT, "stream": True, "ignore_eos": True}
    answer = await http.post(f"{llama.url}/v1/chat/completions", json=ask)
    await answer.content.readline()
    assert await asyncio.to_thread(llama.busy) == 1
    answer.close()
    await llama.idle()


@pytest.fixture
def lab() -> Iterator[NatLab]:
    if reason := NatLab.why_not():
        pytest.skip(f"NO NETWORK LAB HERE: {reason}")
    with NatLab(delay_ms=25) as lab:
        yield lab


def test_lab_lets_the_node_out_through_nat_after_one_round_trip(lab: NatLab) -> None:
    server = lab.server_exec([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    took = float(lab.node_run([sys.executable, "-c", CONNECT, lab.server_address]))
    assert took > 0.050
    assert server.stdout.readline().decode().strip() == lab.router_address


def test_lab_lets_nobody_in_to_the_node(lab: NatLab) -> None:
    node = lab.node_exec([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert node.stdout is not None
    assert node.stdout.readline() == b"ready\n"
    lab.server_run(["ip", "route", "add", lab.node_address, "via", lab.router_address])
    for address in (lab.node_address, lab.router_address):
        with pytest.raises(RuntimeError, match=r"OSError|TimeoutError|ConnectionRefusedError"):
            lab.server_run([sys.executable, "-c", CONNECT, address])
    assert node.poll() is None


def test_lab_leaves_nothing_behind(lab: NatLab) -> None:
    with NatLab() as other:
        process = other.node_exec(["sleep", "60"])
        assert other.node in subprocess.check_output(["ip", "netns", "list"], text=True)
    assert process.returncode is not None
    left = subprocess.check_output(["ip", "netns", "list"], text=True)
    assert other.node not in left
    assert lab.node in left
