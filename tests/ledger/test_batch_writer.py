"""Records reach the store: in batches, each once, whatever fails in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryBus
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.housekeeping import DAY, Housekeeper
from ledger.records import HEARTBEATS, LEDGER, Batch, HeartbeatRecord, LedgerEntry
from runtime.errors import RecordError, StoreError
from runtime.outage import Outage
from tests.contracts.samples import NOON, beat, entry


class Shelf:
    """A sink that keeps what it is given, batch by batch."""

    place = "the store"

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.forgotten: list[tuple[float, int]] = []
        self.old_heartbeats = 0
        self.swept: list[float] = []

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        self.batches.append(Batch(heartbeats, ledger))

    async def check(self) -> None:
        pass

    async def delete_heartbeats(self, before: float, now: float, limit: int) -> bool:
        self.forgotten.append((before, limit))
        gone = min(self.old_heartbeats, limit)
        self.old_heartbeats -= gone
        return gone == limit

    async def mark_offline(self, unseen_since: float) -> list[str]:
        self.swept.append(unseen_since)
        return ["node_gone"]

    @property
    def ledger(self) -> list[str]:
        return [e.request_id for batch in self.batches for e in batch.ledger]


class Stumbling(Shelf):
    """Raises each of ``errors`` in turn before it begins to work."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self._errors = list(errors)

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        if self._errors:
            raise self._errors.pop(0)
        await super().write(heartbeats, ledger)


class Picky(Shelf):
    """Can't store some records."""

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        if any(e.model == "poison" for e in ledger) or any(b.seq == 666 for b in heartbeats):
            raise RecordError("poison")
        await super().write(heartbeats, ledger)


class Gate(Shelf):
    """Writes only when told that it may."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def write(
        self, heartbeats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]
    ) -> None:
        self.entered.set()
        await self.open.wait()
        await super().write(heartbeats, ledger)


@asynccontextmanager
async def running(worker: BatchWriter) -> AsyncIterator[BatchWriter]:
    task = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(10):
            yield worker
    finally:
        await stop(task)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - each turn of the loop may bring it about
        await asyncio.sleep(0)


def publish(bus: MemoryBus, numbers: range, **changes: Any) -> list[str]:
    for number in numbers:
        bus.publish(LEDGER, entry(number, **changes))
    return [f"req_{number:08d}" for number in numbers]


async def test_what_was_published_is_written_and_flushed_says_when() -> None:
    bus, shelf = MemoryBus(), Shelf()
    async with running(BatchWriter(bus, shelf, options=BatchOptions(batch_seconds=60))) as worker:
        names = publish(bus, range(3))
        bus.publish(HEARTBEATS, beat(1))
        await worker.flush()  # well before the 60 s
        assert shelf.batches == [Batch([beat(1)], [entry(n) for n in range(3)])]
        assert shelf.ledger == names
        assert worker.written == 4
        assert repr(worker) == "<BatchWriter written=4 held=0 problem=None>"


async def test_a_batch_is_written_when_it_is_large_enough() -> None:
    bus, gate = MemoryBus(), Gate()
    gate.open.set()
    async with running(
        BatchWriter(bus, gate, options=BatchOptions(batch_size=10, batch_seconds=60))
    ):
        await asyncio.sleep(0)
        publish(bus, range(9))
        await asyncio.sleep(0)
        assert not gate.entered.is_set()
        publish(bus, range(9, 10))
        await gate.entered.wait()


async def test_a_small_batch_is_written_after_a_while() -> None:
    bus, gate = MemoryBus(), Gate()
    gate.open.set()
    async with running(
        BatchWriter(bus, gate, options=BatchOptions(batch_size=10, batch_seconds=0.01))
    ):
        publish(bus, range(1))
        await gate.entered.wait()


async def test_under_load_batches_grow_and_are_bounded() -> None:
    bus, gate = MemoryBus(), Gate()
    async with running(
        BatchWriter(bus, gate, options=BatchOptions(batch_size=10, max_batch=50, batch_seconds=60))
    ) as worker:
        publish(bus, range(10))
        await gate.entered.wait()
        publish(bus, range(10, 95))  # while the first ten are being written
        gate.open.set()
        await worker.flush()
    assert [batch.size for batch in gate.batches] == [10, 50, 35]


async def test_a_failing_store_gets_the_same_batch_again_until_it_takes_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    bus = MemoryBus()
    sink = Stumbling(*(StoreError("the disk is full") for _ in range(4)))
    worker = BatchWriter(bus, sink, options=BatchOptions(retry_seconds=(0.001, 0.002)))
    async with running(worker):
        names = publish(bus, range(5))
        await worker.flush()
    assert sink.ledger == names
    assert worker.problem is None
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.ERROR, "the store is away"),
        (logging.INFO, "the store is back"),
    ]


class Elsewhere(Shelf):
    """Another place than the store, which can be away."""

    place = "Kafka"

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.checked = asyncio.Event()

    async def check(self) -> None:
        self.checked.set()
        if self.away:
            raise StoreError("nobody there")


async def test_a_sink_that_is_away_is_noticed_without_records_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    sink = Elsewhere()
    options = BatchOptions(batch_seconds=0.001, check_seconds=0.01)
    async with running(BatchWriter(MemoryBus(), sink, options=options)) as worker:
        for away in (True, False, True, False):
            sink.away = away
            for _ in range(3):
                sink.checked.clear()
                await sink.checked.wait()
            assert worker.problem == ("nobody there" if away else None)
    assert [r.message for r in caplog.records] == 2 * [
        "Kafka is away",
        "Kafka is back",
    ]


async def test_a_defect_loses_nothing_and_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, sink = MemoryBus(), Stumbling(TypeError("ours"))
    async with running(
        BatchWriter(bus, sink, options=BatchOptions(retry_seconds=(0.001, 0.002)))
    ) as worker:
        names = publish(bus, range(5))
        await worker.flush()
    assert sink.ledger == names
    assert caplog.records[0].exc_info is not None


async def test_a_defect_ends_the_outage_before_it(caplog: pytest.LogCaptureFixture) -> None:
    """The store is there again, and it is the records that can't be written."""
    caplog.set_level(logging.INFO)
    outage = Outage("the store")
    outage.failed("changes", "it is gone")
    bus, sink = MemoryBus(), Stumbling(StoreError("it is gone"), TypeError("ours"))
    options = BatchOptions(retry_seconds=(0.001, 0.002))
    async with running(BatchWriter(bus, sink, options=options, outage=outage)) as worker:
        outage.worked("changes")
        publish(bus, range(5))
        await worker.flush()
    events = [one.message for one in caplog.records]
    assert events.index("the store is back") < events.index("records can't be written")
    assert outage.problem is None


