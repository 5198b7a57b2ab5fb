"""``fabric-server retention``, and what the doctor says of it, as an operator types them."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
import time
from contextlib import closing

import pytest

from fabric_server.storage.connect import open_store
from ledger.months import month_of, name_of, shifted
from tests.commands import Shell
from tests.contracts.samples import entry
from tests.server.cli.outcomes import refused

NOW = time.time()
OLD = float(shifted(month_of(NOW), -5)) + 5 * 86_400


@pytest.fixture(autouse=True)
def data(shell: Shell) -> None:
    """The data of a server with requests of this month, and some of five months before."""
    shell.ok("fabric-server", "init")

    async def work() -> None:
        store = await open_store(f"sqlite:///{shell.server_data / 'fabric.sqlite'}", create=False)
        await store.write([], [entry(n, at=OLD + n) for n in range(3)])
        await store.write([], [entry(n, at=NOW - n) for n in range(10, 14)])
        await store.close()

    asyncio.run(work())


def test_what_is_too_old_is_shown_archived_and_deleted(shell: Shell) -> None:
    before = shell.json("fabric-server", "retention", "show")
    assert before["oldest_request_at"] == OLD
    assert before["finished_at"] is None and before["months"] == [] and before["bytes"] > 0
    usage = ("fabric-server", "usage", "--since=300d", "--by=key")
    used = shell.json(*usage)

    due = shell.json("fabric-server", "retention", "run", "--dry-run")
    assert due["dry_run"] and due["rows"]["ledger"] == 3
    assert shell.json("fabric-server", "retention", "show") == before

    archive = shell.server_data / "archive"
    told = shell.ok("fabric-server", "retention", "run", f"--ledger-archive={archive}")
    assert "3 rows were deleted or summed up" in told
    assert shell.json(*usage) == used
    assert len(shell.json("fabric-server", "requests")) == 4
    after = shell.json("fabric-server", "retention", "show")
    assert after["oldest_request_at"] == NOW - 13
    (month,) = after["months"]
    assert month["archive"] == f"ledger-{name_of(month_of(OLD))}.jsonl.gz"
    lines = gzip.decompress((archive / month["archive"]).read_bytes()).splitlines()
    assert [json.loads(line)["at"] for line in lines] == [OLD, OLD + 1, OLD + 2]
    assert name_of(month_of(OLD)) in shell.ok("fabric-server", "retention", "show")


def test_requests_are_kept_for_as_long_as_is_set(shell: Shell) -> None:
    for months, kept in ((0, 7), (6, 7), (4, 4)):
        shell.ok("fabric-server", "retention", "run", f"--keep-ledger-months={months}")
        assert len(shell.json("fabric-server", "requests")) == kept
    told = refused(shell, "retention", "run", "--keep-ledger-months=1")
    assert "set at least 2" in told


def test_check_config_shows_how_long_things_are_kept(shell: Shell) -> None:
    shown = {one["name"]: one["value"] for one in shell.json("fabric-server", "check-config")}
    assert shown["keep_ledger_months"] == "3"
    assert shown["keep_nodes_days"] == "30"


def change(shell: Shell, sql: str, *args: object) -> None:
    with closing(sqlite3.connect(shell.server_data / "fabric.sqlite")) as store, store:
        store.execute(sql, args)


def test_while_a_server_deletes_nobody_else_does(shell: Shell) -> None:
    change(shell, "UPDATE retention SET owner = 'server_b', lease_until = ?", time.time() + 100)
    assert "try again" in refused(shell, "retention", "run")
    assert len(shell.json("fabric-server", "requests")) == 7


def doctor(shell: Shell) -> dict[str, str]:
    done = shell.call("fabric-server", "doctor", "--json")
    return {one["code"] or one["check"]: one["what"] for one in json.loads(done.stdout)}


def test_the_doctor_tells_what_is_wrong_with_retention(shell: Shell) -> None:
    assert "oldest request is of" in doctor(shell)["retention"]
    change(shell, "UPDATE retention SET problem = 'no room', finished_at = ?", NOW)
    assert "no room" in doctor(shell)["retention_failed"]
    change(shell, "UPDATE retention SET problem = '', watched_at = ?, watched_since = ?,"
           " finished_at = ?", NOW, NOW - 9e6, NOW - 9e6)  # fmt: skip
    assert "for" in doctor(shell)["retention_late"]
    two_days_ago = NOW // 3600 * 3600 - 2 * 86_400
    change(shell, "UPDATE usage_by_hour SET requests = 1000000000000, hour = ?"
           " WHERE hour = (SELECT MAX(hour) FROM usage_by_hour)", two_days_ago)  # fmt: skip
    assert "GiB" in doctor(shell)["store_outgrows_disk"]
