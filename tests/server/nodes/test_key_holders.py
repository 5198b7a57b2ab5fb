"""Two programs with one node's key are noticed; restarts, moves and takeovers are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.nodes.key_holders import (
    BURST,
    MAX_HOLDERS,
    PER_SECOND,
    RETURN_SECONDS,
    RETURNS,
    KeyHolders,
)

HOME, MOBILE, ELSEWHERE = "192.0.2.1", "198.51.100.7", "203.0.113.9"


def registered(*holders: tuple[str, str], every: float = 10.0) -> list[bool]:
    """Whether each of these registrations, instance and address, raised the alarm."""
    known = KeyHolders()
    return [
        known.register("node_a", instance, address, number * every) is not None
        for number, (instance, address) in enumerate(holders)
    ]


def test_an_instance_that_comes_back_after_another_one_is_a_second_holder():
    assert registered(("a", HOME), ("b", ELSEWHERE), ("a", HOME)) == [False, False, True]
    assert registered(("a", HOME), ("b", HOME), ("a", HOME)) == [False, False, True]


def test_the_alarm_names_both_addresses_and_then_it_begins_anew():
    known = KeyHolders()
    known.register("node_a", "a", HOME, 0.0)
    known.register("node_a", "b", ELSEWHERE, 1.0)
    assert known.register("node_a", "a", HOME, 2.0) == (ELSEWHERE, HOME)
    assert known.register("node_a", "a", HOME, 3.0) is None
    assert known.register("node_b", "a", HOME, 4.0) is None


@pytest.mark.parametrize(
    "holders",
    [
        pytest.param([("a", HOME)] * 20, id="reconnects"),
        pytest.param([("a", HOME), ("a", MOBILE)] * 10, id="one home, two addresses"),
        pytest.param([(f"run{n}", HOME) for n in range(200)], id="restarts"),
        pytest.param([(f"run{n // 3}", (HOME, MOBILE)[n % 2]) for n in range(90)], id="both"),
        pytest.param([("", HOME)] * 20, id="an older release"),
        pytest.param([("", HOME), ("", MOBILE), ("", HOME)], id="an older release moves twice"),
        pytest.param([("", HOME), ("a", HOME), ("", HOME), ("b", HOME)], id="up and down grade"),
    ],
)
def test_restarts_and_moves_are_no_alarm(holders: list[tuple[str, str]]):
    assert not any(registered(*holders))


def test_nodes_of_older_releases_that_take_turns_are_noticed_after_a_while():
    turns = [("", HOME), ("", ELSEWHERE)] * 4
    assert registered(*turns).index(True) == RETURNS + 1
    assert not any(registered(*turns, every=RETURN_SECONDS))


@given(st.lists(st.integers(0, 2), max_size=60))
def test_processes_that_live_one_after_the_other_never_raise_it(steps: list[int]):
    """0 and 1 register the process that runs, from one of two addresses; 2 restarts it."""
    known, run = KeyHolders(), 0
    for step in steps:
        run += step == 2
        assert known.register("node_a", f"run{run}", (HOME, MOBILE)[step % 2], 0.0) is None


def test_many_instances_between_two_of_one_can_t_hide_a_copy():
    known = KeyHolders()
    known.register("node_a", "honest", HOME, 0.0)
    for number in range(MAX_HOLDERS - 1):
        known.register("node_a", f"copy{number}", ELSEWHERE, 1.0)
    assert known.register("node_a", "honest", HOME, 2.0) is not None
    assert BURST + 30 * PER_SECOND < MAX_HOLDERS  # what a node may do while another one waits


def test_registrations_of_one_node_are_bounded_over_time_and_others_go_on():
    known = KeyHolders()
    taken = sum(not known.wait("node_a", second / 10) for second in range(6000))
    assert taken <= BURST + 600 * PER_SECOND + 1
    assert max(known.wait("node_a", 600.0) for _ in range(2)) > 0
    assert known.wait("node_a", 600.0) <= 1 / PER_SECOND
    assert known.wait("node_b", 600.0) == 0.0
