"""``fabric-server requests`` and ``usage``, as an operator types them."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any

import pytest

from fabric_server.storage.connect import open_store
from ledger.records import LedgerEntry
from tests.commands import Shell
from tests.contracts.samples import entry
from tests.server.cli.outcomes import refused

NOW = time.time()


def write(shell: Shell, *entries: LedgerEntry) -> None:
    async def work() -> None:
        store = await open_store(f"sqlite:///{shell.server_data / 'fabric.sqlite'}", create=False)
        await store.write([], entries)
        await store.close()

    asyncio.run(work())


def request(number: int, **changes: Any) -> LedgerEntry:
    given = {"request_id": f"r{number}", "at": NOW - 100 + number, "account": "alice"}
    return entry(number, **(given | changes))


REFUSED: dict[str, Any] = {"outcome": "refused", "status": 503, "error": "queue_timeout"}


@pytest.fixture(autouse=True)
def data(shell: Shell) -> None:
    """The data of a server, and what happened there."""
    shell.ok("fabric-server", "init")
    write(
        shell,
        request(1, key_id="key_a", node_id="node_1", model="m1"),
        request(2, key_id="key_b", node_id=None, model="a-very-long-model-name:70b", **REFUSED),
        request(3, key_id="key_a", node_id="node_2", model="m2", account="bob"),
        request(4, key_id="key_a", node_id="node_1", model="m1", at=NOW - 7200, total_ms=90_000.0),
    )


def ids(shell: Shell, *flags: str) -> list[str]:
    return [one["request_id"] for one in shell.json("fabric-server", "requests", *flags)]


def test_requests_are_listed_oldest_first_and_restricted(shell: Shell) -> None:
    assert ids(shell) == ["r4", "r1", "r2", "r3"]
    assert ids(shell, "--key=key_b") == ["r2"]
    assert ids(shell, "--account=bob") == ["r3"]
    assert ids(shell, "--node=node_1") == ["r4", "r1"]
    assert ids(shell, "--model=m2") == ["r3"]
    assert ids(shell, "--failed") == ["r2"]
    assert ids(shell, "--since=1h") == ["r1", "r2", "r3"]
    assert ids(shell, "--since=2099-01-01T00:00") == []


def test_pages_follow_each_other(shell: Shell) -> None:
    assert ids(shell, "--limit=2") == ["r2", "r3"]
    assert ids(shell, "--limit=2", "--before=r2") == ["r4", "r1"]
    done = shell.call("fabric-server", "requests", "--limit=2")
    assert done.stderr == "There are earlier ones: --before r2\n"


def test_a_list_fits_80_columns_and_says_why_a_request_failed(shell: Shell) -> None:
    lines = shell.ok("fabric-server", "requests").splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert "503 queue_timeout" in lines[3] and "alice" in lines[3]
    shown = shell.ok("fabric-server", "requests", "r2")
    assert "a-very-long-model-name:70b" in shown and "key_b" in shown
    assert shell.json("fabric-server", "requests", "r2")["error"] == "queue_timeout"


def test_what_makes_no_sense_is_refused(shell: Shell) -> None:
    assert "there is no request r9" in refused(shell, "requests", "r9")
    assert "there is no request r9" in refused(shell, "requests", "--before", "r9")
    assert "is no time" in refused(shell, "requests", "--since", "yesterday")
    assert "use account, key," in refused(shell, "usage", "--by", "colour")
    assert "exclude each other" in refused(shell, "requests", "--follow", "--before", "r1")


def test_new_requests_are_followed_also_long_ones_that_came_before_others(shell: Shell) -> None:
    with shell.start("fabric-server", "requests", "--follow", "--json", "--limit=1") as program:
        assert json.loads(program.line())["request_id"] == "r3"
        write(shell, request(5, at=NOW - 3600))
        assert json.loads(program.line())["request_id"] == "r5"
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(30) == 130


def test_usage_is_summed_by_what_is_asked_for(shell: Shell) -> None:
    rows = shell.json("fabric-server", "usage")
    assert [(one["group"], one["requests"]) for one in rows] == [
        ({"account": "alice"}, 3),
        ({"account": "bob"}, 1),
    ]
    (row,) = shell.json("fabric-server", "usage", "--by=outcome", "--account=alice", "--failed")
    assert (row["group"], row["requests"], row["succeeded"]) == ({"outcome": "refused"}, 1, 0)
    (row,) = shell.json("fabric-server", "usage", "--by=key", "--node=node_1", "--since=1h")
    assert (row["group"], row["requests"]) == ({"key": "key_a"}, 1)
    table = shell.ok("fabric-server", "usage", "--by=model", "--by=day").splitlines()
    assert table[0].split()[:2] == ["model", "day"]
    assert max(len(line.rstrip()) for line in table) <= 80
