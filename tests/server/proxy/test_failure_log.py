"""The log of requests that did not end well."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fabric_server.proxy.failure_log import MAX_KINDS, FailureLog
from ledger.records import LedgerEntry
from tests.contracts.samples import entry
from tests.site import CHAT, Site

REFUSED: dict[str, Any] = {"outcome": "refused", "status": 503, "error": "queue_timeout"}


def refused(number: int, key: str = "key_a", **changes: Any) -> LedgerEntry:
    return entry(number, **({"key_id": key, "account": "alice"} | REFUSED | changes))


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str, int]]:
    found = []
    for record in caplog.records:
        if record.name == "fabric.requests":
            about = record.__dict__
            found.append((record.message, about["key"], about["code"], about["count"]))
    return found


def test_the_first_is_said_at_once_and_the_others_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    failures = FailureLog()
    for number in range(500):
        failures.add(refused(number), number * 0.1)
    failures.add(refused(501, "key_b"), 50.0)
    failures.add(refused(502, error="no_node"), 50.0)
    failures.add(refused(503, outcome="failed", error="node_lost"), 50.0)
    assert said(caplog) == [
        ("requests refused", "key_a", "queue_timeout", 1),
        ("requests refused", "key_b", "queue_timeout", 1),
        ("requests refused", "key_a", "no_node", 1),
        ("requests failed", "key_a", "node_lost", 1),
    ]
    assert caplog.records[0].__dict__["account"] == "alice"
    caplog.clear()
    failures.add(refused(504), 60.0)
    assert said(caplog) == [("requests refused", "key_a", "queue_timeout", 499)]
    caplog.clear()
    failures.add(refused(505, "key_b"), 200.0)
    assert said(caplog) == [
        ("requests refused", "key_a", "queue_timeout", 1),
        ("requests refused", "key_b", "queue_timeout", 1),
    ]


def test_who_hangs_up_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    FailureLog().add(refused(1, outcome="cancelled", status=499, error=None), 0.0)
    assert said(caplog) == []


def test_many_keys_and_codes_take_bounded_memory_and_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    failures = FailureLog()
    for number in range(3 * MAX_KINDS):
        failures.add(refused(number, f"key_{number}"), 1.0)
    assert len(said(caplog)) == MAX_KINDS + 1
    caplog.clear()
    failures.add(refused(1, "key_0"), 100.0)
    assert [one[3] for one in said(caplog)] == [2 * MAX_KINDS - 1, 1]


async def test_a_request_for_an_unknown_model_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    site = Site()
    ask = {"model": "nothing-like-it", "messages": []}
    assert (await site.user().ask("POST", CHAT, ask, **site.key)).status == 404
    ((message, _, code, count),) = said(caplog)
    assert (message, code, count) == ("requests refused", "model_not_found", 1)
