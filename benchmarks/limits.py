"""Cost of a limited key's requests, with one worker and with two.

    python -m benchmarks.limits [--rounds 3] [--seconds 3] [--json]

Two servers run beside each other, one of one process and one of two workers.  Each is asked in turn
with a key without limits and one with all three, which it never reaches.  Counted is the processor
time of all processes of the server, for each request.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import psutil
import uvloop

from benchmarks.canned import MODEL
from benchmarks.forwarding import put
from benchmarks.load import PATH, ask
from benchmarks.processes import Site
from benchmarks.systems import NODE, SERVER, Fabric

LIMITS = (
    *("--requests-per-minute", "100000000", "--tokens-per-minute", "100000000000"),
    *("--requests-at-once", "1000"),
)
KEYS = {"unlimited": (), "limited": LIMITS}


class Place:
    """A server with so many workers, its node, and its keys."""

    def __init__(self, site: Site, workers: int, engine: str) -> None:
        environ = {**Fabric().environ(site), "FABRIC_SERVER_WORKERS": str(workers)}
        self.process: subprocess.Popen[bytes] = Fabric().start_server(site, environ)
        self.url = f"http://127.0.0.1:{environ['FABRIC_SERVER_PUBLIC_PORT']}"
        command = [*SERVER, "keys", "create", "--json"]
        self.keys = {}
        for name, options in KEYS.items():
            made = site.run([*command, name, *options], environ=environ)
            self.keys[name] = str(json.loads(made)["text"])
        told = site.run([*SERVER, "nodes", "invite", "--name", "near", "--json"], environ=environ)
        data = site.folder() / "node"
        site.run([*NODE, "join", json.loads(told)["token"], "--data", data])
        words = ["--engine", engine, "--no-discover", "--slots", "256"]
        site.start([*NODE, "run", "--data", data, *words])
        headers = {
            "authorization": f"Bearer {self.keys['unlimited']}",
            "content-type": "application/json",
        }
        site.wait_for_answer(self.url + PATH, self.process, headers, json.dumps(ask(MODEL, False)))

    def used(self) -> float:
        """Return the seconds of processor time of the server so far."""
        parent = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def cost(self, key: str, seconds: float) -> float:
        """Return the microseconds of a request."""
        before = self.used()
        requests, _ = uvloop.run(put(self.url, self.keys[key], stream=False, seconds=seconds))
        return (self.used() - before) / requests * 1e6


def measure(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    costs: dict[tuple[int, str], list[float]] = {}
    with Site() as site:
        _, engine = site.start_and_read([sys.executable, "-m", "benchmarks.mock_engine"])
        places = {workers: Place(site, workers, engine) for workers in (1, 2)}
        for number in range(rounds + 1):
            for workers, place in places.items():
                for name in KEYS:
                    cost = place.cost(name, seconds)
                    if number:  # the first one warms up
                        costs.setdefault((workers, name), []).append(cost)
    figures = {}
    for workers in places:
        free, limited = (costs[workers, name] for name in KEYS)
        ratios = [one / other for one, other in zip(limited, free, strict=True)]
        figures[str(workers)] = {
            "unlimited_us": round(statistics.median(free), 1),
            "limited_us": round(statistics.median(limited), 1),
            "ratio": round(statistics.median(ratios), 3),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    figures = measure(flags.rounds, flags.seconds)
    if flags.json:
        print(json.dumps(figures))
        return
    for workers, figure in figures.items():
        print(
            f"workers {workers}: without limits {figure['unlimited_us']} µs, with limits"
            f" {figure['limited_us']} µs, ratio {figure['ratio']}"
        )


if __name__ == "__main__":
    main()
