"""Records come out in order and at least once, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.storage.connect import open_store
from fabric_server.storage.spool.frames import encode_frame
from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.spool import Spool
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.records import HEARTBEATS, LEDGER
from tests.contracts.samples import beat, entry
from tests.server.storage.spool.spools import (
    MIB,
    crashed,
    number_of,
    publish,
    reopened,
    segments,
    take,
)

ACTIONS = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 12)),
    st.tuples(st.just("take"), st.integers(1, 9)),
    st.tuples(st.just("done"), st.just(0)),
    st.tuples(st.just("crash"), st.just(0) | st.integers(0, 1500)),
    st.tuples(st.sampled_from(["close", "break", "mend"]), st.just(0)),
)


class Story:
    """Of one spool through several lives; checks whatever it is given."""

    def __init__(self, directory: Path, limit: int, options: SpoolOptions) -> None:
        self.directory = directory
        self.limit = limit
        self.options = options
        self.now = 0.0
        self.sizes: list[int] = []  # of the frames published, by number
        self.lost: set[int] = set()  # by cutting the file
        self.given: set[int] = set()
        self.last = self.settled = -1  # numbers: given last in this life, and stored last
        self._open()

    def _open(self) -> None:
        self.spool = Spool.open(
            self.directory, limit=self.limit, options=self.options, clock=lambda: self.now
        )
        self.last = self.settled
        self.beats = self.spool.waiting[HEARTBEATS]  # there have been in this life

    def publish(self, times: int) -> None:
        for _ in range(times):
            record = entry(len(self.sizes))
            self.sizes.append(len(encode_frame(msgspec.json.encode(record))))
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
    st.sampled_from([3000, 10_000, MIB]),
    st.builds(
        SpoolOptions,
        segment_bytes=st.sampled_from([300, 1000, 2500, MIB]),
        memory_bytes=st.sampled_from([0, 1500, MIB]),
    ),
)
def test_each_ledger_entry_is_given_in_order_whatever_happens(
    actions: list[tuple[str, int]], limit: int, options: SpoolOptions
) -> None:
    async def check(directory: Path) -> None:
        story = Story(directory, limit, options)
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
    first = Spool.open(directory, limit=MIB, options=SpoolOptions(segment_bytes=4000))
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
from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.spool import Spool
from tests.contracts.samples import entry
spool = Spool.open(Path(sys.argv[1]), limit=1 << 30, options=SpoolOptions(segment_bytes=20_000))
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
