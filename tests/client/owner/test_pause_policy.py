"""The reasons for a node to pause."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import msgspec

from fabric_client.owner.control import Control
from fabric_client.owner.pause_policy import (
    SETTLE_SECONDS,
    GpuUse,
    find_back_at,
    pause_reason,
    report_paused,
)
from fabric_client.owner.schedule import Schedule, parse_schedule
from protocol.messages import EngineReport, ModelReport

LONG_AGO = -math.inf
NO_COMMAND = Control()


# ── the GPU: its readings are arguments, for no game can be started here ──────────────────────


def gpu(*readings: float, seconds: float = 10, worked_at: float = LONG_AGO) -> list[bool]:
    """Whether it counts as in use after each reading, one every five seconds."""
    use = GpuUse(50, seconds)
    told = []
    for number, percent in enumerate(readings):
        use.observe(number * 5.0, percent, worked_at)
        told.append(use.busy)
    return told


def test_a_gpu_is_in_use_when_it_was_long_enough() -> None:
    assert gpu(90, 90, 90, 90) == [False, False, True, True]
    assert gpu(50, 50, 50, 50) == [False] * 4
    assert gpu(90, 90, 10, 90, 90, 90) == [False] * 5 + [True]


def test_it_is_free_again_when_it_was_long_enough() -> None:
    assert gpu(90, 90, 90, 0, 0, 0) == [False, False, True, True, True, False]
    assert gpu(90, 90, 90, 0, 90, 0, 0, 0) == [False, False, *[True] * 5, False]


def test_no_waiting_is_at_once() -> None:
    assert gpu(90, 0, 90, seconds=0) == [True, False, True]


def test_what_our_own_requests_use_is_not_others_use() -> None:
    use = GpuUse(50, 0)
    use.observe(100, 99, worked_at=100)  # one runs
    use.observe(100 + SETTLE_SECONDS - 1, 99, worked_at=100)  # its last reading may linger
    assert not use.busy
    use.observe(100 + SETTLE_SECONDS, 99, worked_at=100)
    assert use.busy


def test_while_our_requests_run_what_was_known_holds() -> None:
    use = GpuUse(50, 0)
    use.observe(0, 99, LONG_AGO)
    use.observe(50, 0, worked_at=50)
    assert use.busy


def test_our_own_work_begins_the_count_anew() -> None:
    use = GpuUse(50, 10)
    use.observe(0, 99, LONG_AGO)
    use.observe(9, 99, worked_at=9)
    use.observe(20, 99, worked_at=9)
    use.observe(29, 99, worked_at=9)
    assert not use.busy
    use.observe(30, 99, worked_at=9)
    assert use.busy


# ── reasons ───────────────────────────────────────────────────────────────────────────────────

NOON = datetime(2026, 6, 1, 12, 0)


def reason(**changes: Any) -> str | None:
    values: dict[str, Any] = {
        "now": NOON.timestamp(),
        "wall": NOON,
        "control": Control(),
        "schedule": parse_schedule([]),
        "on_battery": False,
        "gpu_busy": False,
    }
    return pause_reason(**(values | changes))


def test_the_first_reason_is_told() -> None:
    assert reason() is None
    everything: dict[str, Any] = {
        "control": Control(paused=True),
        "schedule": parse_schedule(["22:00-08:00"]),
        "on_battery": True,
        "gpu_busy": True,
    }
    assert reason(**everything) == "by its owner"
    assert reason(**everything | {"control": Control()}) == "outside its hours (22:00-08:00)"
    assert reason(on_battery=True, gpu_busy=True) == "on battery"
    assert reason(gpu_busy=True) == "the GPU is in use"


def test_a_pause_ends_by_itself() -> None:
    until = NOON.timestamp() + 60
    said = Control(paused=True, until=until)
    assert reason(control=said) == "by its owner until 2026-06-01 12:01"
    assert reason(control=said, now=until) is None


def test_when_a_pause_ends_follows_from_the_command_and_the_hours() -> None:
    nights, always = parse_schedule(["22:00-08:00"]), parse_schedule([])
    noon = datetime(2026, 6, 1, 12).timestamp()
    night = datetime(2026, 6, 1, 22).timestamp()

    def back(control: Control = NO_COMMAND, schedule: Schedule = nights) -> float:
        return find_back_at(noon, control, schedule)

    def until(at: float | None) -> Control:
        return Control(paused=True, until=at)

    assert back() == night
    assert back(until(noon + 3600), always) == noon + 3600
    assert back(until(noon + 3600)) == night, "its hours begin later than the command ends"
    assert back(until(night + 60)) == night + 60
    morning = datetime(2026, 6, 2, 9).timestamp()
    assert back(until(morning)) == datetime(2026, 6, 2, 22).timestamp()
    assert back(until(noon - 1), always) == 0.0, "what pauses it then is a sensor"
    for endless in (None, math.inf, 1e18, noon + 400 * 86_400):
        assert back(until(endless)) == 0.0


def test_the_server_is_told_that_nothing_answers_but_not_what_is_down_anyway() -> None:
    well = EngineReport("ollama", "ollama", True, 4, [ModelReport("tiny")])
    down = EngineReport("vllm", "vllm", False, 0, [], "it does not answer")
    assert report_paused([well, down], None) == [well, down]
    told = report_paused([well, down], "paused: on battery", 1_800_000_000.0)
    assert told[0] == EngineReport(
        *("ollama", "ollama", False, 0, [ModelReport("tiny")], "paused: on battery"),
        paused=True,
        back_at=1_800_000_000.0,
    )
    assert told[1] == msgspec.structs.replace(down, paused=True, back_at=1_800_000_000.0)
