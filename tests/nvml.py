"""A made NVIDIA driver; no GPU is behind it."""

from __future__ import annotations

from types import SimpleNamespace


class FakeNvml:
    """Looks like ``pynvml``.  Each GPU is a dict of its figures."""

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

    def _figure(self, gpu: dict[str, object], what: str) -> object:
        if what not in gpu:
            raise self.NVMLError("Not Supported")
        return gpu[what]

    def nvmlDeviceGetName(self, gpu: dict[str, object]) -> object:
        return self._figure(gpu, "name")

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, object]) -> object:
        return self._figure(gpu, "memory")

    def nvmlDeviceGetUtilizationRates(self, gpu: dict[str, object]) -> object:
        return self._figure(gpu, "use")

    def nvmlDeviceGetTemperature(self, gpu: dict[str, object], sensor: int) -> object:
        return self._figure(gpu, "celsius")

    def nvmlDeviceGetPowerUsage(self, gpu: dict[str, object]) -> object:
        return self._figure(gpu, "milliwatts")


def rtx() -> dict[str, object]:
    return {
        "name": "NVIDIA GeForce RTX 4090",
        "memory": SimpleNamespace(total=24 * 2**30, used=10 * 2**30, free=14 * 2**30),
        "use": SimpleNamespace(gpu=97, memory=40),
        "celsius": 71,
        "milliwatts": 312_500,
    }
