"""Stores, caches and buses are opened by URL."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from fabric_server.storage.connect import open_bus, open_cache, open_store
from runtime.errors import BackendError, StoreError
from tests.contracts.samples import key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def _make(path: Path) -> None:
    await (await open_store(f"sqlite:///{path}")).close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://host/db", "store = 'mysql://host/db': this version knows only sqlite:///path"),
        ("postgresql://joe:secret@host/db", r"postgresql://joe:\*\*\*@host/db"),
        ("store.db", "store = 'store.db': this version knows only sqlite:///path"),
        ("", "this version knows only sqlite:///path"),
        ("sqlite:store.db", "this version knows only sqlite:///path"),
        ("sqlite://store.db", "write the path after three slashes: sqlite:///store.db"),
    ],
)
async def test_a_store_url_of_another_kind_is_refused_with_what_is_known(
    url: str, words: str
) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        await open_store(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_the_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="--store = 'x'"):
        await open_store("x", setting="--store")
    with pytest.raises(BackendError, match="cache = 'mysql://host': this version knows only mem"):
        await open_cache("mysql://host")
    with pytest.raises(BackendError, match="bus = 'memory://big': this version knows only mem"):
        await open_bus("memory://big", directory=tmp_path, limit=2**20)


async def test_the_path_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "50%25?#.db"
    store = await open_store(f"sqlite:///{path}")
    await store.close()
    assert path.exists()


async def test_the_file_is_for_its_owner_only(path: Path) -> None:
    store = await open_store(f"sqlite:///{path.parent}/new/store.db")
    await store.create_key(key())
    made = [path.parent / "new", *(path.parent / "new").iterdir()]
    assert len(made) == 4  # the folder, the file, its log and the log's index
    assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in made)
    await store.close()


async def test_a_store_of_a_newer_release_is_not_opened(path: Path) -> None:
    await _make(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (99, '0099_far.sql', 'x', 0)")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        await open_store(f"sqlite:///{path}")


async def test_processes_that_make_the_same_store_at_once_share_it(shared_url: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from fabric_server.storage.connect import open_store\n"
        "from tests.contracts.samples import entry, key\n"
        "async def main(name):\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await store.create_key(key(name))\n"
        "    for number in range(20):\n"
        "        await store.write([], [entry(number, request_id=f'{name}{number}')])\n"
        "    await store.close()\n"
        "asyncio.run(main(sys.argv[2]))\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, shared_url, name)
        for name in ("one", "two", "three")
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    store = await open_store(shared_url)
    assert sorted(row.name for row in await store.keys()) == ["one", "three", "two"]
    (total,) = await store.usage(0, 1e12)
    assert total.requests == 60
    await store.close()
