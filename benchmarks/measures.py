"""What is measured: each function puts one kind of load on a target and returns figures.

`refused`, `lost` and `wrong` count answers of another status, incomplete ones, and ones of other
bytes than the engine sent; a figure is worth something only where they are 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.canned import BURST_MODEL, CROWD_MODEL, MODEL, PACED_MODEL
from benchmarks.processes import Command, Site
from benchmarks.systems import MAX_SLOTS, Target, need

Figures = dict[str, Any]
LOAD = [sys.executable, "-m", "benchmarks.load"]
POST = Path(__file__).with_name("post.lua")
CONCURRENCY = 32
GROWTH_SECONDS = 30
SETTLE_SECONDS = 5
USUAL_SLOTS = 4
"""Slots of an idle node."""
ROUTED_NODES = 10_000
COLD_PAUSE = 0.05
DIRECT = "direct"
"""The engine asked without a system between."""


@dataclass(frozen=True)
class Extent:
    """How much of it."""

    rounds: int
    seconds: float
    """Of each unpaced load."""
    paced_streams: int
    paced_seconds: float
    growth_requests: int
    """After which memory should be what it was."""
    idle_nodes: int
    cold_requests: int
    """Requests to each system."""


def small(site: Site, target: Target, extent: Extent) -> Figures:
    """Small JSON requests at concurrency 32: requests per second."""
    need("wrk")
    command: Command = ["wrk", "-t1", f"-c{CONCURRENCY}", f"-d{extent.seconds:g}s"]
    command = [*command, "--timeout", "10s", "-s", POST, target.url]  # slow is not lost
    told: Figures = json.loads(site.run(command, environ=key(target)).splitlines()[-1])
    return {**told, "per_second": round(told["requests"] / told["seconds"])}


def streams(site: Site, target: Target, extent: Extent, model: str = MODEL) -> Figures:
    """Streams at concurrency 32, the engine as fast as it can: events per second.

    An event a write, as engines do; the mock engine's own limit is near then.
    """
    load = ["streams", target.url, "--concurrency", CONCURRENCY, "--seconds", extent.seconds]
    return put(site, target, [*load, "--model", model])


def bursts(site: Site, target: Target, extent: Extent) -> Figures:
    """The same with several events in a write, which shows what is between: events per second."""
    return streams(site, target, extent, BURST_MODEL)


def probe(site: Site, target: Target, extent: Extent) -> Figures:
    """Small JSON requests one after the other: milliseconds each, and how many more than direct."""
    load = ["probe", target.url, "--beside", target.engine, "--seconds", extent.seconds]
    return put(site, target, load)


def first_byte(site: Site, target: Target, extent: Extent) -> Figures:
    """Requests one after the other: milliseconds until the first byte.

    Small answers: behind the first byte of a stream the engine would compete for the two cores.
    """
    return put(site, target, ["probe", target.url, "--seconds", extent.seconds])


def paced(site: Site, target: Target, extent: Extent) -> Figures:
    """Many streams of 40 events a second each: what is lost, and the gaps between events."""
    return at_a_pace(site, target, PACED_MODEL, extent.paced_streams, extent.paced_seconds)


def crowd(site: Site, target: Target, extent: Extent) -> Figures:
    """Five times as many streams of 10 events a second each."""
    count = extent.paced_streams * 5
    if target.add_node is not None and count > MAX_SLOTS:
        target.add_node(MAX_SLOTS)
        time.sleep(SETTLE_SECONDS)
    return at_a_pace(site, target, CROWD_MODEL, count, extent.paced_seconds)


def at_a_pace(site: Site, target: Target, model: str, count: int, seconds: float) -> Figures:
    before = memory(target)
    used = 0.0 if target.front is None else spent(target.front)
    load = ["paced", target.url, "--model", model, "--concurrency", count, "--seconds", seconds]
    peak = 0

    def watch() -> None:
        nonlocal peak
        peak = max(peak, memory(target))

    told = put(site, target, load, watch)
    if target.front is not None:
        # By the time that it should take: a machine that is late would make it fewer.
        told["front_cores"] = round((spent(target.front) - used) / 1e6 / seconds, 3)
    return {**told, "memory_before": before, "memory_per_stream": (peak - before) // count}


def growth(site: Site, target: Target, extent: Extent) -> Figures:
    """Bytes by which many small requests make the process larger that users connect to."""
    small(site, target, extent)  # what is allocated once is not growth
    before, began, requests = memory(target), time.monotonic(), 0
    while requests < extent.growth_requests and time.monotonic() - began < GROWTH_SECONDS:
        requests += small(site, target, extent)["requests"]
    return {"requests": requests, "memory_before": before, "growth": memory(target) - before}


def nodes(site: Site, target: Target, extent: Extent) -> Figures:
    """Bytes that each further node costs the process users connect to, and has itself.

    Measure it last.
    """
    assert target.add_node
    target.add_node(USUAL_SLOTS)  # what is allocated at a first one is no node's
    time.sleep(SETTLE_SECONDS)
    before = memory(target)
    added = [target.add_node(USUAL_SLOTS) for _ in range(extent.idle_nodes)]
    time.sleep(SETTLE_SECONDS)
    each = (memory(target) - before) // extent.idle_nodes
    return {
        "nodes": extent.idle_nodes,
        "memory_before": before,
        "memory_per_node": each,
        "memory_of_node": sum(resident(node) for node in added) // extent.idle_nodes,
    }


def routing(site: Site, target: Target, extent: Extent) -> Figures:
    """Microseconds of processor for the choice among 10,000 nodes, by the server's own code."""
    choosing = [sys.executable, "-m", "benchmarks.choosing", str(ROUTED_NODES), "--json"]
    return {"nodes": ROUTED_NODES, **json.loads(site.run(choosing))}


