"""What is kept of nodes that have left is bounded in number, in size and in time."""

from __future__ import annotations

from fabric_server.nodes.departures import (
    KEPT_SECONDS,
    MAX_NAMES,
    MAX_NAMES_PER_NODE,
    MAX_NODES,
    Departures,
)
from fabric_server.nodes.registry import Registry


def test_a_node_is_kept_until_it_is_back_or_an_hour_has_passed():
    departures = Departures()
    departures.add("node_a", ["tiny", "shared"], 0.0)
    departures.add("node_b", ["shared", "llama3:latest"], 10.0)
    assert departures.models(10.0) == {"tiny", "shared", "llama3:latest"}
    assert [departures.last(name, 10.0) for name in ("tiny", "shared", "llama3", "none")] == [
        *(0.0, 10.0, 10.0, None)
    ]
    departures.forget("node_b")
    assert departures.last("shared", 10.0) == 0.0
    departures.add("node_b", ["shared"], 20.0)
    assert departures.models(KEPT_SECONDS) == {"shared"}
    assert departures.last("tiny", KEPT_SECONDS) is None
    assert departures.models(KEPT_SECONDS + 20.0) == set()
    departures.forget("node_b")


def test_after_the_start_of_the_server_every_node_is_on_its_way():
    now = 1000.0
    registry = Registry(["tiny"], clock=lambda: now)
    assert registry.gone_for("tiny") == 0.0
    now += 90.0
    assert registry.gone_for("tiny") == 90.0
    registry.departures.add("node_a", ["tiny"], now)
    assert registry.gone_for("tiny") == 0.0


def test_it_holds_so_many_nodes_and_names_and_no_more():
    departures = Departures()
    for number in range(MAX_NODES + 100):
        departures.add(f"node_{number}", [f"model-{number}"], 0.0)
    assert departures.models(0.0) == {f"model-{n}" for n in range(100, MAX_NODES + 100)}
    for number in range(100):
        departures.add(f"big_{number}", (f"{number}-{n}" for n in range(10_000)), 1.0)
    assert MAX_NAMES - MAX_NAMES_PER_NODE < len(departures.models(1.0)) <= MAX_NAMES


def test_a_node_that_invents_names_keeps_only_its_last_ones():
    departures = Departures()
    departures.add("node_b", ["mine"], 0.0)
    for number in range(1000):
        departures.add("node_a", (f"{number}-{n}" for n in range(10_000)), 1.0)
    assert len(departures.models(1.0)) == 1 + MAX_NAMES_PER_NODE
    assert departures.last("mine", 1.0) == 0.0
