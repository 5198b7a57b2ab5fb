"""Engines that serve other models than before: real ones, restarted, and scripted refusals."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import aiohttp
import pytest

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.watcher import Watcher
from tests.engine import Plan, ScriptedEngine
from tests.fake_engines import FakeEngine, fake_ollama, fake_vllm
from tests.lab.llama import LlamaServer
from tests.node_alone import NodeAlone

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_llama_server_started_with_another_alias_is_noticed_in_two_seconds(
    session: aiohttp.ClientSession,
) -> None:
    engine = LlamaServer()
    engine.start()
    try:
        watcher = Watcher(session, [parse_address(engine.url)])
        async with asyncio.timeout(60), aclosing(watcher.watch()) as told:
            (first,) = await anext(told)
            assert [one.name for one in first.models] == ["tiny"]
            await asyncio.to_thread(engine.stop)
            engine.model = "other"
            await asyncio.to_thread(engine.start)
            began = time.monotonic()
            async for (report,) in told:
                if report.healthy and [one.name for one in report.models] == ["other"]:
                    break
            assert time.monotonic() - began < 2
    finally:
        engine.stop()


async def test_a_list_that_changes_while_the_engine_runs_is_noticed_by_cheap_looks_alone(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for fake, path in ((fake_ollama(), "/api/tags"), (fake_vllm(), "/v1/models")):
        fakes.append(await fake.start())
        watcher = Watcher(session, [parse_address(fake.url)])
        async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
            await anext(told)
            fake.answers[path] = {
                "models": [{"name": "new", "digest": "1"}],
                "object": "list",
                "data": [{"id": "new", "owned_by": "vllm"}],
            }
            began = time.monotonic()
            (second,) = await anext(told)
            assert [one.name for one in second.models] == ["new"]
            assert time.monotonic() - began < 2


async def test_an_unchanged_engine_is_not_asked_everything_each_second(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_vllm()
    fakes.append(await fake.start())
    watcher = Watcher(session, [parse_address(fake.url)])
    await watcher.refresh()
    fake.asked.clear()
    (engine,) = watcher.engines
    for _ in range(5):
        assert await engine.alive()
        assert not engine.outdated
    assert fake.asked == ["/health", "/v1/models"] * 5


GONE = [
    (404, {"error": "model 'tiny' not found"}),
    (404, {"error": 'model "tiny" not found, try pulling it first'}),
    (404, {"object": "error", "message": "The model `tiny` does not exist.", "code": 404}),
    (404, {"error": {"message": "The model `tiny` does not exist.", "code": 404}}),
    (404, {"error": {"message": "gone", "code": "model_not_found"}}),
    (400, {"error": {"code": 400, "message": "model 'tiny' not found", "type": "x"}}),
    (400, {"error": {"code": "model_not_found", "message": "no"}}),
]


@pytest.mark.parametrize(("status", "error"), GONE)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/chat"])
async def test_an_engine_s_own_word_that_a_model_is_gone_makes_the_node_look(
    engine: ScriptedEngine, status: int, error: object, path: str
) -> None:
    troubles: list[int] = []
    async with NodeAlone(engine.url, on_trouble=lambda: troubles.append(1)) as node:
        engine.plan = Plan(status=status, error=error)
        answer = await node.ask(path, {**CHAT, "prompt": "x", "stream": True})
        assert answer.status == 404  # so that its server asks another
        if path != "/api/chat":
            assert answer.json["error"]["code"] == "model_not_found"
        assert troubles == [1]  # the engine is probed at once


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, {"error": {"message": "Response with id 'resp_1' not found.", "code": 404}}),
        (404, {"detail": "Not Found"}),
        (404, b"404 page not found"),
        (404, b""),
        (400, {"error": {"message": "'n' must be positive", "code": None}}),
        (422, {"error": {"message": "model 'tiny' not found"}}),
        (500, {"error": {"message": "model 'tiny' not found"}}),
    ],
)
async def test_other_refusals_do_not(engine: ScriptedEngine, status: int, error: object) -> None:
    troubles: list[int] = []
    async with NodeAlone(engine.url, on_trouble=lambda: troubles.append(1)) as node:
        engine.plan = Plan(status=status, error=error)
        await node.ask("/v1/chat/completions", CHAT)
        assert troubles == []


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_refused_makes_the_node_look(
    engine: ScriptedEngine, status: int
) -> None:
    troubles: list[int] = []
    async with NodeAlone(engine.url, on_trouble=lambda: troubles.append(1)) as node:
        engine.plan = Plan(status=status)
        assert (await node.ask("/v1/chat/completions", CHAT)).status == status
        assert troubles == [1]
