"""PostgreSQL when it is wrong, away, slow, full of writers: what is said, and what is kept."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest

from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryBus
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.reports import LedgerReports
from ledger.tables import LedgerTables
from runtime.errors import BackendError, StoreError, Unreachable
from sql.connect import migrate, open_database
from sql.postgres import PostgresDatabase
from tests.contracts.samples import NOON, beat, entry, key
from tests.lab.backends import free_port
from tests.lab.postgres_server import PostgresServer, execute

FOREVER = 1e12


@pytest.fixture
def own(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server that may be harmed."""
    with PostgresServer(tmp_path / "postgres") as server:
        yield server


@pytest.fixture
async def hasty(own: PostgresServer) -> AsyncIterator[PostgresDatabase]:
    """A database that is not waited for long."""
    database = await PostgresDatabase.open(own.url, connect_seconds=0.5, statement_seconds=0.5)
    await migrate(database, NOON)
    yield database
    await database.close()


# ── opening ───────────────────────────────────────────────────────────────────────────────────


async def test_nobody_there_is_said_with_the_setting_and_without_the_password() -> None:
    url = f"postgresql://joe:secret@127.0.0.1:{free_port()}/fabric"
    with pytest.raises(Unreachable, match=r"^store: PostgreSQL at .*can't be reached") as caught:
        await open_store(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(Unreachable, match="can't be reached"):
        await open_database("postgresql://fabric.invalid/fabric")


async def test_a_port_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://127.0.0.1:{mute.getsockname()[1]}/fabric"
        with pytest.raises(Unreachable, match="does not answer"):
            await PostgresDatabase.open(url, connect_seconds=0.2)


async def test_what_is_wrong_at_the_server_is_told_as_it_says_it(postgres: PostgresServer) -> None:
    there = postgres.url
    with pytest.raises(StoreError, match="has no such database") as caught:
        await open_store(there.rpartition("/")[0] + "/nowhere")
    assert not isinstance(caught.value, Unreachable), "waiting would not help"
    with pytest.raises(StoreError, match=r"store: .* is version \d+; 99 or newer is needed"):
        try:
            await PostgresDatabase.open(there, oldest=99)
        except StoreError as error:
            raise StoreError(f"store: {error}") from error


async def test_a_user_that_does_not_exist_is_refused(own: PostgresServer) -> None:
    with pytest.raises(StoreError, match="rejects this user or password") as caught:
        await open_store(own.url.replace("postgres@", "nobody:secret@"))
    assert "secret" not in str(caught.value)
    assert not isinstance(caught.value, Unreachable)


@pytest.mark.parametrize("url", ["postgresql://host:port/db", "postgresql://h/db?sslmode=maybe"])
async def test_a_url_that_is_wrong_is_named(url: str) -> None:
    with pytest.raises(BackendError, match="store") as caught:
        await open_store(url)
    assert not isinstance(caught.value, Unreachable)


async def test_a_store_of_a_newer_release_is_not_opened(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    await (await open_store(url)).close()
    execute(url, "INSERT INTO schema_migrations VALUES (99, '0099_far.sql', 'x', 0)")
    with pytest.raises(StoreError, match="newer release"):
        await open_store(url)


async def test_an_edited_migration_is_refused(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    await (await open_store(url)).close()
    execute(url, "UPDATE schema_migrations SET sha256 = 'other' WHERE number = 2")
    with pytest.raises(StoreError, match=r"0002_accounts\.sql was edited after it was applied"):
        await open_store(url)


# ── while it runs ─────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_was_killed_is_used_again_when_it_is_back(own: PostgresServer) -> None:
    store = await open_store(own.url)
    await store.create_key(key())
    await store.write([beat(1)], [entry(1)])
    own.kill()
    with pytest.raises(StoreError, match="PostgreSQL at"):
        await store.keys()
    with pytest.raises(StoreError, match="PostgreSQL at"):
        await store.write([], [entry(2)])
    own.start()
    assert [row.name for row in await store.keys()] == ["laptop"]
    await store.write([], [entry(2)])
    assert len(await store.requests()) == 2
    await store.close()


async def test_a_server_that_hangs_costs_no_more_than_was_allowed(
    own: PostgresServer, hasty: PostgresDatabase
) -> None:
    own.pause()
    async with asyncio.timeout(20):
        for _ in range(3):
            with pytest.raises(StoreError, match=r"does not answer|is away"):
                await hasty.fetch("SELECT 1")
        waiting = asyncio.create_task(hasty.fetch("SELECT 1"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with suppress(asyncio.CancelledError, StoreError):
            await waiting
        own.resume()
        assert (await hasty.fetch("SELECT 1"))[0][0] == 1


async def test_a_read_only_server_says_so_and_answers_reports(own: PostgresServer) -> None:
    store = await open_store(own.url)
    await store.write([], [entry(1)])
    own.read_only(True)
    await _until_refused(store)
    with pytest.raises(StoreError, match="is read-only"):
        await store.write([], [entry(2)])
    assert len(await store.requests()) == 1
    own.read_only(False)
    async with asyncio.timeout(10):
        while True:
            with suppress(StoreError):
                await store.write([], [entry(2)])
                break
    await store.close()


async def _until_refused(store: LedgerTables) -> None:
    """A reload reaches running connections a moment later."""
    async with asyncio.timeout(10):
        with suppress(StoreError):
            while True:
                await store.write([], [entry(1)])


async def test_a_worker_loses_and_doubles_nothing_while_the_server_is_killed_again_and_again(
    own: PostgresServer, hasty: PostgresDatabase
) -> None:
    bus, rng = MemoryBus(), Random(20261121)
    worker = BatchWriter(
        bus,
        LedgerTables(hasty),
        options=BatchOptions(batch_size=20, batch_seconds=0.01, retry_seconds=(0.05, 0.2)),
    )
    task = asyncio.create_task(worker.run())
    count = 0
    async with asyncio.timeout(60):
        for _ in range(4):
            for _ in range(rng.randrange(50, 300)):
                bus.publish("request-ledger", entry(count))
                count += 1
                if count % 10 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            own.kill()
            own.start()
        await worker.flush()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    (total,) = await LedgerReports(hasty).usage(0, FOREVER)
    assert total.requests == count
    ((rows,),) = await hasty.fetch("SELECT COUNT(*) FROM ledger")
    assert rows == count


async def test_many_writers_at_once_count_every_entry_once(postgres: PostgresServer) -> None:
    """Overlapping batches, in any order: usage by the hour stays the sum of the ledger."""
    rng = Random(20261121)
    entries = [
        entry(
            number,
            at=NOON + number * 97,
            account=rng.choice(["default", "acme"]),
            model=rng.choice(["m1", "m2"]),
            node_id=rng.choice([None, "node_a"]),
            prompt_tokens=rng.choice([None, 1, 1000]),
        )
        for number in range(400)
    ]
    url = postgres.new_database()
    stores = [await open_store(url) for _ in range(4)]

    async def write(store: LedgerTables, seed: int) -> None:
        own = Random(seed)
        for _ in range(15):
            await store.write([], own.sample(entries, own.randrange(1, 120)))

    async with asyncio.timeout(60):
        await asyncio.gather(*(write(store, seed) for seed, store in enumerate(stores)))
    await stores[0].write([], entries)
    database = await PostgresDatabase.open(url)
    told = await database.fetch(
        "SELECT hour, account, key_id, node_id, engine, model, path, outcome, requests,"
        " prompt_tokens, completion_tokens, bytes_in, bytes_out FROM usage_by_hour ORDER BY"
        " hour, account, key_id, node_id, engine, model, path, outcome"
    )
    counted = await database.fetch(
        "SELECT CAST(FLOOR(at) AS BIGINT) / 3600 * 3600, account, key_id, COALESCE(node_id, ''),"
        " COALESCE(engine, ''), model, path, outcome, COUNT(*),"
        " CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT),"
        " CAST(SUM(completion_tokens) AS BIGINT), CAST(SUM(bytes_in) AS BIGINT),"
        " CAST(SUM(bytes_out) AS BIGINT)"
        " FROM ledger GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8"
    )
    assert [tuple(row) for row in told] == [tuple(row) for row in counted]
    assert sum(row[8] for row in told) == 400
    await database.close()
    for store in stores:
        await store.close()


async def test_days_of_heartbeats_are_tables_that_are_dropped_whole(
    postgres: PostgresServer,
) -> None:
    store = await open_store(url := postgres.new_database())
    tables = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables"
    ours = f"{tables} WHERE tablename LIKE 'heartbeats%'"
    assert not await store.delete_heartbeats(NOON - 86_400, NOON, 1)
    assert execute(url, ours) == (
        "heartbeats heartbeats_20250615 heartbeats_20250616 heartbeats_20250617 heartbeats_rest"
    )
    await store.write([beat(1)], [])
    assert execute(url, "SELECT COUNT(*) FROM heartbeats_20250615") == 1
    await asyncio.gather(
        *(store.delete_heartbeats(NOON + 86_400, NOON + 2 * 86_400, 1) for _ in range(4))
    )
    assert execute(url, ours) == (
        "heartbeats heartbeats_20250616 heartbeats_20250617 heartbeats_20250618"
        " heartbeats_20250619 heartbeats_rest"
    )
    assert await store.heartbeats("node_attic") == []
    await store.close()


# ── a connection that breaks while it is given back ───────────────────────────────────────────


class CutsAtReset:
    """A proxy, as a fault: cuts a connection when the pool resets it, once ``armed``."""

    RESET = b"pg_advisory_unlock_all"

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.armed = False
        self.cuts = 0

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
        with suppress(ConnectionError):
            back = asyncio.create_task(self._pump(upstream_reader, writer))
            self._tasks.add(back)
            back.add_done_callback(self._tasks.discard)
            await self._pump(reader, upstream_writer)
            await back
        for one in (writer, upstream_writer):
            one.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if self.armed and self.RESET in data:
                self.armed = False
                self.cuts += 1
                break
            sink.write(data)
            await sink.drain()
        sink.transport.abort()


async def test_a_connection_lost_while_it_is_given_back_costs_nothing(own: PostgresServer) -> None:
    parts = urlsplit(own.url)
    assert parts.port is not None
    proxy = CutsAtReset(parts.port)
    async with await proxy.serve() as server:
        port = server.sockets[0].getsockname()[1]
        url = parts._replace(netloc=parts.netloc.replace(str(parts.port), str(port))).geturl()
        database = await PostgresDatabase.open(url)
        try:
            proxy.armed = True
            assert list(await database.fetch("SELECT 1")) == [(1,)]
            assert proxy.cuts == 1
            proxy.armed = True
            async with database.transaction() as session:
                await session.execute("CREATE TABLE kept (n BIGINT)")
            assert proxy.cuts == 2
            assert list(await database.fetch("SELECT count(*) FROM kept")) == [(0,)]
        finally:
            await database.close()
