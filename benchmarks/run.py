"""Measures the fabric beside its rivals, all in one run, and prints a table.

    python -m benchmarks.run                       what people choose between: 6 minutes
    python -m benchmarks.run --save                also writes the figures, docs/comparison.svg
                                                   and the table of docs/comparison.md
    python -m benchmarks.run --quick               two minutes, good for a look
    python -m benchmarks.run --thorough            every system and measure: an hour
    python -m benchmarks.run --only fabric,nginx2 --measures small,probe

Engine, load generator and everything between share this machine, so figures of different machines
or runs do not compare; ratios within one run do.  All systems stand beside each other.  Rounds go
over them in turn, and the best round of each counts: whatever else the machine does only ever makes
a figure worse.  What can't be installed or started is named with its reason; the rest is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import canned, report
from benchmarks.measures import (
    MEASURES,
    ONCE,
    Extent,
    Figures,
    applies,
    better,
    cold,
    faults,
    first_byte,
)
from benchmarks.processes import Site
from benchmarks.systems import COMPARED, SYSTEMS, Target, nginx
from benchmarks.table import Kept, Results, table
from runtime.version import COMPILED
from tests.lab.netlab import NatLab

QUICK = Extent(
    rounds=1,
    seconds=1,
    paced_streams=1000,
    paced_seconds=5,
    growth_requests=20_000,
    idle_nodes=5,
    cold_requests=40,
)
BRIEF = Extent(
    rounds=2,
    seconds=2,
    paced_streams=1000,
    paced_seconds=8,
    growth_requests=0,
    idle_nodes=10,
    cold_requests=240,
)
THOROUGH = Extent(
    rounds=3,
    seconds=4,
    paced_streams=1000,
    paced_seconds=60,
    growth_requests=100_000,
    idle_nodes=20,
    cold_requests=1000,
)
DELAY_MS = 25
"""One way, where server and node are apart."""
PLAIN_COLUMNS = 140
TOLD_ABOVE = "; the reason is above"
"""The terminal's last note: a page and a picture have nothing above."""
CHEAP_ENGINE = {"small", "growth"}
"""Measured with an engine that is no Python program, lest it be what is measured."""
EVERY_MEASURE = [*MEASURES, "cold", "far"]
CANNED = Path(__file__).with_name("canned.conf")
RESULTS = Path(__file__).with_name("results")

console = Console(stderr=True)


def start_engine(site: Site, seconds: float, *, at_node: bool, host: str = "127.0.0.1") -> str:
    """The mock engine's URL; paced streams last so many seconds."""
    engine = [sys.executable, "-m", "benchmarks.mock_engine", "--host", host]
    engine += ["--seconds", str(seconds)]
    _, url = site.start_and_read(engine, at_node=at_node)
    return url


def start_canned_engine(site: Site, ollama: str = "") -> str:
    """The URL of an engine that knows the small answer alone, and costs next to nothing.

    ``ollama`` makes it one, with a model of that name; the answer stays the same.
    """
    (port,) = site.free_ports(1)
    texts = {"small": canned.SMALL.decode(), "models": canned.MODELS.decode()}
    if ollama:
        texts["models"] = texts["models"].replace(f'"id":"{canned.MODEL}"', f'"id":"{ollama}"')
    texts["version"] = '{"version":"0.13.9"}' if ollama else ""
    texts["tags"] = f'{{"models":[{{"name":"{ollama}","model":"{ollama}"}}]}}' if ollama else ""
    engine = nginx(site, CANNED, listen=f"127.0.0.1:{port}", **texts)
    url = f"http://127.0.0.1:{port}"
    site.wait_for_answer(f"{url}/v1/models", engine)
    return url


