"""Engines that want a key: a real llama-server, and scripted ones that tell what they were sent."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fabric_client.config import PREFIX, Config
from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine, EngineSettings, discover
from fabric_client.engines.engine_key import EngineKey, EngineKeyError
from fabric_client.reload import NodeSettings
from fabric_client.supervisor import configure_engines, make_watcher
from protocol import messages
from runtime.flags import read
from runtime.settings import Conflict
from tests.engine import Plan, ScriptedEngine
from tests.fake_engines import FakeEngine, fake_openai, fake_vllm
from tests.lab.llama import LlamaServer
from tests.node_alone import NodeAlone

KEY = "sk-of/the.owner-1"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked() -> Iterator[LlamaServer]:
    with LlamaServer(2, ["--api-key", KEY]) as engine:
        yield engine


def with_key(session: aiohttp.ClientSession, engine: LlamaServer, file: Path) -> Engine:
    address = parse_address(engine.url)
    return Engine(session, address, EngineSettings(keys={address: EngineKey(file)}))


def write(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "engine.key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    return file


async def test_a_llama_server_with_a_key_answers_a_node_that_has_it(
    locked: LlamaServer, file: Path
) -> None:
    async with NodeAlone(locked.url, key=EngineKey(file)) as node:
        report = node.engine.report
        assert (report.kind, report.healthy, report.slots) == ("llama-server", True, 2)
        answer = await node.ask("/v1/chat/completions", CHAT)
        assert answer.status == 200, answer.body
        translated = await node.ask("/api/chat", {**CHAT, "stream": False})
        assert translated.status == 200
        assert KEY.encode() not in answer.body + messages.encode(messages.Engines([report]))
        assert KEY not in repr(node.engine) + repr(node.engine.key)


async def test_without_it_the_remedy_is_named(
    session: aiohttp.ClientSession, locked: LlamaServer, file: Path
) -> None:
    report = await Engine(session, parse_address(locked.url)).probe()
    assert (report.kind, report.healthy) == ("llama-server", False)
    assert "requires an API key (401: Invalid API Key)" in (report.problem or "")
    assert "--engine-key-file" in (report.problem or "")
    write(file, "sk-wrong")
    wrong = await with_key(session, locked, file).probe()
    assert "refuses the key of its key file (401" in (wrong.problem or "")
    assert not {"sk-wrong", str(file)} & set((wrong.problem or "").split())


async def test_a_locked_engine_on_a_usual_port_is_found_and_says_so(
    session: aiohttp.ClientSession, locked: LlamaServer, fakes: list[FakeEngine]
) -> None:
    vllm = fake_vllm()
    vllm.answers["/v1/models"] = (401, {"error": "Unauthorized"})
    stranger = FakeEngine({}, otherwise=(401, {"error": "log in first"}), server="nginx")
    fakes += [await vllm.start(), await stranger.start()]
    found = await discover(session, [locked.port, vllm.port, stranger.port])
    assert [engine.kind for engine in found] == ["llama-server", "vllm"]
    for engine in found:
        assert "requires an API key" in ((await engine.probe()).problem or "")
    assert stranger.keys == {None}


async def test_a_new_key_is_read_without_a_restart(
    session: aiohttp.ClientSession, locked: LlamaServer, file: Path
) -> None:
    write(file, "sk-wrong")
    engine = with_key(session, locked, file)
    assert not (await engine.probe()).healthy
    write(file, KEY)
    assert (await engine.probe()).healthy


async def test_a_key_goes_to_its_own_engine_only(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], file: Path
) -> None:
    made = [fake_openai("a"), fake_openai("b")]
    for fake in made:
        fakes.append(await fake.start())
    config = Config(
        data=file.parent, engine=tuple(fake.url for fake in made), engine_key_file=(file,)
    )
    assert all(one.healthy for one in await make_watcher(session, config, None).refresh())
    assert [fake.keys for fake in made] == [{f"Bearer {KEY}"}, {None}]


async def test_settings_that_change_leave_each_engine_its_own_key(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], file: Path
) -> None:
    made = [fake_openai("a"), fake_openai("b")]
    for fake in made:
        fakes.append(await fake.start())
    first, second = (fake.url for fake in made)
    other = file.with_name("other.key")
    other.write_text("sk-other")
    other.chmod(0o600)
    (file.parent / "fabric.toml").write_text(
        f"engine = ['{first}']\nengine_key_file = ['{file}']\n"
    )
    config = read(Config, PREFIX, environ={}, flags={"data": str(file.parent)}, file=None)
    settings, watcher = NodeSettings(config), make_watcher(session, config, None)
    await watcher.refresh()
    for text, wanted in (
        (f"engine = ['{second}', '{first}']\nengine_key_file = ['{other}', '{file}']\n",
         [{f"Bearer {KEY}"}, {"Bearer sk-other"}]),
        (f"engine = ['{first}', '{second}']\nengine_key_file = ['{other}']\n",
         [{"Bearer sk-other"}, {None}]),
        (f"engine = ['{second}']\n", [set(), {None}]),
    ):  # fmt: skip
        (file.parent / "fabric.toml").write_text(text)
        assert "engine" in settings.read_again().applied
        configure_engines(watcher, settings.config, None)
        for fake in made:
            fake.keys.clear()
        await watcher.refresh()
        assert [fake.keys for fake in made] == wanted


async def test_a_request_takes_the_key_that_the_engine_has_now(file: Path) -> None:
    other = file.with_name("other.key")
    other.write_text("sk-other")
    other.chmod(0o600)
    async with ScriptedEngine() as engine, NodeAlone(engine.url, key=EngineKey(file)) as node:
        address = node.engine.address
        for key, sent in (
            (EngineKey(file), f"Bearer {KEY}"),
            (EngineKey(other), "Bearer sk-other"),
            (None, None),
        ):
            keys = {} if key is None else {address: key}
            node.engine.change_settings(EngineSettings(keys=keys))
            assert (await node.ask("/v1/chat/completions", CHAT)).status == 200
            assert (await engine.started()).headers.get("Authorization") == sent


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/chat"])
async def test_the_user_s_own_key_never_reaches_an_engine(path: str, file: Path) -> None:
    users = [("authorization", "Bearer sk-user"), ("x-api-key", "sk-user"), ("api-key", "sk-user")]
    headers = [("content-type", "application/json"), *users]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    for key, sent in ((None, None), (EngineKey(file), f"Bearer {KEY}")):
        async with ScriptedEngine() as engine, NodeAlone(engine.url, key=key) as node:
            assert (await node.ask(path, body, headers=headers)).status == 200
            asked = await engine.started()
            assert asked.headers.get("Authorization") == sent
            assert "sk-user" not in str(dict(asked.headers))


async def test_an_engine_that_repeats_its_key_in_an_error_tells_it_to_nobody(file: Path) -> None:
    async with ScriptedEngine() as engine, NodeAlone(engine.url, key=EngineKey(file)) as node:
        escaped = KEY.replace("/", "\\/")
        error = f'{{"error":{{"message":"bad key {escaped}","type":"x"}}}}'.encode()
        for status in (400, 404, 422, 500):
            engine.plan = Plan(status=status, error=error)
            answer = await node.ask("/v1/chat/completions", CHAT)
            assert answer.json["error"]["message"] == "bad key (the engine's key)"
        engine.probes["/v1/models"] = 500
        engine.probes["/v1/models"] = lambda: {"error": {"message": f"no {KEY}"}}
        assert KEY not in ((await node.engine.probe()).problem or "")


@pytest.mark.parametrize(
    "text", ["", "  \n", "two words", "two\nlines", "x" * 5000, "ключ", "a\x00b"]
)
def test_what_is_no_key_is_said_without_being_shown(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(EngineKeyError) as error:
        EngineKey(file).refresh()
    assert "one line" in str(error.value)
    if text.strip():
        assert text.strip() not in str(error.value)


def test_a_file_that_is_not_there_is_said(file: Path) -> None:
    key = EngineKey(file)
    key.refresh()
    file.unlink()
    with pytest.raises(EngineKeyError, match="can't be read"):
        key.refresh()
    assert not key.authorization


def test_a_file_that_others_can_read_is_warned_of_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.chmod(0o644)
    key = EngineKey(file)
    with caplog.at_level(logging.WARNING):
        key.refresh()
        key.refresh()
    assert [record.message for record in caplog.records] == [
        "others on this machine can read an engine's key: chmod 600 its file"
    ]
    assert KEY not in caplog.text


@pytest.mark.parametrize("engines", [(), ("http://localhost:8080",)])
def test_more_keys_than_engines_are_refused(engines: tuple[str, ...], file: Path) -> None:
    settings: dict[str, Any] = {"engine": engines, "engine_key_file": (file,) * (len(engines) + 1)}
    with pytest.raises(Conflict, match="name the engine"):
        Config(data=file.parent, **settings)
