"""Retries are a share of all requests, so that they never become the load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric_server.proxy.retry_budget import RESERVE, RetryBudget


@given(st.lists(st.booleans(), max_size=500))
def test_retries_are_never_more_than_a_tenth_and_the_reserve(wanted: list[bool]) -> None:
    budget, retries = RetryBudget(), 0
    for retry in wanted:
        budget.earn()
        if retry and budget.allows:
            budget.spend()
            retries += 1
    assert retries <= RESERVE + len(wanted) / 10 + 1e-6
