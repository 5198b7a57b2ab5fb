"""What engines can be asked, by what they tell about themselves."""

from __future__ import annotations

import json

import aiohttp
import pytest

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine
from fabric_client.translation import TranslatedRequest, native_filters
from fabric_client.translation.paths import PUBLIC_PATHS, native_paths, path_handlers, trim_openapi
from protocol.messages import ModelReport
from tests.engine import ScriptedEngine

OLLAMA = {"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"}
TRANSLATED = {
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/responses", "/v1/responses/input_tokens"),
}
BASIC = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}


def told(kind: str, *capabilities: str, **documents: object) -> set[str]:
    paths = {"version": "/api/version", "props": "/props", "openapi": "/openapi.json"}
    named = {paths.get(name, name): value for name, value in documents.items()}
    return native_paths(kind, named, [ModelReport("m", capabilities=list(capabilities))])


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("0.13.2", set()),
        ("0.13.3", {"/v1/responses"}),
        ("0.14.0-rc2", {"/v1/responses", "/v1/messages"}),
        ("1.0.0", {"/v1/responses", "/v1/messages"}),
        ("nonsense", set()),
        (5, set()),
    ],
)
def test_ollama_has_what_its_version_brought(version: object, has: set[str]) -> None:
    found = told("ollama", version={"version": version})
    assert found == BASIC | OLLAMA | {"/api/show"} | has


def test_an_engine_that_hears_can_be_asked_to_write_down() -> None:
    assert "/v1/audio/transcriptions" in told("ollama", "completion", "audio")
    assert "/v1/audio/transcriptions" not in told("ollama", "completion")


def test_a_newer_llama_server_speaks_messages_and_its_responses_are_left_alone() -> None:
    found = told("llama-server", props={"chat_template_caps": {"supports_tools": True}})
    assert found - told("llama-server") == {"/v1/messages", "/v1/messages/count_tokens"}
    translate = path_handlers("llama-server", found)["/v1/responses"]
    assert translate is not None
    assert translate(b'{"model":"m","input":"hi"}').path == "/v1/chat/completions"


def test_what_fastapi_lists_is_what_there_is() -> None:
    listed = {path: {"post": {}} for path in ("/v1/chat/completions", "/v1/messages", "/secret")}
    document = {"paths": {**listed, "/v1/completions": {"get": {}}}}
    found = told("vllm", openapi=trim_openapi(document))
    assert found == {"/v1/chat/completions", "/v1/messages"}
    assert told("vllm", openapi=trim_openapi({"paths": {"/other": {"post": {}}}})) > BASIC
    assert told("openai", openapi=trim_openapi({"paths": 5})) == BASIC


def test_nobody_s_paths_leave_the_public_ones() -> None:
    for kind in ("ollama", "vllm", "llama-server", "lm-studio", "openai", "new"):
        found = path_handlers(kind, told(kind))
        assert OLLAMA | BASIC <= found.keys() <= PUBLIC_PATHS
    assert not path_handlers("openai", {"/secret"})
    assert len(PUBLIC_PATHS) <= 64  # as many as a report may list


def test_ollama_s_own_dialect_is_not_translated() -> None:
    for kind, path in (("ollama", "/api/chat"), ("vllm", "/v1/chat/completions")):
        translate = path_handlers(kind, told(kind))["/api/chat"]
        assert translate is not None
        asked = translate(b'{"model":"tiny","messages":[{"role":"user","content":"hello"}]}')
        assert isinstance(asked, TranslatedRequest)
        assert asked.path == path


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/api/chat"])
def test_half_an_emoji_is_no_reason_to_refuse_a_question(path: str) -> None:
    translate = path_handlers("openai", BASIC)[path]
    assert translate is not None
    said = rb'"\ud83d \\ud83d \ud83d\ude00"'
    more = b'"max_tokens":5,' if path == "/v1/messages" else b""
    field = (
        b'"input":%b' if path == "/v1/responses" else b'"messages":[{"role":"user","content":%b}]'
    )
    asked = translate(b'{"model":"tiny",%b%b}' % (more, field % said))
    assert isinstance(asked, TranslatedRequest)
    text = json.loads(asked.body)["messages"][0]["content"]
    assert text == "\ufffd \\ud83d \U0001f600"


def test_an_engine_that_only_embeds_can_t_be_chatted_with() -> None:
    found = path_handlers("vllm", {"/v1/embeddings"})
    assert found.keys() == {"/v1/embeddings", "/api/embed", "/api/embeddings"}


async def test_a_long_list_is_asked_for_once_and_again_from_an_engine_that_was_away() -> None:
    async with ScriptedEngine() as fake, aiohttp.ClientSession() as session:
        paths = {"/v1/chat/completions": {"post": {}}}
        fake.probes["/openapi.json"] = {"paths": paths}
        engine = Engine(session, parse_address(fake.url))
        report = await engine.probe()
        assert set(report.paths) == {"/api/chat", "/api/generate", *paths, *TRANSLATED}
        await engine.probe()
        assert fake.probed.count("/openapi.json") == 1
        await fake.stop()
        await engine.probe()
        assert not engine.healthy
        fake.probes["/openapi.json"] = {"paths": {**paths, "/tokenize": {"post": {}}}}
        await fake.start()
        assert "/tokenize" in (await engine.probe()).paths


async def test_an_engine_without_a_list_is_well() -> None:
    async with ScriptedEngine() as fake, aiohttp.ClientSession() as session:
        fake.probes["/openapi.json"] = b"[" * 5_000_000
        report = await Engine(session, parse_address(fake.url)).probe()
        assert report.healthy
        assert set(report.paths) == BASIC | OLLAMA | TRANSLATED


def test_a_modelfile_does_not_tell_where_its_owner_keeps_files() -> None:
    asked = native_filters.show(b'{"model":"tiny"}')
    assert isinstance(asked, TranslatedRequest)
    assert asked.response_filter is not None
    modelfile = (
        "# Modelfile\nFROM /home/ann/.ollama/models/blobs/sha256-2af\n"
        "adapter C:\\Users\\ann\\lora.gguf\nFROM llama3.2\nTEMPLATE a/b\n"
    )
    details = {"parent_model": "/home/ann/.ollama/models/blobs/sha256-2af"}
    asked.response_filter.head(200, [("content-type", "application/json")])
    asked.response_filter.feed(json.dumps({"modelfile": modelfile, "details": details}).encode())
    said = json.loads(asked.response_filter.end())
    assert said["modelfile"] == (
        "# Modelfile\nFROM sha256-2af\nadapter lora.gguf\nFROM llama3.2\nTEMPLATE a/b\n"
    )
    assert said["details"]["parent_model"] == "sha256-2af"
