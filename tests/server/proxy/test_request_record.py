"""The ledger's entry of a request: each value is in the field of its name."""

from __future__ import annotations

import time

import pytest

from fabric_server.auth.keys import Key
from fabric_server.dialects.fields import ParsedBody
from fabric_server.metering.usage import BoundedUsage, EstimatedUsage, Usage
from fabric_server.proxy.request_record import MAX_ROUTE, RequestRecord
from fabric_server.routing.choice import Choice
from ledger.records import LedgerEntry
from tests.site import CHAT, Site

KEY = Key("key_1", "alice", "name", "sk-fab-abc", False, None)
ARRIVED, FIRST, NOW = 50.0, 50.5, 52.0


def make_record(site: Site) -> RequestRecord:
    """A request under way, in which no two values are the same."""
    request = site.edge().new_request()
    request.arrived, request.path = ARRIVED, CHAT
    request.response.status, request.response.bytes_out = 207, 308
    request.body.received = 91
    return RequestRecord(
        KEY,
        request,
        task=None,
        parsed=ParsedBody("tiny", True, False, None),
        choice=Choice(site.node().engine, "idle" * MAX_ROUTE),
        attempts=3,
        continued=2,
        queued=0.25,
        first_byte_at=FIRST,
        outcome="timeout",
        error="upstream_timeout",
        usage=Usage(9, 6),
    )


async def test_each_value_is_in_the_field_of_its_name() -> None:
    record, before = make_record(Site()), time.time()
    entry = record.entry(NOW)
    assert before - 2.0 <= entry.at <= time.time() - 2.0
    assert record.choice is not None
    assert entry == LedgerEntry(
        request_id=record.request.id,
        at=entry.at,
        account="alice",
        key_id="key_1",
        node_id=record.choice.engine.node.id,
        engine=record.choice.engine.name,
        model="tiny",
        path=CHAT,
        stream=True,
        status=207,
        outcome="timeout",
        error="upstream_timeout",
        attempts=3,
        prompt_tokens=9,
        completion_tokens=6,
        queue_ms=250.0,
        first_byte_ms=500.0,
        total_ms=2000.0,
        bytes_in=91,
        bytes_out=308,
        route=("idle" * MAX_ROUTE)[:MAX_ROUTE],
        continued=2,
        usage_implausible=False,
        estimated=False,
    )


async def test_what_is_not_known_yet_is_left_out() -> None:
    record = make_record(Site())
    record.choice = record.first_byte_at = record.usage = record.error = None
    entry = record.entry(NOW)
    assert (entry.node_id, entry.engine, entry.route, entry.error) == (None, None, "", None)
    assert (entry.first_byte_ms, entry.prompt_tokens, entry.completion_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("usage", "implausible", "estimated"),
    [
        (BoundedUsage(9, 6), True, False),
        (EstimatedUsage(9, 6), False, True),
        (EstimatedUsage(9, 6, bounded=True), True, True),
    ],
)
async def test_figures_that_are_not_the_engines_own_are_marked(
    usage: Usage, implausible: bool, estimated: bool
) -> None:
    record = make_record(Site())
    record.usage = usage
    entry = record.entry(NOW)
    assert (entry.usage_implausible, entry.estimated) == (implausible, estimated)
