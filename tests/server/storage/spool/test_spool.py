"""A spool is opened, limited and closed."""

from __future__ import annotations

import asyncio
import logging
import math
import stat
from pathlib import Path

import pytest

from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.spool import Spool
from ledger.records import HEARTBEATS, LEDGER
from runtime.errors import StoreError
from tests.contracts.samples import beat, entry
from tests.server.storage.spool.spools import (
    MIB,
    SIZE,
    crashed,
    publish,
    reopened,
    segments,
    take,
    take_all,
)


async def test_what_was_not_settled_is_given_again_in_order(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB, options=SpoolOptions(segment_bytes=5 * SIZE))
    publish(spool, range(100, 130))
    spool.publish(HEARTBEATS, beat(7))
    assert await take(spool, 12) == [*range(100, 112)]
    await spool.commit()
    assert await take(spool, 3) == [112, 113, 114]  # and dies before these are stored
    after = Spool.open(crashed(directory), limit=MIB)
    assert after.waiting == {LEDGER: 18, HEARTBEATS: 0}
    publish(after, range(130, 132))
    assert await take_all(after) == [*range(112, 132)]
    assert repr(after) == (
        "<Spool waiting={'request-ledger': 0, 'client-heartbeats': 0} "
        "dropped={'request-ledger': 0, 'client-heartbeats': 0} full=False>"
    )
    await after.close()
    await spool.close()


async def test_records_come_back_as_they_were(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB)
    odd = entry(1, node_id=None, at=1e17 / 3, model='ü"\\\n\x00😀', first_byte_ms=None)
    spool.publish(LEDGER, odd)
    spool.publish(HEARTBEATS, beat(1))
    await spool.close()
    after = Spool.open(directory, limit=MIB)
    assert await after.take(1, 10, 0) == ([beat(1)], [odd])
    await after.close()


async def test_segments_wholly_settled_are_deleted(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB, options=SpoolOptions(segment_bytes=5 * SIZE))
    publish(spool, range(100, 130))
    assert len(segments(directory)) == 6
    await take(spool, 12)
    assert len(segments(directory)) == 6
    await spool.commit()
    assert len(segments(directory)) == 4
    await take_all(spool)
    assert len(segments(directory)) == 1
    await spool.close()
    spool = Spool.open(directory, limit=MIB)
    assert segments(directory) == []
    assert spool.held == {LEDGER: 0, HEARTBEATS: 0}
    publish(spool, range(5))
    await spool.close()
    assert await reopened(directory) == [*range(5)]


async def test_files_are_for_their_owner_only(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB)
    publish(spool, range(1))
    spool.publish(HEARTBEATS, beat(1))
    made = [directory, *directory.rglob("*")]  # noqa: ASYNC240
    assert len(made) == 8
    assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in made)
    await spool.close()


async def test_a_spool_in_use_is_refused_and_named(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB)
    with pytest.raises(StoreError, match=f"the spool {directory} is in use by another process"):
        Spool.open(directory, limit=MIB)
    await spool.close()
    await Spool.open(directory, limit=MIB).close()


@pytest.mark.parametrize("where", ["", "request-ledger", "client-heartbeats", "lock/x"])
def test_a_path_that_can_not_be_used_is_named(directory: Path, where: str) -> None:
    path = directory / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    for _ in range(2):  # nothing is held by the first attempt
        with pytest.raises(StoreError, match=f"can't open the spool {directory}:"):
            Spool.open(directory, limit=MIB)


async def test_files_of_others_are_left_alone(directory: Path) -> None:
    folder = directory / LEDGER
    folder.mkdir(parents=True)
    for name in ("notes.txt", "12.log", "0000000000000000.log~", "x0000000000000000.log"):
        (folder / name).write_text("mine")
    (folder / "0000000000000009.log").mkdir()
    spool = Spool.open(directory, limit=MIB)
    publish(spool, range(3))
    assert await take_all(spool) == [0, 1, 2]
    await spool.close()
    assert len(list(folder.iterdir())) == 7


# ── limits ────────────────────────────────────────────────────────────────────────────────────


