"""What is published to the spool is given in order, whatever happens to the process or the disk."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.storage.connect import open_store
from fabric_server.storage.segments import Scan, Stretch, framed, joined, scan
from fabric_server.storage.spool import Spool
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.records import HEARTBEATS, LEDGER, LedgerEntry
from runtime.errors import StoreError
from tests.contracts.samples import beat, entry

MIB = 1 << 20
SIZE = len(framed(msgspec.json.encode(entry(100))))
"""Bytes of one ledger entry in a file; those numbered 100 to 999 are all alike."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def crashed(directory: Path) -> Path:
    """The files as a kill at this moment would leave them."""
    for number in count():
        copy = directory.with_name(f"{directory.name.partition('+')[0]}+{number}")
        if not copy.exists():
            return Path(shutil.copytree(directory, copy))
    raise AssertionError


def segments(directory: Path, topic: str = LEDGER) -> list[Path]:
    return sorted((directory / topic).glob("*.log"))


def publish(spool: Spool, numbers: range) -> None:
    for number in numbers:
        spool.publish(LEDGER, entry(number))


def number_of(record: LedgerEntry) -> int:
    return int(record.request_id.removeprefix("req_"))


async def take(spool: Spool, most: int = 100_000) -> list[int]:
    return [number_of(record) for record in (await spool.take(1, most, 0)).ledger]


async def take_all(spool: Spool) -> list[int]:
    """Until there is nothing, settling each batch."""
    numbers: list[int] = []
    while True:
        batch = await spool.take(1, 1000, 0)
        await spool.commit()
        numbers += [number_of(record) for record in batch.ledger]
        if not batch.size:
            return numbers


async def reopened(directory: Path) -> list[int]:
    """What a new process would be given."""
    spool = Spool.open(directory, limit=MIB)
    try:
        return await take_all(spool)
    finally:
        await spool.close()


# ── frames ────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.binary(max_size=20) | st.sampled_from([framed(b'{"a":1}'), framed(b'{"')])))
def test_any_bytes_are_frames_or_damage_and_nothing_is_left_out(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    found = scan(data)
    assert joined([*found.frames, *found.damaged]) == ([Stretch(0, len(data))] if data else [])
    for frame in found.frames:
        assert framed(data[frame.begin + 8 : frame.end]) == data[frame.begin : frame.end]


def test_zeroes_are_no_frames() -> None:
    assert scan(bytes(100)) == Scan([], [Stretch(0, 100)])


def test_a_user_can_not_write_what_looks_like_a_frame() -> None:
    forged = framed(b'{"request_id":"req_forged"}').decode("latin-1")
    frame = framed(msgspec.json.encode(entry(1, model=forged)))
    assert scan(b"damage" + frame[:-1] + b"!").frames == []


# ── opening ───────────────────────────────────────────────────────────────────────────────────


async def test_what_was_not_settled_is_given_again_in_order(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB, segment_bytes=5 * SIZE)
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
    spool = Spool.open(directory, limit=MIB, segment_bytes=5 * SIZE)
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
        with pytest.raises(StoreError, match=f"the spool {directory} can't be opened"):
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


# ── in order, at least once ───────────────────────────────────────────────────────────────────

ACTIONS = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 12)),
    st.tuples(st.just("take"), st.integers(1, 9)),
    st.tuples(st.just("done"), st.just(0)),
    st.tuples(st.just("crash"), st.just(0) | st.integers(0, 1500)),
    st.tuples(st.sampled_from(["close", "break", "mend"]), st.just(0)),
)


