"""Room for stored answers, where the database's sum is not that of its rows."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fabric_server.storage.answers import OVERHEAD_BYTES, AnswerRow, AnswerStore
from fabric_server.storage.connect import open_store


async def test_making_room_ends_when_there_is_nothing_to_delete(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    try:
        async with store.database.transaction() as session:
            # As a row would be that something else has written meanwhile.
            await session.execute(
                "CREATE TRIGGER grows AFTER INSERT ON stored_answers"
                " BEGIN UPDATE stored_answers SET size = 1000000; END"
            )
        row = AnswerRow("acme", "id", "chat", 10, 1.0, 2e9, "", "", b"[]", b"{}")
        async with asyncio.timeout(5):
            assert await AnswerStore(store.database).add(row, max_bytes=OVERHEAD_BYTES + 10)
    finally:
        await store.close()
