"""The API port's answers to requests that are refused, broken, slow or no HTTP at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from msgspec import Struct

from fabric_server.admin.middleware import connection_factory, handle_errors
from fabric_server.admin.parameters import ClientTimeouts
from fabric_server.admin.routes import Route, mount
from fabric_server.admin.server import make_application
from fabric_server.net.listener import Listener, Port
from ledger.records import LEDGER
from tests.contracts.samples import entry
from tests.server.admin.server import NOBODY, Server, fits, schemas, until
from tests.trust import client_context


async def test_it_is_answered_over_tls_with_the_fabrics_own_certificate(server: Server) -> None:
    port = server.app.listeners["api"].port
    context = client_context(server.app.tls.certificates.authority.pem)
    for host in ("127.0.0.1", "localhost"):
        answer = await server.get(f"https://{host}:{port}/api/v1/keys", ssl=context)
        assert len(answer.body["data"]) == 2


async def test_a_head_request_gets_no_body(server: Server) -> None:
    answer = await server.ask("HEAD", "/api/v1/nodes")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")


async def test_unknown_paths_and_methods_are_told_in_json(server: Server) -> None:
    for path in ("/", "/api/v1/nothing", "/api/v1/nodes/", "/api/v1/nodes/a/b/c", "/%00"):
        nothing = await server.get(path, key=NOBODY)
        assert (nothing.status, nothing.code) == (404, "unknown_path"), path
    for method in ("PUT", "DELETE", "POST", "OPTIONS", "PATCH"):
        wrong = await server.ask(method, "/api/v1/nodes", key=NOBODY)
        assert (wrong.status, wrong.code) == (405, "method_not_allowed")
        assert wrong.headers["Allow"] == "GET, HEAD"


async def raw(server: Server, words: bytes) -> tuple[int, dict[str, str], Any]:
    port = server.app.listeners["api"].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(words)
    try:
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
            body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
    return int(head[0].split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (b"\x00\x01 rubbish\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request"),
        (b"GET /health/live HTTP/1.1\r\nno colon\r\n\r\n", 400, "bad_request"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (
            b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
            401,
            "invalid_api_key",
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417, "bad_request"),
    ],
)
async def test_what_is_not_http_gets_json_too(
    server: Server, words: bytes, status: int, code: str
) -> None:
    got, headers, body = await raw(server, words)
    assert (got, body["error"]["code"]) == (status, code)
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"].startswith("api_")
    fits(body, server.description["components"]["schemas"]["Error"], {**schemas(server)})
    assert (await server.get("/health/live")).status == 200


@contextlib.asynccontextmanager
async def serving(
    application: web.Application, timeouts: ClientTimeouts
) -> AsyncIterator[tuple[Listener, web.Server]]:
    """A port of its own for what is asked with less patience."""
    runner = web.AppRunner(application, handle_signals=False)
    await runner.setup()
    assert runner.server is not None
    listener = Listener(
        Port(
            name="api",
            hosts=["127.0.0.1"],
            number=0,
            protocol=connection_factory(runner.server, timeouts),
            context=lambda: pytest.fail("nobody asks for TLS here"),
            plaintext="loopback",
        )
    )
    listener.open()
    try:
        yield listener, runner.server
    finally:
        await listener.close()
        await runner.cleanup()


async def test_a_body_that_comes_too_slowly_is_refused(server: Server) -> None:
    timeouts = ClientTimeouts(body=0.1, linger=0.1, enrol=0.1)
    async with serving(make_application(server.app.admin.context, timeouts=timeouts), timeouts) as (
        listener,
        _,
    ):
        for path in (b"/api/v1/keys", b"/api/v1/enrol"):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(
                b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n"
                b"Authorization: Bearer " + server.management.encode() + b"\r\n\r\n{"
            )
            async with asyncio.timeout(5):
                said = await reader.read()  # and then the connection is closed
            writer.close()
            assert said.startswith(b"HTTP/1.1 408 ")
            assert b'"request_timeout"' in said


async def test_a_connection_on_which_no_request_comes_is_closed(server: Server) -> None:
    timeouts = ClientTimeouts(idle=0.1)
    async with serving(make_application(server.app.admin.context), timeouts) as (listener, _):
        for start in (b"G", b"GET /health/live HTTP/1.1\r\nHost: a\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(start)
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()


async def test_a_client_that_takes_no_answers_is_cut_off(server: Server) -> None:
    for number in range(1000):
        server.app.backends.bus.publish(LEDGER, entry(number))
    await server.app.backends.writer.flush()
    timeouts = ClientTimeouts(reader=0.3)
    async with serving(make_application(server.app.admin.context), timeouts) as (
        listener,
        conversations,
    ):
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", listener.port))
            ask = (
                b"GET /api/v1/requests?limit=1000 HTTP/1.1\r\nHost: a\r\n"
                b"Authorization: Bearer " + server.management.encode() + b"\r\n\r\n"
            )
            await loop.sock_sendall(sock, ask * 30)
            await until(lambda: conversations.connections)
            await until(lambda: not conversations.connections)
            taken = 0
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(10):
                    while data := await loop.sock_recv(sock, 1 << 20):
                        taken += len(data)
        assert taken < 30 * 400_000


class Broken(Struct):
    pass


async def test_a_defect_is_told_in_json_and_costs_only_its_request(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def defect() -> Broken:
        """Fails."""
        raise ZeroDivisionError("a secret")

    application = web.Application(middlewares=[handle_errors])
    mount(
        application,
        [Route("GET", "/", defect, public=True)],
        server.app.data_plane.authenticator,
        ClientTimeouts(),
        server.app.data_plane.throttle,
    )
    async with serving(application, ClientTimeouts()) as (listener, _):
        for _ in range(2):
            failed = await server.get(f"http://127.0.0.1:{listener.port}/", key=NOBODY)
            assert (failed.status, failed.code) == (500, "internal_error")
            assert "secret" not in failed.message
    told = [getattr(record, "request", None) for record in caplog.records if record.exc_info]
    assert failed.headers["X-Request-Id"] in told
