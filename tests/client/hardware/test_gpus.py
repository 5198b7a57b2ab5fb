"""GPUs: from a made NVIDIA driver, and from made sysfs trees of amdgpu."""

from __future__ import annotations

from pathlib import Path

from fabric_client.hardware.gpus import Nvidia
from fabric_client.hardware.machine import Machine
from protocol.messages import Gpu
from tests.nvml import FakeNvml, rtx

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
