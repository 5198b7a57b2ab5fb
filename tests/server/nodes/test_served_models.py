"""What is kept of nodes' models is bounded, however often a node registers anew."""

from __future__ import annotations

from collections.abc import Iterator

from fabric_server.nodes.served_models import (
    MAX_SERVED,
    NAMES_PER_HOUR,
    ServedModels,
    variants_of,
)
from protocol.messages import EngineReport, ModelReport


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


def test_names_with_new_weights_are_stored_again_within_the_same_budget():
    served = ServedModels()
    small, large = {"a": ("Q4_K_M", "a" * 64)}, {"a": ("Q8_0", "b" * 64)}
    assert served.add("node_a", ["a", "b"], 0.0, small) == ["a", "b"]
    assert served.add("node_a", ["a", "b"], 1.0, small) == []
    assert served.add("node_a", ["a", "b"], 2.0, large) == ["a"]
    stored = sum(
        len(served.add("node_a", ["a"], 2.0, {"a": ("", f"{number:064x}")}))
        for number in range(2 * NAMES_PER_HOUR)
    )
    assert stored < NAMES_PER_HOUR
    assert "a" in served


def test_engines_of_one_node_may_have_different_weights_of_a_model():
    def engine(name: str, *models: ModelReport) -> EngineReport:
        return EngineReport(name, "ollama", True, 1, list(models))

    small = ModelReport("a", digest="a" * 64, quantization="Q4_K_M")
    large = ModelReport("a", digest="b" * 64, quantization="Q8_0")
    told = variants_of([engine("1", small, ModelReport("b")), engine("2", large, large)])
    assert told == {"a": ("Q4_K_M, Q8_0", f"{'a' * 64}, {'b' * 64}"), "b": ("", "")}
