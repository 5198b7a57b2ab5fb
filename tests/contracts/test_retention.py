"""What retention deletes and sums up, and what stays the same: on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fabric_server.storage.answers import AnswerRow, AnswerStore, Kind
from fabric_server.storage.connect import open_store
from fabric_server.storage.retention import (
    Policy,
    Retention,
    RetentionKeeper,
    pause_after,
    run_once,
)
from fabric_server.storage.retention_state import LEASE_SECONDS, RetentionState
from fabric_server.storage.rows import Redeemed
from fabric_server.storage.store import SqlStore
from ledger.archive import archive_month
from ledger.closing import LedgerClosing, SumsDiffer
from ledger.months import month_of
from ledger.records import LedgerEntry, UsageRow
from runtime.errors import RecordError, StoreError
from sql.database import Database, Row, Session, Value
from tests.contracts.samples import digest, entry, invitation, key, node

DAY = 86_400.0
NOW = datetime(2025, 7, 10, 12, 34, 56, tzinfo=UTC).timestamp()
JUNE, MAY, APRIL, JANUARY = (
    datetime(2025, month, 1, tzinfo=UTC).timestamp() for month in (6, 5, 4, 1)
)
FOREVER = 4e9
Note = Callable[[Database | Session, str, Sequence[Value]], Awaitable[None]]
BY = ["account", "key", "model", "node", "engine", "path", "outcome"]

POLICY = Policy(
    ledger_months=2,
    archive=None,
    hourly_months=2,
    daily_months=3,
    monthly_months=5,
    node_days=30,
    ended_days=400,
)
FOREVER_KEPT = Policy(
    ledger_months=0,
    archive=None,
    hourly_months=2,
    daily_months=3,
    monthly_months=5,
    node_days=0,
    ended_days=0,
)


def at(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


async def prune(store: SqlStore, policy: Policy = POLICY, now: float = NOW) -> dict[str, int]:
    return await Retention(store.database, policy, now, max_rows=7).run()


def some_entries() -> list[LedgerEntry]:
    """Requests of each month from November on, at every hour of the day and both sides of it."""
    times = [
        *(at(2024, 11, 30, 23, 59, 59), at(2024, 12, 1), at(2024, 12, 31, 23, 30)),
        *(at(2025, month, day, hour, 10) for month in range(1, 8) for day in (1, 9) for hour in
          (0, 5, 23)),
        *(at(2025, 4, 30, 23, 59, 59), at(2025, 5, 1), NOW - 1),
    ]  # fmt: skip
    return [
        entry(
            number,
            at=when,
            account=("default", "acme")[number % 2],
            key_id=f"key_{number % 3}",
            node_id=(None, "node_a")[number % 2],
            estimated=number % 5 == 0,
            outcome=("ok", "failed")[number % 7 == 0],
        )
        for number, when in enumerate(times)
    ]


async def test_whole_months_are_deleted_and_usage_stays_the_same(store: SqlStore) -> None:
    entries = some_entries()
    await store.write([], entries)
    periods = [
        (0.0, FOREVER, ["account"]),
        (0.0, FOREVER, []),
        *((at(2025, month, 1), at(2025, month + 1, 1), BY) for month in range(2, 8)),
        *((at(2025, 4, day), at(2025, 4, day + 1), [*BY, "day"]) for day in (1, 9)),
        *((at(2025, 5, 9, hour), at(2025, 5, 9, hour + 1), [*BY, "hour"]) for hour in (0, 5, 22)),
        (at(2025, 5, 3, 1, 2, 3), NOW - 0.5, BY),
    ]

    async def usage() -> list[list[UsageRow]]:
        return [await store.usage(since, until, by) for since, until, by in periods]

    before = await usage()
    due = await Retention(store.database, POLICY, NOW).due()
    done = await prune(store)
    assert await usage() == before
    left = await store.requests(limit=1000)
    assert {e.request_id for e in left} == {e.request_id for e in entries if e.at >= MAY}
    assert done["ledger"] == due["ledger"] == len(entries) - len(left)
    assert await prune(store) == dict.fromkeys(done, 0)
    months = await LedgerClosing(store.database).months()
    assert [one.month for one in months] == sorted({month_of(e.at) for e in entries} - {
        month_of(e.at) for e in left}, reverse=True)  # fmt: skip
    assert sum(one.entries for one in months) == done["ledger"]
    assert all(one.deleted_at == NOW for one in months)


async def test_sums_become_days_months_and_one_sum_for_each_account(store: SqlStore) -> None:
    await store.write([], some_entries())
    await prune(store)
    rows = await store.database.fetch("SELECT DISTINCT hour, key_id FROM usage_by_hour")
    hours = {int(hour) for hour, _ in rows}
    old = {hour for hour in hours if hour < at(2025, 2, 1)}
    months = {hour for hour in hours if at(2025, 2, 1) <= hour < at(2025, 4, 1)}
    days = {hour for hour in hours if at(2025, 4, 1) <= hour < at(2025, 5, 1)}
    assert old == {0}
    assert {key for hour, key in rows if hour == 0} == {""}
    assert months == {at(2025, 2, 1), at(2025, 3, 1)}
    assert days == {at(2025, 4, 1), at(2025, 4, 9), at(2025, 4, 30)}
    assert at(2025, 5, 9, 5) in hours


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    times=st.lists(st.floats(at(2024, 12, 1), NOW), max_size=25),
    edges=st.lists(st.floats(at(2024, 11, 1), NOW + DAY), min_size=1, max_size=4).map(sorted),
    stops=st.integers(0, 12),
)
def test_periods_that_follow_each_other_always_count_everything_once(
    times: list[float], edges: list[float], stops: int
) -> None:
    """Also when retention is stopped anywhere in the middle, and goes on later."""

    async def check() -> None:
        store = await open_store("sqlite://")
        await store.write([], [entry(number, at=when) for number, when in enumerate(times)])
        borders = [0.0, *edges, FOREVER]

        async def counted() -> list[int]:
            found = [await store.usage(a, b) for a, b in pairwise(borders)]
            return [row.requests for (row,) in found]

        left = stops

        async def stop() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise StoreError("stopped")

        exact = [sum(a <= t < b for t in times) for a, b in pairwise(borders)]
        assert await counted() == exact
        try:
            await Retention(store.database, POLICY, NOW, renew=stop, max_rows=3).run()
        except StoreError:
            assert sum(await counted()) == len(times)
        await prune(store)
        assert sum(await counted()) == len(times)
        (late,) = await store.usage(MAY, FOREVER)
        assert late.requests == sum(t >= MAY for t in times)
        await store.close()

    asyncio.run(check())


async def test_an_entry_of_a_closed_month_is_refused_and_never_summed_twice(
    store: SqlStore,
) -> None:
    old, new = entry(1, at=APRIL + 5), entry(2, at=NOW)
    await store.write([], [old, new])
    await prune(store)
    with pytest.raises(RecordError, match="the ledger is closed before"):
        await store.write([], [old, entry(3, at=NOW)])
    await store.write([], [new, entry(4, at=MAY)])
    (total,) = await store.usage(0, FOREVER)
    assert total.requests == 3


async def test_nothing_is_closed_where_requests_are_kept_for_ever(store: SqlStore) -> None:
    entries = some_entries()
    await store.write([], entries)
    before = await store.usage(0, FOREVER, ["hour"])
    assert sum((await prune(store, FOREVER_KEPT)).values()) == 0
    assert await store.usage(0, FOREVER, ["hour"]) == before
    await store.write([], [entry(1000, at=JANUARY)])
    assert len(await store.requests(limit=1000)) == len(entries) + 1


async def test_a_month_with_more_requests_than_its_sums_is_kept(store: SqlStore) -> None:
    await store.write([], [entry(1, at=APRIL + 5), entry(2, at=APRIL + 7200)])
    async with store.database.transaction() as session:
        await session.execute("UPDATE usage_by_hour SET requests = 0 WHERE hour = $1", int(APRIL))
    with pytest.raises(SumsDiffer, match=r"2025-04 was not deleted.*has 1 requests"):
        await run_once(store.database, replace(POLICY, ledger_months=2))
    assert len(await store.requests()) == 2
    assert "2025-04" in (await RetentionState(store.database).read()).problem


# ── archives ──────────────────────────────────────────────────────────────────────────────────


async def test_a_month_is_archived_before_it_is_deleted(store: SqlStore, tmp_path: Path) -> None:
    entries = some_entries()
    await store.write([], entries)
    place = tmp_path / "made" / "archive"
    await prune(store, replace(POLICY, archive=place))
    names = {f"ledger-{month}.jsonl.gz" for month in
             ("2024-11", "2024-12", "2025-01", "2025-02", "2025-03", "2025-04")}  # fmt: skip
    assert {path.name for path in place.iterdir()} == names
    kept = []
    for path in sorted(place.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        kept += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    expected = sorted((e for e in entries if e.at < MAY), key=lambda e: (e.at, e.request_id))
    assert kept == [msgspec.to_builtins(e) for e in expected]
    months = await LedgerClosing(store.database).months()
    assert {one.archive for one in months} == names
    assert all(len(one.sha256) == 64 for one in months)


async def test_a_month_that_cant_be_archived_stays(store: SqlStore, tmp_path: Path) -> None:
    await store.write([], some_entries())
    before = await store.requests(limit=1000)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="2024-11 can't be written"):
        await prune(store, replace(POLICY, archive=tmp_path / "file" / "archive"))
    assert await store.requests(limit=1000) == before
    await prune(store, replace(POLICY, archive=tmp_path / "archive"))
    assert len(list((tmp_path / "archive").iterdir())) == 6


async def test_archives_are_never_replaced(store: SqlStore, tmp_path: Path) -> None:
    closing = LedgerClosing(store.database)
    month = month_of(APRIL)
    await store.write([], [entry(1, at=APRIL)])
    first = await archive_month(tmp_path, month, closing.pages(month))
    again = await archive_month(tmp_path, month, closing.pages(month))
    assert first == again
    await store.write([], [entry(2, at=APRIL + 1)])
    other = await archive_month(tmp_path, month, closing.pages(month))
    assert (other.name, other.entries) == ("ledger-2025-04-2.jsonl.gz", 2)
    assert sorted(os.listdir(tmp_path)) in (
        ["ledger-2025-04-2.jsonl.gz", "ledger-2025-04.jsonl.gz"],
        ["ledger-2025-04-2.jsonl.gz", "ledger-2025-04.jsonl.gz", "store.db", "store.db-shm",
         "store.db-wal"],
    )  # fmt: skip


async def test_what_a_killed_server_left_of_an_archive_is_removed(
    store: SqlStore, tmp_path: Path
) -> None:
    left, young = (tmp_path / f".ledger-2024-12.{number}.part" for number in (1, 2))
    left.write_text("half")
    young.write_text("of another server that works on it")
    os.utime(left, (1.0, 1.0))
    closing = LedgerClosing(store.database)
    await archive_month(tmp_path, month_of(APRIL), closing.pages(month_of(APRIL)))
    assert not left.exists() and young.exists()


def test_a_long_step_is_not_followed_by_a_pause_that_outlasts_the_lease() -> None:
    assert pause_after(0.02) == 0.02
    assert pause_after(600.0) < LEASE_SECONDS / 4


async def test_a_store_that_is_away_is_logged_once_each_time(
    store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with store.database.transaction() as session:
        await session.execute("ALTER TABLE retention RENAME TO retention_away")
    keeper = RetentionKeeper(store.database, POLICY)
    for _ in range(3):
        await keeper.look()
    assert [one.message for one in caplog.records] == ["retention waits for the store"]
    async with store.database.transaction() as session:
        await session.execute("ALTER TABLE retention_away RENAME TO retention")
    await keeper.look()
    assert keeper.report is not None


async def test_a_month_half_deleted_is_not_archived_again(store: SqlStore, tmp_path: Path) -> None:
    await store.write([], [entry(n, at=APRIL + n) for n in range(10)])
    steps = 0

    async def stop() -> None:
        nonlocal steps
        steps += 1
        if steps > 5:  # the hour, the page, and two steps of deletion
            raise StoreError("stopped")

    policy = replace(POLICY, archive=tmp_path / "archive")
    with pytest.raises(StoreError, match="stopped"):
        await Retention(store.database, policy, NOW, renew=stop, max_rows=3).run()
    assert 0 < len(await store.requests()) < 10
    await prune(store, policy)
    (archive,) = (tmp_path / "archive").iterdir()
    assert gzip.decompress(archive.read_bytes()).count(b"\n") == 10


# ── nodes, keys, invitations ──────────────────────────────────────────────────────────────────


async def add_node(store: SqlStore, name: str, created_at: float) -> None:
    await store.create_invitation(invitation(name, created_at=created_at, expires_at=NOW * 2))
    joined = node(name, created_at=created_at)
    assert await store.redeem_invitation(digest(name), joined, created_at) is Redeemed.OK


async def test_dead_nodes_leave_the_list_and_later_the_store(store: SqlStore) -> None:
    for name, seen in (("gone", 100), ("away", 31.5), ("new", 1), ("never", 50), ("on", 90)):
        await add_node(store, name, NOW - 200 * DAY)
        if name != "never":
            await store.mark_node_online(
                f"node_{name}", NOW - seen * DAY, platform="linux", version="1"
            )
        await store.add_served_models(f"node_{name}", ["m"], NOW)
    await store.mark_offline(NOW)
    await store.mark_node_online("node_on", NOW - 90 * DAY, platform="linux", version="1")
    listed = [one.name for one in await store.nodes(NOW - 30 * DAY)]
    assert sorted(listed) == ["new", "on"]
    await store.write([], [entry(1, at=NOW, node_id="node_gone")])
    assert (await prune(store, replace(POLICY, node_days=40.0)))["nodes"] == 2
    assert sorted(one.name for one in await store.nodes()) == ["away", "new", "on"]
    assert await store.next_epoch("node_gone") is None, "it has to join again"
    assert await store.next_epoch("node_away") == 1, "it comes back as it was"
    await store.mark_node_online("node_away", NOW, platform="linux", version="1")
    assert "away" in [one.name for one in await store.nodes(NOW - 30 * DAY)]
    assert await store.served_models("node_gone") == []
    (row,) = await store.usage(0, FOREVER, ["node"])
    assert row.group == {"node": "node_gone"}, "what it did is still counted"


async def test_revoked_nodes_never_come_back(store: SqlStore) -> None:
    for name, revoked in (("long", 401), ("recently", 399)):
        await add_node(store, name, NOW - 500 * DAY)
        await store.revoke_node(f"node_{name}", NOW - revoked * DAY)
    assert (await prune(store))["revoked nodes"] == 1
    assert [one.name for one in await store.nodes()] == ["recently"]
    for name in ("long", "recently"):
        assert await store.next_epoch(f"node_{name}") is None
        again = await store.redeem_invitation(digest(name), node(name), NOW)
        assert again in (Redeemed.USED, Redeemed.UNKNOWN)


async def test_revoked_and_expired_keys_and_invitations_are_deleted_later(store: SqlStore) -> None:
    for name in ("good", "old", "expired", "revoked"):
        expires = {"expired": NOW - 401 * DAY, "good": NOW + 1}.get(name)
        await store.create_key(key(name, expires_at=expires))
    await store.revoke_key("key_old", NOW - 401 * DAY)
    await store.revoke_key("key_revoked", NOW - 399 * DAY)
    await store.create_invitation(invitation("old", expires_at=NOW - 31 * DAY))
    await store.create_invitation(invitation("new", expires_at=NOW - 29 * DAY))
    done = await prune(store)
    assert (done["keys"], done["invitations"]) == (2, 1)
    assert sorted(one.name for one in await store.keys()) == ["good", "revoked"]
    assert await store.invitation(digest("old")) is None
    assert await store.invitation(digest("new")) is not None


async def test_stored_answers_are_deleted_when_their_time_is_over(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    kinds: tuple[Kind, ...] = ("response", "chat")
    for kind in kinds:
        for age, ends in (("old", NOW - 1), ("new", NOW + 1)):
            id = f"{age}_{kind}"
            row = AnswerRow("acme", id, kind, 4, NOW - DAY, ends, "", "", b"[]", b"{}")
            assert await table.add(row, max_bytes=2**20)
    assert (await prune(store))["stored answers"] == 2
    for kind in kinds:
        assert await table.find("acme", kind, f"old_{kind}", NOW - 2) is None
        assert await table.find("acme", kind, f"new_{kind}", NOW) is not None


# ── one server at a time, and only with a calm clock ──────────────────────────────────────────


async def test_one_server_deletes_at_a_time_and_a_lost_one_is_replaced(store: SqlStore) -> None:
    state = RetentionState(store.database)
    now = await store.database.now()
    assert await state.claim("server_a", now)
    assert await run_once(store.database, POLICY) is None
    assert not await state.claim("server_b", now + 60)
    assert await state.claim("server_a", now + 60), "renewed"
    assert await state.claim("server_b", now + 181)
    await state.end("server_a", now, 5, "not its own any more")
    assert (await state.read()).problem == ""
    await state.end("server_b", now, 7, "")
    assert (await state.read()).removed == 7
    assert await run_once(store.database, POLICY) is not None


async def test_nothing_is_deleted_within_a_day_of_an_outage_or_a_leap_of_the_clock(
    store: SqlStore,
) -> None:
    state = RetentionState(store.database)
    assert (await state.watch(NOW)).watched_since == NOW
    assert (await state.watch(NOW + 3600)).watched_since == NOW
    assert (await state.watch(NOW + 3600 + 2 * DAY)).watched_since == NOW + 3600 + 2 * DAY
    assert (await state.watch(NOW)).watched_since == NOW, "the clock was set back"
    await store.write([], [entry(1, at=APRIL)])
    keeper = RetentionKeeper(store.database, POLICY)
    await keeper.look()
    assert len(await store.requests()) == 1
    assert keeper.report is not None and keeper.report.state.finished_at is None
    now = await store.database.now()
    async with store.database.transaction() as session:
        await session.execute("UPDATE retention SET watched_since = $1", now - DAY - 1)
    await keeper.look()
    assert await store.requests() == []
    assert keeper.report.oldest_entry is None
    assert keeper.report.size.bytes > 0
    assert keeper.report.state.finished_at is not None


async def test_a_failure_is_stored_for_all_servers(store: SqlStore, tmp_path: Path) -> None:
    await store.write([], [entry(1, at=APRIL)])
    now = await store.database.now()
    await RetentionState(store.database).watch(now - 60)
    async with store.database.transaction() as session:
        await session.execute("UPDATE retention SET watched_since = $1", now - 2 * DAY)
    (tmp_path / "file").write_text("in the way")
    keeper = RetentionKeeper(store.database, replace(POLICY, archive=tmp_path / "file"))
    await keeper.look()
    await keeper.look()
    assert keeper.failures == 2
    assert keeper.report is not None and "2025-04 can't be written" in keeper.report.state.problem


# ── no statement walks a whole table ──────────────────────────────────────────────────────────


class Explained:
    """A database that notes the plan of each statement before it runs it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._explain = "EXPLAIN" if database.partitioned else "EXPLAIN QUERY PLAN"
        self.plans: dict[str, str] = {}

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        await self._note(self._database, sql, args)
        return await self._database.fetch(sql, *args)

    @asynccontextmanager
    async def transaction(self, *, durable: bool = False) -> AsyncIterator[ExplainedSession]:
        async with self._database.transaction(durable=durable) as session:
            if self._database.partitioned:  # tables are small: tell whether an index can be used
                await session.execute("SET LOCAL enable_seqscan = off")
            yield ExplainedSession(session, self._note)

    async def _note(self, where: Database | Session, sql: str, args: Sequence[Value]) -> None:
        rows = await where.fetch(f"{self._explain} {sql}", *args)
        self.plans[sql] = "\n".join(str(row[-1]) for row in rows)


