"""The API port under test: a whole server, a client of that port, and a node without engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from fabric_server.app import App
from fabric_server.auth.keys import mint
from fabric_server.pki.ca import public_key_sha256
from fabric_server.pki.certificates import read_certificate
from ledger.records import LEDGER
from protocol import messages
from protocol.aio.link import LinkDriver
from protocol.aio.node import NodeTunnel
from protocol.control.link import LinkClosed
from protocol.messages import EngineReport, Heartbeat, ModelReport, Register, Registered
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from tests.contracts.samples import NOON, beat, digest, entry, invitation, node
from tests.trust import Papers, client_context, node_papers

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
            await self.app.backends.store.create_key(new.row)
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


def schemas(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.description["components"]["schemas"]
    return found


class Machine:
    """A node's link and one tunnel, with nothing behind them."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.registered: asyncio.Future[Registered] = loop.create_future()
        self.closed: asyncio.Future[LinkClosed] = loop.create_future()
        self.link: LinkDriver
        self.tunnel: NodeTunnel

    def on_message(self, link: LinkDriver, message: messages.Message) -> None:
        if isinstance(message, Registered):
            self.registered.set_result(message)

    def on_closed(self, owner: Any, *reason: Any) -> None:
        if isinstance(owner, LinkDriver):
            self.closed.set_result(reason[0])

    def on_drain(self, tunnel: NodeTunnel, reason: str, seconds: float) -> None: ...

    async def dial(
        self, server: Server, name: str, engines: list[EngineReport], papers: Papers
    ) -> None:
        loop, app = asyncio.get_running_loop(), server.app
        authority = app.tls.certificates.authority

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
            "proxy", TUNNEL_ALPN, NodeTunnel(self, loop, rng=Random(3), accept=lambda *_: None)
        )
        self.tunnel.hello(registered.session)
        await until(lambda: app.control_plane.tunnels.count == 1)


@contextlib.asynccontextmanager
async def connected(
    server: Server, name: str, engines: list[EngineReport]
) -> AsyncIterator[Machine]:
    store = server.app.backends.store
    await store.create_invitation(invitation(name))
    authority = server.app.tls.certificates.authority
    papers = node_papers(authority, server.directory / "papers", name, now=time.time())
    key = public_key_sha256(read_certificate(papers.certificate))
    row = node(name, id=name, public_key_sha256=key)
    await store.redeem_invitation(digest(name), row, NOON)
    machine = Machine()
    await machine.dial(server, name, engines, papers)
    try:
        yield machine
    finally:
        for driver in (machine.tunnel, machine.link):
            driver.close(0, "the test is over")
        await asyncio.wait_for(machine.closed, 5)
        await until(lambda: server.app.control_plane.registry.node(name) is None)
        await until(lambda: server.app.control_plane.tunnels.count == 0)


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


async def fill(server: Server, count: int = 10) -> None:
    for number in range(count):
        odd = number % 2
        server.app.backends.bus.publish(
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
    await server.app.backends.writer.flush()


async def figures(server: Server) -> dict[tuple[str, ...], float]:
    answer = await server.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
