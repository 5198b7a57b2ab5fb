"""The machine's figures: real ones, and those of a made driver and a made battery."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabric_client.hardware.machine import Machine, rates
from protocol import messages
from protocol.messages import Heartbeat
from tests.nvml import FakeNvml, rtx


def test_this_machine_has_a_processor_memory_and_a_disk(tmp_path: Path) -> None:
    machine = Machine(tmp_path, now=0)
    sample = machine.sample(now=1)
    assert 0 <= sample.cpu_percent <= 100
    assert 0 < sample.memory_used_bytes < sample.memory_bytes
    assert 0 < sample.disk_used_bytes <= sample.disk_bytes
    assert sample.network_in_bytes_per_second >= 0
    machine.close()


def test_a_sample_is_the_machines_part_of_a_heartbeat(tmp_path: Path) -> None:
    sample = Machine(tmp_path, now=0, nvml=FakeNvml(rtx())).sample(now=1)
    heartbeat = Heartbeat(
        seq=1, at=0.0, slots=1, active=0, engines_healthy=0, engines=0, **sample.fields()
    )
    sent = messages.encode(heartbeat)
    assert messages.decoder(Heartbeat).decode(sent) == heartbeat


def test_a_directory_that_does_not_exist_yet_has_a_disk_already(tmp_path: Path) -> None:
    assert Machine(tmp_path / "not" / "yet", now=0).sample(now=1).disk_bytes > 0


def test_sampling_takes_milliseconds(tmp_path: Path) -> None:
    machine = Machine(tmp_path, now=0)
    taken = []
    for number in range(20):
        began = time.perf_counter()
        machine.sample(now=number + 1)
        taken.append(time.perf_counter() - began)
    # The best of twenty: how busy the machine is does not matter.  Seen: 0.6 ms.
    assert min(taken) < 0.02


# ── network ───────────────────────────────────────────────────────────────────────────────────


def test_rates_are_per_second_and_over_all_interfaces() -> None:
    before = {"eth0": (1000, 100), "wlan0": (0, 0)}
    after = {"eth0": (3000, 200), "wlan0": (500, 0)}
    assert rates(before, after, 2.0) == (1250.0, 50.0)


def test_an_interface_that_comes_goes_or_restarts_is_no_traffic() -> None:
    before = {"eth0": (1000, 1000), "usb0": (5, 5), "wlan0": (10**9, 10**9)}
    after = {"eth0": (1100, 1100), "vpn0": (10**12, 10**12), "wlan0": (50, 50)}
    assert rates(before, after, 1.0) == (100.0, 100.0)


def test_no_time_between_two_samples_is_no_rate() -> None:
    assert rates({"eth0": (0, 0)}, {"eth0": (10, 10)}, 0.0) == (0.0, 0.0)


# ── the machine: a made driver and a made battery, for there is neither here ──────────────────


def test_the_gpu_that_is_used_most_counts(tmp_path: Path) -> None:
    def card(use: float | None) -> dict[str, Any]:
        told: dict[str, Any] = {"name": "RTX"}
        return told if use is None else {**told, "use": SimpleNamespace(gpu=use)}

    def machine(*cards: dict[str, Any]) -> Machine:
        return Machine(tmp_path, now=0, drm=tmp_path, nvml=FakeNvml(*cards))

    assert machine(card(3), card(80), card(None)).gpu_percent(1) == 80
    assert machine(card(None)).gpu_percent(1) == 0
    assert machine().gpu_percent(1) == 0


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


# ── whatever happens ──────────────────────────────────────────────────────────────────────────


class BrokenNvml(FakeNvml):
    """A driver that fails in a way nobody foresaw."""

    def nvmlDeviceGetCount(self) -> int:
        raise RuntimeError("the driver is out of its mind")


def test_a_device_that_fails_oddly_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, now=0, nvml=BrokenNvml())
    for now in (1, 2, 3):
        sample = machine.sample(now=now)
        assert sample.gpus == []
        assert sample.memory_bytes > 0
    said = [record for record in caplog.records if record.message == "can't read a device"]
    assert [vars(record)["device"] for record in said] == ["NVIDIA GPUs"]


def test_more_gpus_than_a_heartbeat_may_list_are_cut(tmp_path: Path) -> None:
    make: Callable[[], dict[str, object]] = rtx
    nvml = FakeNvml(*(make() for _ in range(70)))
    assert len(Machine(tmp_path, now=0, nvml=nvml).sample(now=1).gpus) == 64
