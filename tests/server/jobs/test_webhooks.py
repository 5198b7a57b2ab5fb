"""Who is told of the end of jobs, how it is signed, and where the server never goes."""

from __future__ import annotations

import asyncio
import base64
import errno
import hmac
import json
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest
from aiohttp import web

from fabric_server.jobs.webhooks import (
    MAX_ACCOUNT_ATTEMPTS,
    MAX_ATTEMPTS,
    MAX_WAITING,
    RETRIES,
    Webhooks,
    new_secret,
    sign,
)
from fabric_server.storage.connect import open_store
from fabric_server.storage.store import SqlStore
from fabric_server.storage.webhooks import WebhookRow, WebhookStore, add_webhook
from runtime.background import BackgroundTasks
from tests.engine import ScriptedEngine
from tests.fabric import Fabric

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 20.0


class Receiver:
    """A user's server, which answers as it was told to and keeps what came."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.statuses: deque[int] = deque()
        self.came: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
        self.paths: list[str] = []
        self.port = 0
        self._tls = tls

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/hook?a=b"

    async def next(self) -> tuple[dict[str, str], Any]:
        async with asyncio.timeout(PATIENCE):
            headers, body = await self.came.get()
        assert verified(SECRET, headers, body)
        return headers, json.loads(body)

    async def _take(self, request: web.Request) -> web.Response:
        self.paths.append(request.path_qs)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.came.put_nowait((headers, await request.read()))
        status = self.statuses.popleft() if self.statuses else 204
        elsewhere = {"location": f"http://127.0.0.1:{self.port}/elsewhere"}
        return web.Response(status=status, headers=elsewhere if status == 302 else {})


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As the specification tells receivers to, written anew."""
    key = base64.b64decode(secret.split("_", 1)[1])
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    right = base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{right}"


def test_a_signature_is_that_of_the_specifications_example() -> None:
    body = b'{"test": 2432232314}'
    found = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# ── from a job's end to its receiver ──────────────────────────────────────────────────────────


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


async def test_the_end_of_a_job_is_told_with_its_answer(
    tmp_path: Path, engine: ScriptedEngine, receiver: Receiver
) -> None:
    async with Fabric(tmp_path, webhook_http=True, webhook_private=True) as fabric:
        await fabric.join(engine.url)
        webhook = {"url": receiver.url, "secret": SECRET}
        job = {"model": "tiny", "prompt": "Hi", "id": "one", "async": True, "webhook": webhook}
        async with fabric.user() as user:
            async with user.post("/inference", json=job) as answer:
                assert answer.status == 202
                assert "whsec" not in await answer.text()
            headers, told = await receiver.next()
            async with user.get("/inference/one") as answer:
                assert "whsec" not in await answer.text()
            await settled(fabric.app.backends.store)
            assert fabric.app.data_plane.jobs.deliveries == {"delivered": 1}
    assert receiver.paths == ["/hook?a=b"]
    assert headers["content-type"] == "application/json"
    assert told["type"] == "job.completed"
    assert (told["data"]["id"], told["data"]["response"]) == ("one", "Hello, world")


async def test_the_end_of_a_batch_is_told_and_a_secret_that_was_made_is_shown_once(
    tmp_path: Path, engine: ScriptedEngine, receiver: Receiver
) -> None:
    async with Fabric(tmp_path, webhook_http=True, webhook_private=True) as fabric:
        await fabric.join(engine.url)
        async with fabric.openai() as client:
            line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}
            text = json.dumps({**line, "body": {"model": "tiny", "input": "x"}}).encode()
            file = await client.files.create(file=("in", text), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/embeddings",
                completion_window="24h",
                extra_body={"webhook": {"url": receiver.url}},
            )
            assert batch.model_extra is not None
            secret = batch.model_extra["webhook"]["secret"]
            async with asyncio.timeout(PATIENCE):
                headers, body = await receiver.came.get()
            assert verified(secret, headers, body)
            told = json.loads(body)
            again = await client.batches.retrieve(batch.id)
    assert told["type"] == "batch.completed"
    assert told["data"]["output_file_id"] == again.output_file_id
    assert "whsec" not in again.to_json()


