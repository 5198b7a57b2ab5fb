"""The full circle: a server is backed up while it works, lost, and restored elsewhere.

Its node comes back with the certificate that it has, its key works, and files of batches are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from pathlib import Path
from typing import Any

import pytest

from fabric_server.backup.age import Encryption
from fabric_server.backup.age_keys import Passphrase
from fabric_server.backup.archive import open_archive
from fabric_server.backup.making import Server, make_backup
from fabric_server.backup.restoring import Place, Restored, restore_archive
from tests.engine import ScriptedEngine
from tests.fabric import Fabric
from tests.lab.postgres_server import PostgresServer
from tests.lab.redis_server import RedisServer

CHAT = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": []}
SECRET = Passphrase("correct horse", 4)
LINES = b'{"custom_id":"1"}\n' * 50_000


async def backup(fabric: Fabric) -> bytes:
    file = io.BytesIO()
    encryption = Encryption(file, [SECRET])
    config = fabric.config
    server = Server(
        data=config.data,
        store_url=config.store_url,
        addresses=config.names(),
        given=[],
        settings_file=None,
        elsewhere=[],
    )
    await make_backup(server, encryption, lambda _: None)
    encryption.finish()
    return file.getvalue()


async def restore(data: bytes, directory: Path, store: str = "", cache: str = "") -> Restored:
    archive, encrypted = open_archive(io.BytesIO(data), lambda: SECRET, lambda _: None)
    assert encrypted
    url = store or f"sqlite:///{directory / 'server' / 'fabric.sqlite'}"
    place = Place(
        data=directory / "server",
        force=False,
        with_store=True,
        store_url=lambda _: url,
        cache_url=lambda _: cache or "memory://",
    )
    return await restore_archive(archive, place)


async def ask(fabric: Fabric, key: str) -> int:
    async with fabric.user(key) as user, user.post(CHAT, json=ASK) as answer:
        return answer.status


async def upload(fabric: Fabric) -> str:
    async with fabric.openai() as client:
        file = await client.files.create(file=("lines.jsonl", LINES), purpose="batch")
        return file.id


async def content(fabric: Fabric, id: str, key: str) -> bytes:
    async with fabric.openai(api_key=key) as client:
        return (await client.files.content(id)).content


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_server_is_the_same_again_elsewhere(
    kind: str, tmp_path: Path, engine: ScriptedEngine, request: pytest.FixtureRequest
) -> None:
    stores = ["", ""]
    if kind == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        stores = [postgres.new_database(), postgres.new_database()]
    there = tmp_path / "there"
    async with Fabric(tmp_path / "here", store=stores[0]) as fabric:
        node = await fabric.join(engine.url)
        key, file = fabric.key, await upload(fabric)
        assert await ask(fabric, key) == 200
        asked = 0

        async def use() -> None:
            nonlocal asked
            while True:
                assert await ask(fabric, key) == 200
                asked += 1

        async def requests(number: int) -> None:
            enough = asked + number
            while asked < enough:
                assert not using.done()
                await asyncio.sleep(0.01)

        using = asyncio.get_running_loop().create_task(use())
        await requests(5)
        before = asked
        data = await backup(fabric)
        await requests(5)  # the server goes on
        using.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await using
        await node.stop()
        fabric.nodes.clear()
        ports = {f"{name}_port": port.port for name, port in fabric.app.listeners.items()}
        sha256 = fabric.app.tls.certificates.ca.read_bytes()
    done = await restore(data, there, stores[1])
    assert (done.counts.keys, done.counts.nodes, done.cache_problem) == (2, 1, "memory")

    # The server is at the same address again, and the node's directory is as it was.
    restored = Fabric(there, store=stores[1], **ports)
    await restored.start()
    try:
        assert restored.app.tls.certificates.ca.read_bytes() == sha256
        await restored.run_node(node.config.data, engine.url)
        assert await ask(restored, key) == 200
        assert await content(restored, file, key) == LINES
        entries = await restored.ledger()
        assert len(entries) >= before + 2  # and the first, and that of now
        assert len({one.request_id for one in entries}) == len(entries)
    finally:
        for one in restored.nodes:
            await one.stop()
        await restored.stop()


async def test_what_was_revoked_after_the_backup_stays_revoked_where_redis_knows(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    with RedisServer(tmp_path) as redis:
        settings: dict[str, Any] = {"cache": redis.url}
        async with Fabric(tmp_path / "here", **settings) as fabric:
            node = await fabric.join(engine.url)
            revoked, other = await fabric.make_key(), fabric.key
            data = await backup(fabric)
            assert await ask(fabric, revoked) == 200
            store = fabric.app.backends.store
            row = next(one for one in await store.keys() if revoked.startswith(one.prefix))
            for id in (row.id, node.id):
                change = store.revoke_node if id == node.id else store.revoke_key
                await change(id, time.time())
            await fabric.app.change_feed.sync()
            async with asyncio.timeout(10):
                cache = fabric.app.backends.cache
                while {row.id, node.id} - set(await cache.revoked()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            fabric.nodes.clear()  # it ends by itself, and says why
            await asyncio.gather(node.task, return_exceptions=True)

        # A restore that knows Redis says so at once.
        done = await restore(data, tmp_path / "at-once", cache=redis.url)
        assert (done.revoked_again, done.cache_problem) == (2, "")
        assert (done.counts.keys, done.counts.nodes) == (2, 0)

        # After any other, such as of the store alone, the first start does it before a port opens.
        done = await restore(data, tmp_path / "later")
        assert done.counts.keys == 3
        later = Fabric(tmp_path / "later", **settings)
        await later.start()
        try:
            assert await ask(later, revoked) == 401
            assert await ask(later, other) == 404  # the key works, and no node is there
            (found,) = await later.app.backends.store.nodes()
            assert found.state == "revoked"
        finally:
            await later.stop()
