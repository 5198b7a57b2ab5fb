"""The API port, asked the way operators, monitoring and attackers ask it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from consumer.measured import GROUPS
from consumer.records import HEARTBEATS, LEDGER
from fabric_client.registration.join import JoinProblem, join
from fabric_server import admin as api
from fabric_server.admin.middleware import answer
from fabric_server.admin.parameters import Timeouts
from fabric_server.admin.reports import Group
from fabric_server.admin.routes import Route, mount
from fabric_server.app import App
from fabric_server.auth.keys import mint
from fabric_server.config import Config
from fabric_server.net.listener import REASONS, Listener, Port
from protocol import messages
from protocol.aio.link import LinkDriver
from protocol.aio.tunnel import Tunnel
from protocol.control.link import LinkClosed
from protocol.messages import EngineReport, Gpu, Heartbeat, ModelReport, Register, Registered
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from protocol.tunnel.connection import Role
from tests.contracts.samples import NOON, beat, digest, entry, invitation, key, node
from tests.trust import client_context, node_papers

NOBODY = ""


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.body["error"]["message"])


class Server:
    """A whole server, and somebody who asks its API port; all answers are held against the
    server's own description of them."""

    def __init__(self, app: App, session: aiohttp.ClientSession, directory: Path) -> None:
        self.app = app
        self.directory = directory
        self._session = session
        self.base = f"http://127.0.0.1:{app.listeners['api'].port}"
        self.description: dict[str, Any] = {}
        self.management = self.user = ""

    async def prepare(self) -> None:
        for management in (True, False):
            new = mint("test", now=time.time(), management=management)
            await self.app.store.create_key(new.row)
            if management:
                self.management = new.text
            else:
                self.user = new.text
        self.description = (await self.get("/api/v1/openapi.json")).body

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.ask("POST", path, **({"json": body} | options))

    async def ask(self, method: str, path: str, *, key: str | None = None, **rest: Any) -> Answer:
        key = self.management if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = path if path.startswith("http") else self.base + path
        async with self._session.request(method, url, headers=headers, **rest) as response:
            body: Any = await response.read()
            assert response.headers["X-Request-Id"].startswith("api_")
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "fabric"
            if response.content_type == "application/json":
                body = json.loads(body) if method != "HEAD" else None
                self._hold_against_description(method, response, body)
            return Answer(response.status, response.headers, body)

    async def public(self, path: str, key: str) -> int:
        port = self.app.listeners["public"].port
        headers = {"Authorization": f"Bearer {key}"}
        async with self._session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as response:
            return response.status

    def _hold_against_description(
        self, method: str, response: aiohttp.ClientResponse, body: Any
    ) -> None:
        if not self.description or method not in ("GET", "POST"):
            return
        schemas = self.description["components"]["schemas"]
        if response.status >= 400 and "error" in body:
            fits(body, schemas["Error"], schemas)
            return
        parts = response.url.raw_path.split("/")
        for template, operations in self.description["paths"].items():
            wanted = template.split("/")
            if len(wanted) == len(parts) and all(
                a == b or a.startswith("{") for a, b in zip(wanted, parts, strict=True)
            ):
                said = operations[method.lower()]["responses"][str(response.status)]
                fits(body, said["content"]["application/json"]["schema"], schemas)
                return
        raise AssertionError(f"{response.url} is not described")


def fits(value: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any], at: str = "$") -> None:
    """As much of JSON Schema as the description uses; objects have no other fields than it says."""
    if "$ref" in schema:
        return fits(value, schemas[schema["$ref"].rpartition("/")[2]], schemas, at)
    if "anyOf" in schema:
        problems = []
        for option in schema["anyOf"]:
            try:
                return fits(value, option, schemas, at)
            except AssertionError as problem:
                problems.append(str(problem))
        raise AssertionError(f"{at}: {value!r} fits none of {problems}")
    if "enum" in schema:
        assert value in schema["enum"], f"{at}: {value!r} is none of {schema['enum']}"
        return None
    kinds: dict[str, Any] = {
        "null": type(None),
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "array": list,
        "object": dict,
    }
    kind = schema["type"]
    right = isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))
    assert right, f"{at}: {value!r} is no {kind}"
    if kind == "array":
        for index, item in enumerate(value):
            fits(item, schema["items"], schemas, f"{at}[{index}]")
    elif "properties" in schema:
        missing = set(schema.get("required", ())) - set(value)
        assert not missing, f"{at} lacks {missing}"
        for name, item in value.items():
            assert name in schema["properties"], f"{at}.{name} is not described"
            fits(item, schema["properties"][name], schemas, f"{at}.{name}")
    elif isinstance(schema.get("additionalProperties"), dict):
        for name, item in value.items():
            fits(item, schema["additionalProperties"], schemas, f"{at}.{name}")
    return None


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    config = Config(
        data=tmp_path / "data",
        host=("127.0.0.1",),
        address=("127.0.0.1",),
        control_port=0,
        proxy_port=0,
        public_port=0,
        api_port=0,
        drain_seconds=0.1,
    )
    app = App(config, rng=Random(1))
    try:
        await app.start()
        async with aiohttp.ClientSession() as session:
            server = Server(app, session, tmp_path)
            await server.prepare()
            yield server
    finally:
        await app.stop()