async def test_over_the_limit_old_heartbeats_go_and_are_counted(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(directory, limit=20 * SIZE, options=SpoolOptions(segment_bytes=4 * SIZE))
    for number in range(100, 140):
        spool.publish(HEARTBEATS, beat(number))
    dropped = spool.dropped[HEARTBEATS]
    assert dropped > 0
    assert spool.waiting[HEARTBEATS] == 40 - dropped
    assert sum(spool.held.values()) <= 20 * SIZE
    publish(spool, range(100, 115))
    assert sum(spool.held.values()) <= 20 * SIZE
    assert not spool.full
    dropped = spool.dropped[HEARTBEATS]
    batch = await spool.take(1, 100, 0)
    assert [record.seq for record in batch.heartbeats] == [*range(100 + dropped, 140)]
    assert len(batch.ledger) == 15
    assert spool.dropped[LEDGER] == 0
    assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.WARNING]
    await spool.close()


async def test_the_only_segment_of_heartbeats_goes_too(directory: Path) -> None:
    spool = Spool.open(directory, limit=20 * SIZE)
    for number in range(3):
        spool.publish(HEARTBEATS, beat(number))
    publish(spool, range(100, 120))
    assert spool.waiting == {LEDGER: 20, HEARTBEATS: 0}
    spool.publish(HEARTBEATS, beat(4))
    assert spool.dropped == {LEDGER: 0, HEARTBEATS: 4}
    assert segments(directory, HEARTBEATS) == []
    await take_all(spool)
    spool.publish(HEARTBEATS, beat(5))
    assert (await spool.take(1, 10, 0)).heartbeats == [beat(5)]
    await spool.close()


async def test_heartbeats_being_stored_while_they_are_dropped_are_not_counted(
    directory: Path,
) -> None:
    spool = Spool.open(directory, limit=20 * SIZE)
    spool.publish(HEARTBEATS, beat(1))
    spool.publish(HEARTBEATS, beat(2))
    settling = asyncio.create_task(spool.flush())
    await asyncio.sleep(0)
    assert len((await spool.take(1, 1, 0)).heartbeats) == 1
    publish(spool, range(100, 120))
    assert spool.dropped[HEARTBEATS] == 1
    await spool.commit()
    await asyncio.wait_for(settling, 5)
    await spool.close()


async def test_ledger_entries_are_stored_over_the_limit_and_full_asks_for_no_more(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spool = Spool.open(directory, limit=20 * SIZE, options=SpoolOptions(segment_bytes=4 * SIZE))
    publish(spool, range(100, 120))
    assert not spool.full
    publish(spool, range(120, 125))
    assert spool.full
    assert spool.waiting[LEDGER] == 25
    again = Spool.open(crashed(directory), limit=20 * SIZE)
    assert again.full
    await again.close()
    await take(spool, 6)
    assert spool.full
    await spool.commit()
    assert spool.full  # 95 %
    await take(spool, 2)
    await spool.commit()
    assert not spool.full
    publish(spool, range(125, 127))
    assert not spool.full  # 95 % again
    assert await take_all(spool) == [*range(108, 127)]
    assert [r.message for r in caplog.records if r.name == "fabric.spool"] == [
        "the spool is full of ledger entries",
        "the spool is full of ledger entries",
        "the spool has room again",
    ]
    await spool.close()


async def test_a_record_that_can_not_be_written_is_counted_and_does_not_raise(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(directory, limit=1 << 30)
    spool.publish(LEDGER, entry(1, model="\ud800"))
    spool.publish(LEDGER, entry(2, outcome=object()))
    spool.publish(LEDGER, entry(3, model="x" * (1 << 24)))
    spool.publish(LEDGER, entry(4))
    assert spool.dropped[LEDGER] == 3
    assert await take(spool) == [4]
    assert max(len(str(vars(record).get("record"))) for record in caplog.records) <= 2000
    await spool.close()


async def test_a_value_that_json_does_not_know_is_no_obstacle(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB)
    spool.publish(LEDGER, entry(1, total_ms=math.nan))
    spool.publish(LEDGER, entry(2))
    await spool.close()
    assert await reopened(directory) == [2]


async def test_closing_ends_the_wait_for_what_will_be_stored_by_another(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB)
    publish(spool, range(1))
    settling = asyncio.create_task(spool.flush())
    await asyncio.sleep(0)
    await spool.close()
    async with asyncio.timeout(5):
        await asyncio.wait([settling])
    assert settling.cancelled()
