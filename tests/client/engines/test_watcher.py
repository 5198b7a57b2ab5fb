"""The list of engines, kept up to date."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import aiohttp
import msgspec

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine, EngineSettings
from fabric_client.engines.watcher import Watcher, WatchTimes
from fabric_client.offer.patterns import Offer
from protocol import messages
from tests.fake_engines import (
    FakeEngine,
    accepts,
    by_name,
    fake_llama_server,
    fake_lm_studio,
    fake_ollama,
    fake_openai,
    fake_vllm,
)


async def test_all_engines_on_the_usual_ports_are_found(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    made = (fake_ollama(), fake_vllm(), fake_llama_server(), fake_lm_studio())
    for fake in made:
        fakes.append(await fake.start())
    stopped = await fake_openai("gone").start()
    await stopped.stop()
    watcher = Watcher(session, ports=[*(fake.port for fake in made), stopped.port])
    reports = await watcher.refresh()
    assert [one.name for one in reports] == ["ollama", "vllm", "llama-server", "lm-studio"]
    assert all(one.healthy for one in reports)
    for one in reports:
        accepts(one)
        assert watcher.engine(one.name) is not None
    assert watcher.engine("nobody") is None


async def test_two_engines_of_one_kind_have_two_names_and_both_report_a_shared_model(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for _ in range(2):
        fakes.append(await fake_ollama().start())
    watcher = Watcher(session, [parse_address(fake.url) for fake in fakes])
    first, second = await watcher.refresh()
    assert (first.name, second.name) == ("ollama", "ollama-2")
    assert by_name(first)["llama3.1:8b"] == by_name(second)["llama3.1:8b"]
    urls = [watcher.engine(name).url for name in ("ollama", "ollama-2")]  # type: ignore[union-attr]
    assert urls == [fake.url for fake in fakes]


async def test_an_engine_that_is_both_given_and_found_is_one_engine(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_ollama().start()
    fakes.append(fake)
    given_twice = [f"http://localhost:{fake.port}", f"http://127.0.0.1:{fake.port}/v1"]
    watcher = Watcher(session, map(parse_address, given_twice), ports=[fake.port])
    assert [one.name for one in await watcher.refresh()] == ["ollama"]


async def test_the_list_is_told_at_once_and_whenever_it_changes(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fakes.append(await fake.start())
    watcher = Watcher(
        session, [parse_address(fake.url)], times=WatchTimes(alive=0.02, refresh=0.02)
    )
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        (first,) = await anext(told)
        assert first.healthy
        fake.answers["/api/tags"] = {"models": [{"name": "new:latest"}]}
        (second,) = await anext(told)
        assert [model.name for model in second.models] == ["new:latest"]


async def test_an_engine_that_dies_and_returns_is_noticed_by_asking_whether_it_can_serve_alone(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fakes.append(await fake.start())
    watcher = Watcher(
        session, [parse_address(fake.url)], times=WatchTimes(alive=0.02, refresh=3600)
    )
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        assert [one.healthy for one in await anext(told)] == [True]
        await fake.stop()
        assert [one.healthy for one in await anext(told)] == [False]
        await fake.start()
        assert [one.healthy for one in await anext(told)] == [True]


async def test_an_engine_started_later_is_found_when_poked(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_vllm().start()
    await fake.stop()
    watcher = Watcher(session, ports=[fake.port], times=WatchTimes(alive=3600, refresh=3600))
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        assert await anext(told) == []
        fakes.append(await fake.start())
        watcher.poke()
        assert [one.name for one in await anext(told)] == ["vllm"]


async def test_the_list_is_repeated_though_nothing_changed(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fakes.append(await fake.start())
    now = 1000.0
    watcher = Watcher(
        session, [parse_address(fake.url)], times=WatchTimes(alive=0.01), clock=lambda: now
    )
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        first = await anext(told)
        now += 30
        assert await anext(told) == first


async def test_a_changed_kind_changes_the_name(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server()
    await fake.start()
    await fake.stop()
    watcher = Watcher(session, [parse_address(fake.url)])
    (before,) = await watcher.refresh()
    assert (before.name, before.healthy) == ("openai", False)
    fakes.append(await fake.start())
    (after,) = await watcher.refresh()
    assert (after.name, after.kind, after.healthy) == ("llama-server", "llama-server", True)
    assert watcher.engine("openai") is None


async def test_no_more_engines_are_reported_than_a_server_takes(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for number in range(18):
        fakes.append(await fake_openai(f"m{number}").start())
    watcher = Watcher(session, ports=[fake.port for fake in fakes])
    reports = await watcher.refresh()
    assert len(reports) == 16
    messages.decoder(messages.Engines).decode(messages.encode(messages.Engines(reports)))
    assert msgspec.structs.asdict(reports[0])["healthy"]


async def test_engines_that_are_configured_anew_come_and_go_and_others_stay(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for name in ("a", "b", "c"):
        fakes.append(await fake_openai(name).start())
    a, b, c = (parse_address(fake.url) for fake in fakes)
    watcher = Watcher(session, [a, b])
    await watcher.refresh()
    kept = watcher.engine("openai-2")
    watcher.configure([b, c], (), EngineSettings(slots=3, offer=Offer(["c"])))
    assert watcher.engine("openai-2") is kept
    assert [one.slots for one in watcher.reports] == [3, 0]
    reports = await watcher.refresh()
    assert [(one.name, one.slots) for one in reports] == [("openai-2", 3), ("openai", 3)]
    assert [[model.name for model in one.models] for one in reports] == [[], ["c"]]


async def test_engines_that_were_found_are_kept_while_they_may_be_looked_for(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for name in ("a", "b"):
        fakes.append(await fake_openai(name).start())
    ports = [fake.port for fake in fakes]
    watcher = Watcher(session, ports=ports)
    found = {engine.address: engine for engine in [*await _found(watcher)]}
    watcher.configure([], ports[:1], EngineSettings())
    (left,) = watcher.engines
    assert found[left.address] is left
    assert len(await watcher.refresh()) == 1
    watcher.configure([], (), EngineSettings())
    assert watcher.engines == await watcher.refresh() == []


async def _found(watcher: Watcher) -> list[Engine]:
    await watcher.refresh()
    return watcher.engines
