"""What the logs of node and server say about a node's engines."""

from __future__ import annotations

from typing import Any

from protocol.engine_changes import MAX_MODELS, EngineChanges
from protocol.messages import EngineReport, ModelReport


def engine(name: str, *models: str, problem: str | None = None) -> EngineReport:
    return EngineReport(
        name, "ollama", problem is None, 2, [ModelReport(one) for one in models], problem
    )


def test_each_change_is_told_once() -> None:
    changes = EngineChanges([engine("a", "m1")])

    def told(*reports: EngineReport) -> list[tuple[str, dict[str, Any]]]:
        first = changes.compare(reports)
        assert changes.compare(reports) == []
        return first

    assert told(engine("a", "m1")) == []
    down = engine("a", problem="refuses connections")
    assert told(down) == [
        ("engine out of use", {"engine": "a", "reason": "refuses connections"}),
    ]
    assert told(engine("a", problem="paused by its owner")) == [
        ("engine out of use", {"engine": "a", "reason": "paused by its owner"}),
    ]
    assert told(engine("a", "m2"), engine("b", "x")) == [
        ("engine in use again", {"engine": "a", "models": ["m2"]}),
        ("engine found", {"engine": "b", "models": ["x"]}),
    ]
    assert told(engine("a", "m1", "m3"), engine("b", "x")) == [
        ("models of an engine changed", {"engine": "a", "added": ["m1", "m3"], "removed": ["m2"]}),
    ]
    assert told(engine("a", "m1", "m3"), engine("c", problem="silent")) == [
        ("engine is no longer there", {"engine": "b"}),
        ("engine found, out of use", {"engine": "c", "reason": "silent"}),
    ]


def test_a_line_does_not_grow_with_the_models_of_an_engine() -> None:
    changes = EngineChanges([])
    ((_, about),) = changes.compare([engine("a", *(f"m{n:03}" for n in range(500)))])
    assert len(about["models"]) == MAX_MODELS + 1
    assert about["models"][-1] == "and 480 more"