class Story:
    """Of one spool through several lives; checks whatever it is given."""

    def __init__(self, directory: Path, **options: int) -> None:
        self.directory = directory
        self.options = options
        self.now = 0.0
        self.sizes: list[int] = []  # of the frames published, by number
        self.lost: set[int] = set()  # by cutting the file
        self.given: set[int] = set()
        self.last = self.settled = -1  # numbers: given last in this life, and stored last
        self._open()

    def _open(self) -> None:
        self.spool = Spool.open(self.directory, clock=lambda: self.now, **self.options)
        self.last = self.settled
        self.beats = self.spool.waiting[HEARTBEATS]  # there have been in this life

    def publish(self, times: int) -> None:
        for _ in range(times):
            record = entry(len(self.sizes))
            self.sizes.append(len(framed(msgspec.json.encode(record))))
            self.spool.publish(LEDGER, record)
            self.spool.publish(HEARTBEATS, beat(len(self.sizes)))
            self.beats += 1

    async def take(self, most: int) -> int:
        batch = await self.spool.take(1, most, 0)
        for number in map(number_of, batch.ledger):
            assert number > self.last, "none twice in one life"
            assert set(range(self.last + 1, number)) <= self.lost, "none before its predecessors"
            assert number not in self.lost
            self.last = number
            self.given.add(number)
        self.beats -= len(batch.heartbeats)
        assert self.beats == self.spool.waiting[HEARTBEATS] + self.spool.dropped[HEARTBEATS]
        return batch.size

    async def commit(self) -> None:
        await self.spool.commit()
        self.settled = self.last

    def break_(self) -> None:
        """No file can be made any more."""
        if not self.directory.with_name("away").exists():
            (self.directory / LEDGER).rename(self.directory.with_name("away"))

    async def mend(self) -> None:
        if self.directory.with_name("away").exists():
            self.directory.with_name("away").rename(self.directory / LEDGER)
            self.now += 1.0
        while self.spool.unwritten:
            await self.take(0)

    async def crash(self, cut: int) -> None:
        """With so many of the last bytes not written."""
        await self.mend()
        self.directory = crashed(self.directory)
        files = segments(self.directory)
        cut = min(cut, files[-1].stat().st_size) if files else 0
        if cut:
            os.truncate(files[-1], files[-1].stat().st_size - cut)
        for number in reversed(range(len(self.sizes))):
            if cut > 0 and number not in self.lost:
                self.lost.add(number)
                cut -= self.sizes[number]
        await self.close()

    async def close(self) -> None:
        await self.mend()
        await self.spool.close()
        self._open()

    async def end(self) -> None:
        await self.mend()
        while await self.take(5):
            await self.commit()
        await self.commit()
        assert self.given | self.lost == set(range(len(self.sizes)))
        assert self.spool.waiting == {LEDGER: 0, HEARTBEATS: 0}
        assert self.spool.held == {LEDGER: 0, HEARTBEATS: 0}
        assert self.spool.dropped[LEDGER] == 0
        await self.spool.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ACTIONS, max_size=30),
    st.fixed_dictionaries(
        {
            "limit": st.sampled_from([3000, 10_000, MIB]),
            "segment_bytes": st.sampled_from([300, 1000, 2500, MIB]),
            "memory_bytes": st.sampled_from([0, 1500, MIB]),
        }
    ),
)
def test_each_ledger_entry_is_given_in_order_whatever_happens(
    actions: list[tuple[str, int]], options: dict[str, int]
) -> None:
    async def check(directory: Path) -> None:
        story = Story(directory, **options)
        for action, value in actions:
            if action == "publish":
                story.publish(value)
            elif action == "take":
                await story.take(value)
            elif action == "done":
                await story.commit()
            elif action == "break":
                story.break_()
            elif action == "mend":
                await story.mend()
            elif action == "crash":
                await story.crash(value)
            else:
                await story.close()
        await story.end()

    with TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder) / "spool"))


async def test_what_is_too_much_for_memory_is_read_back_in_order(directory: Path) -> None:
    spool = Spool.open(directory, limit=1 << 30)
    publish(spool, range(60_000))  # 25 MB
    assert spool.waiting[LEDGER] == 60_000
    assert await take(spool, 7) == [*range(7)]
    await spool.commit()
    publish(spool, range(60_000, 60_010))
    numbers = []
    while batch := await take(spool, 5000):
        await spool.commit()
        numbers += batch
        if len(numbers) < 20_000:
            publish(spool, range(60_010 + len(numbers), 60_010 + len(numbers)))
    assert numbers == [*range(7, 60_010)]
    assert spool.waiting[LEDGER] == spool.held[LEDGER] == 0
    assert len(segments(directory)) == 1
    await spool.close()