class Machine:
    """A node's link and one tunnel, with nothing behind them."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.registered: asyncio.Future[Registered] = loop.create_future()
        self.closed: asyncio.Future[LinkClosed] = loop.create_future()
        self.link: LinkDriver
        self.tunnel: Tunnel

    def on_message(self, link: LinkDriver, message: messages.Message) -> None:
        if isinstance(message, Registered):
            self.registered.set_result(message)

    def on_closed(self, owner: Any, *reason: Any) -> None:
        if isinstance(owner, LinkDriver):
            self.closed.set_result(reason[0])

    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None: ...
    def on_hello(self, tunnel: Tunnel, hello: messages.Hello) -> None: ...

    async def dial(self, server: Server, name: str, engines: list[EngineReport]) -> None:
        loop, app = asyncio.get_running_loop(), server.app
        authority = app.certificates.authority
        papers = node_papers(authority, server.directory / "papers", name, now=time.time())

        async def connect(port: str, alpn: str, driver: Any) -> Any:
            _, made = await loop.create_connection(
                lambda: driver,
                "127.0.0.1",
                app.listeners[port].port,
                ssl=client_context(authority.pem, papers, alpn),
                server_hostname=SERVER_NAME,
            )
            return made

        self.link = await connect("control", CONTROL_ALPN, LinkDriver(self, loop, rng=Random(2)))
        self.link.send(Register(messages.VERSION, "9.9", "attic", "plan9", engines, "eu-west"))
        registered = await asyncio.wait_for(self.registered, 5)
        self.tunnel = await connect(
            "proxy", TUNNEL_ALPN, Tunnel(Role.NODE, self, loop, rng=Random(3))
        )
        self.tunnel.hello(registered.session)
        await until(lambda: app.tunnels.count == 1)


@contextlib.asynccontextmanager
async def connected(
    server: Server, name: str, engines: list[EngineReport]
) -> AsyncIterator[Machine]:
    store = server.app.store
    await store.create_invitation(invitation(name))
    await store.redeem_invitation(digest(name), node(name, id=name), NOON)
    machine = Machine()
    await machine.dial(server, name, engines)
    try:
        yield machine
    finally:
        for driver in (machine.tunnel, machine.link):
            driver.close(0, "the test is over")
        await asyncio.wait_for(machine.closed, 5)
        await until(lambda: server.app.registry.node(name) is None)
        await until(lambda: server.app.tunnels.count == 0)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - counters are no events
            await asyncio.sleep(0.005)


def engine(name: str = "ollama", *models: ModelReport, **changes: Any) -> EngineReport:
    values: dict[str, Any] = {"kind": "ollama", "healthy": True, "slots": 2, "models": list(models)}
    return EngineReport(name, **(values | changes))


def heartbeat(seq: int, **changes: Any) -> Heartbeat:
    record = beat(seq, **changes)
    return record.heartbeat


# ── who may ask ───────────────────────────────────────────────────────────────────────────────


async def test_health_needs_no_key(server: Server) -> None:
    live = await server.get("/health/live", key=NOBODY)
    assert (live.status, live.body) == (200, {"status": "alive"})
    ready = await server.get("/health/ready", key=NOBODY)
    assert ready.status == 200
    assert ready.body == {
        "status": "ready",
        "checks": {
            "store": "ok",
            "cache": "ok",
            "bus": "ok",
            "public_port": "open",
            "nodes": 0,
        },
    }


async def test_everything_else_needs_a_management_key(server: Server) -> None:
    asked = 0
    for path, operations in server.description["paths"].items():
        for method, operation in operations.items():
            if operation.get("security") == []:
                continue
            asked += 1
            url = path.replace("{id}", "some")
            nobody = await server.ask(method.upper(), url, key=NOBODY)
            assert (nobody.status, nobody.code) == (401, "invalid_api_key"), path
            assert nobody.headers["WWW-Authenticate"].startswith("Bearer")
            wrong = await server.ask(method.upper(), url, key="mk-fab-" + "A" * 43)
            assert (wrong.status, wrong.code) == (401, "invalid_api_key"), path
            user = await server.ask(method.upper(), url, key=server.user)
            assert (user.status, user.code) == (403, "wrong_key_kind"), path
    assert asked >= 12


async def test_it_is_answered_over_tls_with_the_fabrics_own_certificate(server: Server) -> None:
    port = server.app.listeners["api"].port
    context = client_context(server.app.certificates.authority.pem)
    for host in ("127.0.0.1", "localhost"):
        answer = await server.get(f"https://{host}:{port}/api/v1/keys", ssl=context)
        assert len(answer.body["data"]) == 2


async def test_a_head_request_gets_no_body(server: Server) -> None:
    answer = await server.ask("HEAD", "/api/v1/nodes")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")


# ── health ────────────────────────────────────────────────────────────────────────────────────


async def test_a_draining_server_is_not_ready(server: Server) -> None:
    await server.app.drain()
    ready = await server.get("/health/ready")
    assert (ready.status, ready.body["status"]) == (503, "draining")
    assert (await server.get("/health/live")).status == 200


async def test_a_server_whose_public_port_is_closed_is_not_ready(server: Server) -> None:
    server.app.listeners["public"].stop_accepting()
    ready = await server.get("/health/ready")
    assert (ready.status, ready.body["status"]) == (503, "not_ready")
    assert ready.body["checks"]["public_port"] == "closed"


async def test_a_server_without_its_store_is_degraded_and_says_why_only_to_operators(
    server: Server,
) -> None:
    await server.app.store.close()
    await server.app.watch.look()
    ready = await server.get("/health/ready", key=NOBODY)
    assert (ready.status, ready.body["status"]) == (200, "degraded")
    assert ready.body["checks"]["store"] == "away"
    nodes = await server.get("/api/v1/nodes")
    assert (nodes.status, nodes.code) == (503, "store_unavailable")
    assert nodes.headers["Retry-After"] == "5"
    assert "closed" in nodes.message
    # A key that this process does not know can't be checked.
    other = await server.get("/api/v1/nodes", key="mk-fab-" + "B" * 43)
    assert (other.status, other.code) == (503, "keys_unavailable")


async def test_a_server_that_can_store_nothing_is_degraded_until_it_can(server: Server) -> None:
    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(server.directory / "data/fabric.sqlite")) as other:
            other.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("ledger", "elsewhere")
    server.app.bus.publish(LEDGER, entry(1))
    await until(lambda: server.app.worker.problem)
    ready = await server.get("/health/ready")
    assert (ready.status, ready.body["status"]) == (200, "degraded")
    assert (ready.body["checks"]["store"], ready.body["checks"]["bus"]) == ("ok", "away")
    assert (await figures(server))["fabric_records_failing",] == 1
    assert (await server.get("/api/v1/requests")).code == "store_unavailable"

    rename("elsewhere", "ledger")
    await server.app.worker.flushed()
    assert (await server.get("/health/ready")).body["status"] == "ready"
    assert len((await server.get("/api/v1/requests")).body["data"]) == 1


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


async def test_unknown_paths_and_methods_are_told_in_json(server: Server) -> None:
    for path in ("/", "/api/v1/nothing", "/api/v1/nodes/", "/api/v1/nodes/a/b/c", "/%00"):
        nothing = await server.get(path, key=NOBODY)
        assert (nothing.status, nothing.code) == (404, "unknown_path"), path
    for method in ("PUT", "DELETE", "POST", "OPTIONS", "PATCH"):
        wrong = await server.ask(method, "/api/v1/nodes", key=NOBODY)
        assert (wrong.status, wrong.code) == (405, "method_not_allowed")
        assert wrong.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("limit=0", "limit", ">= 1"),
        ("limit=1001", "limit", "<= 1000"),
        ("limit=many", "limit", "int"),
        ("limit=1&limit=2", "limit", "twice"),
        ("outcome=bad", "outcome", "it is one of cancelled, engine_error"),
        ("modle=x", "modle", "There is no 'modle' here; there is account, key, node, model"),
        ("before=yesterday", "before", "'next'"),
        ("before=nan,req_1", "before", "'next'"),
    ],
)
async def test_a_wrong_query_is_told_which_and_why(
    server: Server, query: str, param: str, words: str
) -> None:
    wrong = await server.get(f"/api/v1/requests?{query}")
    assert (wrong.status, wrong.code, wrong.body["error"]["param"]) == (400, "invalid_value", param)
    assert words in wrong.message


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("since=soon", "since", "neither Unix seconds nor a time"),
        ("since=inf", "since", "neither"),
        ("until=2026-13-01", "until", "neither"),
        ("since=20&until=10", "since", "later than until"),
        ("by=key,colour", "by[1]", "account, day, engine"),
    ],
)
async def test_a_wrong_time_or_group_is_told(
    server: Server, query: str, param: str, words: str
) -> None:
    wrong = await server.get(f"/api/v1/usage?{query}")
    assert (wrong.status, wrong.body["error"]["param"]) == (400, param)
    assert words in wrong.message


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b'{"name": "x",,}', "invalid_json", "byte 13"),
        (b'{"name": "\xff"}', "invalid_json", "can't be read"),
        (b"", "invalid_value", "missing required field `name`"),
        (b"[]", "invalid_value", "array"),
        (b'{"name": 5}', "invalid_value", "name: Expected `str`, got `int`"),
        (b'{"name": "x", "managment": true}', "invalid_value", "no 'managment'"),
        (b'{"name": "x", "valid_seconds": -1}', "invalid_value", "valid_seconds"),
        (b'{"name": "x", "valid_seconds": 1e300}', "invalid_value", "valid_seconds"),
        (b'{"name": "x", "management": true, "models": ["m"]}', "invalid_value", "management"),
        (b'{"name": "x", "failover": "always"}', "invalid_value", "failover"),
        (b'{"name": "x", "management": true, "failover": "continue"}', "invalid_value", "not for"),
        (b'{"name": "  "}', "invalid_value", "printable"),
        (b'{"name": "\\ud800"}', "invalid_json", "can't be read"),
    ],
)
async def test_a_wrong_body_is_told_where_and_why(
    server: Server, body: bytes, code: str, words: str
) -> None:
    wrong = await server.ask("POST", "/api/v1/keys", data=body)
    assert (wrong.status, wrong.code) == (400, code)
    assert words in wrong.message
    assert len((await server.get("/api/v1/keys")).body["data"]) == 2


async def test_a_body_that_is_too_large_is_refused_before_or_while_it_comes(
    server: Server,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 8192

    for body in (b" " * 65_537, endless()):
        refused = await server.ask("POST", "/api/v1/keys", data=body)
        assert (refused.status, refused.code) == (413, "body_too_large")
    assert (await server.ask("POST", "/api/v1/keys", data=b" " * 65_536)).status == 400


async def test_a_compressed_body_is_not_inflated(server: Server) -> None:
    session = aiohttp.ClientSession()
    headers = {"Authorization": f"Bearer {server.management}"}
    async with (
        session,
        session.post(
            f"{server.base}/api/v1/keys", data=b'{"name": "x"}', headers=headers, compress="gzip"
        ) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_json")


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


def schemas(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.description["components"]["schemas"]
    return found


@contextlib.asynccontextmanager
async def serving(
    application: web.Application, timeouts: Timeouts
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
            protocol=api.protocol(runner.server, timeouts),
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
    timeouts = Timeouts(body=0.1, linger=0.1, enrol=0.1)
    async with serving(api.make(server.app, timeouts=timeouts), timeouts) as (listener, _):
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
    timeouts = Timeouts(idle=0.1)
    async with serving(api.make(server.app), timeouts) as (listener, _):
        for start in (b"G", b"GET /health/live HTTP/1.1\r\nHost: a\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(start)
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()


async def test_a_client_that_takes_no_answers_is_cut_off(server: Server) -> None:
    for number in range(1000):
        server.app.bus.publish(LEDGER, entry(number))
    await server.app.worker.flushed()
    timeouts = Timeouts(reader=0.3)
    async with serving(api.make(server.app), timeouts) as (listener, conversations):
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

    application = web.Application(middlewares=[answer])
    mount(application, [Route("GET", "/", defect, public=True)], server.app.accounts, Timeouts())
    async with serving(application, Timeouts()) as (listener, _):
        for _ in range(2):
            failed = await server.get(f"http://127.0.0.1:{listener.port}/", key=NOBODY)
            assert (failed.status, failed.code) == (500, "internal_error")
            assert "secret" not in failed.message
    told = [getattr(record, "request", None) for record in caplog.records if record.exc_info]
    assert failed.headers["X-Request-Id"] in told


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_made_shown_once_used_and_revoked_at_once(server: Server) -> None:
    limits = {"requests_per_minute": 60, "tokens_per_minute": 10_000}
    named = {"name": "laptop", "account": "ada", "models": ["m"], "valid_seconds": 60}
    made = await server.post("/api/v1/keys", named | limits)
    assert made.status == 201
    text, shown = made.body["text"], made.body["key"]
    assert text.startswith("sk-fab-") and text.startswith(shown["prefix"])
    assert (shown["account"], shown["models"], shown["state"]) == ("ada", ["m"], "good")
    assert shown.items() >= limits.items()
    assert shown["expires_at"] == pytest.approx(time.time() + 60, abs=5)
    assert await server.public("/v1/models", text) == 200

    listed = await server.get("/api/v1/keys")
    assert listed.body["data"][-1] == shown
    assert text not in json.dumps(listed.body) and "hash" not in json.dumps(listed.body)

    gone = await server.post(f"/api/v1/keys/{shown['id']}/revoke")
    assert (gone.status, gone.body["state"]) == (200, "revoked")
    assert await server.public("/v1/models", text) == 401
    again = await server.post(f"/api/v1/keys/{shown['prefix']}/revoke")
    assert again.body == gone.body


async def test_a_new_management_key_manages_and_a_revoked_one_does_not(server: Server) -> None:
    made = await server.post("/api/v1/keys", {"name": "deputy", "management": True})
    deputy = made.body["text"]
    assert deputy.startswith("mk-fab-")
    assert (await server.get("/api/v1/nodes", key=deputy)).status == 200
    await server.post(f"/api/v1/keys/{made.body['key']['id']}/revoke")
    assert (await server.get("/api/v1/nodes", key=deputy)).status == 401


async def test_revoking_a_key_that_is_not_there_is_told(server: Server) -> None:
    nothing = await server.post("/api/v1/keys/key_nothing/revoke")
    assert (nothing.status, nothing.code) == (404, "key_not_found")


async def test_a_prefix_that_two_keys_have_revokes_neither(server: Server) -> None:
    for name in ("one", "two"):
        await server.app.store.create_key(key(name, prefix="sk-fab-same"))
    both = await server.post("/api/v1/keys/sk-fab-same/revoke")
    assert (both.status, both.code) == (409, "ambiguous_key")
    assert "key_one" in both.message and "key_two" in both.message
    assert {one["state"] for one in (await server.get("/api/v1/keys")).body["data"]} == {"good"}


async def test_an_expired_key_is_shown_as_such(server: Server) -> None:
    new = mint("short", now=time.time() - 100, expires_at=time.time() - 50)
    await server.app.store.create_key(new.row)
    keys = (await server.get("/api/v1/keys")).body["data"]
    assert {one["name"]: one["state"] for one in keys} == {"test": "good", "short": "expired"}


# ── nodes ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_node_is_shown_with_what_it_serves_and_how_it_is(server: Server) -> None:
    nodes = server.app.store
    await nodes.create_invitation(invitation("away"))
    await nodes.redeem_invitation(digest("away"), node("away"), NOON)
    tiny = ModelReport("tiny:latest", size=5, context_length=4096, loaded=True)
    large = ModelReport("large", loaded=False)
    broken = engine("vllm", kind="vllm", healthy=False, slots=9, problem="out of memory")
    async with connected(server, "node_here", [engine("ollama", tiny, large), broken]) as machine:
        odd = heartbeat(1, cpu_percent=math.nan, gpus=[Gpu("RTX", power_watts=math.inf)])
        machine.link.send(odd)
        await until(lambda: server.app.registry.node("node_here").heartbeat)  # type: ignore[union-attr]
        await server.app.worker.flushed()

        both = (await server.get("/api/v1/nodes")).body["data"]
        away, here = both
        assert (away["id"], away["connected"], away["engines"]) == ("node_away", False, [])
        assert (here["id"], here["connected"], here["epoch"]) == ("node_here", True, 1)
        assert (away["region"], here["region"]) == (None, "eu-west")
        assert (here["platform"], here["release"], here["tunnels"]) == ("plan9", "9.9", 1)
        assert (here["slots"], here["active"]) == (11, 0)
        assert here["engines"][0] == {
            "name": "ollama",
            "kind": "ollama",
            "healthy": True,
            "problem": None,
            "slots": 2,
            "active": 0,
            "models": ["tiny:latest", "large"],
            "loaded": ["tiny:latest"],
        }
        assert here["engines"][1]["problem"] == "out of memory"
        assert here["heartbeat"]["cpu_percent"] is None
        assert here["heartbeat"]["gpus"] == [{"name": "RTX", "power_watts": None}]

        one = (await server.get("/api/v1/nodes/node_here?heartbeats=5")).body
        assert one["node"]["id"] == "node_here"
        assert one["models"]["ollama"][0]["context_length"] == 4096
        assert [beat["heartbeat"]["seq"] for beat in one["heartbeats"]] == [1]
        assert (await server.get("/api/v1/nodes/node_here?heartbeats=0")).body["heartbeats"] == []

        for wanted, ids in (("true", ["node_here"]), ("false", ["node_away"])):
            some = await server.get(f"/api/v1/nodes?connected={wanted}")
            assert [one["id"] for one in some.body["data"]] == ids

        models = (await server.get("/api/v1/models")).body["data"]
        assert models == [
            {"name": "large", "nodes": 1, "slots": 2, "active": 0, "loaded": 0},
            {"name": "tiny:latest", "nodes": 1, "slots": 2, "active": 0, "loaded": 1},
        ]
        ready = (await server.get("/health/ready")).body
        assert ready["checks"]["nodes"] == 1


async def test_a_revoked_node_is_cut_off_at_once(server: Server) -> None:
    async with connected(server, "node_here", [engine()]) as machine:
        gone = await server.post("/api/v1/nodes/node_here/revoke")
        assert (gone.status, gone.body["state"]) == (200, "revoked")
        closed = await asyncio.wait_for(machine.closed, 5)
        assert "revoked" in closed.reason
    listed = (await server.get("/api/v1/nodes")).body["data"]
    assert [(one["state"], one["connected"]) for one in listed] == [("revoked", False)]
    again = await server.post("/api/v1/nodes/node_here/revoke")
    assert again.body["revoked_at"] == gone.body["revoked_at"]


async def test_a_node_that_is_not_there_is_told(server: Server) -> None:
    for nothing in (
        await server.get("/api/v1/nodes/node_nothing"),
        await server.post("/api/v1/nodes/node_nothing/revoke"),
    ):
        assert (nothing.status, nothing.code) == (404, "node_not_found")


async def test_an_invited_machine_joins_once(server: Server) -> None:
    made = await server.post("/api/v1/invitations", {"name": "ada's", "valid_seconds": 60})
    assert made.status == 201
    token = made.body["token"]
    assert (made.body["host"], made.body["name"]) == ("127.0.0.1", "ada's")
    assert made.body["api_port"] == server.app.listeners["api"].port
    assert made.body["ca_sha256"] == server.app.certificates.fingerprint.hex()
    assert made.body["expires_at"] == pytest.approx(time.time() + 60, abs=5)

    identity = await join(token, server.directory / "node", name="attic")
    (joined,) = (await server.get("/api/v1/nodes")).body["data"]
    assert (joined["name"], joined["connected"], joined["epoch"]) == ("attic", False, 0)
    assert joined["id"] == identity.node_id
    with pytest.raises(JoinProblem, match="used already"):
        await join(token, server.directory / "other", name="cellar")


async def test_an_invitation_needs_nothing_said(server: Server) -> None:
    made = await server.ask("POST", "/api/v1/invitations")
    assert (made.status, made.body["name"]) == (201, None)
    assert made.body["expires_at"] == pytest.approx(time.time() + 86_400, abs=5)


async def test_what_a_joining_machine_asks_is_answered_like_all_else(server: Server) -> None:
    authority = await server.get("/api/v1/ca", key=NOBODY)
    assert authority.body.decode() == server.app.certificates.authority.pem
    bad = await server.post("/api/v1/enrol", {"secret": 1}, key=NOBODY)
    assert bad.status == 400
    unknown = await server.post("/api/v1/enrol", [], key=NOBODY)
    assert unknown.status == 400


# ── what was asked ────────────────────────────────────────────────────────────────────────────


async def fill(server: Server, count: int = 10) -> None:
    for number in range(count):
        odd = number % 2
        server.app.bus.publish(
            LEDGER,
            entry(
                number,
                key_id=f"key_{odd}",
                account=f"account_{odd}",
                node_id=None if odd else "node_attic",
                model="a" if number < 4 else "b/c:d",
                outcome="refused" if odd else "ok",
                completion_tokens=None if odd else 7,
            ),
        )
    await server.app.worker.flushed()


async def test_requests_are_read_page_by_page_newest_first(server: Server) -> None:
    await fill(server)
    seen, page, pages = [], "", 0
    while True:
        answer = (await server.get(f"/api/v1/requests?limit=5{page}")).body
        pages += 1
        seen += [one["request_id"] for one in answer["data"]]
        if answer["next"] is None:
            break
        page = f"&before={answer['next']}"
    assert seen == [f"req_{number:08d}" for number in reversed(range(10))]
    assert pages == 2


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("key=key_1", [9, 7, 5, 3, 1]),
        ("account=account_0&limit=2", [8, 6]),
        ("node=node_attic&model=a", [2, 0]),
        ("model=b%2Fc%3Ad&outcome=refused", [9, 7, 5]),
        ("model=nothing", []),
    ],
)
async def test_requests_are_filtered(server: Server, query: str, numbers: list[int]) -> None:
    await fill(server)
    data = (await server.get(f"/api/v1/requests?{query}")).body["data"]
    assert [one["request_id"] for one in data] == [f"req_{number:08d}" for number in numbers]


async def test_one_request_is_found_by_its_id(server: Server) -> None:
    await fill(server)
    one = await server.get("/api/v1/requests/req_00000003")
    assert (one.status, one.body["outcome"], one.body["stream"]) == (200, "refused", True)
    nothing = await server.get("/api/v1/requests/req_nothing")
    assert (nothing.status, nothing.code) == (404, "request_not_found")


async def test_usage_is_summed_as_asked(server: Server) -> None:
    await fill(server)
    hour = int(NOON)
    times = f"since={NOON}&until={NOON + 3600}"
    total = (await server.get(f"/api/v1/usage?{times}")).body
    assert (total["since"], total["until"], total["complete"]) == (NOON, NOON + 3600, True)
    (row,) = total["data"]
    assert (row["group"], row["requests"], row["succeeded"]) == ({}, 10, 5)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (100, 35)

    by = (await server.get(f"/api/v1/usage?{times}&by=node,hour")).body
    assert [row["group"] for row in by["data"]] == [
        {"node": None, "hour": hour},
        {"node": "node_attic", "hour": hour},
    ]
    cut = (await server.get(f"/api/v1/usage?{times}&by=key&limit=1")).body
    assert (len(cut["data"]), cut["complete"]) == (1, False)
    assert (await server.get(f"/api/v1/usage?{times}&by=")).body == total


@pytest.mark.parametrize(
    "times",
    [
        "since=2025-06-15T00:00:00Z&until=2025-06-16",
        "since=2025-06-15T02:00:00%2B02:00&until=2025-06-16T00:00:00",
        "since=2025-06-15T02:00:00+02:00&until=1750032000.0",
    ],
)
async def test_times_may_be_written_as_people_do(server: Server, times: str) -> None:
    usage = (await server.get(f"/api/v1/usage?{times}")).body
    assert (usage["since"], usage["until"]) == (1_749_945_600.0, 1_750_032_000.0)


async def test_usage_of_the_last_day_is_the_default(server: Server) -> None:
    usage = (await server.get("/api/v1/usage")).body
    assert usage["until"] == pytest.approx(time.time(), abs=5)
    assert usage["until"] - usage["since"] == 86_400


def test_usage_can_be_summed_by_all_that_the_store_can() -> None:
    assert Group.__args__ == GROUPS  # type: ignore[attr-defined]


# ── metrics ───────────────────────────────────────────────────────────────────────────────────


async def figures(server: Server) -> dict[tuple[str, ...], float]:
    answer = await server.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


async def test_metrics_tell_what_goes_on_and_never_name_a_model_a_key_or_a_node(
    server: Server,
) -> None:
    with contextlib.suppress(ConnectionError), socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", server.app.listeners["control"].port))
        await loop.sock_sendall(sock, b"\x00\x00\x00\x00")
        await loop.sock_recv(sock, 1)
    served = [engine("ollama", ModelReport("secret-model"))]
    async with connected(server, "node_here", served) as machine:
        machine.link.send(heartbeat(1))
        await until(lambda: server.app.bus.waiting[HEARTBEATS])  # type: ignore[attr-defined]
        await fill(server)
        assert await server.public("/v1/models", server.user) == 200
        assert await server.public("/v1/nothing", server.user) == 404
        seen = await figures(server)
    for name, value in {
        "fabric_nodes_connected": 1,
        "fabric_tunnels": 1,
        "fabric_streams": 0,
        "fabric_slots": 2,
        "fabric_slots_active": 0,
        "fabric_models": 1,
        "fabric_requests_active": 0,
        "fabric_requests_waiting": 0,
        "fabric_records_written_total": 11,
        "fabric_records_failing": 0,
        "fabric_draining": 0,
    }.items():
        assert seen[name,] == value, name
    assert seen["fabric_engines", "healthy"] == 1
    assert seen["fabric_connections_opened_total", "control"] == 1
    assert seen["fabric_connections_refused_total", "control", "garbage"] == 1
    assert seen["fabric_public_connections",] == 1
    assert seen["fabric_refusals_total", "unknown_path"] == 1
    assert seen["fabric_bus_waiting", "request-ledger"] == 0
    assert seen["fabric_tunnel_bytes_total", "in"] > 0
    assert 0 <= seen["fabric_event_loop_lag_seconds",] < 5
    assert seen["process_resident_memory_bytes",] > 1_000_000
    text = (await server.get("/metrics")).body.decode()
    for name in ("secret-model", "node_here", "attic", server.user[:13], "key_"):
        assert name not in text
    # Labels have few values, all known beforehand.
    known = {*server.app.listeners, *REASONS, "healthy", "failing", "in", "out"}
    ours = {
        label
        for sample in seen
        if sample[0].startswith(("fabric_connections", "fabric_engines", "fabric_tunnel_bytes"))
        for label in sample[1:]
    }
    assert ours <= known


async def test_two_servers_in_one_process_have_figures_of_their_own(
    server: Server, tmp_path: Path
) -> None:
    assert (await server.get("/metrics")).body
    api.make(server.app)  # registers all its figures once more, elsewhere


# ── the description ───────────────────────────────────────────────────────────────────────────


async def test_every_route_is_described(server: Server) -> None:
    described = {
        (method.upper(), path)
        for path, operations in server.description["paths"].items()
        for method in operations
    }
    served = {
        (route.method, resource.canonical)
        for resource in api.make(server.app).router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    assert described == served
    assert server.description["openapi"].startswith("3.1")


async def test_every_route_and_figure_is_in_the_manual(server: Server) -> None:
    manual = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    for path in server.description["paths"]:
        assert f"`{path}`" in manual
    named = set(re.findall(r"fabric_\w+", manual))
    told = {name for name, *_ in await figures(server)}
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told if "fabric_" in name}
    # Counted by label: nothing was counted yet.
    silent = {"fabric_requests_total", "fabric_refusals_total", "fabric_tokens_total"}
    assert plain | silent == named


async def test_the_description_holds_together(server: Server) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [one for item in value.values() for one in references(item)]
        if isinstance(value, list):
            return [one for item in value for one in references(item)]
        return []

    found = {one.rpartition("/") for one in references(server.description)}
    assert {prefix for prefix, _, _ in found} == {"#/components/schemas"}
    assert {name for _, _, name in found} == set(schemas(server))
    names = [
        operation["operationId"]
        for operations in server.description["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(names)) == len(names)
    for operations in server.description["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert "default" in operation["responses"]


async def test_a_query_is_described_with_its_limits(server: Server) -> None:
    operation = server.description["paths"]["/api/v1/requests"]["get"]
    (limit,) = [one for one in operation["parameters"] if one["name"] == "limit"]
    assert limit == {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    }


def test_a_route_whose_handler_does_not_fit_its_path_is_a_defect() -> None:
    async def handler(id: str) -> Broken:
        return Broken()

    with pytest.raises(TypeError, match="does not fit"):
        Route("GET", "/things", handler)
    both: Route = Route("GET", "/things/{id}", handler)
    assert both.parts == ["id"]


def test_statuses_are_read_from_what_a_handler_says_it_returns() -> None:
    async def handler() -> tuple[Literal[200, 503], Broken]:
        return 503, Broken()

    assert Route("GET", "/", handler).statuses == (200, 503)