class Run:
    """The figures of all rounds, and why what is missing could not be measured."""

    def __init__(self, names: list[str], kinds: list[str], extent: Extent) -> None:
        self.results: Results = defaultdict(dict)
        self.problems: dict[str, str] = {}
        """By system: why it is not there."""
        self.failures: dict[str, str] = {}
        """By system and measure."""
        self._names = names
        self._kinds = kinds
        self._extent = extent

    def measure(self) -> None:
        for cheap in (True, False):
            kinds = [kind for kind in self._kinds if (kind in CHEAP_ENGINE) is cheap]
            if set(kinds) - {"far"}:
                with Site() as site:
                    self._measure_near(site, kinds, cheap)
        if "far" in self._kinds:
            for name in self._names:
                if SYSTEMS[name].far:
                    self._try(name, "far", partial(measure_far, name, self._extent))

    def _measure_near(self, site: Site, kinds: list[str], cheap: bool) -> None:
        """Everything on this machine, with no delay."""
        if cheap:
            engine = start_canned_engine(site)
        else:
            engine = start_engine(site, self._extent.paced_seconds, at_node=True)
        targets = self._start(site, engine)
        repeated = [kind for kind in MEASURES if kind in kinds and kind not in ONCE]
        for number in range(self._extent.rounds):
            for kind in repeated:
                self._measure(site, targets, kind, f"round {number + 1} of {self._extent.rounds}, ")
        if "cold" in kinds and targets:
            console.print("[dim]cold: all systems in turn")
            for name, figures in cold(site, targets, self._extent).items():
                self.results[name]["cold"] = figures
        for kind in ONCE:
            if kind in kinds:
                self._measure(site, targets, kind)

    def _start(self, site: Site, engine: str) -> dict[str, Target]:
        """Start what can be started."""
        targets = {}
        for name in self._names:
            if name not in self.problems:
                console.print(f"[dim]starting {SYSTEMS[name].name}")
                try:
                    targets[name] = SYSTEMS[name].start(site, engine)
                except RuntimeError as problem:
                    self.problems[name] = str(problem).removesuffix(TOLD_ABOVE)
        return targets

    def _measure(self, site: Site, targets: dict[str, Target], kind: str, when: str = "") -> None:
        for name, target in targets.items():
            if applies(kind, target):
                console.print(f"[dim]{when}{kind}: {SYSTEMS[name].name}")
                self._try(name, kind, partial(MEASURES[kind], site, target, self._extent))

    def _try(self, name: str, kind: str, measure: Callable[[], Figures]) -> None:
        try:
            figures = measure()
        except RuntimeError as problem:
            told = str(problem).removesuffix(TOLD_ABOVE)
            self.failures[f"{SYSTEMS[name].name}, {kind}"] = told
        else:
            best = self.results[name].get(kind)
            self.results[name][kind] = better(kind, figures, best)


def measure_far(name: str, extent: Extent) -> Figures:
    """User and server on one side of a delay and a NAT, node and engine on the other.

    Asked directly, the engine changes sides with the user: NAT lets nobody in to the node.
    """
    with NatLab(DELAY_MS) as lab, Site(lab) as site:
        if name == "direct":
            url = start_engine(site, extent.paced_seconds, at_node=False, host=lab.server_address)
            return first_byte(site, Target(url, url, None, at_node=True), extent)
        target = SYSTEMS[name].start(site, start_engine(site, extent.paced_seconds, at_node=True))
        return first_byte(site, target, extent)


def machine() -> dict[str, str]:
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(": ")[2]
    one, _, fifteen = os.getloadavg()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{len(os.sched_getaffinity(0))} cores of {cpu}, Linux {platform.release()}",
        "fabric": "compiled" if COMPILED else "not compiled",
        "load before": f"{one:.1f} (1 min), {fifteen:.1f} (15 min)",
    }


def chosen(names: str | None, known: Iterable[str], what: str) -> list[str]:
    every = list(known)
    wanted = names.split(",") if names else every
    if unknown := set(wanted) - set(every):
        raise SystemExit(f"no {what} {', '.join(unknown)}; there are {', '.join(every)}")
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description="The fabric beside its rivals.")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--quick", action="store_true", help="short loads, one round")
    lengths.add_argument("--thorough", action="store_true", help="long loads, all systems")
    parser.add_argument("--only", metavar="SYSTEM,…", help=", ".join(SYSTEMS))
    parser.add_argument("--measures", metavar="MEASURE,…", help=", ".join(EVERY_MEASURE))
    parser.add_argument(
        "--save", action="store_true", help="write the figures to results/, and the comparison"
    )
    given = parser.parse_args()
    extent = QUICK if given.quick else THOROUGH if given.thorough else BRIEF
    names = chosen(given.only, SYSTEMS, "system")
    kinds = chosen(given.measures, EVERY_MEASURE, "measure")
    if not given.thorough:
        names = names if given.only else list(COMPARED)
        kinds = kinds if given.measures else [kind for kind in kinds if kind != "growth"]
    about = machine()
    missing = {}
    if "far" in kinds and (reason := NatLab.why_not()):
        missing["over a delay"] = reason
        kinds.remove("far")

    began = time.monotonic()
    run = Run(names, kinds, extent)
    run.measure()

    about["took"] = f"{(time.monotonic() - began) / 60:.1f} minutes"
    about["versions"] = ", ".join(dict.fromkeys(SYSTEMS[name].version() for name in run.results))
    kept: Kept = {
        **about,
        "extent": asdict(extent),
        "systems": {name: SYSTEMS[name].name for name in names},
        "results": dict(run.results),
        "problems": {**run.problems, **run.failures, **missing},
    }
    out = Console() if sys.stdout.isatty() else Console(width=PLAIN_COLUMNS)
    out.print(table(kept))
    for name, measured in run.results.items():
        for kind, figures in measured.items():
            if faults(figures):
                out.print(f"[red]{SYSTEMS[name].name}, {kind}: {figures.get('problem')}")
    if given.save:
        for written in save(kept):
            out.print(f"[dim]written: {written}")
    if run.failures or any(SYSTEMS[name].own for name in run.problems):
        raise SystemExit(1)


def save(kept: Kept) -> list[Path]:
    """Write the figures, the picture and the table; returns the files."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kept['date'][:10]}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    report.write(kept)
    return [path, report.PICTURE, report.PAGE]


if __name__ == "__main__":
    main()
