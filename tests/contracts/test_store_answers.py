"""The table of stored answers: by account, bounded, and gone when their time is over."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from fabric_server.storage.answers import (
    OVERHEAD_BYTES,
    AnswerRow,
    AnswerStore,
    Page,
    metadata_text,
)
from fabric_server.storage.connect import open_store
from fabric_server.storage.ended import EndedRows
from fabric_server.storage.store import SqlStore
from sql import migrations
from sql.connect import open_database

NOW = 1_750_000_000.0
ROOM = 2**20


def row(id: str = "resp_1", **changes: Any) -> AnswerRow:
    given, answer = b'["\\u0000"]', b'{"output":[]}'
    size = len(given) + len(answer)
    made = AnswerRow("acme", id, "response", size, NOW, NOW + 60, "", "", given, answer)
    return replace(made, **changes)


async def find(table: AnswerStore, account: str, id: str, now: float = NOW) -> AnswerRow | None:
    return await table.find(account, "response", id, now)


async def test_a_response_is_found_by_its_account_alone(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    assert await table.add(row(), max_bytes=ROOM)
    assert await find(table, "acme", "resp_1") == row()
    assert await table.size("acme", "response", "resp_1", NOW) == row().size
    assert await find(table, "other", "resp_1") is None
    assert await table.size("other", "response", "resp_1", NOW) is None
    assert not await table.delete("other", "response", "resp_1", NOW)
    assert await table.delete("acme", "response", "resp_1", NOW)
    assert not await table.delete("acme", "response", "resp_1", NOW)
    assert await find(table, "acme", "resp_1") is None


async def test_an_id_is_one_of_its_account_and_replaces_nothing(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    assert await table.add(row(), max_bytes=ROOM)
    assert not await table.add(row(answer=b"{}"), max_bytes=ROOM)
    assert await table.add(row(account="other", answer=b"{}"), max_bytes=ROOM)
    assert await find(table, "acme", "resp_1") == row()
    assert await find(table, "other", "resp_1") == row(account="other", answer=b"{}")


async def test_an_accounts_oldest_are_dropped_for_new_ones(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    most = 3 * (OVERHEAD_BYTES + 1000)
    assert await table.add(row("theirs", account="other", size=1000), max_bytes=most)
    for number in range(200):
        one = row(f"resp_{number}", size=1000, created_at=NOW + number)
        assert await table.add(one, max_bytes=most)
    left = [number for number in range(200) if await find(table, "acme", f"resp_{number}")]
    assert left == [197, 198, 199]
    assert await table.add(row("large", size=2000, created_at=NOW - 1), max_bytes=most)
    assert await find(table, "acme", "large"), "the new one stays, whatever its clock said"
    assert await find(table, "acme", "resp_197") is None
    assert await find(table, "other", "theirs"), "other accounts have room of their own"


async def test_a_response_with_no_room_at_all_is_not_stored(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    assert await table.add(row("small", size=10), max_bytes=ROOM)
    assert not await table.add(row("large", size=ROOM - OVERHEAD_BYTES + 1), max_bytes=ROOM)
    assert await find(table, "acme", "large") is None
    assert await find(table, "acme", "small"), "it made no room for what was not stored"


async def test_what_has_expired_is_not_found_and_then_deleted(store: SqlStore) -> None:
    table, ended = AnswerStore(store.database), EndedRows(store.database)
    for number in range(5):
        await table.add(row(f"resp_{number}", expires_at=NOW + number), max_bytes=ROOM)
    await table.add(row("resp_0", account="other", expires_at=NOW + 60), max_bytes=ROOM)
    assert await find(table, "acme", "resp_3", NOW + 3) is None
    assert not await table.delete("acme", "response", "resp_3", NOW + 3)
    assert await ended.count_answers(NOW + 3.5) == 4
    assert [await ended.delete_answers(NOW + 3.5, 3) for _ in range(3)] == [3, 1, 0]
    assert await find(table, "acme", "resp_4", NOW + 3.5) is not None
    assert await find(table, "other", "resp_0", NOW + 3.5) is not None


# ── chats: their list, and what is shown and changed ──────────────────────────────────────────


def chat(id: str, **changes: Any) -> AnswerRow:
    pairs = changes.pop("pairs", {})
    return row(id, **{"kind": "chat", "model": "tiny", "metadata": metadata_text(pairs), **changes})


async def ids(table: AnswerStore, limit: int = 100, *more: Any, **asked: Any) -> list[str]:
    page = Page(limit, *more, **asked)
    return [one.id for one in await table.list_ids("acme", "chat", page, NOW)]


async def test_an_answer_is_found_by_its_kind_alone(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    assert await table.add(chat("one"), max_bytes=ROOM)
    assert await table.find("acme", "chat", "one", NOW) == chat("one")
    assert await table.find("acme", "response", "one", NOW) is None
    assert await table.size("acme", "response", "one", NOW) is None
    assert await table.show("acme", "response", ["one"], NOW) == {}
    assert not await table.set_metadata("acme", "response", "one", "{}", NOW, max_bytes=ROOM)
    assert not await table.delete("acme", "response", "one", NOW)
    assert await table.delete("acme", "chat", "one", NOW)


async def test_a_list_has_the_accounts_chats_by_id(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    for number, created in enumerate((5, 3, 4, 1, 2)):
        assert await table.add(chat(f"chat_{number}", created_at=NOW + created), max_bytes=ROOM)
    await table.add(chat("chat_9", account="other"), max_bytes=ROOM)
    await table.add(chat("chat_8", expires_at=NOW), max_bytes=ROOM)
    await table.add(row("chat_7"), max_bytes=ROOM)
    every = [f"chat_{number}" for number in range(5)]
    assert await ids(table) == every
    assert await ids(table, newest_first=True) == every[::-1]
    assert await ids(table, 2, "chat_1") == ["chat_2", "chat_3"]
    assert await ids(table, 2, "chat_2", newest_first=True) == ["chat_1", "chat_0"]
    await table.delete("acme", "chat", "chat_1", NOW)
    assert await ids(table, 2, "chat_1") == ["chat_2", "chat_3"], "a page goes on from a gap"


async def test_a_list_tells_the_bytes_that_are_shown(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    one = chat("one", answer=b"{%b}" % (b"x" * 1000), pairs={"a": "b"})
    await table.add(one, max_bytes=ROOM)
    [listed] = await table.list_ids("acme", "chat", Page(10), NOW)
    assert listed.size == len(one.answer) + len(one.metadata)
    shown = await table.show("acme", "chat", ["one", "two"], NOW)
    assert shown == {"one": ("one", one.metadata, one.answer)}
    assert await table.show("acme", "chat", [], NOW) == {}
    assert await table.show("other", "chat", ["one"], NOW) == {}
    assert await table.show("acme", "chat", ["one"], NOW + 60) == {}


PAIRS = {
    "user": "ann",
    "a\\": "b",
    "quote": 'x"user":"bob',
    "line": '\n"user":"bob"',
    "ä": "\0",
    'x"mine': "carl",
}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"user": "ann"}, True),
        ({"user": "ann", "ä": "\0"}, True),
        ({"quote": 'x"user":"bob', "line": '\n"user":"bob"', "a\\": "b"}, True),
        ({"user": "an"}, False),
        ({"user": "Ann"}, False),
        ({"use": "ann"}, False),
        ({"ser": "ann"}, False),
        ({"user": "bob"}, False),
        ({"user": "ann", "ä": ""}, False),
        ({'x"user': "bob"}, False),
        ({"mine": "carl"}, False),
        ({"": ""}, False),
    ],
    ids=str,
)
async def test_chats_are_found_by_whole_pairs_of_metadata(
    store: SqlStore, wanted: dict[str, str], found: bool
) -> None:
    table = AnswerStore(store.database)
    await table.add(chat("one", pairs=PAIRS), max_bytes=ROOM)
    await table.add(chat("none"), max_bytes=ROOM)
    assert await ids(table, metadata=wanted) == (["one"] if found else [])


async def test_chats_are_found_by_their_model(store: SqlStore) -> None:
    table = AnswerStore(store.database)
    await table.add(chat("one"), max_bytes=ROOM)
    await table.add(chat("two", model="Tiny", pairs={"a": "b"}), max_bytes=ROOM)
    assert await ids(table, model="tiny") == ["one"]
    assert await ids(table, model="Tiny") == ["two"]
    assert await ids(table, model="tin%") == []
    assert await ids(table, model="Tiny", metadata={"a": "b"}) == ["two"]
    assert await ids(table, model="tiny", metadata={"a": "b"}) == []


async def test_changed_metadata_count_as_the_new_ones(store: SqlStore) -> None:
    table, text = AnswerStore(store.database), metadata_text({"a": "x" * 1000})
    base, most = chat("one").size + 2, 2 * (OVERHEAD_BYTES + 1500)
    await table.add(chat("one", size=base), max_bytes=most)
    assert await table.set_metadata("acme", "chat", "one", text, NOW, max_bytes=most)
    changed = await table.find("acme", "chat", "one", NOW)
    assert changed == chat("one", size=base - 2 + len(text), metadata=text)
    assert not await table.set_metadata("acme", "chat", "two", text, NOW, max_bytes=most)
    assert not await table.set_metadata("other", "chat", "one", text, NOW, max_bytes=most)
    assert not await table.set_metadata("acme", "chat", "one", text, NOW + 60, max_bytes=most)
    await table.add(chat("two", size=1800, created_at=NOW - 1), max_bytes=most)
    longer = metadata_text({"a": "x" * 3000})
    assert await table.set_metadata("acme", "chat", "one", longer, NOW, max_bytes=most)
    assert await ids(table) == ["one"], "room was made for what has grown"
    assert await table.set_metadata("acme", "chat", "one", "{}", NOW, max_bytes=most)
    assert await table.size("acme", "chat", "one", NOW) == base


async def test_responses_and_chats_share_an_accounts_room(store: SqlStore) -> None:
    table, most = AnswerStore(store.database), 2 * (OVERHEAD_BYTES + 1000)
    for number, make in enumerate((row, chat, row, chat)):
        await table.add(make(f"id_{number}", size=1000, created_at=NOW + number), max_bytes=most)
    assert await ids(table) == ["id_3"]
    assert await table.find("acme", "response", "id_2", NOW) is not None
    assert await table.find("acme", "response", "id_0", NOW) is None


async def test_responses_of_the_version_before_are_kept(shared_url: str) -> None:
    database = await open_database(shared_url)
    await migrations.migrate(database, migrations.find(migrations.directory())[:21], NOW)
    old = row()
    async with database.transaction() as session:
        await session.execute(
            "INSERT INTO stored_responses VALUES ($1, $2, $3, $4, $5, $6, $7)",
            *(old.account, old.id, old.size, old.created_at, old.expires_at, old.input, old.answer),
        )
    await database.close()
    store = await open_store(shared_url)
    assert await find(AnswerStore(store.database), "acme", "resp_1") == old
    await store.close()