def cold(site: Site, targets: Mapping[str, Target], extent: Extent) -> dict[str, Figures]:
    """One small request each 50 ms, to all systems in turn: milliseconds, and more than direct.

    Requests of people come so: each finds the way as the pause has left it.
    """
    load = ["cold", *(target.url for target in targets.values()), "--every", COLD_PAUSE]
    load += ["--seconds", extent.cold_requests * COLD_PAUSE * len(targets)]
    for target in targets.values():
        load += ["--rewriting", target.url] * target.rewrites
    keys = ",".join(target.key or "" for target in targets.values())
    told = json.loads(site.run([*LOAD, *map(str, load)], environ={"FABRIC_KEY": keys}))
    figures: dict[str, Figures] = dict(zip(targets, told, strict=True))
    for name, own in figures.items():
        if name != DIRECT and DIRECT in figures:
            for quantile in ("p50", "p90", "p99"):
                more = own[f"{quantile}_ms"] - figures[DIRECT][f"{quantile}_ms"]
                own[f"added_{quantile}_ms"] = round(more, 3)
    return figures


MEASURES: Mapping[str, Callable[[Site, Target, Extent], Figures]] = {
    "small": small,
    "streams": streams,
    "bursts": bursts,
    "probe": probe,
    "growth": growth,
    "routing": routing,
    "paced": paced,
    "crowd": crowd,
    "nodes": nodes,
}
ONCE = ("growth", "routing", "paced", "crowd", "nodes")
"""Measures that take long and are made once, after the rest; paced ones keep a slow system busy."""


def applies(kind: str, target: Target) -> bool:
    if kind in ("nodes", "routing"):
        return target.add_node is not None
    return kind != "growth" or target.front is not None


GREATER_IS_BETTER = {
    "small": "per_second",
    "streams": "events_per_second",
    "bursts": "events_per_second",
}
LESS_IS_BETTER = {"probe": "whole_added_ms"}


def better(kind: str, figures: Figures, other: Figures | None) -> Figures:
    """The better of two rounds, unless there was something wrong in one."""
    if other is None:
        return figures
    if faults(figures) != faults(other):
        return min(figures, other, key=faults)
    if figure := GREATER_IS_BETTER.get(kind):
        return max(figures, other, key=lambda one: one[figure])
    return min(figures, other, key=lambda one: one[LESS_IS_BETTER[kind]])


def faults(figures: Figures) -> int:
    return sum(figures.get(name, 0) for name in ("refused", "lost", "wrong"))


def put(
    site: Site, target: Target, load: list[Any], watch: Callable[[], None] = lambda: None
) -> Figures:
    """Run the load generator; adds what the system between spent, and how busy all cores were."""
    command = [*LOAD, *map(str, load)]
    if target.rewrites:
        command += ["--rewriting", target.url]
    parts = [part for part in (target.front, target.node) if part is not None]
    before, began, idle = sum(map(spent, parts)), time.monotonic(), idle_seconds()
    told: Figures = json.loads(
        site.run(command, at_node=target.at_node, environ=key(target), watch=watch)
    )
    took = (time.monotonic() - began) * len(os.sched_getaffinity(0))
    told["machine_busy"] = round(1 - (idle_seconds() - idle) / took, 3)
    if parts and told["received"]:
        told["cpu_us_per_event"] = round((sum(map(spent, parts)) - before) / told["received"], 3)
    return told


def key(target: Target) -> dict[str, str]:
    return {"FABRIC_KEY": target.key} if target.key else {}


def spent(program: subprocess.Popen[bytes]) -> float:
    """Microseconds of processor that a process and its children have had, all their threads."""
    front, total = psutil.Process(program.pid), 0
    for process in (front, *front.children(recursive=True)):
        for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                total += int(thread.read_text().split()[0])
    return total / 1000


def idle_seconds() -> float:
    """Seconds in which cores of this machine had nothing to do, since it started."""
    times = psutil.cpu_times()
    return float(times.idle + times.iowait)


def memory(target: Target) -> int:
    """Bytes resident in the process users connect to, and in its children; 0 for the engine."""
    if target.front is None:
        return 0
    return resident(target.front)


def resident(program: subprocess.Popen[bytes]) -> int:
    """Bytes resident in a process and its children."""
    total = 0
    front = psutil.Process(program.pid)
    for process in (front, *front.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
