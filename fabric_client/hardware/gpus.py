"""Figures of NVIDIA GPUs, from the driver's NVML, and of AMD GPUs, from Linux' sysfs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from protocol.messages import Gpu

_RETRY_SECONDS = 60.0
"""Time between two attempts to open a driver that is not there."""
_AMD = "0x1002"


class Nvidia:
    """GPUs as NVML lists them; none without a driver.

    Only the open library is kept between samples, so that a GPU that fell off the bus is missing,
    and one that was added is there.
    """

    def __init__(self, nvml: Any = None) -> None:
        """Use ``nvml`` instead of ``pynvml``, in tests."""
        self._nvml = pynvml if nvml is None else nvml
        self._open = False
        self._retry_at = float("-inf")

    def sample(self, now: float) -> list[Gpu]:
        if not self._open:
            if now < self._retry_at:
                return []
            self._retry_at = now + _RETRY_SECONDS
            try:
                self._nvml.nvmlInit()
            except (self._nvml.NVMLError, OSError):
                return []
            self._open = True
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError:
            # The driver was reloaded or updated; opening it again may find the new one.
            self.close()
            return []
        gpus = (self._gpu(index) for index in range(count))
        return [gpu for gpu in gpus if gpu is not None]

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return

    def _gpu(self, index: int) -> Gpu | None:
        nvml = self._nvml

        def query(read: Callable[[], Any]) -> Any:
            """Read one figure; None if this GPU does not report it (laptops often lack power)."""
            try:
                return read()
            except nvml.NVMLError:
                return None

        handle = query(lambda: nvml.nvmlDeviceGetHandleByIndex(index))
        name = None if handle is None else query(lambda: nvml.nvmlDeviceGetName(handle))
        if name is None:
            return None
        memory = query(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        use = query(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        celsius = query(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        milliwatts = query(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return Gpu(
            name=str(name.decode("utf-8", "replace") if isinstance(name, bytes) else name)[:256],
            memory_bytes=None if memory is None else int(memory.total),
            memory_used_bytes=None if memory is None else int(memory.used),
            utilisation_percent=None if use is None else float(use.gpu),
            temperature_celsius=None if celsius is None else float(celsius),
            power_watts=None if milliwatts is None else milliwatts / 1000,
        )


class Amd:
    """GPUs of Linux' amdgpu driver.  Source: Documentation/gpu/amdgpu in the kernel."""

    def __init__(self, drm: Path) -> None:
        self._drm = drm

    def sample(self) -> list[Gpu]:
        cards = sorted(self._drm.glob("card*"), key=lambda card: (len(card.name), card.name))
        # Names such as card1-HDMI-A-1 are connectors.
        devices = (card / "device" for card in cards if card.name[4:].isdigit())
        return [_amd(device) for device in devices if _word(device / "vendor") == _AMD]


def _amd(device: Path) -> Gpu:
    monitor = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "hwmon")
    microwatts = _number(monitor / "power1_average")
    if microwatts is None:
        microwatts = _number(monitor / "power1_input")  # newer cards report only the present power
    millidegrees = _number(monitor / "temp1_input")
    use = _number(device / "gpu_busy_percent")
    model = _word(device / "product_name") or f"AMD GPU {_word(device / 'device') or ''}".strip()
    return Gpu(
        name=model[:256],
        memory_bytes=_count(device / "mem_info_vram_total"),
        memory_used_bytes=_count(device / "mem_info_vram_used"),
        utilisation_percent=None if use is None else float(use),
        temperature_celsius=None if millidegrees is None else millidegrees / 1000,
        power_watts=None if microwatts is None else microwatts / 1_000_000,
    )


def _word(file: Path) -> str | None:
    """Read a file; None if it is missing, or its device sleeps: amdgpu then returns errors."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(file: Path) -> int | None:
    try:
        return int(_word(file) or "")
    except ValueError:
        return None


def _count(file: Path) -> int | None:
    number = _number(file)
    return None if number is None or number < 0 else number