async def test_webhooks_into_the_servers_own_network_are_refused(
    tmp_path: Path, engine: ScriptedEngine, receiver: Receiver
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.user() as user:
        await fabric.join(engine.url)
        for url in (
            receiver.url,
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/latest",
            "https://user:password@example.com/",
            "ftp://example.com/",
            "https://",
            "https://exa mple.com",
        ):
            job = {"model": "tiny", "prompt": "Hi", "async": True, "webhook": {"url": url}}
            async with user.post("/inference", json=job) as answer:
                assert answer.status == 400, url
                assert (await answer.json())["error"]["param"] == "webhook"
        job["webhook"] = {"url": "https://example.com/", "secret": "whsec_short"}
        async with user.post("/inference", json=job) as answer:
            assert answer.status == 400
        # A name is only found out when it is to be told.
        job["webhook"] = {"url": f"https://localhost:{receiver.port}/"}
        async with user.post("/inference", json=job) as answer:
            assert answer.status == 202
        await engine.started()
        await settled(fabric.app.backends.store)
        assert fabric.app.data_plane.jobs.deliveries == {"given_up": 1}
    assert receiver.paths == []


async def waiting(store: SqlStore) -> int:
    rows = await store.database.fetch("SELECT count(*) FROM webhooks")
    unfinished = await store.database.fetch("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
    return int(rows[0][0] + unfinished[0][0])


# ── tries ─────────────────────────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    await store.close()


async def add(store: SqlStore, url: str, now: float, *ids: str, account: str = "acme") -> None:
    async with store.database.transaction() as session:
        for id in ids or ("msg_1",):
            row = WebhookRow(id, account, url, SECRET, b'{"type":"test"}', 0, now)
            await add_webhook(session, row)


def webhooks(store: SqlStore, clock: Clock, **settings: Any) -> Webhooks:
    settings = {"allow_http": True, "allow_private": True, **settings}
    return Webhooks(WebhookStore(store.database), clock=clock, **settings)


async def settled(store: SqlStore) -> None:
    async with asyncio.timeout(PATIENCE):
        while await waiting(store):  # noqa: ASYNC110 - another part's doing, seen in the store
            await asyncio.sleep(0.02)


async def test_a_delivery_that_fails_is_tried_again_also_by_another_server(
    store: SqlStore, receiver: Receiver
) -> None:
    clock = Clock()
    receiver.statuses.extend((500, 302))
    await add(store, receiver.url, clock.now)
    ids = set()
    for wait in (0.0, RETRIES[0], RETRIES[1]):
        clock.now += wait
        telling = asyncio.create_task(webhooks(store, clock).run())  # as after a restart
        headers, told = await receiver.next()
        assert told == {"type": "test"}
        assert int(headers["webhook-timestamp"]) == int(clock.now)
        ids.add(headers["webhook-id"])
        if wait == RETRIES[1]:
            await settled(store)
        await asyncio.sleep(0.1)
        telling.cancel()
        await asyncio.wait([telling])
    assert ids == {"msg_1"}
    assert receiver.paths == ["/hook?a=b"] * 3  # no redirect was followed


async def test_a_delivery_is_given_up_after_its_last_try(
    store: SqlStore, receiver: Receiver
) -> None:
    clock = Clock()
    receiver.statuses.extend([503] * 9)
    await add(store, receiver.url, clock.now)
    telling = webhooks(store, clock)
    running = asyncio.create_task(telling.run())
    for wait in (*RETRIES, 0.0):
        await receiver.next()
        clock.now += wait
        telling.wake()
    await settled(store)
    running.cancel()
    await asyncio.wait([running])
    assert len(receiver.paths) == 5


class FailingOnce(WebhookStore):
    """Fails at first, as a store does for whose file there is no descriptor."""

    failed = False

    async def due(self, now: float, *, limit: int, busy: Sequence[str] = ()) -> list[WebhookRow]:
        if not self.failed:
            self.failed = True
            raise OSError(errno.EMFILE, "Too many open files")
        return await super().due(now, limit=limit, busy=busy)


async def test_deliveries_go_on_after_a_failure_of_their_task(
    store: SqlStore, receiver: Receiver
) -> None:
    clock = Clock()
    await add(store, receiver.url, clock.now)
    failing = FailingOnce(store.database)
    telling = Webhooks(failing, clock=clock, allow_http=True, allow_private=True)
    tasks = BackgroundTasks(Random(1), first_pause=0.001)
    tasks.start("webhooks", telling.run)
    assert (await receiver.next())[1] == {"type": "test"}
    await settled(store)
    assert tasks.failures["webhooks"] == 1
    await tasks.stop()


async def test_over_tls_the_receivers_name_is_checked(tmp_path: Path, store: SqlStore) -> None:
    async with (
        Fabric(tmp_path / "fabric") as fabric,
        Receiver(tls=fabric.app.tls.public()) as receiver,
    ):
        clock = Clock()
        await add(store, receiver.url, clock.now)
        # It knows no CA that vouches for the receiver: each try of it comes to nothing.
        stranger = webhooks(store, clock)
        running = asyncio.create_task(stranger.run())
        while await tries(store) < 2:
            clock.now += RETRIES[0]
            stranger.wake()
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])
        assert receiver.came.empty()
        clock.now += RETRIES[1]
        running = asyncio.create_task(webhooks(store, clock, trust=fabric.trust()).run())
        await receiver.next()
        await settled(store)
        running.cancel()
        await asyncio.wait([running])