async def test_two_writers_of_one_sink_don_t_end_each_other_s_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage("the store")
    mine, orphans = MemoryBus(), MemoryBus()
    slow = Stumbling(*[StoreError("it is too slow")] * 5)
    quick = BatchOptions(batch_seconds=0.001, check_seconds=0.0, retry_seconds=(0.02, 0.02))
    publish(orphans, range(5))
    second = BatchWriter(orphans, slow, options=quick, outage=outage, part="orphaned records")
    first = BatchWriter(mine, Stumbling(), options=quick, outage=outage)
    async with running(first), running(second) as worker:
        await worker.flush()
    events = [one.message for one in caplog.records if one.levelno >= logging.INFO]
    assert events == ["the store is away", "the store is back"]


async def test_a_failing_store_is_told_by_problem() -> None:
    bus, sink = MemoryBus(), Stumbling(StoreError("the disk is full"))
    async with running(
        BatchWriter(bus, sink, options=BatchOptions(batch_size=1, retry_seconds=(60, 60)))
    ) as worker:
        publish(bus, range(1))
        await until(lambda: worker.problem is not None)
        assert worker.problem == "the disk is full"
        assert "held=1" in repr(worker)


@settings(max_examples=50, deadline=None)
@given(
    entries=st.lists(st.booleans(), max_size=40),
    beats=st.lists(st.booleans(), max_size=40),
)
def test_impossible_records_are_left_out_and_all_others_are_written(
    entries: list[bool], beats: list[bool]
) -> None:
    async def check() -> None:
        bus, sink = MemoryBus(), Picky()
        async with running(BatchWriter(bus, sink)) as worker:
            for number, bad in enumerate(entries):
                bus.publish(LEDGER, entry(number, model="poison" if bad else "m"))
            for number, bad in enumerate(beats):
                bus.publish(HEARTBEATS, beat(666 if bad else number, epoch=number))
            await worker.flush()
            assert worker.rejected == sum(entries) + sum(beats)
        assert sink.ledger == [f"req_{n:08d}" for n, bad in enumerate(entries) if not bad]
        written = [b.epoch for batch in sink.batches for b in batch.heartbeats]
        assert written == [n for n, bad in enumerate(beats) if not bad]

    asyncio.run(check())


async def test_an_impossible_record_is_in_the_log_in_full(caplog: pytest.LogCaptureFixture) -> None:
    bus, sink = MemoryBus(), Picky()
    async with running(BatchWriter(bus, sink)) as worker:
        publish(bus, range(7, 8), model="poison")
        await worker.flush()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert '"request_id":"req_00000007"' in vars(record)["record"]
    assert vars(record)["reason"] == "poison"


async def test_cancelled_it_writes_what_is_left() -> None:
    bus, shelf = MemoryBus(), Shelf()
    task = asyncio.create_task(
        BatchWriter(bus, shelf, options=BatchOptions(max_batch=20, batch_seconds=60)).run()
    )
    await asyncio.sleep(0)
    names = publish(bus, range(50))
    await stop(task)
    assert shelf.ledger == names


