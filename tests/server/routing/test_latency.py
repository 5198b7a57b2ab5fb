"""What was measured of engines: smoothed, shared where nothing is known, forgotten in time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.routing.latency import (
    ASSUMED_FIRST_BYTE,
    ASSUMED_LOAD,
    ASSUMED_RATE,
    FORGET_SECONDS,
    MAX_MODELS,
    Estimate,
    LatencyEstimates,
    tokens_per_second,
)
from tests.site import Site

MODEL = "tiny"
NOTHING = Estimate(ASSUMED_FIRST_BYTE, ASSUMED_RATE, ASSUMED_LOAD, False)


async def test_the_first_measurement_counts_whole_and_later_ones_in_part() -> None:
    engine = Site().node().engine
    latency = LatencyEstimates()
    assert latency.estimate(engine, MODEL, 0.0) == NOTHING
    latency.update(engine, MODEL, 3.0, tokens_per_second(100, 10.0), now=0.0)
    assert latency.estimate(engine, MODEL, 0.0) == Estimate(3.0, 10.0, ASSUMED_LOAD, True)
    latency.update(engine, MODEL, 1.0, tokens_per_second(200, 10.0), now=0.0)
    assert latency.estimate(engine, MODEL, 0.0)[:2] == (2.5, 12.5)
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
    assert latency.estimate(engine, MODEL, 0.0)[:2] == (ASSUMED_FIRST_BYTE, 10.0)
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
    assert latency.estimate(engine, MODEL, 0.0)[:2] == (3.0, 10.0)


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
