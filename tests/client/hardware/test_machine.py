"""The machine's figures: real ones from here, and GPUs from made drivers and made sysfs trees."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabric_client.hardware.gpus import Nvidia
from fabric_client.hardware.machine import Machine, rates
from protocol import messages
from protocol.messages import Gpu, Heartbeat


class FakeNvml:
    """A made driver; no GPU is behind it.  Each GPU is a dict of what it tells."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: dict[str, object], installed: bool = True) -> None:
        self.gpus = list(gpus)
        self.installed = installed
        self.crashed = False
        self.calls: list[str] = []

    def nvmlInit(self) -> None:
        self.calls.append("init")
        if not self.installed:
            raise self.NVMLError("Library Not Found")
        self.crashed = False

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")
        if self.crashed:
            raise self.NVMLError("Uninitialized")

    def nvmlDeviceGetCount(self) -> int:
        if self.crashed:
            raise self.NVMLError("Uninitialized")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, object]:
        gpu = self.gpus[index]
        if gpu.get("lost"):
            raise self.NVMLError("GPU is lost")
        return gpu

    def _tell(self, gpu: dict[str, object], what: str) -> object:
        if what not in gpu:
            raise self.NVMLError("Not Supported")
        return gpu[what]

    def nvmlDeviceGetName(self, gpu: dict[str, object]) -> object:
        return self._tell(gpu, "name")

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, object]) -> object:
        return self._tell(gpu, "memory")

    def nvmlDeviceGetUtilizationRates(self, gpu: dict[str, object]) -> object:
        return self._tell(gpu, "use")

    def nvmlDeviceGetTemperature(self, gpu: dict[str, object], sensor: int) -> object:
        return self._tell(gpu, "celsius")

    def nvmlDeviceGetPowerUsage(self, gpu: dict[str, object]) -> object:
        return self._tell(gpu, "milliwatts")


def rtx() -> dict[str, object]:
    return {
        "name": "NVIDIA GeForce RTX 4090",
        "memory": SimpleNamespace(total=24 * 2**30, used=10 * 2**30, free=14 * 2**30),
        "use": SimpleNamespace(gpu=97, memory=40),
        "celsius": 71,
        "milliwatts": 312_500,
    }


def test_this_machine_has_a_processor_memory_and_a_disk(tmp_path: Path) -> None:
    devices = Machine(tmp_path, now=0)
    sample = devices.sample(now=1)
    assert 0 <= sample.cpu_percent <= 100
    assert 0 < sample.memory_used_bytes < sample.memory_bytes
    assert 0 < sample.disk_used_bytes <= sample.disk_bytes
    assert sample.network_in_bytes_per_second >= 0
    devices.close()


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
    devices = Machine(tmp_path, now=0)
    taken = []
    for number in range(20):
        began = time.perf_counter()
        devices.sample(now=number + 1)
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


# ── NVIDIA ────────────────────────────────────────────────────────────────────────────────────


def test_an_nvidia_gpu_is_told_in_bytes_percent_celsius_and_watts() -> None:
    assert Nvidia(FakeNvml(rtx())).sample(0) == [
        Gpu(
            name="NVIDIA GeForce RTX 4090",
            memory_bytes=24 * 2**30,
            memory_used_bytes=10 * 2**30,
            utilisation_percent=97.0,
            temperature_celsius=71.0,
            power_watts=312.5,
        )
    ]


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    assert Nvidia(FakeNvml({"name": b"NVIDIA GB10"})).sample(0) == [Gpu(name="NVIDIA GB10")]


def test_a_gpu_that_falls_off_the_bus_is_missing_and_comes_back() -> None:
    nvml = FakeNvml(rtx(), rtx() | {"name": "second"})
    nvidia = Nvidia(nvml)
    nvml.gpus[0]["lost"] = True
    assert [gpu.name for gpu in nvidia.sample(0)] == ["second"]
    del nvml.gpus[0]["lost"]
    assert len(nvidia.sample(1)) == 2


