"""A backup of every store that outlives its process, and what is restored from it."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec import structs

from fabric_server.backup.age_keys import Passphrase
from fabric_server.backup.archive import ArchiveReader, open_archive
from fabric_server.backup.making import Made, Server, make_backup
from fabric_server.backup.problem import BackupProblem
from fabric_server.backup.restoring import Place, Restored, check_archive, restore_archive
from fabric_server.pki.certificates import Certificates
from fabric_server.storage.connect import open_store
from fabric_server.storage.rows import KeyRow, NodeRow
from fabric_server.storage.store import SqlStore
from ledger import partitions
from runtime.errors import BackendError, StoreError
from sql import migrations
from sql.connect import open_database
from sql.sqlite import path_of
from tests.contracts.samples import beat, entry

ODD = [
    "plain",
    "",
    "\\N",
    "tab\tand\nlines\r\n",
    "\\.",
    "quote \" and ' and |",
    "äöü 漢字 🙂",
    "\\x41",
]


def nothing(_: int) -> None:
    pass


def a_server(directory: Path, url: str) -> Server:
    data = directory / "server"
    Certificates.open(data / "certs", ["localhost"], now=time.time())
    return Server(
        data=data,
        store_url=url,
        addresses=["localhost"],
        given=[],
        settings_file=None,
        elsewhere=[],
    )


async def backup_of(server: Server) -> tuple[bytes, Made]:
    file = io.BytesIO()
    made = await make_backup(server, file, nothing)
    return file.getvalue(), made


def opened(data: bytes) -> ArchiveReader:
    return open_archive(io.BytesIO(data), lambda: Passphrase(""), nothing)[0]


async def restored(data: bytes, directory: Path, url: str, *, cache: str = "memory://") -> Restored:
    place = Place(
        data=directory / "restored",
        force=False,
        with_store=True,
        store_url=lambda _: url,
        cache_url=lambda _: cache,
    )
    return await restore_archive(opened(data), place)


def another(request: pytest.FixtureRequest, url: str, directory: Path) -> str:
    """Return the URL of a new store of the same kind."""
    if url.startswith("sqlite"):
        return f"sqlite:///{directory / 'restored' / 'fabric.sqlite'}"
    new: str = request.getfixturevalue("postgres").new_database()
    return new


def key(number: int, **others: Any) -> KeyRow:
    return KeyRow(
        id=f"key_{number:016}",
        account="tests",
        name=ODD[number % len(ODD)],
        prefix=f"sk-fab-{number}",
        hash=number.to_bytes(32),
        management=False,
        created_at=1.5,
        **others,
    )


def node(number: int) -> NodeRow:
    return NodeRow(f"node_{number:016}", ODD[number % len(ODD)], bytes(range(32)), 1.0)


async def fill(store: SqlStore) -> None:
    """Put something into tables of all kinds: odd texts, bytes, references, partitions."""
    for number in range(len(ODD)):
        await store.create_key(key(number))
    await store.revoke_key("key_0000000000000001", 2.0)
    database = store.database
    async with database.transaction() as session:
        for number in range(3):
            await session.execute(
                "INSERT INTO nodes (id, name, public_key_sha256, created_at, epoch, platform,"
                " version, revision) VALUES ($1, $2, $3, 1.0, 0, '', '', 1)",
                node(number).id,
                node(number).name,
                node(number).public_key_sha256,
            )
            await session.execute(
                "INSERT INTO served_models (node_id, model) VALUES ($1, $2)",
                node(number).id,
                ODD[number],
            )
        await session.execute(
            "INSERT INTO files (id, account, name, purpose, size, created_at, expires_at, complete)"
            " VALUES ('file_1', 'tests', 'a', 'batch', 4, 1.0, 2.0, TRUE)"
        )
        await session.execute(
            "INSERT INTO file_chunks (file_id, number, data) VALUES ('file_1', 1, $1)",
            bytes(range(256)) * 2048,
        )
    now = time.time()
    if database.partitioned:
        await partitions.maintain(database, now - 5 * 86_400, now)
    beats = [structs.replace(beat(number), at=now) for number in range(5)]
    beats.append(structs.replace(beat(1, epoch=2), at=5.0))  # of no day's table
    await store.write(beats, [entry(number) for number in range(50)])


async def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of all tables."""
    if url.startswith("sqlite"):
        path = path_of(url)
        assert path is not None
        with sqlite3.connect(path) as connection:
            names = (
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
            tables = [row[0] for row in connection.execute(names)]
            found = {
                name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables
            }
        connection.close()
    else:
        postgres = await asyncpg.connect(url)
        rows = await postgres.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = {}
        for (name,) in rows:
            found[name] = [tuple(row) for row in await postgres.fetch(f"SELECT * FROM {name}")]
        await postgres.close()
    # Whose time is that of the restoring where the schema is made anew.
    found["schema_migrations"] = [row[:3] for row in found["schema_migrations"]]
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


async def test_what_is_restored_is_what_there_was(
    shared_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = await open_store(shared_url)
    try:
        await fill(store)
        data, made = await backup_of(a_server(tmp_path, shared_url))
    finally:
        await store.close()
    assert (made.counts.keys, made.counts.nodes) == (len(ODD) - 1, 3)
    archive = opened(data)
    check_archive(archive)
    assert archive.counts == made.counts
    url = another(request, shared_url, tmp_path)
    done = await restored(data, tmp_path, url)
    assert done.counts == made.counts
    assert await everything(url) == await everything(shared_url)
    again = await open_store(url)
    try:
        assert await again.revision() == store.revision_at_open + len(ODD) + 1
        await again.write([beat(7)], [entry(77)])
    finally:
        await again.close()


async def test_it_is_of_one_moment_though_others_write_all_the_time(
    shared_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = await open_store(shared_url)
    started = asyncio.Event()

    async def write() -> None:
        """Always write an entry and its key's account in one transaction."""
        for number in range(100_000):
            async with store.database.transaction() as session:
                for table in ("accounts", "files"):
                    await session.execute(PAIR[table], f"pair_{number:06}")
            if number == 20:
                started.set()

    writing = asyncio.get_running_loop().create_task(write())
    try:
        await started.wait()
        data, _ = await backup_of(a_server(tmp_path, shared_url))
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await store.close()
    url = another(request, shared_url, tmp_path)
    await restored(data, tmp_path, url)
    found = await everything(url)
    numbers = [row[0] for row in found["accounts"]]
    assert numbers == [row[0] for row in found["files"]]
    assert numbers == [f"pair_{number:06}" for number in range(len(numbers))]
    assert len(numbers) > 20


PAIR = {
    "accounts": "INSERT INTO accounts (name, note, created_at, enabled, revision)"
    " VALUES ($1, '', 1.0, TRUE, 1)",
    "files": "INSERT INTO files (id, account, name, purpose, size, created_at, expires_at,"
    " complete) VALUES ($1, '', '', '', 0, 1.0, 2.0, TRUE)",
}


async def test_an_older_schema_is_brought_up_to_date(
    shared_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    known = migrations.find(migrations.directory())
    database = await open_database(shared_url)
    await migrations.migrate(database, known[:9], 1.0)
    async with database.transaction() as session:
        await session.execute(
            "INSERT INTO keys (id, account, name, prefix, hash, management, created_at, revision)"
            " VALUES ('key_1', 'tests', '', '', $1, FALSE, 1.0, 1)",
            bytes(32),
        )
    await database.close()
    data, made = await backup_of(a_server(tmp_path, shared_url))
    assert (len(made.about.schema), made.counts.keys) == (9, 1)
    url = another(request, shared_url, tmp_path)
    await restored(data, tmp_path, url)
    store = await open_store(url)
    try:
        assert [row.id for row in await store.keys()] == ["key_1"]
        status = await migrations.status(store.database, known)
        assert all(one.applied_at for one in status)
    finally:
        await store.close()


async def test_a_newer_schema_is_refused_before_anything_is_read(
    shared_url: str, tmp_path: Path
) -> None:
    await (await open_store(shared_url)).close()
    server = a_server(tmp_path, shared_url)
    data, made = await backup_of(server)
    newest = made.about.schema[-1]
    archive = opened(data)
    archive.about.schema.append(
        structs.replace(newest, number=newest.number + 1, name="9999_of_tomorrow.sql")
    )
    with pytest.raises(BackupProblem, match=r"9999_of_tomorrow.*install"):
        check_archive(archive)
    other = opened(data.replace(newest.sha256.encode(), b"0" * 64, 1))
    with pytest.raises(BackupProblem, match="the release that made it"):
        check_archive(other)
    database = await open_database(shared_url)
    async with database.transaction() as session:
        await session.execute(
            "INSERT INTO schema_migrations VALUES (9999, '9999_of_tomorrow.sql', '', 1.0)"
        )
    await database.close()
    with pytest.raises(StoreError, match="newer release"):
        await backup_of(server)


async def test_a_store_with_rows_is_never_written_over(
    shared_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = await open_store(shared_url)
    await fill(store)
    await store.close()
    data, _ = await backup_of(a_server(tmp_path, shared_url))
    before = await everything(shared_url)
    with pytest.raises(BackupProblem, match=r"not empty|there is a store"):
        await restored(data, tmp_path, shared_url)
    assert await everything(shared_url) == before
    assert not (tmp_path / "restored").exists()


async def test_after_a_damaged_backup_the_same_place_takes_a_sound_one(
    shared_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = await open_store(shared_url)
    await fill(store)
    await store.close()
    data, _ = await backup_of(a_server(tmp_path, shared_url))
    url = another(request, shared_url, tmp_path)
    late = bytearray(data)
    late[-4000] ^= 1  # in the manifest, long after all rows were read
    for damaged in (bytes(late), data[:-1024], data[: len(data) // 2]):
        with pytest.raises((BackupProblem, BackendError)):
            await restored(damaged, tmp_path, url)
        assert not (tmp_path / "restored").exists()
    await restored(data, tmp_path, url)
    assert await everything(url) == await everything(shared_url)


async def test_a_store_of_the_other_kind_is_refused(shared_url: str, tmp_path: Path) -> None:
    await (await open_store(shared_url)).close()
    data, _ = await backup_of(a_server(tmp_path, shared_url))
    other = "sqlite:///x" if shared_url.startswith("postgres") else "postgresql://127.0.0.1:1/x"
    with pytest.raises(BackupProblem, match="--store"):
        await restored(data, tmp_path, other)
    assert not (tmp_path / "restored").exists()


async def test_the_store_can_be_left_out(shared_url: str, tmp_path: Path) -> None:
    await (await open_store(shared_url)).close()
    server = a_server(tmp_path, "")
    data, made = await backup_of(server)
    assert made.about.store == "none"
    await restored(data, tmp_path, shared_url)
    found = {path.name for path in (tmp_path / "restored").iterdir()}
    assert found == {"certs"}


async def test_files_that_can_not_be_put_are_taken_back_and_what_was_changed_is_told(
    shared_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = await open_store(shared_url)
    await fill(store)
    await store.close()
    server = a_server(tmp_path, shared_url)
    for directory, name in ((server.data, "1"), (tmp_path / "restored", "2")):
        (directory / "lost+found").mkdir(parents=True)
        (directory / "lost+found" / name).touch()
    data, _ = await backup_of(server)
    url = another(request, shared_url, tmp_path)
    with pytest.raises((OSError, BackupProblem)) as caught:
        await restored(data, tmp_path, url)
    assert [path.name for path in (tmp_path / "restored").iterdir()] == ["lost+found"]
    if url.startswith("sqlite"):
        assert isinstance(caught.value, OSError)  # all is as it was before
    else:
        assert "the database has the store" in str(caught.value)
        assert await everything(url) == await everything(shared_url)
