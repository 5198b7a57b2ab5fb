"""What every store does with the ledger and with heartbeats."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fabric_server.storage.connect import open_store
from fabric_server.storage.store import SqlStore
from ledger.records import HeartbeatRecord, LedgerEntry
from ledger.reports import GROUPS, RequestFilter
from runtime.errors import RecordError
from tests.contracts.samples import NOON, beat, digest, entry, invitation, node

FOREVER = 1e12
DAY = 86_400.0


async def test_an_entry_comes_back_as_it_was_written(store: SqlStore) -> None:
    plain = entry(1, route="best of 3, 0.2 s expected, 1/4 slots", continued=2, estimated=True)
    bare = entry(
        2,
        node_id=None,
        engine=None,
        stream=False,
        status=503,
        outcome="refused",
        error="no_capacity",
        prompt_tokens=None,
        completion_tokens=None,
        first_byte_ms=None,
    )
    await store.write([], [plain, bare])
    assert await store.request(plain.request_id) == plain
    assert await store.request(bare.request_id) == bare
    assert await store.request("req_nobody") is None
    assert await store.requests() == [bare, plain]


def test_an_entry_of_the_release_before_is_still_understood() -> None:
    told = msgspec.to_builtins(entry(1, route="affinity", continued=1))
    del told["route"], told["continued"], told["estimated"]
    assert msgspec.json.decode(msgspec.json.encode(told), type=LedgerEntry) == entry(1)


def test_an_entry_is_understood_by_the_release_before() -> None:
    told = msgspec.json.decode(msgspec.json.encode(entry(1, estimated=True)))
    names = [name for name in LedgerEntry.__struct_fields__ if name != "estimated"]
    older = msgspec.defstruct("LedgerEntry", [(name, Any) for name in names])
    assert set(msgspec.to_builtins(msgspec.convert(told, older))) == set(names)


async def test_the_same_entry_told_twice_is_stored_once(store: SqlStore) -> None:
    await store.write([], [entry(1), entry(1)])
    await store.write([], [entry(1), entry(2)])
    assert [e.request_id for e in await store.requests()] == ["req_00000002", "req_00000001"]


async def test_large_batches_are_stored_whole(store: SqlStore) -> None:
    entries = [entry(number) for number in range(1, 1400)]
    await store.write([], entries)
    await store.write([], entries)
    (total,) = await store.usage(0, FOREVER)
    assert total.requests == 1399


async def test_entries_are_paged_through_without_gaps_even_at_one_instant(store: SqlStore) -> None:
    await store.write([], [entry(number, at=NOON + number // 10) for number in range(95)])
    seen: list[LedgerEntry] = []
    before = None
    while page := await store.requests(limit=7, before=before):
        seen += page
        before = (page[-1].at, page[-1].request_id)
    assert [e.request_id for e in seen] == [f"req_{n:08d}" for n in reversed(range(95))]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"key_id": "key_b"}, [2]),
        ({"node_id": "node_b"}, [3]),
        ({"model": "other"}, [4]),
        ({"outcome": "failed"}, [6, 5]),
        ({"account": "acme"}, [6]),
        ({"account": "acme", "outcome": "failed"}, [6]),
        ({"account": "acme", "outcome": "ok"}, []),
    ],
)
async def test_entries_are_found_by_what_they_have_in_common(
    store: SqlStore, filters: dict[str, str], found: list[int]
) -> None:
    entries = [
        entry(1),
        entry(2, key_id="key_b"),
        entry(3, node_id="node_b"),
        entry(4, model="other"),
        entry(5, outcome="failed"),
        entry(6, outcome="failed", account="acme"),
    ]
    await store.write([], entries)
    assert await store.requests(RequestFilter(**filters)) == [entries[n - 1] for n in found]
    before = NOON + 6, "req_00000006"
    earlier = [entries[n - 1] for n in found if n < 6]
    assert await store.requests(RequestFilter(**filters), before=before) == earlier


@pytest.mark.parametrize(
    "spoiled", [{"prompt_tokens": 2**70}, {"model": "\udc00"}, {"total_ms": None}]
)
async def test_an_impossible_entry_is_named_and_nothing_of_its_batch_is_kept(
    store: SqlStore, spoiled: dict[str, object]
) -> None:
    with pytest.raises(RecordError):
        await store.write([beat()], [entry(1), entry(2, **spoiled), entry(3)])
    assert await store.requests() == []
    assert await store.heartbeats("node_attic") == []
    await store.write([], [entry(1)])


async def test_usage_of_a_time_without_requests_is_zero(store: SqlStore) -> None:
    (total,) = await store.usage(0, FOREVER)
    assert (total.group, total.requests, total.prompt_tokens) == ({}, 0, 0)
    assert await store.usage(0, FOREVER, ["model"]) == []


async def test_usage_counts_from_the_first_instant_up_to_the_last(store: SqlStore) -> None:
    await store.write([], [entry(0), entry(1), entry(2)])
    (total,) = await store.usage(NOON, NOON + 2)
    assert total.requests == 2


async def test_usage_by_hour_and_day_begins_at_the_full_hour_and_day(store: SqlStore) -> None:
    await store.write(
        [], [entry(1, at=NOON - 0.25), entry(2, at=NOON), entry(3, at=NOON + 3599.75)]
    )
    by_hour = await store.usage(0, FOREVER, ["hour"])
    assert [(row.group, row.requests) for row in by_hour] == [
        ({"hour": int(NOON) - 3600}, 1),
        ({"hour": int(NOON)}, 2),
    ]
    (by_day,) = await store.usage(0, FOREVER, ["day"])
    assert by_day.group == {"day": int(NOON) - 43_200}


async def test_usage_by_something_unknown_names_what_is_known(store: SqlStore) -> None:
    with pytest.raises(ValueError, match=r"'password'.*account, key, model"):
        await store.usage(0, FOREVER, ["password"])


_entries = st.lists(
    st.builds(
        entry,
        number=st.integers(0, 30),
        at=st.floats(NOON - 90_000, NOON + 90_000),
        account=st.sampled_from(["default", "acme"]),
        key_id=st.sampled_from(["key_a", "key_b"]),
        node_id=st.sampled_from([None, "node_a", "node_b"]),
        engine=st.sampled_from([None, "ollama"]),
        model=st.sampled_from(["m1", "m2"]),
        outcome=st.sampled_from(["ok", "failed", "cancelled"]),
        prompt_tokens=st.none() | st.integers(0, 2**40),
        completion_tokens=st.none() | st.integers(0, 2**40),
        bytes_in=st.integers(0, 2**40),
        bytes_out=st.integers(0, 2**40),
        estimated=st.booleans(),
    ),
    max_size=40,
)


def _sums(entries: Sequence[LedgerEntry]) -> list[int]:
    return [
        len(entries),
        sum(e.outcome == "ok" for e in entries),
        sum(e.prompt_tokens or 0 for e in entries),
        sum(e.completion_tokens or 0 for e in entries),
        sum(e.bytes_in for e in entries),
        sum(e.bytes_out for e in entries),
        sum(e.estimated for e in entries),
    ]


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(_entries, max_size=4),
    by=st.lists(st.sampled_from(GROUPS), unique=True, max_size=3),
    since=st.floats(NOON - 90_000, NOON + 90_000),
    length=st.floats(0, 180_000),
)
def test_usage_always_equals_the_sum_of_the_ledger(
    batches: list[list[LedgerEntry]], by: list[str], since: float, length: float
) -> None:
    async def check() -> None:
        store = await open_store("sqlite://")
        first: dict[str, LedgerEntry] = {}
        for batch in batches:
            await store.write([], batch)
            await store.write([], batch)
            for e in sorted(batch, key=lambda e: e.request_id):
                first.setdefault(e.request_id, e)
        until = since + length
        within = [e for e in first.values() if since <= e.at < until]
        rows = await store.usage(since, until, by)
        totals = [list(msgspec.structs.astuple(row)[1:]) for row in rows]
        if by:
            assert all(tuple(row.group) == tuple(by) for row in rows)
            assert len({tuple(row.group.values()) for row in rows}) == len(rows)
        assert [sum(column) for column in zip([0] * 7, *totals, strict=True)] == _sums(within)
        if by == ["model"]:
            counted = Counter(e.model for e in within)
            assert {row.group["model"]: row.requests for row in rows} == counted
        assert len(await store.requests(limit=1000)) == len(first)
        await store.close()

    asyncio.run(check())


async def test_heartbeats_come_back_newest_first(store: SqlStore) -> None:
    beats = [beat(1), beat(2), beat(1, epoch=2), beat(1, node="node_cellar")]
    await store.write(beats, [])
    await store.write(beats, [])
    assert await store.heartbeats("node_attic") == [beats[2], beats[1], beats[0]]
    assert await store.heartbeats("node_attic", limit=1) == [beats[2]]
    assert await store.heartbeats("node_attic", before=(2, 1)) == [beats[1], beats[0]]


async def test_heartbeats_say_when_their_node_was_last_seen(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    await store.write([beat(5), beat(9), beat(7)], [])
    await store.write([beat(3)], [])
    found = await store.node("node_attic")
    assert found is not None and found.last_seen_at == NOON + 9


async def test_no_number_spoils_a_batch_and_one_out_of_bounds_is_left_out(store: SqlStore) -> None:
    inf, nan, most = float("inf"), float("nan"), 2**64 - 1
    wild = beat(most, cpu_percent=nan, network_in_bytes_per_second=inf, at=-inf)
    wild = replace(wild, heartbeat=replace(wild.heartbeat, active=most, slots=most, memory_bytes=0))
    await store.write([wild, beat(1)], [entry(1)])
    assert [one.seq for one in await store.heartbeats("node_attic")] == [beat(1).seq]
    assert await store.requests() == [entry(1)]


async def test_old_heartbeats_are_forgotten_in_pieces_oldest_first() -> None:
    store = await open_store("sqlite://")
    await store.write([beat(n) for n in range(10)], [])
    assert await store.delete_heartbeats(NOON + 6, NOON, 4)
    assert await _seqs(store) == [9, 8, 7, 6, 5, 4]
    assert not await store.delete_heartbeats(NOON + 6, NOON, 4)
    assert await _seqs(store) == [9, 8, 7, 6]
    await store.close()


async def test_heartbeats_older_than_a_day_before_are_forgotten(store: SqlStore) -> None:
    """Where they are kept by day, days go as a whole: none earlier than was asked for."""
    for day in range(10):
        await store.delete_heartbeats(0, NOON + day * DAY, 1000)  # makes room for the day
        await store.write([_beat_at(day * 10 + n, NOON + day * DAY + n) for n in range(3)], [])
    await store.delete_heartbeats(NOON + 7 * DAY + 1, NOON + 9 * DAY, 1000)
    left = await _seqs(store)
    assert left[:8] == [92, 91, 90, 82, 81, 80, 72, 71]
    assert set(left[8:]) <= {70}


async def test_heartbeats_of_any_time_are_kept(store: SqlStore) -> None:
    """Clocks may be far off; and days are made for what came before them."""
    await store.write([_beat_at(n, NOON + n * 40 * DAY) for n in range(5)], [])
    await store.delete_heartbeats(0, NOON + 40 * DAY, 1000)
    await store.write([_beat_at(n, NOON + n * 40 * DAY) for n in range(7)], [])
    assert await _seqs(store) == [6, 5, 4, 3, 2, 1, 0]
    await store.delete_heartbeats(NOON + 100 * DAY, NOON + 120 * DAY, 1000)
    assert await _seqs(store) == [6, 5, 4, 3]


async def test_nodes_unheard_of_are_marked_offline_until_they_are_heard_again(
    store: SqlStore,
) -> None:
    for name in ("attic", "barn"):
        await store.create_invitation(invitation(name))
        await store.redeem_invitation(digest(name), node(name), NOON)
        await store.mark_node_online(f"node_{name}", NOON, platform="linux", version="0.1.0")
    await store.write([beat(100, node="node_barn")], [])
    assert await store.mark_offline(NOON + 60) == ["node_attic"]
    assert await store.mark_offline(NOON + 60) == []
    assert [row.online for row in await store.nodes()] == [False, True]
    await store.write([beat(200)], [])
    assert [row.online for row in await store.nodes()] == [True, True]


def _beat_at(seq: int, at: float) -> HeartbeatRecord:
    return replace(beat(seq), at=at)


async def _seqs(store: SqlStore) -> list[int]:
    beats: list[HeartbeatRecord] = await store.heartbeats("node_attic")
    return [record.seq for record in beats]
