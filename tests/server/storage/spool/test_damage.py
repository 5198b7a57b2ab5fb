"""Damaged, truncated or missing files cost only the records that were in them."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.storage.spool.frames import encode_frame
from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.spool import Spool
from ledger.records import LEDGER
from tests.contracts.samples import entry
from tests.server.storage.spool.spools import (
    MIB,
    SIZE,
    publish,
    reopened,
    segments,
    take,
    take_all,
)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 30 * SIZE - 1), change=st.integers(1, 255))
def test_a_byte_that_was_changed_costs_the_one_record_it_is_in(
    thirty: Path, place: int, change: int
) -> None:
    async def check(directory: Path) -> None:
        shutil.copytree(thirty, directory)
        path = segments(directory)[place // (10 * SIZE)]
        data = bytearray(path.read_bytes())
        data[place % (10 * SIZE)] ^= change
        path.write_bytes(data)
        spool = Spool.open(directory, limit=MIB)
        publish(spool, range(130, 132))
        numbers = await take_all(spool)
        assert numbers == [n for n in range(100, 132) if n != 100 + place // SIZE]
        aside = list((directory / LEDGER).glob("*.damaged"))
        if place < 29 * SIZE:  # at the very end it may look as if it had been torn
            assert spool.damaged[LEDGER] == 1
            (kept,) = aside
            offset = place % (10 * SIZE) // SIZE * SIZE
            assert kept.name == f"{path.stem}-{offset:08}.damaged"
            assert kept.read_bytes() == data[offset : offset + SIZE]
        assert spool.waiting[LEDGER] == spool.held[LEDGER] == 0
        await spool.flush()
        await spool.close()
        assert segments(directory) == [] or len(segments(directory)) == 1

    with TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder) / "spool"))


@settings(max_examples=150, deadline=None)
@given(start=st.integers(0, 10 * SIZE), length=st.integers(0, 3000), junk=st.binary(max_size=999))
def test_bytes_replaced_by_others_cost_no_more_than_the_records_they_were_in(
    thirty: Path, start: int, length: int, junk: bytes
) -> None:
    async def check(directory: Path) -> None:
        shutil.copytree(thirty, directory)
        path = segments(directory)[1]
        data = path.read_bytes()
        junk_ = junk[: len(data[start : start + length])]  # a file that grows is another matter
        path.write_bytes(data[:start] + junk_ + data[start + length :])
        numbers = await reopened(directory)
        places = [n * SIZE for n in range(10)]
        whole = [p for p in places if p + SIZE <= start or p >= start + length]
        assert numbers == sorted(numbers)
        assert {*range(100, 110), *(110 + p // SIZE for p in whole), *range(120, 130)} <= {*numbers}

    with TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder) / "spool"))


async def test_a_file_that_has_grown_runs_into_the_next_and_nothing_is_lost_silently(
    thirty: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(thirty, directory)
    path = segments(directory)[1]
    data = path.read_bytes()
    path.write_bytes(b"\r\n" + data)
    assert await reopened(directory) == [*range(100, 119), *range(120, 130)]
    kept = [aside.read_bytes() for aside in sorted((directory / LEDGER).glob("*.damaged"))]
    assert kept == [b"\r\n", data[9 * SIZE : 10 * SIZE - 2], data[-2:]]
    assert len(caplog.records) == 3


async def test_a_record_torn_at_any_byte_is_cut_off(thirty: Path, tmp_path: Path) -> None:
    for left in range(SIZE):
        directory = tmp_path / str(left)
        shutil.copytree(thirty, directory)
        os.truncate(segments(directory)[-1], 9 * SIZE + left)
        spool = Spool.open(directory, limit=MIB)
        publish(spool, range(130, 132))
        assert len(segments(directory)) == 4
        assert segments(directory)[2].stat().st_size == 9 * SIZE
        await spool.close()
        assert await reopened(directory) == [*range(100, 129), 130, 131]
        assert list(directory.rglob("*.damaged")) == []
        shutil.rmtree(directory)


@pytest.mark.parametrize("bytes_", [b"", b"x", b"0" * 12, bytes(12), b"0" * 100])
async def test_a_damaged_cursor_means_from_the_beginning(
    directory: Path, bytes_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(directory, limit=MIB, options=SpoolOptions(segment_bytes=5 * SIZE))
    publish(spool, range(100, 130))
    await take(spool, 12)
    await spool.commit()
    await spool.close()
    cursor = directory / LEDGER / "cursor"
    cursor.write_bytes(bytes_)
    assert await reopened(directory) == [*range(110, 130)]  # two of the segments are gone
    assert [str(cursor) == vars(r).get("file") for r in caplog.records] == [True] * bool(bytes_)
    assert await reopened(directory) == []


async def test_records_of_another_release_are_put_aside(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory / LEDGER
    folder.mkdir(parents=True)
    other = encode_frame(b'{"request_id":"req_1","cost":12}')
    known = encode_frame(msgspec.json.encode(entry(1)))
    newer = encode_frame(msgspec.json.encode(msgspec.to_builtins(entry(2)) | {"region": "eu"}))
    (folder / f"{0:016}.log").write_bytes(other + other + known + newer + other)
    assert await reopened(directory) == [1, 2]
    kept = sorted(folder.glob("*.damaged"))
    assert [path.read_bytes() for path in kept] == [other + other, other]
    said = [vars(record)["kept"] for record in caplog.records]
    assert said == [str(path) for path in kept]


async def test_a_segment_that_is_gone_is_told_and_the_next_is_read(
    thirty: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(thirty, directory)
    spool = Spool.open(directory, limit=MIB)
    first, second, _ = segments(directory)
    first.unlink()
    os.truncate(second, 4 * SIZE)
    async with asyncio.timeout(5):
        assert await take_all(spool) == [*range(110, 114), *range(120, 130)]
        await spool.flush()
    assert [vars(record)["file"] for record in caplog.records] == [str(first), str(second)]
    assert spool.damaged[LEDGER] == 2
    assert spool.waiting[LEDGER] == 0
    await spool.close()


async def test_a_segment_that_can_not_be_read_is_tried_again_and_then_put_aside(
    thirty: Path, directory: Path
) -> None:
    shutil.copytree(thirty, directory)
    spool = Spool.open(directory, limit=MIB)
    first = segments(directory)[0]
    first.unlink()
    first.mkdir()  # reading fails, and it is there
    assert await take(spool) == []
    assert spool.problem is not None
    assert "can't be read: [Errno 21]" in spool.problem
    started = asyncio.get_running_loop().time()
    assert (await spool.take(1, 10, 0.05)).size == 0
    assert asyncio.get_running_loop().time() - started >= 0.04  # no tight loop
    for _ in range(7):
        assert await take(spool) == []
    assert (await take(spool))[0] == 110
    assert spool.problem is None
    assert first.with_suffix(".damaged").exists()
    await spool.close()


async def test_too_many_open_files_lose_nothing(thirty: Path, directory: Path) -> None:
    shutil.copytree(thirty, directory)
    options = SpoolOptions(segment_bytes=SIZE, retry_seconds=0.0)
    spool = Spool.open(directory, limit=MIB, options=options)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for number in range(130, 145):
            publish(spool, range(number, number + 1))
            assert await take(spool) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in (spool.problem or "")
    assert await take_all(spool) == [*range(100, 145)]
    assert spool.problem is None
    await spool.close()