async def test_a_worker_moves_all_of_it_into_the_store(directory: Path) -> None:
    first = Spool.open(directory, limit=MIB, segment_bytes=4000)
    publish(first, range(500))
    await first.close()
    store, spool = await open_store("sqlite://"), Spool.open(directory, limit=MIB)
    task = asyncio.create_task(
        BatchWriter(spool, store, options=BatchOptions(batch_seconds=60)).run()
    )
    async with asyncio.timeout(20):
        publish(spool, range(400, 1000))
        await spool.flush()
    (total,) = await store.usage(0, 1e12)
    assert total.requests == 1000
    task.cancel()
    await asyncio.wait([task])
    await spool.close()
    await store.close()


PUBLISHER = """
import sys
from pathlib import Path
from itertools import count
from ledger.records import LEDGER
from fabric_server.storage.spool import Spool
from tests.contracts.samples import entry
spool = Spool.open(Path(sys.argv[1]), limit=1 << 30, segment_bytes=20_000)
for number in count():
    spool.publish(LEDGER, entry(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 1000, 4321])
async def test_all_that_was_published_before_kill_9_is_there(directory: Path, lines: int) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here
        [sys.executable, "-c", PUBLISHER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    last = int(["0", *process.stdout.read().split()][-1])
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    numbers = await reopened(directory)
    assert numbers == [*range(len(numbers))]
    assert len(numbers) > max(last, lines - 1)


# ── limits ────────────────────────────────────────────────────────────────────────────────────


async def test_over_the_limit_old_heartbeats_go_and_are_counted(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(directory, limit=20 * SIZE, segment_bytes=4 * SIZE)
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
    spool = Spool.open(directory, limit=20 * SIZE, segment_bytes=4 * SIZE)
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


# ── damage ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with entries 100 to 129 in three segments."""

    async def make(directory: Path) -> None:
        spool = Spool.open(directory, limit=MIB, segment_bytes=10 * SIZE)
        publish(spool, range(100, 130))
        await spool.close()

    directory = tmp_path_factory.mktemp("thirty") / "spool"
    asyncio.run(make(directory))
    return directory


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
    spool = Spool.open(directory, limit=MIB, segment_bytes=5 * SIZE)
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
    other = framed(b'{"request_id":"req_1","cost":12}')
    known = framed(msgspec.json.encode(entry(1)))
    newer = framed(msgspec.json.encode(msgspec.to_builtins(entry(2)) | {"region": "eu"}))
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
    spool = Spool.open(directory, limit=MIB, segment_bytes=SIZE, retry_seconds=0.0)
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


# ── a disk that fails ─────────────────────────────────────────────────────────────────────────