class ExplainedSession:
    def __init__(self, session: Session, note: Note) -> None:
        self._session = session
        self._note = note
        self.alone = session.alone

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        await self._note(self._session, sql, args)
        return await self._session.fetch(sql, *args)

    async def execute(self, sql: str, *args: Value) -> int:
        await self._note(self._session, sql, args)
        return await self._session.execute(sql, *args)


WHOLE = re.compile(
    r"(?:SCAN|Seq Scan on) "
    r"(ledger|usage_by_hour|keys|invitations|served_models|stored_answers)\b"
)


async def test_no_statement_of_retention_walks_a_whole_table(store: SqlStore) -> None:
    await store.write([], some_entries())
    await add_node(store, "gone", NOW - 200 * DAY)
    explained = Explained(store.database)
    database: Any = explained
    await Retention(database, POLICY, NOW, max_rows=50).run()
    if store.database.partitioned:
        # The tables were too small for an index; ask again for those that only read.
        for sql in [one for one in explained.plans if one.startswith("SELECT")]:
            async with explained.transaction() as session:
                numbers = sorted(set(map(int, re.findall(r"\$(\d+)", sql))))
                args: list[Value] = [5 for _ in numbers]
                if "request_id) >" in sql:
                    args[1] = "id"
                await session.fetch(sql, *args)
    walked = [f"{sql}\n{plan}" for sql, plan in explained.plans.items() if WHOLE.search(plan)]
    assert len(explained.plans) > 20
    assert walked == []
