"""The table of stored responses: by account, bounded, and gone when their time is over."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from fabric_server.storage.ended import EndedRows
from fabric_server.storage.responses import OVERHEAD_BYTES, ResponseRow, ResponseStore
from fabric_server.storage.store import SqlStore

NOW = 1_750_000_000.0
ROOM = 2**20


def row(id: str = "resp_1", **changes: Any) -> ResponseRow:
    given, response = b'["\\u0000"]', b'{"output":[]}'
    size = len(given) + len(response)
    made = ResponseRow("acme", id, size, NOW, NOW + 60, given, response)
    return replace(made, **changes)


async def test_a_response_is_found_by_its_account_alone(store: SqlStore) -> None:
    table = ResponseStore(store.database)
    assert await table.add(row(), max_bytes=ROOM)
    assert await table.find("acme", "resp_1", NOW) == row()
    assert await table.size("acme", "resp_1", NOW) == row().size
    assert await table.find("other", "resp_1", NOW) is None
    assert await table.size("other", "resp_1", NOW) is None
    assert not await table.delete("other", "resp_1", NOW)
    assert await table.delete("acme", "resp_1", NOW)
    assert not await table.delete("acme", "resp_1", NOW)
    assert await table.find("acme", "resp_1", NOW) is None


async def test_an_id_is_one_of_its_account_and_replaces_nothing(store: SqlStore) -> None:
    table = ResponseStore(store.database)
    assert await table.add(row(), max_bytes=ROOM)
    assert not await table.add(row(response=b"{}"), max_bytes=ROOM)
    assert await table.add(row(account="other", response=b"{}"), max_bytes=ROOM)
    assert await table.find("acme", "resp_1", NOW) == row()
    assert await table.find("other", "resp_1", NOW) == row(account="other", response=b"{}")


async def test_an_accounts_oldest_are_dropped_for_new_ones(store: SqlStore) -> None:
    table = ResponseStore(store.database)
    most = 3 * (OVERHEAD_BYTES + 1000)
    assert await table.add(row("theirs", account="other", size=1000), max_bytes=most)
    for number in range(200):
        one = row(f"resp_{number}", size=1000, created_at=NOW + number)
        assert await table.add(one, max_bytes=most)
    left = [number for number in range(200) if await table.find("acme", f"resp_{number}", NOW)]
    assert left == [197, 198, 199]
    assert await table.add(row("large", size=2000, created_at=NOW - 1), max_bytes=most)
    assert await table.find("acme", "large", NOW), "the new one stays, whatever its clock said"
    assert await table.find("acme", "resp_197", NOW) is None
    assert await table.find("other", "theirs", NOW), "other accounts have room of their own"


async def test_a_response_with_no_room_at_all_is_not_stored(store: SqlStore) -> None:
    table = ResponseStore(store.database)
    assert await table.add(row("small", size=10), max_bytes=ROOM)
    assert not await table.add(row("large", size=ROOM - OVERHEAD_BYTES + 1), max_bytes=ROOM)
    assert await table.find("acme", "large", NOW) is None
    assert await table.find("acme", "small", NOW), "it made no room for what was not stored"


async def test_what_has_expired_is_not_found_and_then_deleted(store: SqlStore) -> None:
    table, ended = ResponseStore(store.database), EndedRows(store.database)
    for number in range(5):
        await table.add(row(f"resp_{number}", expires_at=NOW + number), max_bytes=ROOM)
    await table.add(row("resp_0", account="other", expires_at=NOW + 60), max_bytes=ROOM)
    assert await table.find("acme", "resp_3", NOW + 3) is None
    assert not await table.delete("acme", "resp_3", NOW + 3)
    assert await ended.count_responses(NOW + 3.5) == 4
    assert [await ended.delete_responses(NOW + 3.5, 3) for _ in range(3)] == [3, 1, 0]
    assert await table.find("acme", "resp_4", NOW + 3.5) is not None
    assert await table.find("other", "resp_0", NOW + 3.5) is not None