async def tries(store: SqlStore) -> int:
    rows = await store.database.fetch("SELECT tries FROM webhooks")
    return int(rows[0][0])


def test_secrets_that_are_made_can_be_used() -> None:
    assert sign(new_secret(), "msg", 1, b"{}").startswith("v1,")


async def test_a_server_that_never_answers_is_left_alone(store: SqlStore) -> None:
    """Not for ever, that is: the connection is cut when the server ends, too."""
    clock, arrived = Clock(), asyncio.Event()
    closed = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        with suppress(ConnectionError):
            await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await add(store, f"http://127.0.0.1:{port}/", clock.now)
    running = asyncio.create_task(webhooks(store, clock).run())
    async with asyncio.timeout(PATIENCE):
        await arrived.wait()
        running.cancel()
        await asyncio.wait([running])
        await closed.wait()
    server.close()
    await server.wait_closed()
    assert await tries(store) == 1


async def test_who_never_answers_keeps_nobody_else_waiting(
    store: SqlStore, receiver: Receiver
) -> None:
    clock, arrived, ended = Clock(), 0, asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    await add(store, url, clock.now - 1, *(f"msg_{n}" for n in range(2 * MAX_ATTEMPTS)))
    await add(store, receiver.url, clock.now, "msg_other", account="other")
    running = asyncio.create_task(webhooks(store, clock).run())
    await receiver.next()
    assert arrived <= MAX_ACCOUNT_ATTEMPTS
    ended.set()
    running.cancel()
    await asyncio.wait([running])
    server.close()


async def test_an_account_whose_webhooks_nobody_takes_is_promised_no_more(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric, fabric.user() as user, ScriptedEngine() as engine:
        await fabric.join(engine.url)
        later = time.time() + 3600
        ids = [f"msg_{n}" for n in range(MAX_WAITING)]
        await add(fabric.app.backends.store, "https://example.com/", later, *ids, account="tests")
        webhook = {"url": "https://example.com/"}
        job = {"model": "tiny", "prompt": "Hi", "async": True, "webhook": webhook}
        async with user.post("/inference", json=job) as answer:
            told = (await answer.json())["error"]
        assert (answer.status, told["code"]) == (429, "too_many_webhooks")
        del job["webhook"]
        async with user.post("/inference", json=job) as answer:
            assert answer.status == 202
