"""When a node pauses, and what it hears of its owner."""

from __future__ import annotations

import math
import stat
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabric_client.hardware.machine import Machine
from fabric_client.owner import control
from fabric_client.owner.control import Control, Unreadable, Watched
from fabric_client.owner.pause_policy import SETTLE_SECONDS, GpuUse, reason_to_pause, told_paused
from fabric_client.owner.schedule import parse_schedule
from protocol.messages import EngineReport, ModelReport
from tests.client.hardware.test_machine import FakeNvml

LONG_AGO = -math.inf


# ── the GPU: its readings are arguments, for no game can be started here ──────────────────────


def gpu(*readings: float, seconds: float = 10, worked_at: float = LONG_AGO) -> list[bool]:
    """Whether it counts as in use after each reading, one every five seconds."""
    use = GpuUse(50, seconds)
    told = []
    for number, percent in enumerate(readings):
        use.saw(number * 5.0, percent, worked_at)
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
    use.saw(100, 99, worked_at=100)  # one runs
    use.saw(100 + SETTLE_SECONDS - 1, 99, worked_at=100)  # its last reading may linger
    assert not use.busy
    use.saw(100 + SETTLE_SECONDS, 99, worked_at=100)
    assert use.busy


def test_while_our_requests_run_what_was_known_holds() -> None:
    use = GpuUse(50, 0)
    use.saw(0, 99, LONG_AGO)
    use.saw(50, 0, worked_at=50)
    assert use.busy


def test_our_own_work_begins_the_count_anew() -> None:
    use = GpuUse(50, 10)
    use.saw(0, 99, LONG_AGO)
    use.saw(9, 99, worked_at=9)
    use.saw(20, 99, worked_at=9)
    use.saw(29, 99, worked_at=9)
    assert not use.busy
    use.saw(30, 99, worked_at=9)
    assert use.busy


# ── the machine: a made driver and a made battery, for there is neither here ──────────────────


def test_the_gpu_that_is_used_most_counts(tmp_path: Path) -> None:
    def card(use: float | None) -> dict[str, Any]:
        told: dict[str, Any] = {"name": "RTX"}
        return told if use is None else {**told, "use": SimpleNamespace(gpu=use)}

    def devices(*cards: dict[str, Any]) -> Machine:
        return Machine(tmp_path, now=0, drm=tmp_path, nvml=FakeNvml(*cards))

    assert devices(card(3), card(80), card(None)).gpu_percent(1) == 80
    assert devices(card(None)).gpu_percent(1) == 0
    assert devices().gpu_percent(1) == 0


def test_a_machine_is_on_battery_only_when_it_says_so(tmp_path: Path) -> None:
    def on_battery(told: Any) -> bool:
        return Machine(tmp_path, now=0, battery=lambda: told).on_battery()

    assert on_battery(SimpleNamespace(power_plugged=False))
    assert not on_battery(SimpleNamespace(power_plugged=True))
    assert not on_battery(SimpleNamespace(power_plugged=None))
    assert not on_battery(None)
    assert isinstance(Machine(tmp_path, now=0).on_battery(), bool)


def test_a_battery_that_can_not_be_read_is_none(tmp_path: Path) -> None:
    def broken() -> Any:
        raise OSError("no such device")

    assert not Machine(tmp_path, now=0, battery=broken).on_battery()


# ── reasons ───────────────────────────────────────────────────────────────────────────────────

NOON = datetime(2026, 6, 1, 12, 0)


def reason(**changes: Any) -> str | None:
    values: dict[str, Any] = {
        "now": NOON.timestamp(),
        "wall": NOON,
        "control": Control(),
        "schedule": [],
        "hours": "",
        "on_battery": False,
        "gpu_busy": False,
    }
    return reason_to_pause(**(values | changes))


def test_the_first_reason_is_told() -> None:
    assert reason() is None
    everything: dict[str, Any] = {
        "control": Control(paused=True),
        "schedule": parse_schedule(["22:00-08:00"]),
        "hours": "22:00-08:00",
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


def test_the_server_is_told_that_nothing_answers_but_not_what_is_down_anyway() -> None:
    well = EngineReport("ollama", "ollama", True, 4, [ModelReport("tiny")])
    down = EngineReport("vllm", "vllm", False, 0, [], "it does not answer")
    assert told_paused([well, down], None) == [well, down]
    told = told_paused([well, down], "paused: on battery")
    assert told[0] == EngineReport(
        "ollama", "ollama", False, 0, [ModelReport("tiny")], "paused: on battery"
    )
    assert told[1] == down


# ── the owner's file ──────────────────────────────────────────────────────────────────────────


def test_what_the_owner_says_is_kept_from_others_and_heard(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.look() is None
    assert watched.said == Control()
    said = control.say(tmp_path, paused=True, until=5.0)
    assert stat.S_IMODE(control.path_in(tmp_path).stat().st_mode) == 0o600
    assert watched.look() is None
    assert watched.said == said == Control(at=said.at, paused=True, until=5.0)
    again = control.say(tmp_path, drain="run")
    assert again.at > said.at
    assert (again.paused, again.until, again.drain) == (True, 5.0, "run")
    watched.look()
    assert watched.said == again
    resumed = control.say(tmp_path, paused=False)
    assert (resumed.paused, resumed.until) == (False, None)


def test_a_file_that_is_not_ours_changes_nothing_and_is_complained_of_once(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    said = control.say(tmp_path, paused=True)
    watched.look()
    for text in ("", "{", "[]", '{"paused": 1}', '{"pause": true}'):
        control.path_in(tmp_path).write_text(text)
        assert "can't be read" in (watched.look() or "")
        assert watched.look() is None
        assert watched.said == said
    with pytest.raises(Unreadable):
        control.say(tmp_path, paused=False)
    control.path_in(tmp_path).unlink()
    watched.look()
    assert watched.said == Control()
