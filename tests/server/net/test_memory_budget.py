"""Bytes held for clients, by key: bounds, and that nothing is counted for ever."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.dialects.errors import ApiError
from fabric_server.net.memory_budget import PIECE, BudgetLimits, MemoryBudget


def test_a_key_over_its_bound_is_refused_and_others_are_not() -> None:
    budget = MemoryBudget(BudgetLimits(in_all=100 * PIECE, per_key=2 * PIECE))
    mine = budget.open("mine")
    mine.reach(2 * PIECE)
    with pytest.raises(ApiError) as refused:
        mine.reach(2 * PIECE + 1)
    assert (refused.value.status, refused.value.code) == (429, "too_much_in_flight")
    assert refused.value.retry_after
    budget.open("other").reach(PIECE)
    assert (budget.held, budget.held_by("mine")) == (3 * PIECE, 2 * PIECE)
    assert budget.refused["per_key"] == 1


def test_the_bound_of_all_is_the_servers_fault_and_told_so() -> None:
    budget = MemoryBudget(BudgetLimits(in_all=2 * PIECE, per_key=2 * PIECE))
    budget.open("other").reach(2 * PIECE)
    with pytest.raises(ApiError) as refused:
        budget.open("mine").reach(1)
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.retry_after


def test_connections_without_a_key_share_one_bound_that_is_no_keys_fault() -> None:
    budget = MemoryBudget(BudgetLimits(in_all=100 * PIECE, per_key=PIECE))
    budget.open("").reach(PIECE)
    with pytest.raises(ApiError) as refused:
        budget.open("").reach(1)
    assert refused.value.status == 503


def test_a_holding_grows_in_pieces_and_never_shrinks_until_it_is_released() -> None:
    budget = MemoryBudget()
    holding = budget.open("mine")
    holding.reach(1)
    assert budget.held == PIECE
    holding.reach(PIECE)
    assert budget.held == PIECE
    holding.reach(PIECE + 1)
    holding.reach(1)
    assert budget.held == 2 * PIECE
    holding.release()
    holding.release()
    assert budget.held == budget.held_by("mine") == 0


_step = st.tuples(
    st.integers(0, 4),
    st.sampled_from(["reach", "release", "move"]),
    st.integers(0, 6 * PIECE),
    st.sampled_from(["", "a", "b"]),
)


@given(st.lists(_step, max_size=60))
def test_whatever_happens_all_is_counted_once_and_given_back(
    steps: list[tuple[int, str, int, str]],
) -> None:
    limits = BudgetLimits(in_all=12 * PIECE, per_key=7 * PIECE)
    budget = MemoryBudget(limits)
    holdings = [budget.open("ab"[number % 2]) for number in range(5)]
    for number, does, size, key in steps:
        with suppress(ApiError):
            if does == "reach":
                holdings[number].reach(size)
            elif does == "move":
                holdings[number].move(key)
            else:
                holdings[number].release()
        assert budget.held == sum(one.counted for one in holdings) <= limits.in_all
        assert budget.held == sum(map(budget.held_by, ("", "a", "b")))
        assert all(budget.held_by(key) <= limits.per_key for key in ("", "a", "b"))
    for holding in holdings:
        holding.release()
    assert budget.held == 0
