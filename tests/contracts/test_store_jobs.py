"""What every store remembers of jobs, batches, files and webhooks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from msgspec.structs import replace

from fabric_server.storage.batches import BatchRow, BatchStore
from fabric_server.storage.connect import open_store
from fabric_server.storage.files import OVERHEAD_BYTES, FileRow, FileStore
from fabric_server.storage.jobs import MAX_STARTS, JobFilter, JobRow, JobState, JobStore, Lane
from fabric_server.storage.store import SqlStore
from fabric_server.storage.webhooks import WebhookRow, WebhookStore
from tests.contracts.samples import NOON, digest, key

ACME = Lane("acme", "")
SERVED = JobFilter(("tiny", "small", "other"))


@pytest.fixture
def jobs(store: SqlStore) -> JobStore:
    return JobStore(store.database)


@pytest.fixture
def files(store: SqlStore) -> FileStore:
    return FileStore(store.database)


@pytest.fixture
def batches(store: SqlStore) -> BatchStore:
    return BatchStore(store.database)


def job(name: str = "one", **changes: Any) -> JobRow:
    values: dict[str, Any] = {
        "id": f"job_{name}",
        "account": "acme",
        "key_id": "key_laptop",
        "name": name,
        "path": "/v1/chat/completions",
        "model": "tiny",
        "body": b"{}",
        "digest": digest(name),
        "priority": 1,
        "created_at": NOON,
        "expires_at": NOON + 100,
    }
    return JobRow(**(values | changes))


def batch(**changes: Any) -> BatchRow:
    values: dict[str, Any] = {
        "id": "batch_1",
        "account": "acme",
        "key_id": "key_laptop",
        "endpoint": "/v1/chat/completions",
        "input_file": "file-1",
        "created_at": NOON,
        "expires_at": NOON + 100,
    }
    return BatchRow(**(values | changes))


def file(id: str = "file-1", **changes: Any) -> FileRow:
    values = {"id": id, "account": "acme", "name": "in.jsonl", "purpose": "batch", "size": 0}
    return FileRow(**(values | {"created_at": NOON, "expires_at": NOON + 100} | changes))


async def claim(
    jobs: JobStore, owner: str = "a", most: int = 10, now: float = NOON, lane: Lane = ACME
) -> list[JobRow]:
    return await jobs.claim(lane, owner, most, SERVED, now=now, lease_until=now + 10)


def ended(job: JobRow, state: JobState, now: float, status: int, answer: bytes) -> JobRow:
    return replace(job, state=state, finished_at=now, status=status, answer=answer)


async def test_a_job_is_stored_once_under_its_name(jobs: JobStore) -> None:
    assert await jobs.add(job(), max_unfinished=5) == job()
    stored = job(body=b"")
    assert await jobs.add(job(id="job_two", digest=digest("two")), max_unfinished=5) == stored
    assert await jobs.find("acme", "one") == stored
    assert await jobs.find("other", "one") is None


async def test_an_account_has_only_so_many_unfinished_jobs(jobs: JobStore) -> None:
    await jobs.add(job("one"), max_unfinished=1)
    assert await jobs.add(job("two"), max_unfinished=1) is None
    assert await jobs.add(job("two", account="other"), max_unfinished=1) is not None
    [claimed] = await claim(jobs)
    assert await jobs.finish(ended(claimed, "done", NOON, 200, b"{}"))
    assert await jobs.add(job("three"), max_unfinished=1) is not None


async def test_jobs_are_claimed_by_priority_and_age_and_by_one_server_only(jobs: JobStore) -> None:
    for name, priority, at in (("c", 1, 2.0), ("b", 1, 1.0), ("d", 2, 0.0), ("a", 0, 3.0)):
        await jobs.add(job(name, priority=priority, created_at=NOON + at), max_unfinished=9)
    await jobs.add(job("e", not_before=NOON + 50), max_unfinished=9)
    assert await jobs.lanes(SERVED, NOON) == [ACME]
    first = await claim(jobs, "a", most=3)
    assert [one.name for one in first] == ["a", "b", "c"]
    assert {(one.state, one.owner, one.starts) for one in first} == {("running", "a", 1)}
    assert [one.name for one in await claim(jobs, "b")] == ["d"]
    assert await claim(jobs, "b") == []
    assert await jobs.lanes(SERVED, NOON) == []
    assert [one.name for one in await claim(jobs, "b", now=NOON + 50)] == ["e"]


async def test_a_server_claims_what_its_own_nodes_serve(jobs: JobStore) -> None:
    await jobs.add(job("here"), max_unfinished=9)
    await jobs.add(job("elsewhere", account="other", model="large"), max_unfinished=9)
    assert await jobs.lanes(JobFilter(["large"]), NOON) == [Lane("other", "")]
    large = JobFilter(["large"])
    assert await jobs.claim(ACME, "a", 9, large, now=NOON, lease_until=NOON + 10) == []
    assert [one.name for one in await claim(jobs)] == ["here"]


async def test_two_servers_at_once_never_have_the_same_job(shared_url: str) -> None:
    stores = [await open_store(shared_url) for _ in range(2)]
    servers = [JobStore(store.database) for store in stores]
    try:
        for number in range(40):
            await servers[0].add(job(f"{number}"), max_unfinished=99)
        claimed: list[str] = []

        async def take(server: JobStore, owner: str) -> None:
            while some := await claim(server, owner, most=3):
                claimed.extend(one.id for one in some)

        await asyncio.gather(*(take(servers[n % 2], f"server_{n}") for n in range(4)))
        assert len(claimed) == len(set(claimed)) == 40
    finally:
        for store in stores:
            await store.close()


async def test_a_lease_that_ran_out_gives_the_job_to_another_and_the_first_ends_nothing(
    jobs: JobStore,
) -> None:
    await jobs.add(job(), max_unfinished=5)
    [first] = await claim(jobs, "a")
    assert await jobs.requeue_expired(NOON + 9) == []
    assert await claim(jobs, "b", now=NOON + 9) == []
    assert await jobs.renew("a", ["job_one"], NOON + 20) == {"job_one": (1, False)}
    assert await jobs.requeue_expired(NOON + 19) == []
    assert await claim(jobs, "b", now=NOON + 19) == []
    assert await jobs.requeue_expired(NOON + 20) == []
    [second] = await claim(jobs, "b", now=NOON + 20)
    assert second.starts == 2
    assert await jobs.renew("a", ["job_one"], NOON + 40) == {}
    assert not await jobs.finish(ended(first, "done", NOON, 200, b"first"))
    assert not await jobs.requeue(first, 0.0)
    assert await jobs.finish(ended(second, "done", NOON, 200, b"second"))
    found = await jobs.find("acme", "one")
    assert found is not None and (found.state, found.answer) == ("done", b"second")
    assert await claim(jobs, "b", now=NOON + 99) == []


async def test_a_lease_of_a_server_whose_clock_was_ahead_holds_no_job(jobs: JobStore) -> None:
    await jobs.add(job(), max_unfinished=5)
    assert len(await claim(jobs, "a", now=NOON + 70 * 86_400)) == 1
    assert await jobs.requeue_expired(NOON) == []
    assert len(await claim(jobs, "b", now=NOON)) == 1


async def test_the_store_has_a_clock(jobs: JobStore) -> None:
    assert await jobs.now() == pytest.approx(time.time(), abs=60)


async def test_a_job_that_ends_its_servers_is_given_up(jobs: JobStore) -> None:
    await jobs.add(job(), max_unfinished=5)
    now = NOON
    for _ in range(MAX_STARTS):
        assert await jobs.requeue_expired(now) == []
        assert len(await claim(jobs, now=now)) == 1
        now += 10
    [given_up] = await jobs.requeue_expired(now)
    assert await claim(jobs, now=now) == []
    assert await jobs.finish(ended(given_up, "failed", now, 500, b"{}"))
    assert await jobs.requeue_expired(now) == []


async def test_a_start_that_was_not_the_jobs_fault_does_not_count(jobs: JobStore) -> None:
    await jobs.add(job(), max_unfinished=5)
    [claimed] = await claim(jobs)
    assert await jobs.requeue(claimed, NOON + 5)
    assert await claim(jobs) == []
    [again] = await claim(jobs, now=NOON + 5)
    assert again.starts == 1


async def test_a_running_job_is_told_to_stop_with_its_lease(jobs: JobStore) -> None:
    await jobs.add(job(), max_unfinished=5)
    await claim(jobs, "a")
    await jobs.cancel(job())
    assert await jobs.renew("a", ["job_one"], NOON + 20) == {"job_one": (1, True)}
    [cancelled] = await jobs.requeue_expired(NOON + 30)  # whoever should have stopped it is dead
    assert cancelled.cancel


async def test_only_leases_of_jobs_that_the_server_knows_of_are_renewed(jobs: JobStore) -> None:
    await jobs.add(job(), max_unfinished=5)
    await claim(jobs, "a")  # the store went away before it could say so
    assert await jobs.renew("a", [], NOON + 20) == {}
    assert await jobs.renew("a", ["job_other"], NOON + 20) == {}
    assert await jobs.requeue_expired(NOON + 10) == []
    [again] = await claim(jobs, "a", now=NOON + 10)
    assert again.starts == 2


async def test_what_was_asked_is_read_by_whoever_runs_it_only(jobs: JobStore) -> None:
    await jobs.add(job(body=b"long"), max_unfinished=5)
    [listed] = await jobs.unfinished("acme", limit=5)
    named = await jobs.find("acme", "one")
    assert named == listed
    assert listed.body == b""
    [claimed] = await claim(jobs)
    assert claimed.body == b"long"


async def test_places_are_those_behind_everybodys_older_jobs(jobs: JobStore) -> None:
    await jobs.add(job("a", account="other"), max_unfinished=9)
    await jobs.add(job("b", created_at=NOON + 1), max_unfinished=9)
    await jobs.add(job("c", created_at=NOON + 2, priority=0), max_unfinished=9)
    await jobs.add(job("d", created_at=NOON + 3, model="another"), max_unfinished=9)
    places = await jobs.queue_positions("acme", limit=9)
    assert places == {"job_b": 2, "job_c": 0, "job_d": 0}
    for one in await jobs.unfinished("acme", limit=9):
        assert await jobs.queue_position(one) == places[one.id]


async def test_answers_are_kept_up_to_a_size_the_last_ones_first(jobs: JobStore) -> None:
    for number in range(4):
        await jobs.add(job(f"{number}"), max_unfinished=9)
        [claimed] = await claim(jobs)
        now = NOON + number
        await jobs.finish(ended(claimed, "done", now, 200, b"12345"))
    assert await jobs.delete_old(NOON - 1, keep=9, size=20) == 0
    assert await jobs.delete_old(NOON - 1, keep=9, size=12) == 2
    assert await jobs.find("acme", "1") is None
    assert await jobs.find("acme", "2") is not None


async def test_keys_that_rest_are_passed_over(jobs: JobStore) -> None:
    await jobs.add(job("one", key_id="key_a"), max_unfinished=5)
    assert await jobs.lanes(JobFilter(SERVED.models, {"key_a"}), NOON) == []
    await jobs.add(job("two", key_id="key_b"), max_unfinished=5)
    [lane] = await jobs.lanes(JobFilter(SERVED.models, {"key_a"}), NOON)
    [claimed] = await jobs.claim(
        lane,
        "a",
        9,
        JobFilter(SERVED.models, {"key_a", "key_c"}),
        now=NOON,
        lease_until=NOON + 9,
    )
    assert claimed.name == "two"
    assert await jobs.count_queued() == (1, 0)


async def test_the_queue_tells_who_is_ahead_and_what_is_overdue(jobs: JobStore) -> None:
    await jobs.add(job("low", priority=2), max_unfinished=9)
    await jobs.add(job("late", created_at=NOON + 2), max_unfinished=9)
    await jobs.add(job("early", created_at=NOON + 1, account="other"), max_unfinished=9)
    await jobs.add(job("elsewhere", model="large", priority=0), max_unfinished=9)
    found = await jobs.find("acme", "low")
    assert found is not None and await jobs.queue_position(found) == 2
    assert await jobs.count() == (4, 0)
    assert [one.name for one in await jobs.unfinished("acme", limit=9)] == [
        "elsewhere",
        "late",
        "low",
    ]
    assert len(await jobs.overdue(NOON + 100)) == 4
    assert await jobs.overdue(NOON + 99) == []


async def test_ended_jobs_are_forgotten_and_others_are_not(jobs: JobStore) -> None:
    await jobs.add(job("ended"), max_unfinished=9)
    [claimed] = await claim(jobs)
    await jobs.finish(ended(claimed, "done", NOON, 200, b"{}"))
    await jobs.add(job("waits"), max_unfinished=9)
    assert await jobs.delete_old(NOON, keep=1, size=99) == 0
    assert await jobs.delete_old(NOON + 1, keep=1, size=99) == 1
    assert await jobs.find("acme", "ended") is None
    assert await jobs.find("acme", "waits") is not None


async def test_of_an_accounts_ended_jobs_the_last_are_kept(jobs: JobStore) -> None:
    for account, count in (("acme", 3), ("other", 1)):
        for n in range(count):
            row = job(f"{account}-{n}", account=account)
            await jobs.add(row, max_unfinished=9)
            [claimed] = await claim(jobs, lane=Lane(account, ""))
            await jobs.finish(ended(claimed, "done", NOON + n, 200, b"{}"))
    assert await jobs.delete_old(NOON - 1, keep=2, size=99) == 1
    assert await jobs.find("acme", "acme-0") is None
    assert await jobs.find("acme", "acme-1") is not None
    assert await jobs.find("other", "other-0") is not None


async def test_a_webhook_is_stored_with_the_end_that_it_tells_or_not_at_all(
    store: SqlStore, jobs: JobStore
) -> None:
    webhooks = WebhookStore(store.database)
    row = WebhookRow("msg_1", "acme", "https://example.com", "whsec_x", b"{}", 0, NOON)
    await jobs.add(job(), max_unfinished=5)
    [claimed] = await claim(jobs)
    stale = job(owner="b", starts=1)
    assert not await jobs.finish(ended(stale, "done", NOON, 200, b"{}"), row)
    assert await webhooks.due(NOON, limit=9) == []
    assert await jobs.finish(ended(claimed, "done", NOON, 200, b"{}"), row)
    assert await webhooks.due(NOON, limit=9) == [row]
    assert await webhooks.begin(row, NOON + 20)
    assert not await webhooks.begin(row, NOON + 20)  # another server
    assert await webhooks.due(NOON, limit=9) == []
    [again] = await webhooks.due(NOON + 20, limit=9)
    assert again.tries == 1
    await webhooks.delete(row.id)
    assert await webhooks.due(NOON + 99, limit=9) == []
    assert "whsec" not in repr(row)


async def test_a_batch_counts_its_lines_as_they_end(jobs: JobStore, batches: BatchStore) -> None:
    assert await batches.add(batch(), max_unfinished=1)
    assert not await batches.add(batch(id="batch_2"), max_unfinished=1)
    lane = Lane("acme", "batch_1")
    lines = [job(f"{n}", id=f"line_{n}", batch="batch_1", line=n) for n in range(1, 6)]
    await jobs.add_lines(lines)
    await jobs.add_lines(lines)  # once more changes nothing
    assert await jobs.lanes(SERVED, NOON) == []  # not begun
    held = await batches.claim("batch_1", "a", now=NOON, lease_until=NOON + 10)
    assert held is not None
    assert await batches.claim("batch_1", "b", now=NOON, lease_until=NOON + 10) is None
    await batches.begin("batch_1", "a", 5, NOON)
    assert await jobs.lanes(SERVED, NOON) == [lane]
    first, second, third = await claim(jobs, most=3, lane=lane)
    assert [one.line for one in (first, second, third)] == [1, 2, 3]
    await jobs.finish(ended(first, "done", NOON, 200, b"{}"))
    await jobs.finish(ended(first, "done", NOON, 200, b"{}"))  # not twice
    await jobs.finish(ended(second, "failed", NOON, 400, b"{}"))
    assert await batches.cancel("other", "batch_1", NOON) is None
    cancelled = await batches.cancel("acme", "batch_1", NOON)
    assert cancelled is not None
    assert (cancelled.state, cancelled.completed, cancelled.failed) == ("cancelling", 1, 1)
    assert await jobs.cancel_lines("batch_1", NOON, b"{}") == 1
    assert await jobs.renew("a", ["line_3"], NOON + 20) == {"line_3": (1, True)}
    await jobs.finish(ended(third, "cancelled", NOON, 499, b"{}"))
    assert await jobs.cancel_lines("batch_1", NOON, b"{}") == 0
    found = await batches.batch("acme", "batch_1")
    assert found is not None and (found.completed, found.failed) == (1, 4)
    assert [one.line for one in await jobs.lines("batch_1", 2, limit=2)] == [3, 4]
    cancelled = replace(found, state="cancelled", finished_at=NOON, output_file="file-o")
    assert await batches.finish(cancelled)
    assert not await batches.finish(replace(found, state="completed", finished_at=NOON))
    assert await jobs.lines("batch_1", 0, limit=9) == []
    assert await batches.open() == []
    await batches.delete_old(NOON + 1)
    assert await batches.batch("acme", "batch_1") is None


async def test_batches_and_files_are_listed_in_pages(batches: BatchStore, files: FileStore) -> None:
    for n in range(3):
        await batches.add(batch(id=f"batch_{n}", created_at=NOON + n // 2), max_unfinished=9)
        await files.begin(file(f"file-{n}", created_at=NOON + n // 2))
        await files.complete(file(f"file-{n}"))
    page = await batches.batches("acme", after=None, limit=2)
    assert [one.id for one in page] == ["batch_2", "batch_1"]
    rest = await batches.batches("acme", after=page[-1], limit=2)
    assert [one.id for one in rest] == ["batch_0"]
    assert await batches.batches("other", after=None, limit=2) == []
    for newest, order in ((True, [2, 1, 0]), (False, [0, 1, 2])):
        pages = await files.files("acme", after=None, purpose="batch", limit=2, newest=newest)
        pages += await files.files("acme", after=pages[-1], purpose=None, limit=2, newest=newest)
        assert [one.id for one in pages] == [f"file-{n}" for n in order]


async def test_a_file_is_there_once_it_is_complete(files: FileStore) -> None:
    await files.begin(file())
    await files.add_chunk("file-1", 0, b"lost")
    await files.begin(file())  # anew
    for number, data in enumerate((b"\x00\xff", b"two")):
        await files.add_chunk("file-1", number, data)
    assert await files.file("acme", "file-1") is None
    assert not await files.complete(file(size=5), max_bytes=4 + OVERHEAD_BYTES)
    assert await files.complete(file(size=5), max_bytes=5 + OVERHEAD_BYTES)
    assert await files.file("acme", "file-1") == file(size=5, complete=True)
    assert await files.file("other", "file-1") is None
    assert await files.used_bytes("acme") == 5 + OVERHEAD_BYTES
    assert [chunk async for chunk in files.chunks("file-1")] == [b"\x00\xff", b"two"]
    await files.begin(file("file-2", expires_at=NOON + 900))
    assert await files.expired(NOON + 99, NOON) == []
    assert await files.expired(NOON + 100, NOON) == ["file-1"]
    assert await files.expired(NOON, NOON + 1) == ["file-2"]
    await files.delete("file-1")
    assert [chunk async for chunk in files.chunks("file-1")] == []
    assert await files.used_bytes("acme") == 0


async def test_a_key_is_found_by_its_id(store: SqlStore) -> None:
    await store.create_key(key())
    assert await store.key_by_id("key_laptop") == key()
    assert await store.key_by_id("key_other") is None
