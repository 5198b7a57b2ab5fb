"""Engines of other kinds, told by their answers.

All of them are fakes, made from the engines' documents and sources: none of these runs here.
"""

from __future__ import annotations

import aiohttp
import pytest

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import DEFAULT_PORTS, Engine, discover
from fabric_client.engines.documents import rows_at
from protocol import messages
from protocol.messages import EngineReport
from tests.fake_engines import (
    FakeEngine,
    accepts,
    by_name,
    fake_koboldcpp,
    fake_llama_server,
    fake_lm_studio,
    fake_localai,
    fake_ollama,
    fake_sglang,
    fake_tgi,
    fake_vllm,
    report_of,
)

COMPUTING = {"/health", "/health_generate", "/generate", "/api/generate", "/flush_cache"}
"""Paths that make some engine compute, load or forget something."""


def test_the_ports_that_engines_are_known_for_are_looked_at() -> None:
    assert set(DEFAULT_PORTS) >= {11434, 8000, 8080, 9931, 1234, 30000, 5001}
    assert len(set(DEFAULT_PORTS)) == len(DEFAULT_PORTS)


async def test_sglang_tells_its_context_its_slots_and_what_it_can(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_sglang()
    report = await report_of(session, fakes, fake)
    assert (report.kind, report.healthy, report.slots) == ("sglang", True, 24)
    model = by_name(report)["Qwen/Qwen3-8B"]
    assert (model.context_length, model.loaded) == (40960, True)
    assert (model.capabilities, model.quantization) == (["completion", "vision"], "fp8")
    assert "/v1/embeddings" not in report.paths  # it generates
    assert {"/v1/chat/completions", "/v1/rerank", "/api/chat"} <= set(report.paths)
    assert b"sk-of-the-owner" not in messages.encode(messages.Engines([report]))
    assert not COMPUTING & set(fake.asked)
    accepts(report)


async def test_an_older_sglang_and_one_that_embeds(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_sglang()
    fake.answers["/get_model_info"] = {"is_generation": False}
    fake.answers["/get_server_info"] = {"max_running_requests": None}
    del fake.answers["/model_info"], fake.answers["/server_info"]
    report = await report_of(session, fakes, fake)
    assert report.slots == 16
    assert by_name(report)["Qwen/Qwen3-8B"].capabilities == ["embedding"]
    assert "/v1/embeddings" in report.paths
    assert not {"/v1/chat/completions", "/api/chat", "/v1/messages"} & set(report.paths)


async def test_koboldcpp_is_no_ollama_and_no_llama_server(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_koboldcpp())
    assert (report.kind, report.healthy, report.slots) == ("koboldcpp", True, 1)
    model = by_name(report)["koboldcpp/gemma-3-12b-it-Q4_K_M"]
    assert (model.context_length, model.quantization) == (12288, "Q4_K_M")
    assert model.capabilities == ["completion", "vision"]
    assert "/v1/audio/transcriptions" in report.paths
    assert "/v1/embeddings" not in report.paths
    accepts(report)


async def test_a_koboldcpp_with_a_password_says_that_it_needs_one(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_koboldcpp()
    version = fake.answers["/api/extra/version"]
    assert isinstance(version, dict)
    version["protected"] = True
    report = await report_of(session, fakes, fake)
    assert not report.healthy
    assert "requires an API key" in (report.problem or "")


@pytest.mark.parametrize("newer", [True, False])
async def test_localai_is_told_by_its_system_page(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], newer: bool
) -> None:
    fake = fake_localai(newer=newer)
    report = await report_of(session, fakes, fake)
    assert (report.kind, report.healthy, report.slots) == ("localai", True, 1)
    chat, embeds = report.models
    assert (chat.loaded, embeds.loaded) == (True, False)
    if newer:
        assert (chat.context_length, chat.capabilities) == (8192, ["completion", "vision"])
        assert embeds.capabilities == ["embedding"]
    assert "/v1/embeddings" in report.paths
    assert {"/backend/load", "/v1/backend/load"}.isdisjoint(fake.asked)
    accepts(report)


async def test_tgi_tells_its_context_and_batches(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_tgi()
    report = await report_of(session, fakes, fake)
    assert (report.kind, report.healthy, report.slots) == ("tgi", True, 16)
    (model,) = report.models
    assert (model.context_length, model.quantization) == (4096, "AWQ")
    assert "/v1/embeddings" not in report.paths
    assert not COMPUTING & set(fake.asked)
    accepts(report)


async def test_lm_studio_with_its_own_api_and_nothing_loaded_is_one(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_lm_studio()
    fake.answers["/v1/models"] = {"object": "list", "data": []}
    fake.answers.pop("/api/v0/models", None)
    fake.answers["/api/v1/models"] = {"models": []}
    assert (await report_of(session, fakes, fake)).kind == "lm-studio"


async def test_all_kinds_are_found_and_none_is_asked_to_do_anything(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    made = {
        "ollama": fake_ollama(),
        "vllm": fake_vllm(),
        "llama-server": fake_llama_server(),
        "lm-studio": fake_lm_studio(),
        "sglang": fake_sglang(),
        "koboldcpp": fake_koboldcpp(),
        "localai": fake_localai(),
        "tgi": fake_tgi(),
    }
    for fake in made.values():
        fakes.append(await fake.start())
    found = await discover(session, [fake.port for fake in made.values()])
    assert [engine.kind for engine in found] == list(made)
    for fake in made.values():
        assert not fake.posted


@pytest.mark.parametrize("make", [fake_sglang, fake_koboldcpp, fake_localai, fake_tgi])
@pytest.mark.parametrize("nonsense", [None, [], {}, 7, "x", {"data": 7}, {"value": "x"}, b"<html>"])
async def test_nonsense_in_what_they_tell_hides_no_model(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], make: object, nonsense: object
) -> None:
    assert callable(make)
    fake: FakeEngine = make()
    kind = (await report_of(session, fakes, fake)).kind
    names = len(rows_at(fake.answers["/v1/models"], "data"))
    for path in fake.answers:
        if path not in ("/v1/models", "/readyz"):
            fake.answers[path] = nonsense
    report: EngineReport = await Engine(session, parse_address(f"{kind}={fake.url}")).probe()
    assert report.healthy
    assert len(report.models) == names
    accepts(report)


async def test_a_page_for_administrators_is_no_reason_to_want_another_key(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_localai()
    fake.answers["/system"] = (403, {"error": {"code": 403, "message": "admin only"}})
    fakes.append(await fake.start())
    report = await Engine(session, parse_address(f"localai={fake.url}")).probe()
    assert report.healthy
    assert [model.loaded for model in report.models] == [None, None]


async def test_a_llama_server_is_asked_what_it_is_for_once_and_never_while_it_sleeps(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server()
    fake.takes_posts = True
    fake.answers["/v1/embeddings"] = (501, {"error": {"code": 501, "message": "Start it with …"}})
    fake.answers["/v1/rerank"] = (400, {"error": {"code": 400, "message": "no query"}})
    props = fake.answers["/props"]
    assert isinstance(props, dict)
    props |= {"media_marker": "a", "is_sleeping": True}
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url))
    assert "/v1/embeddings" in (await engine.probe()).paths
    assert not fake.posted
    for marker, sleeps, asked in (
        ("a", False, 2),
        ("a", False, 2),
        ("a", True, 2),
        ("b", False, 4),
    ):
        props |= {"media_marker": marker, "is_sleeping": sleeps}
        report = await engine.probe()
        assert len(fake.posted) == asked
        assert "/v1/embeddings" not in report.paths
        assert "/rerank" in report.paths


async def test_an_encoder_at_a_llama_server_is_not_asked_for_chats(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server()
    fake.takes_posts = True
    fake.answers["/v1/embeddings"] = (400, {"error": {"code": 400, "message": "no input"}})
    for row in rows_at(fake.answers["/v1/models"], "data"):
        assert isinstance(row, dict)
        row["meta"]["vocab_type"] = 3
    report = await report_of(session, fakes, fake)
    assert "/v1/embeddings" in report.paths
    assert not {"/v1/chat/completions", "/v1/messages", "/api/chat"} & set(report.paths)


async def test_an_ollama_is_asked_about_each_model_once_and_about_few_at_a_time(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fake.takes_posts = True
    rows = [{"name": f"m{n}:latest", "digest": f"{n:012x}"} for n in range(20)]
    fake.answers["/api/tags"] = {"models": rows}
    fake.answers["/api/show"] = {
        "capabilities": ["embedding"],
        "parameters": 'stop   "a b"\nnum_ctx                        777',
        "model_info": {"general.architecture": "llama", "llama.context_length": 2048},
    }
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url))
    for asked in (16, 20, 20):
        report = await engine.probe()
        assert len(fake.posted) == asked
    assert {one.context_length for one in report.models} == {777}
    assert {tuple(one.capabilities) for one in report.models} == {("embedding",)}
    assert "/api/chat" not in report.paths
    rows[0]["digest"] = "f" * 12
    await engine.probe()
    assert len(fake.posted) == 21
