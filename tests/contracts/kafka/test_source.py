"""Members of a group share the records; what can't be read or stored is a dead letter."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from consumer.group_member import SESSION_SECONDS
from consumer.kafka_source import GROUP, KafkaSource
from ledger.kafka_cluster import Cluster
from ledger.records import DEAD_LETTERS, LEDGER, LedgerEntry
from runtime.errors import StoreError
from tests.contracts.kafka.ends import (
    change_topic,
    everything_in,
    ids,
    make_topic,
    put,
    sink_at,
    source_at,
    take_all,
)
from tests.contracts.samples import entry


async def test_what_was_not_done_is_given_again(url: str) -> None:
    entries = [entry(number) for number in range(100)]
    async with sink_at(url) as sink:
        await sink.write([], entries)
    async with source_at(url) as source:
        assert ids((await source.take(100, 100, 10.0)).ledger) == ids(entries)
    async with source_at(url) as source:
        assert ids((await take_all(source, 100)).ledger) == ids(entries)
    async with source_at(url) as source:
        assert (await source.take(1, 100, 1.0)).size == 0


async def test_a_take_cancelled_at_any_time_loses_nothing(url: str) -> None:
    entries = [entry(number) for number in range(3000)]
    found: list[LedgerEntry] = []
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(30):
        for start in range(0, 3000, 100):
            await sink.write([], entries[start : start + 100])
            taking = asyncio.create_task(source.take(10_000, 10_000, 60.0))
            await asyncio.sleep(0.002 * (start // 100))
            taking.cancel()
            await asyncio.wait([taking])
            assert taking.cancelled()
        while len(found) < 3000:
            found += (await source.take(3000, 700, 1.0)).ledger
            await source.commit()
    assert ids(found) == ids(entries)


async def test_members_of_a_group_share_and_take_over(url: str) -> None:
    found: dict[str, list[LedgerEntry]] = {"one": [], "two": []}

    async def drain(name: str, source: KafkaSource) -> None:
        while True:
            found[name] += (await source.take(50, 500, 0.05)).ledger
            await source.commit()

    async with sink_at(url) as sink, source_at(url) as one, asyncio.timeout(40):
        two = await KafkaSource.open(url)
        tasks = [asyncio.create_task(drain(*a)) for a in (("one", one), ("two", two))]
        numbers = 0
        while not (found["one"] and found["two"]):
            await sink.write([], [entry(number) for number in range(numbers, numbers + 50)])
            numbers += 50
            await asyncio.sleep(0.1)
        tasks[1].cancel()
        await asyncio.wait(tasks[1:])
        left = time.monotonic()
        await two.close()
        await sink.write([], [entry(number) for number in range(numbers, numbers + 100)])
        await one.flush()
        assert time.monotonic() - left < SESSION_SECONDS  # it left; it was not found missing
        tasks[0].cancel()
        await asyncio.wait(tasks)
    everything = {one.request_id for entries in found.values() for one in entries}
    assert everything == set(ids(entry(number) for number in range(numbers + 100)))


async def test_done_after_partitions_changed_hands_does_no_harm(url: str) -> None:
    entries = [entry(number) for number in range(300)]
    async with sink_at(url) as sink, source_at(url) as one, asyncio.timeout(30):
        await sink.write([], entries)
        assert (await one.take(300, 300, 10.0)).size == 300
        async with source_at(url) as two:
            again: list[LedgerEntry] = []
            while not again:  # two has its share, before one has done with it
                again += (await two.take(1, 300, 0.2)).ledger
            assert 0 < len(again) < 300
            await one.commit()
            await two.commit()
            both = [*again, *(await take_all(one, 300 - len(again))).ledger]
        assert ids(both) == ids(entries)


async def test_a_member_that_the_group_refuses_tries_again(url: str) -> None:
    cluster = Cluster.parse(url)
    stranger = AIOKafkaConsumer(
        cluster.topic(LEDGER),
        bootstrap_servers=cluster.servers,
        group_id=cluster.topic(GROUP),
        partition_assignment_strategy=[RangePartitionAssignor],
    )
    await make_topic(url, LEDGER)
    await stranger.start()
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(30):
        await sink.write([], [entry(1)])
        while source.problem is None:
            assert (await source.take(1, 10, 0.1)).size == 0
            await source.commit()
        assert "protocol" in source.problem
        await stranger.stop()
        assert (await take_all(source, 1)).ledger == [entry(1)]
        while source.problem is not None:
            await source.take(1, 10, 0.1)


async def test_what_is_no_record_goes_to_the_dead_letters(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = (b"nonsense", b"\xff\xfe", b'{"request_id": 5}', b"[" * 5000, None)
    async with sink_at(url) as sink, source_at(url) as source:
        await put(url, LEDGER, *bad)
        await sink.write([], [entry(1)])
        found: list[LedgerEntry] = []
        async with asyncio.timeout(20):
            settling = asyncio.create_task(source.flush())
            while not settling.done():
                found += (await source.take(6, 10, 1.0)).ledger
                await source.commit()
    assert found == [entry(1)]
    letters = await everything_in(url, DEAD_LETTERS)
    assert sorted(map(str, (letter.value for letter in letters))) == sorted(map(str, bad))
    origins = {message.value: message for message in await everything_in(url, LEDGER)}
    for letter in letters:
        headers = dict(letter.headers)
        origin = origins[letter.value]
        assert letter.key == b"theirs"
        assert headers["topic"].decode() == origin.topic
        assert int(headers["partition"]) == origin.partition
        assert int(headers["offset"]) == origin.offset
        assert b"not a record" in headers["reason"]
    assert [record.message for record in caplog.records].count("record can't be read") == 5
    async with source_at(url) as source:  # and none of it is given again
        assert (await source.take(1, 10, 1.0)).size == 0


async def test_a_rejected_record_goes_to_the_dead_letters_as_it_came(url: str) -> None:
    async with sink_at(url) as sink, source_at(url) as source:
        await sink.write([], [entry(1), entry(2)])
        batch = await source.take(2, 10, 10.0)
        (bad,) = (one for one in batch.ledger if one == entry(2))
        await source.reject(bad, "a NUL in it")
        await source.reject(bad, "a NUL in it")  # the batch was tried again
        await source.commit()
        with pytest.raises(ValueError, match="not in the last take"):
            await source.reject(bad, "too late")
    (letter,) = await everything_in(url, DEAD_LETTERS)
    (origin,) = (m for m in await everything_in(url, LEDGER) if m.key == letter.key)
    assert (letter.key, letter.value) == (b"req_00000002", origin.value)
    assert dict(letter.headers)["reason"] == b"a NUL in it"


async def test_nothing_is_done_with_before_the_dead_letters_are_safe(url: str) -> None:
    await make_topic(url, DEAD_LETTERS, 1, max_message_bytes="10")
    async with sink_at(url) as sink, source_at(url) as source, asyncio.timeout(30):
        await sink.write([], [entry(1)])
        (record,) = (await source.take(1, 10, 10.0)).ledger
        with pytest.raises(StoreError):
            await source.reject(record, "bad")
        await source.commit()
        await put(url, LEDGER, b"nonsense")
        assert (await source.take(1, 10, 10.0)).size == 0
        doing = asyncio.create_task(source.commit())
        await asyncio.sleep(2.5)
        assert not doing.done()
        assert source.problem is not None and "too large" in source.problem
        await change_topic(url, DEAD_LETTERS, max_message_bytes="1000000")
        await doing
    assert [letter.value for letter in await everything_in(url, DEAD_LETTERS)] == [b"nonsense"]


async def test_a_letter_that_is_too_large_with_its_headers_is_kept_without_its_value(
    url: str,
) -> None:
    await make_topic(url, DEAD_LETTERS, 1, max_message_bytes="600")
    async with sink_at(url) as sink, source_at(url) as source:
        await sink.write([], [entry(1, model=secrets.token_hex(500))])
        (record,) = (await source.take(1, 10, 10.0)).ledger
        await source.reject(record, "bad")
        await source.commit()
    (letter,) = await everything_in(url, DEAD_LETTERS)
    headers = dict(letter.headers)
    assert (letter.key, letter.value, headers["left-out"]) == (b"req_00000001", None, b"value")
    assert headers["offset"] == b"0"