def test_a_driver_that_is_reloaded_is_opened_again() -> None:
    nvml = FakeNvml(rtx())
    nvidia = Nvidia(nvml)
    assert len(nvidia.sample(0)) == 1
    nvml.crashed = True
    assert nvidia.sample(15) == []
    assert len(nvidia.sample(75)) == 1


def test_a_missing_driver_is_no_gpu_and_is_looked_for_once_a_minute() -> None:
    nvml = FakeNvml(installed=False)
    nvidia = Nvidia(nvml)
    for now in (0, 15, 30, 45):
        assert nvidia.sample(now) == []
    assert nvml.calls == ["init"]
    nvml.installed = True
    nvml.gpus.append(rtx())
    assert len(nvidia.sample(60)) == 1
    nvidia.close()
    nvidia.close()
    assert nvml.calls == ["init", "init", "shutdown"]


def test_the_real_library_without_a_driver_raises_nothing() -> None:
    nvidia = Nvidia()
    assert isinstance(nvidia.sample(0), list)
    nvidia.close()


# ── AMD ───────────────────────────────────────────────────────────────────────────────────────


def card(drm: Path, name: str, **files: str) -> Path:
    """A made graphics card, with the files that amdgpu gives."""
    device = drm / name / "device"
    for file, text in {"vendor": "0x1002", "device": "0x744c", **files}.items():
        path = device / file.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return device


def amd_gpus(tmp_path: Path) -> list[Gpu]:
    return Machine(tmp_path, now=0, drm=tmp_path, nvml=FakeNvml()).sample(now=1).gpus


def test_an_amd_gpu_is_read_from_sysfs(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card0",
        product_name="AMD Radeon PRO W7900",
        mem_info_vram_total=str(48 * 2**30),
        mem_info_vram_used=str(2**30),
        gpu_busy_percent="42",
        hwmon__hwmon3__temp1_input="55000",
        hwmon__hwmon3__power1_average="95000000",
    )
    assert amd_gpus(tmp_path) == [Gpu("AMD Radeon PRO W7900", 48 * 2**30, 2**30, 42.0, 55.0, 95.0)]


def test_connectors_and_other_makers_cards_are_no_amd_gpus(tmp_path: Path) -> None:
    card(tmp_path, "card1")
    card(tmp_path, "card1-HDMI-A-1")
    card(tmp_path, "card2", vendor="0x10de")
    card(tmp_path, "renderD128")
    assert amd_gpus(tmp_path) == [Gpu("AMD GPU 0x744c")]


def test_cards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        card(tmp_path, f"card{number}", product_name=f"number {number}")
    assert [gpu.name for gpu in amd_gpus(tmp_path)] == ["number 1", "number 2", "number 10"]


def test_files_that_can_not_be_read_or_hold_nonsense_are_left_out(tmp_path: Path) -> None:
    device = card(
        tmp_path,
        "card0",
        gpu_busy_percent="",
        mem_info_vram_total="lots",
        mem_info_vram_used="-1",
        hwmon__hwmon0__power1_input="30000000",
    )
    (device / "product_name").mkdir()  # reading it fails, as it does while a device sleeps
    assert amd_gpus(tmp_path) == [Gpu("AMD GPU 0x744c", power_watts=30.0)]


# ── whatever happens ──────────────────────────────────────────────────────────────────────────


class BrokenNvml(FakeNvml):
    """A driver that fails in a way nobody foresaw."""

    def nvmlDeviceGetCount(self) -> int:
        raise RuntimeError("the driver is out of its mind")


def test_a_device_that_fails_oddly_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    devices = Machine(tmp_path, now=0, nvml=BrokenNvml())
    for now in (1, 2, 3):
        sample = devices.sample(now=now)
        assert sample.gpus == []
        assert sample.memory_bytes > 0
    said = [record for record in caplog.records if record.message == "can't read a device"]
    assert [vars(record)["device"] for record in said] == ["NVIDIA GPUs"]


def test_more_gpus_than_a_heartbeat_may_list_are_cut(tmp_path: Path) -> None:
    make: Callable[[], dict[str, object]] = rtx
    nvml = FakeNvml(*(make() for _ in range(70)))
    assert len(Machine(tmp_path, now=0, nvml=nvml).sample(now=1).gpus) == 64
