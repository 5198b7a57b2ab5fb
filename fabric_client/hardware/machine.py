"""Figures of this machine for the heartbeat: processor, memory, disk, network and GPUs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil  # type: ignore[import-untyped]

from fabric_client.hardware.gpus import Amd, Nvidia
from protocol.messages import Gpu

log = logging.getLogger(__name__)

T = TypeVar("T")
Counters = Mapping[str, tuple[int, int]]
"""(received, sent) bytes by interface."""

_NO_COUNTERS: Counters = {}
_NO_GPUS: Sequence[Gpu] = ()
_LOOPBACK = ("lo", "lo0", "loopback pseudo-interface 1")
_MAX_GPUS = 64


class Sample(msgspec.Struct, frozen=True):
    """The machine's part of ``protocol.messages.Heartbeat``, under the same names."""

    cpu_percent: float
    """Use of all cores together since the sample before."""
    memory_bytes: int
    memory_used_bytes: int
    disk_bytes: int
    """Size of the file system that holds the node's directory."""
    disk_used_bytes: int
    network_in_bytes_per_second: float
    """Average since the sample before, without loopback."""
    network_out_bytes_per_second: float
    gpus: list[Gpu]

    def fields(self) -> dict[str, Any]:
        """Return keyword arguments: ``Heartbeat(seq=…, at=…, slots=…, **sample.fields())``."""
        return msgspec.structs.asdict(self)


class Machine:
    """Reads the machine's figures.

    ``sample`` takes a millisecond or two, longer with a broken GPU driver.  It never raises: a
    figure that can't be read is 0, and logged once.
    """

    def __init__(
        self,
        data: Path,
        *,
        now: float,
        drm: Path = Path("/sys/class/drm"),
        nvml: Any = None,
        battery: Callable[[], Any] | None = None,
    ) -> None:
        """``data`` is the node's directory; ``now`` is of the same clock as ``sample`` gets.

        For tests: ``drm`` is where Linux lists graphics cards, ``nvml`` a stand-in for the module
        ``pynvml``, ``battery`` one for ``psutil.sensors_battery``.
        """
        self._data = data
        # psutil lacks the function on systems whose batteries it can't read.
        read_battery: Callable[[], Any] = getattr(psutil, "sensors_battery", lambda: None)
        self._battery = read_battery if battery is None else battery
        self._gpu_lock = threading.Lock()
        self._nvidia = Nvidia(nvml)
        self._amd = Amd(drm)
        self._failed: set[str] = set()
        self._at = now
        self._counters = self._try("network", _counters, _NO_COUNTERS)
        self._try("processor", _cpu_percent, 0.0)  # the first reading only starts the interval

    def sample(self, now: float) -> Sample:
        """Return all figures.  ``now`` is in seconds of a monotonic clock."""
        memory, memory_used = self._try("memory", _memory, (0, 0))
        disk, disk_used = self._try("disk", self._disk, (0, 0))
        received, sent = self._rates(now)
        return Sample(
            cpu_percent=self._try("processor", _cpu_percent, 0.0),
            memory_bytes=memory,
            memory_used_bytes=memory_used,
            disk_bytes=disk,
            disk_used_bytes=disk_used,
            network_in_bytes_per_second=received,
            network_out_bytes_per_second=sent,
            gpus=self.gpus(now),
        )

    def gpus(self, now: float) -> list[Gpu]:
        """Return the GPUs.  May be called from several threads, which wait for each other."""
        with self._gpu_lock:
            nvidia = self._try("NVIDIA GPUs", lambda: self._nvidia.sample(now), _NO_GPUS)
            amd = self._try("AMD GPUs", self._amd.sample, _NO_GPUS)
        return [*nvidia, *amd][:_MAX_GPUS]

    def gpu_percent(self, now: float) -> float:
        """Return the use of the busiest GPU, by all programs; 0 if no GPU reports it."""
        return max((gpu.utilisation_percent or 0.0 for gpu in self.gpus(now)), default=0.0)

    def on_battery(self) -> bool:
        """Return whether the machine runs on battery now."""
        battery = self._try("battery", self._battery, None)
        return battery is not None and battery.power_plugged is False

    def close(self) -> None:
        """Release the GPU driver."""
        self._nvidia.close()

    def _disk(self) -> tuple[int, int]:
        folder = self._data.absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        usage = psutil.disk_usage(str(folder))
        return usage.total, usage.used

    def _rates(self, now: float) -> tuple[float, float]:
        before, after = self._counters, self._try("network", _counters, _NO_COUNTERS)
        elapsed = now - self._at
        self._counters, self._at = after, now
        return rates(before, after, elapsed)

    def _try(self, what: str, read: Callable[[], T], otherwise: T) -> T:
        # Drivers, containers and odd /proc files raise all sorts: telemetry must not stop a node.
        try:
            value = read()
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                log.warning("can't read a device", extra={"device": what, "error": repr(error)})
            return otherwise
        self._failed.discard(what)
        return value


def rates(before: Counters, after: Counters, elapsed: float) -> tuple[float, float]:
    """Return bytes per second in and out, over the interfaces that are in both readings.

    Neither the old counters of an interface that has just come up nor a counter that went back,
    because the interface was restarted, is traffic.
    """
    if elapsed <= 0:
        return 0.0, 0.0
    received = sent = 0
    for name in before.keys() & after.keys():
        received += max(0, after[name][0] - before[name][0])
        sent += max(0, after[name][1] - before[name][1])
    return received / elapsed, sent / elapsed


def _cpu_percent() -> float:
    return float(psutil.cpu_percent(interval=None))


def _memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    # psutil calculates `used` differently on each platform, so `available` is the measure.
    return memory.total, memory.total - memory.available


def _counters() -> Counters:
    """Return the counters of all interfaces but loopback, which carries the engine's traffic."""
    counters = psutil.net_io_counters(pernic=True)
    return {
        name: (one.bytes_recv, one.bytes_sent)
        for name, one in counters.items()
        if name.lower() not in _LOOPBACK
    }
