"""How the machine is: processor, memory, disk, network and GPUs, for the heartbeat."""

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
    """The part of ``protocol.messages.Heartbeat`` that is about the machine, under its names."""

    cpu_percent: float
    """Of all cores together, since the sample before."""
    memory_bytes: int
    memory_used_bytes: int
    disk_bytes: int
    """Of the file system that holds the node's directory."""
    disk_used_bytes: int
    network_in_bytes_per_second: float
    """Since the sample before, without loopback."""
    network_out_bytes_per_second: float
    gpus: list[Gpu]

    def fields(self) -> dict[str, Any]:
        """``Heartbeat(seq=…, at=…, slots=…, **sample.fields())``"""
        return msgspec.structs.asdict(self)


class Machine:
    """Reads the machine's figures.

    ``sample`` takes a millisecond or two, a broken GPU driver longer; it never raises: what can't
    be read is 0, and said once in the log.
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
        """``now`` is of the same clock as ``sample`` gets.  ``drm`` is where Linux lists graphics
        cards, ``nvml`` a stand-in for the module ``pynvml``, ``battery`` one for
        ``psutil.sensors_battery``; all are for tests."""
        self._data = data
        # Missing where psutil knows of no batteries at all.
        own: Callable[[], Any] = getattr(psutil, "sensors_battery", lambda: None)
        self._battery = own if battery is None else battery
        self._of_gpus = threading.Lock()
        self._nvidia = Nvidia(nvml)
        self._amd = Amd(drm)
        self._failed: set[str] = set()
        self._at = now
        self._counters = self._try("network", _counters, _NO_COUNTERS)
        self._try("processor", _cpu_percent, 0.0)  # the first reading only sets the mark

    def sample(self, now: float) -> Sample:
        """``now``: seconds of a clock that never goes back; rates are since the call before."""
        memory, memory_used = self._try("memory", _memory, (0, 0))
        disk, disk_used = self._try("disk", self._disk, (0, 0))
        came, went = self._rates(now)
        return Sample(
            cpu_percent=self._try("processor", _cpu_percent, 0.0),
            memory_bytes=memory,
            memory_used_bytes=memory_used,
            disk_bytes=disk,
            disk_used_bytes=disk_used,
            network_in_bytes_per_second=came,
            network_out_bytes_per_second=went,
            gpus=self.gpus(now),
        )

    def gpus(self, now: float) -> list[Gpu]:
        """``now`` as for ``sample``.  One thread at a time asks the drivers, the others wait."""
        with self._of_gpus:
            nvidia = self._try("NVIDIA GPUs", lambda: self._nvidia.sample(now), _NO_GPUS)
            amd = self._try("AMD GPUs", self._amd.sample, _NO_GPUS)
        return [*nvidia, *amd][:_MAX_GPUS]

    def gpu_percent(self, now: float) -> float:
        """How much the GPU that is used most is used, by whomever; 0 where none tells."""
        return max((gpu.utilisation_percent or 0.0 for gpu in self.gpus(now)), default=0.0)

    def on_battery(self) -> bool:
        """Whether the machine runs from its battery now; False where it has none."""
        battery = self._try("battery", self._battery, None)
        return battery is not None and battery.power_plugged is False

    def close(self) -> None:
        """Let go of the GPU driver."""
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
        # Whatever a driver, a container or an odd /proc throws: telemetry never stops a node.
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
    """Bytes per second in and out, over the interfaces that are in both readings.

    One that has just come up brings counters from its past, and one whose counters went back was
    restarted: neither is traffic.
    """
    if elapsed <= 0:
        return 0.0, 0.0
    came = went = 0
    for name in before.keys() & after.keys():
        came += max(0, after[name][0] - before[name][0])
        went += max(0, after[name][1] - before[name][1])
    return came / elapsed, went / elapsed


def _cpu_percent() -> float:
    return float(psutil.cpu_percent(interval=None))


def _memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    # What programs can't have, rather than psutil's `used`, which leaves out less on each system.
    return memory.total, memory.total - memory.available


def _counters() -> Counters:
    """Without loopback: the engine's own traffic is not the network's."""
    counters = psutil.net_io_counters(pernic=True)
    return {
        name: (one.bytes_recv, one.bytes_sent)
        for name, one in counters.items()
        if name.lower() not in _LOOPBACK
    }