def test_a_disk_that_takes_no_more_holds_up_nothing_and_is_tried_again(directory: Path) -> None:
    """With a real limit on the size of files, in a process of its own."""
    program = (
        "import asyncio, json, resource, sys\n"
        "from pathlib import Path\n"
        "from ledger.records import HEARTBEATS, LEDGER\n"
        "from fabric_server.storage.spool import Spool\n"
        "from tests.contracts.samples import beat, entry\n"
        "async def main():\n"
        "    spool = Spool.open(Path(sys.argv[1]), limit=1 << 30, retry_seconds=0.0)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "    for number in range(100):\n"
        "        spool.publish(LEDGER, entry(number))\n"
        "        spool.publish(HEARTBEATS, beat(number))\n"
        "    said = [spool.problem, spool.dropped, spool.waiting, spool.full]\n"
        "    batch = await spool.take(1, 40, 0)\n"
        "    said.append([e.request_id for e in batch.ledger])\n"
        "    await spool.commit()\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "    spool.publish(LEDGER, entry(100))\n"
        "    spool.publish(HEARTBEATS, beat(100))\n"
        "    said += [spool.problem, spool.waiting]\n"
        "    print(json.dumps(said), flush=True)\n"
        "    import os; os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    problem, dropped, waiting, full, taken, later, waiting_later = json.loads(done.stdout)
    assert "can't be written: File too large" in problem
    assert dropped[LEDGER] == 0
    assert dropped[HEARTBEATS] > 50
    assert waiting == {LEDGER: 100, HEARTBEATS: 100 - dropped[HEARTBEATS]}
    assert not full
    assert taken == [f"req_{number:08d}" for number in range(40)]
    assert later is None
    assert waiting_later[LEDGER] == 61
    assert asyncio.run(reopened(directory)) == [*range(40, 101)]
    assert list(directory.rglob("*.damaged")) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root may mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_loses_no_ledger_entry(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory = tiny_disk / "spool"
    spool = Spool.open(directory, limit=MIB, segment_bytes=8 * SIZE, retry_seconds=0.0)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(30_000))
    publish(spool, range(100, 200))
    assert spool.problem is not None
    assert spool.problem.endswith("can't be written: No space left on device; free some space")
    assert await take(spool, 30) == [*range(100, 130)]
    publish(spool, range(200, 210))
    ballast.unlink()
    await spool.commit()
    publish(spool, range(210, 230))  # each writes some of what waits
    assert await take(spool, 10) == [*range(130, 140)]
    assert spool.problem is None
    copy = shutil.copytree(directory, tiny_disk.parent / "copy")
    assert await reopened(copy) == [*range(130, 230)]
    assert await take_all(spool) == [*range(140, 230)]
    assert [r.message for r in caplog.records if r.name == "fabric.spool"] == [
        "the spool can't be written",
        "the spool can be written again",
    ]
    await spool.close()


async def test_ledger_entries_that_can_not_be_written_are_bounded(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    spool = Spool.open(
        directory, limit=MIB, segment_bytes=SIZE, most_unwritten=20, clock=lambda: now[0]
    )
    publish(spool, range(100, 105))
    (directory / LEDGER).rename(directory / "away")
    publish(spool, range(105, 125))
    assert not spool.full
    publish(spool, range(125, 130))
    assert spool.full
    assert spool.dropped[LEDGER] == 5
    assert "No such file" in (spool.problem or "")
    assert spool.waiting[LEDGER] == 25
    (directory / "away").rename(directory / LEDGER)
    assert await take(spool, 7) == [*range(100, 107)]
    assert spool.problem is not None  # it is too early to try again
    await spool.commit()
    now[0] += 1.0
    publish(spool, range(130, 131))
    assert spool.problem is None
    assert await take(spool, 100) == [*range(107, 125), 130]
    after = Spool.open(crashed(directory), limit=MIB)
    while spool.full:
        await spool.take(1, 1, 0)
        await spool.commit()
    assert await take_all(after) == [*range(107, 110)] or after.waiting[LEDGER] == 0
    await after.close()
    await spool.close()


async def test_what_could_not_be_written_is_written_at_closing(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB, segment_bytes=SIZE)
    (directory / LEDGER).rename(directory / "away")
    publish(spool, range(100, 110))
    (directory / "away").rename(directory / LEDGER)
    await spool.close()
    await spool.close()
    spool.publish(LEDGER, entry(1))
    assert spool.dropped[LEDGER] == 1
    assert await reopened(directory) == [*range(100, 110)]


async def test_what_is_lost_at_closing_is_told(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(directory, limit=MIB)
    shutil.rmtree(directory / LEDGER)
    publish(spool, range(3))
    await spool.close()
    assert [(r.message, vars(r).get("count")) for r in caplog.records] == [
        ("the spool can't be written", None),
        ("records could not be written and are lost", 3),
    ]


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
