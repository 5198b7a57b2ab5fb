"""What a server's spool still held when it ended is moved on by the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fabric_server.storage.connect import open_bus, open_store
from fabric_server.storage.spool.orphans import move_orphaned_spools
from fabric_server.storage.spool.spool import Spool, SpoolInUse
from fabric_server.storage.store import SqlStore
from ledger.batch_writer import BatchOptions, BatchWriter, Source
from ledger.records import LEDGER
from tests.contracts.samples import entry

LIMIT = 2**20


@asynccontextmanager
async def moving(own: Path, store: SqlStore) -> AsyncIterator[None]:
    def make_worker(source: Source) -> BatchWriter:
        return BatchWriter(source, store, options=BatchOptions(batch_seconds=0.01))

    task = asyncio.create_task(move_orphaned_spools(own, LIMIT, make_worker, every=0.01))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stored(store: SqlStore, count: int) -> list[str]:
    """The ledger's request ids, once there are so many."""
    async with asyncio.timeout(10):
        while len(rows := await store.requests(limit=100)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return sorted(row.request_id for row in rows)


async def test_what_a_server_left_is_in_the_ledger_once_when_it_has_gone(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/store")
    old = Spool.open(tmp_path / "spool", limit=LIMIT)
    try:
        for number in (1, 2):
            old.publish(LEDGER, entry(number))
        # Stored, but the process ends before it can settle: the next one stores it again.
        await store.write([], (await old.take(1, 1, 0.0)).ledger)
        async with moving(tmp_path / "spool-2", store):
            await asyncio.sleep(0.05)  # time in which nothing is to happen: it is still in use
            assert len(await store.requests(limit=100)) == 1
            await old.close()
            assert await stored(store, 2) == sorted([entry(1).request_id, entry(2).request_id])
        # Settled: whoever has that directory next finds nothing.
        again = Spool.open(tmp_path / "spool", limit=LIMIT)
        assert again.waiting[LEDGER] == 0
        await again.close()
    finally:
        await old.close()
        await store.close()


async def test_a_server_beside_another_has_a_spool_of_its_own(tmp_path: Path) -> None:
    first = await open_bus("spool://", directory=tmp_path / "spool", limit=LIMIT)
    with pytest.raises(SpoolInUse):
        await open_bus("spool://", directory=tmp_path / "spool", limit=LIMIT)
    second = await open_bus(
        "spool://", directory=tmp_path / "spool", limit=LIMIT, beside_others=True
    )
    assert second.spool == tmp_path / "spool-2"
    await first.close()
    third = await open_bus(
        "spool://", directory=tmp_path / "spool", limit=LIMIT, beside_others=True
    )
    assert third.spool == tmp_path / "spool"
    await second.close()
    await third.close()


async def test_a_spool_that_can_not_be_opened_for_now_is_moved_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/store")
    old = Spool.open(tmp_path / "spool", limit=LIMIT)
    old.publish(LEDGER, entry(1))
    await old.close()
    folder = tmp_path / "spool" / LEDGER
    folder.rename(tmp_path / "aside")
    folder.write_text("in its way")  # a reason to fail that goes, as a lack of descriptors does
    async with moving(tmp_path / "spool-2", store):
        async with asyncio.timeout(10):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # further attempts, whose failure is the same
        assert [one.getMessage() for one in caplog.records] == ["an orphaned spool is skipped"]
        folder.unlink()
        (tmp_path / "aside").rename(folder)
        assert await stored(store, 1) == [entry(1).request_id]
    await store.close()


class BrokenWriter:
    """Ends at once, as a writer with a defect does."""

    async def run(self) -> None:
        raise RuntimeError("a defect")

    def leave(self) -> None: ...


async def test_a_writer_that_fails_does_not_leave_the_spool_waiting_for_ever(
    tmp_path: Path,
) -> None:
    old = Spool.open(tmp_path / "spool", limit=LIMIT)
    old.publish(LEDGER, entry(1))
    await old.close()
    own = tmp_path / "spool-2"
    with pytest.raises(RuntimeError, match="a defect"):
        async with asyncio.timeout(10):
            await move_orphaned_spools(own, LIMIT, lambda source: BrokenWriter(), every=0.01)
    again = Spool.open(tmp_path / "spool", limit=LIMIT)
    assert again.waiting[LEDGER] == 1
    await again.close()
