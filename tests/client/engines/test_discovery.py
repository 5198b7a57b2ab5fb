"""Engines that are down, slow, strange or behind TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine, EngineSettings, discover
from fabric_client.engines.watcher import loaded_models
from tests.fake_engines import (
    LOADING,
    FakeEngine,
    fake_llama_server,
    fake_ollama,
    fake_openai,
    fake_vllm,
    report_of,
)


async def test_nothing_listening_is_said_not_raised(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_openai("a").start()
    await fake.stop()
    engine = Engine(session, parse_address(f"ollama={fake.url}"))
    report = await engine.probe()
    assert (report.kind, report.healthy, report.slots, report.models) == ("ollama", False, 0, [])
    assert report.problem == f"Nothing listens at {fake.url}: is the engine running?"
    assert not await engine.alive()


async def test_a_host_that_does_not_exist_is_said_not_raised(
    session: aiohttp.ClientSession,
) -> None:
    report = await Engine(session, parse_address("http://engine.invalid:11434")).probe()
    assert not report.healthy
    assert report.problem is not None
    assert "can't be reached" in report.problem


async def test_a_llama_server_that_still_loads_says_so_and_then_serves(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server()
    ready = dict(fake.answers)
    fake.answers = dict.fromkeys(ready, LOADING)
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url))
    report = await engine.probe()
    assert (report.kind, report.healthy) == ("llama-server", False)
    assert report.problem == f"{fake.url} responds with 503: Loading model."
    assert not await engine.alive()
    fake.answers = ready
    assert await engine.alive()
    assert (await engine.probe()).healthy


async def test_an_engine_that_dies_keeps_its_models_so_that_they_are_known(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_ollama().start()
    engine = Engine(session, parse_address(fake.url))
    alive = await engine.probe()
    await fake.stop()
    dead = await engine.probe()
    assert not dead.healthy
    assert dead.slots == 0
    assert dead.models == alive.models
    assert loaded_models([alive]) == ["llama3.1:8b"]
    assert loaded_models([dead]) == []
    fakes.append(await fake.start())
    assert await engine.probe() == alive


async def test_one_late_answer_is_forgiven_and_a_second_is_not(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_openai("a")
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url), EngineSettings(timeout=0.1))
    await engine.probe()
    fake.hang = True
    assert (await engine.probe()).healthy
    report = await engine.probe()
    assert not report.healthy
    assert report.problem == f"{fake.url} did not respond in time."
    fake.hang = False
    assert (await engine.probe()).healthy


async def test_an_engine_with_a_request_of_ours_running_is_busy_rather_than_dead(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_openai("a")
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url), EngineSettings(timeout=0.05))
    await engine.probe()
    fake.hang = True
    engine.active = 1
    for _ in range(3):
        assert await engine.alive()
        assert (await engine.probe()).healthy
    engine.active = 0
    assert not await engine.alive()
    assert not (await engine.probe()).healthy


@pytest.mark.parametrize("status", [401, 403])
async def test_an_engine_that_wants_a_key_is_explained(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], status: int
) -> None:
    fake = FakeEngine({}, otherwise=(status, {"error": {"message": "Invalid API Key"}}))
    report = await report_of(session, fakes, fake)
    assert not report.healthy
    assert report.problem is not None
    assert f"requires an API key ({status}: Invalid API Key)" in report.problem


async def test_a_redirect_is_not_followed(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    elsewhere = fake_openai("stolen")
    fakes.append(await elsewhere.start())
    away = web.Response(status=307, headers={"Location": f"{elsewhere.url}/v1/models"})
    report = await report_of(session, fakes, FakeEngine({"/v1/models": away}))
    assert not report.healthy
    assert elsewhere.asked == []


async def test_an_answer_without_end_is_cut_off(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = FakeEngine({"/v1/models": b'{"data": [' + b" " * (5 * 2**20) + b"]}"})
    report = await report_of(session, fakes, fake)
    assert report.problem is not None
    assert "more than 4194304 bytes" in report.problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>It works!</html>",
        b"\xff\xfe\x00",
        b'{"data": 5}',
        b'{"data": {}}',
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"data": [' + b"9" * 10_000,
    ],
)
async def test_what_is_no_model_list_is_no_engine(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], body: bytes
) -> None:
    fake = FakeEngine({}, otherwise=(200, body))
    report = await report_of(session, fakes, fake)
    assert not report.healthy
    assert report.problem == f"{fake.url} is no inference engine (200)."
    assert await discover(session, [fake.port]) == []


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"\x00" * 64, b"HTTP/1.1 200"])
async def test_what_is_no_http_is_no_engine(session: aiohttp.ClientSession, said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        report = await Engine(session, parse_address(f"127.0.0.1:{port}")).probe()
    assert not report.healthy
    assert report.problem is not None
    assert "gave no valid response" in report.problem


async def test_another_kind_of_engine_on_the_same_port_is_noticed(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    first = await fake_vllm().start()
    engine = Engine(session, parse_address(first.url))
    assert (await engine.probe()).kind == "vllm"
    await first.stop()
    assert not (await engine.probe()).healthy
    second = fake_ollama()
    second.port = first.port
    fakes.append(await second.start())
    assert await engine.alive()
    assert (await engine.probe()).kind == "ollama"


async def test_another_kind_that_comes_unnoticed_is_noticed_by_what_it_says(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    await report_of(session, fakes, fake)
    engine = Engine(session, parse_address(fake.url))
    await engine.probe()
    fake.answers = fake_vllm().answers
    assert (await engine.probe()).kind == "vllm"


async def test_a_kind_that_was_given_is_not_doubted(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_vllm()
    fakes.append(await fake.start())
    report = await Engine(session, parse_address(f"ollama={fake.url}")).probe()
    assert (report.kind, report.healthy) == ("ollama", False)
    assert report.problem == f"{fake.url} is no ollama (404)."


# ── https ─────────────────────────────────────────────────────────────────────────────────────


def self_signed(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engine")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "engine.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def test_an_engine_behind_https_must_have_a_trusted_certificate(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], tmp_path: Path
) -> None:
    file = self_signed(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(file)
    fake = fake_openai("a")
    fakes.append(await fake.start(tls))
    address = parse_address(f"https://127.0.0.1:{fake.port}")
    report = await Engine(session, address).probe()
    assert report.problem is not None
    assert "no trusted certificate" in report.problem
    trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(file)))
    async with aiohttp.ClientSession(connector=trusting) as other:
        assert (await Engine(other, address).probe()).healthy
