"""What was measured of engines: smoothed, shared where nothing is known, forgotten in time."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.offers import Estimate
from fabric_server.nodes.registry import Registry
from fabric_server.routing.latency import (
    ASSUMED_FIRST_BYTE,
    ASSUMED_LOAD,
    ASSUMED_RATE,
    FORGET_SECONDS,
    MAX_MODELS,
    LatencyEstimates,
    tokens_per_second,
)
from protocol.messages import EngineReport, ModelReport, Register
from tests.site import Site

MODEL = "tiny"
NOTHING = Estimate(ASSUMED_FIRST_BYTE, ASSUMED_RATE, ASSUMED_LOAD, False)


def speed(estimate: Estimate) -> tuple[float, float]:
    return estimate.first_byte, estimate.rate


async def test_the_first_measurement_counts_whole_and_later_ones_in_part() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    assert latency.estimate(engine, MODEL, 0.0) == NOTHING
    latency.update(engine, MODEL, 3.0, tokens_per_second(100, 10.0), now=0.0)
    assert latency.estimate(engine, MODEL, 0.0) == Estimate(3.0, 10.0, ASSUMED_LOAD, True)
    latency.update(engine, MODEL, 1.0, tokens_per_second(200, 10.0), now=0.0)
    assert speed(latency.estimate(engine, MODEL, 0.0)) == (2.5, 12.5)
    assert latency.estimate(engine, "other", 0.0) == NOTHING


async def test_it_fades_into_what_all_do_and_is_gone_in_the_end() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    latency.update(engine, MODEL, 21.0, tokens_per_second(100, 10.0), now=0.0)
    half = latency.estimate(engine, MODEL, FORGET_SECONDS / 2)
    assert 10.0 < half.first_byte < 12.0
    gone = latency.estimate(engine, MODEL, FORGET_SECONDS)
    assert not gone.known
    assert gone.first_byte < 2.0
    latency.update(engine, MODEL, 5.0, tokens_per_second(100, 10.0), now=FORGET_SECONDS * 2)
    assert latency.estimate(engine, MODEL, FORGET_SECONDS * 2).first_byte == 5.0


async def test_an_answer_in_one_piece_tells_of_its_speed_only_and_a_short_one_of_nothing() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    latency.update(engine, MODEL, None, tokens_per_second(100, 10.0), now=0.0)
    assert speed(latency.estimate(engine, MODEL, 0.0)) == (ASSUMED_FIRST_BYTE, 10.0)
    for tokens in (None, 0, 3):
        latency.update(engine, MODEL, None, tokens_per_second(tokens, 0.1), now=0.0)
    latency.update(engine, MODEL, None, tokens_per_second(100, 0.0), now=0.0)
    assert latency.estimate(engine, MODEL, 0.0).rate == 10.0


async def test_who_was_not_waited_for_is_at_least_as_slow_as_it_was_given() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    latency.update(engine, MODEL, 2.0, tokens_per_second(100, 10.0), now=0.0)
    latency.observe_at_least(engine, MODEL, 1.0, now=0.0)
    assert latency.estimate(engine, MODEL, 0.0).first_byte == 2.0
    latency.observe_at_least(engine, MODEL, 6.0, now=0.0)
    assert speed(latency.estimate(engine, MODEL, 0.0)) == (3.0, 10.0)


async def test_a_cold_start_tells_how_long_loading_takes() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    latency.update(engine, MODEL, 1.0, tokens_per_second(100, 10.0), now=0.0)
    latency.update(engine, MODEL, 41.0, tokens_per_second(100, 10.0), now=0.0, cold=True)
    expected = latency.estimate(engine, MODEL, 0.0)
    assert expected.first_byte == 1.0
    assert expected.load == pytest.approx(ASSUMED_LOAD + (40 - ASSUMED_LOAD) / 4)


async def test_failures_count_as_long_waits_that_successes_make_good() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    latency.penalize(engine, MODEL, now=0.0)
    assert latency.estimate(engine, MODEL, 0.0).known
    assert latency.estimate(engine, MODEL, 0.0).first_byte > 5
    for _ in range(20):
        latency.update(engine, MODEL, 0.5, tokens_per_second(100, 10.0), now=0.0)
    assert latency.estimate(engine, MODEL, 0.0).first_byte < 0.6


async def test_it_stays_small() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates(most=10)
    for number in range(MAX_MODELS + 100):
        latency.update(engine, f"m{number}", 1.0, tokens_per_second(100, 10.0), now=0.0)
    assert len(latency) == 10
    assert latency.estimate(engine, "m0", 0.0) == NOTHING
    assert latency.estimate(engine, f"m{MAX_MODELS + 99}", 0.0).known


def engine_of(registry: Registry, *models: str, kind: str = "vllm") -> Engine:
    """Register the node anew, as a node does that comes back."""
    reports = [EngineReport("engine", kind, True, 1, [ModelReport(one) for one in models])]
    node = Node("node_1", 1, Register(1, "0", "n", "t", reports), cast(Any, object()), 0.0)
    registry.add(node)
    registry.report(node, reports)
    return node.engines["engine"]


def test_estimates_outlive_a_registration_and_a_report() -> None:
    registry, latency = Registry(), LatencyEstimates()
    first = engine_of(registry, MODEL)
    assert not latency.estimate(first, MODEL, 0.0).known
    latency.update(first, MODEL, 3.0, 10.0, now=0.0)
    second = engine_of(registry, MODEL)
    assert second is not first
    assert speed(latency.estimate(second, MODEL, 0.0)) == (3.0, 10.0)
    latency.update(first, MODEL, 1.0, 20.0, now=0.0)  # a late answer over the older registration
    assert speed(latency.estimate(second, MODEL, 0.0)) == (2.5, 12.5)
    report = replace(second.report, models=[ModelReport(MODEL, loaded=True), ModelReport("new")])
    registry.report(second.node, [report])
    assert speed(latency.estimate(second, MODEL, 0.0)) == (2.5, 12.5)
    assert not latency.estimate(second, "new", 0.0).known


def test_a_model_of_an_ollama_is_measured_under_both_of_its_names() -> None:
    engine, latency = engine_of(Registry(), "b:latest", kind="ollama"), LatencyEstimates()
    latency.update(engine, "b", 3.0, 10.0, now=0.0)
    assert speed(latency.estimate(engine, "b:latest", 0.0)) == (3.0, 10.0)
    assert len(latency) == 1


def test_a_model_that_takes_the_short_name_of_another_is_not_taken_for_it() -> None:
    registry, latency = Registry(), LatencyEstimates()
    engine = engine_of(registry, "b:latest", kind="ollama")
    latency.update(engine, "b", 3.0, 10.0, now=0.0)
    models = [ModelReport("b:latest"), ModelReport("b")]
    registry.report(engine.node, [replace(engine.report, models=models)])
    assert not latency.estimate(engine, "b", 0.0).known
    assert latency.estimate(engine, "b:latest", 0.0).known


def test_what_is_forgotten_for_want_of_room_is_believed_no_more() -> None:
    engine, latency = engine_of(Registry(), "a", "b"), LatencyEstimates(most=1)
    latency.update(engine, "a", 3.0, 10.0, now=0.0)
    latency.update(engine, "b", 3.0, 10.0, now=0.0)
    assert not latency.estimate(engine, "a", 0.0).known
    assert latency.estimate(engine, "b", 0.0).known
    latency.update(engine, "a", 5.0, 10.0, now=0.0)
    assert speed(latency.estimate(engine, "a", 0.0)) == (5.0, 10.0)


figure = st.floats(0, 1e9)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.none() | figure, st.none() | st.integers(0, 2**53), figure, st.booleans()),
        max_size=30,
    ),
    figure,
)
async def test_whatever_is_measured_there_is_an_expectation(
    measured: list[tuple[float | None, int | None, float, bool]], now: float
) -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    for first, tokens, seconds, cold in measured:
        latency.update(engine, MODEL, first, tokens_per_second(tokens, seconds), now=now, cold=cold)
    expected = latency.estimate(engine, MODEL, now)
    assert expected.first_byte >= 0
    assert expected.rate > 0
    assert expected.load >= 0
