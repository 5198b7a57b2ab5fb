"""What is kept of nodes' models is bounded, however often a node registers anew."""

from __future__ import annotations

from collections.abc import Iterator

from fabric_server.nodes.served_models import MAX_SERVED, NAMES_PER_HOUR, ServedModels


def invented(prefix: str, count: int) -> Iterator[str]:
    return (f"{prefix}-{number}" for number in range(count))


def test_new_names_are_returned_once_to_be_stored():
    served = ServedModels(["old"])
    assert served.add("node_a", ["b", "a"], 0.0) == ["a", "b"]
    assert served.add("node_a", ["a", "b"], 1.0) == []
    assert served.add("node_b", ["a"], 2.0) == ["a"]
    assert all(name in served for name in ("old", "a", "b"))
    assert "c" not in served


def test_a_node_that_invents_names_gets_no_more_than_its_budget():
    served, stored = ServedModels(), 0
    for second in range(3600):
        stored += len(served.add("node_a", invented(f"s{second}", 100), float(second)))
    assert stored <= 2 * NAMES_PER_HOUR
    kept = sum(f"s{second}-{n}" in served for second in range(3600) for n in range(100))
    assert kept <= MAX_SERVED


def test_a_node_can_t_push_out_the_names_of_others():
    served = ServedModels()
    served.add("node_b", ["shared", "mine"], 0.0)
    served.add("node_a", ["shared"], 0.0)
    for hour in range(1, 4):
        served.add("node_a", invented(f"h{hour}", NAMES_PER_HOUR), hour * 3600.0)
    assert "shared" in served
    assert "mine" in served
    assert "h1-0" not in served
    assert f"h3-{NAMES_PER_HOUR - 1}" in served