async def test_cancelled_in_the_middle_of_a_write_it_writes_that_again() -> None:
    bus, gate = MemoryBus(), Gate()
    task = asyncio.create_task(BatchWriter(bus, gate, options=BatchOptions(batch_size=1)).run())
    names = publish(bus, range(3))
    async with asyncio.timeout(10):
        await gate.entered.wait()
        task.cancel()
        publish(bus, range(3, 5))
        gate.open.set()
        await stop(task)
    assert gate.ledger == [*names, "req_00000003", "req_00000004"]


async def test_cancelled_while_the_store_is_away_it_gives_up_in_time_and_says_what_was_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = MemoryBus()
    sink = Stumbling(*(StoreError("gone") for _ in range(1000)))
    worker = BatchWriter(
        bus, sink, options=BatchOptions(retry_seconds=(0.01, 0.01), drain_seconds=0.05)
    )
    task = asyncio.create_task(worker.run())
    publish(bus, range(3))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await stop(task)
    lost = caplog.records[-1]
    assert (lost.message, vars(lost)["held"]) == ("records were left behind", 3)


async def test_cancelled_it_ends_also_if_the_write_fails_at_that_moment() -> None:
    class Breaking(Shelf):
        entered = asyncio.Event()

        async def write(self, heartbeats: object, ledger: object) -> None:
            self.entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise StoreError("the connection broke") from None

    bus, sink = MemoryBus(), Breaking()
    options = BatchOptions(retry_seconds=(60, 60), drain_seconds=0.05)
    task = asyncio.create_task(BatchWriter(bus, sink, options=options).run())
    publish(bus, range(3))
    async with asyncio.timeout(10):
        await sink.entered.wait()
        await stop(task)


async def test_a_second_cancellation_is_now() -> None:
    bus, gate = MemoryBus(), Gate()
    task = asyncio.create_task(BatchWriter(bus, gate, options=BatchOptions(drain_seconds=60)).run())
    publish(bus, range(3))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(10):
        await gate.entered.wait()
        await stop(task)
    assert task.cancelled()


async def test_old_heartbeats_are_forgotten_in_pieces_and_then_once_a_minute() -> None:
    bus, shelf, now = MemoryBus(), Shelf(), [NOON]
    shelf.old_heartbeats = 25
    worker = BatchWriter(
        bus,
        shelf,
        Housekeeper(shelf, keep_heartbeats_days=7, max_rows=10, clock=lambda: now[0]),
        options=BatchOptions(batch_seconds=0.001),
    )

    async with running(worker):
        await until(lambda: shelf.old_heartbeats == 0)
        assert shelf.forgotten == [(NOON - 7 * DAY, 10)] * 3
        publish(bus, range(1))
        await worker.flush()
        assert len(shelf.forgotten) == 3
        now[0] += 60
        await until(lambda: len(shelf.forgotten) == 4)


async def test_upkeep_goes_on_when_the_clock_was_set_back() -> None:
    shelf, now = Shelf(), [NOON]
    keeper = Housekeeper(shelf, clock=lambda: now[0])
    await keeper.delete_old_heartbeats()
    await keeper.mark_silent_nodes_offline()
    now[0] -= 70 * DAY
    await keeper.delete_old_heartbeats()
    await keeper.mark_silent_nodes_offline()
    assert len(shelf.forgotten) == len(shelf.swept) == 2


async def test_nodes_that_missed_their_deadline_are_marked_offline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    bus, shelf, now = MemoryBus(), Shelf(), [NOON]
    worker = BatchWriter(
        bus,
        shelf,
        Housekeeper(shelf, offline_seconds=60.0, clock=lambda: now[0]),
        options=BatchOptions(batch_seconds=0.001),
    )
    async with running(worker):
        await until(lambda: shelf.swept == [NOON - 60.0])
        publish(bus, range(1))
        await worker.flush()
        assert len(shelf.swept) == 1
        now[0] += 15.0
        await until(lambda: shelf.swept == [NOON - 60.0, NOON - 45.0])
    said = [record for record in caplog.records if record.message == "node offline"]
    assert [vars(record)["node"] for record in said] == ["node_gone", "node_gone"]


async def test_nobody_is_marked_offline_while_heartbeats_may_wait_unread() -> None:
    bus, shelf = MemoryBus(), Shelf()
    async with running(
        BatchWriter(
            bus, shelf, Housekeeper(shelf), options=BatchOptions(batch_size=10, batch_seconds=60.0)
        )
    ) as worker:
        publish(bus, range(10))  # a full batch: there may be more behind it
        await until(lambda: worker.written == 10)
        assert shelf.swept == []


async def test_with_the_real_store_each_request_is_there_once() -> None:
    store, bus = await open_store("sqlite://"), MemoryBus()
    async with running(BatchWriter(bus, store, options=BatchOptions(batch_size=100))) as worker:
        for start in range(0, 3000, 30):
            publish(bus, range(start, start + 30))
            publish(bus, range(start, start + 3))  # told twice
            bus.publish(HEARTBEATS, beat(start))
            await asyncio.sleep(0)
        await worker.flush()
        (total,) = await store.usage(0, 1e12)
        assert total.requests == 3000
        assert len(await store.heartbeats("node_attic", limit=1000)) == 100
    await store.close()
