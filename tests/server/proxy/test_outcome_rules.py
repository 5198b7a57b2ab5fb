"""The table of outcomes, row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric_server.proxy.outcome_rules import (
    Counts,
    rule_of_code,
    rule_of_status,
    table,
)
from protocol.errors import Code

PAGE = "docs/decisions/0053-only-what-a-user-cannot-cause-counts.md"


@pytest.mark.parametrize(
    ("counts", "statuses"),
    [
        (Counts.SUCCESS, (200, 201, 204, 206, 299)),
        (Counts.NOTHING, (400, 406, 409, 412, 413, 415, 418, 422, 451)),
        (Counts.FAILURE, (300, 301, 304, 307, 401, 402, 403, 404, 405, 407, 410, 421, 426)),
        (Counts.BUSY, (429,)),
        (Counts.SUSPICION, (408, 411, 431, 499, 500, 501, 502, 503, 504, 505, 511, 529, 599)),
    ],
)
def test_what_each_status_of_an_engine_counts(counts: Counts, statuses: tuple[int, ...]) -> None:
    assert {rule_of_status(one).counts for one in statuses} == {counts}


def test_every_status_that_a_node_can_send_has_a_rule() -> None:
    for status in range(200, 600):
        rule = rule_of_status(status)
        assert rule.slow is (rule.counts in (Counts.FAILURE, Counts.BUSY))
        assert not rule.own_words or rule.elsewhere, "what is about a node may differ elsewhere"
        assert rule.counts is Counts.BUSY or rule.path_only is (rule.elsewhere)


def test_no_status_that_speaks_of_keys_or_connections_reaches_a_client() -> None:
    for status in (*range(300, 400), 401, 402, 403, 407, 408, 411, 421, 426, 431, 499, 505, 511):
        assert rule_of_status(status).own_words


@pytest.mark.parametrize("code", [*Code, 99, 65_535])
def test_what_each_code_of_a_reset_counts(code: int) -> None:
    nothing = {Code.DRAINING, Code.SLOW_READER, Code.SUPERSEDED, Code.LOST, Code.UNKNOWN}
    expected = (
        Counts.BUSY
        if code == Code.REFUSED
        else Counts.NOTHING
        if code in nothing
        else Counts.FAILURE
    )
    rule = rule_of_code(code)
    assert rule.counts is expected
    assert rule.elsewhere is (code != Code.SLOW_READER)
    assert rule.path_only is (code == Code.FORBIDDEN)


def test_the_page_has_the_table() -> None:
    assert table() in Path(PAGE).read_text()
