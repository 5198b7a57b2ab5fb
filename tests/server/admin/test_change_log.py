"""The server's log of what commands change in its store."""

from __future__ import annotations

import logging
import time

import pytest

from fabric_server.app.change_log import MAX_LINES, ChangeLog
from fabric_server.storage.connect import open_store
from fabric_server.storage.rows import Changes
from tests.contracts.samples import key
from tests.server.admin.server import Server


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "fabric.changes"]


async def test_what_another_program_changes_in_the_store_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await server.app.change_feed.sync()
    caplog.clear()
    other = await open_store(f"sqlite:///{server.directory / 'data/fabric.sqlite'}")
    try:
        await other.create_key(key("theirs", account="alice"))
        await server.app.change_feed.sync()
        await other.revoke_key("key_theirs", time.time())
        await server.app.change_feed.sync()
    finally:
        await other.close()
    assert [
        (one.message, one.__dict__["key"], one.__dict__["account"], one.__dict__["state"])
        for one in said(caplog)
    ] == [
        ("a key was changed", "key_theirs", "alice", "good"),
        ("a key was changed", "key_theirs", "alice", "revoked"),
    ]


def test_many_changes_at_once_take_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ChangeLog().on_changes(Changes(2, False, [key(f"k{n}") for n in range(500)]))
    assert len(said(caplog)) == MAX_LINES + 1
    assert said(caplog)[-1].__dict__["count"] == 480
