"""What the features cost: the whole fabric beside the bare one, in turn, round after round.

    python -m benchmarks.features [--rounds 12] [--seconds 1] [--measures small,streams,probe,rows]

All systems stand beside each other and are asked in turn, so that every round has a ratio of its
own; the median of these is told, since machines change their mood between rounds.  Beside rates,
the processor time of server and node for each request (or event), which others on the machine
disturb less.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from benchmarks.canned import MODEL
from benchmarks.measures import CONCURRENCY, LOAD, POST, Figures, faults, key, need, spent
from benchmarks.processes import Site
from benchmarks.run import start_canned_engine, start_engine
from benchmarks.systems import SYSTEMS, Target

WHOLE, BARE = "fabric", "bare"
NATIVE = "mock-ollama"
"""The model of an engine that is an Ollama, as far as can be told."""

CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "stream": False}
EMBED = {"input": "Say hello."}
ROWS = {
    "chat": ("/v1/chat/completions", {"model": MODEL, **CHAT}),
    "completions": ("/v1/completions", {"model": MODEL, "prompt": "Say hello."}),
    "embeddings": ("/v1/embeddings", {"model": MODEL, **EMBED}),
    "/api/chat, native": ("/api/chat", {"model": NATIVE, **CHAT}),
    "/api/embed, native": ("/api/embed", {"model": NATIVE, **EMBED}),
    "/v1/messages, translated": ("/v1/messages", {"model": MODEL, "max_tokens": 99, **CHAT}),
    "/api/chat, translated": ("/api/chat", {"model": MODEL, **CHAT}),
    "/v1/responses, translated": ("/v1/responses", {"model": MODEL, "input": "Say hello."}),
}


class Round(NamedTuple):
    figure: float
    """Requests or events a second, or milliseconds more than the engine itself."""
    server: float
    """Microseconds of processor for each request or event."""
    node: float


def counted(target: Target, figures: Callable[[], tuple[float, int, Figures]]) -> Round:
    """A round with processor times: ``figures`` gives the figure, how many, and what went wrong."""
    server, node = target.front, target.node
    assert server is not None
    assert node is not None
    before = spent(server), spent(node)
    figure, count, told = figures()
    if faults(told):
        raise SystemExit(f"{told}")
    return Round(
        figure,
        (spent(server) - before[0]) / count,
        (spent(node) - before[1]) / count,
    )


def small(site: Site, target: Target, seconds: float, row: str = "chat") -> Round:
    """Small requests, 32 at once: requests a second."""
    path, body = ROWS[row]

    def ask() -> tuple[float, int, Figures]:
        command = ["wrk", "-t1", f"-c{CONCURRENCY}", f"-d{seconds:g}s", "-s", POST, target.url]
        environ = {**key(target), "WRK_PATH": path, "WRK_BODY": json.dumps(body)}
        told = json.loads(site.run(command, environ=environ).splitlines()[-1])
        return told["requests"] / told["seconds"], told["requests"], told

    return counted(target, ask)


def streams(site: Site, target: Target, seconds: float) -> Round:
    """Streams, 32 at once: events a second."""

    def ask() -> tuple[float, int, Figures]:
        words = ["streams", target.url, "--seconds", str(seconds)]
        told = json.loads(site.run([*LOAD, *words], environ=key(target)))
        return told["events_per_second"], told["events"], told

    return counted(target, ask)


def probe(site: Site, target: Target, seconds: float) -> Round:
    """One at a time: milliseconds more than the engine asked directly."""

    def ask() -> tuple[float, int, Figures]:
        words = ["probe", target.url, "--beside", target.engine, "--seconds", str(seconds)]
        told = json.loads(site.run([*LOAD, *words], environ=key(target)))
        return told["whole_added_ms"], told["requests"] // 2, told

    return counted(target, ask)


Measure = Callable[[Site, Target, float], Round]
MEASURES: dict[str, Measure] = {"small": small, "streams": streams, "probe": probe}


def compare(
    site: Site, targets: dict[str, Target], what: str, measure: Measure, given: argparse.Namespace
) -> None:
    """Rounds over all targets, and the medians beside the last one's."""
    rounds: dict[str, list[Round]] = defaultdict(list)
    for target in targets.values():
        measure(site, target, given.seconds)  # warm
    for _ in range(given.rounds):
        for name, target in targets.items():
            rounds[name].append(measure(site, target, given.seconds))
    last = rounds[list(targets)[-1]]
    print(f"{what}: median of {given.rounds} rounds")
    for name, own in rounds.items():
        figure, server, node = (median(column) for column in zip(*own, strict=True))
        ratio = median(one.figure / other.figure for one, other in zip(own, last, strict=True))
        work = median(
            (other.server + other.node) / (one.server + one.node)
            for one, other in zip(own, last, strict=True)
        )
        print(
            f"  {name:28} {figure:10,.4g}  ×{ratio:.3f}   server {server:6.1f} µs,"
            f" node {node:6.1f} µs, together ×{work:.3f}",
            flush=True,
        )


def rows(site: Site, given: argparse.Namespace) -> None:
    """Every row beside chat, on the whole fabric."""
    engines = start_canned_engine(site), start_canned_engine(site, NATIVE)
    target = SYSTEMS[WHOLE].start(site, ",".join(engines))
    rounds: dict[str, list[Round]] = defaultdict(list)
    for number in range(given.rounds + 1):
        for row in ROWS:
            result = small(site, target, given.seconds, row)
            if number:  # the first one warms
                rounds[row].append(result)
    print(f"rows: requests a second and µs, median of {given.rounds} rounds")
    for row, own in rounds.items():
        figure, server, node = (median(column) for column in zip(*own, strict=True))
        of = list(zip(rounds["chat"], own, strict=True))
        ratio = median(one.figure / chat.figure for chat, one in of)
        work = median((chat.server + chat.node) / (one.server + one.node) for chat, one in of)
        print(
            f"  {row:28} {figure:10,.0f}  ×{ratio:.3f}   server {server:6.1f} µs,"
            f" node {node:6.1f} µs, together ×{work:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="What the features cost.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=1, help="of each load")
    parser.add_argument("--measures", metavar="MEASURE,…", default="small,streams,probe,rows")
    parser.add_argument(
        "--systems",
        metavar="SYSTEM,…",
        default="fabric,everything,bare-routing,bare",
        help="the last one is what the others are compared with",
    )
    given = parser.parse_args()
    need("wrk")
    names = given.systems.split(",")
    for kind in given.measures.split(","):
        with Site() as site:
            if kind == "rows":
                rows(site, given)
                continue
            if kind == "streams":
                engine = start_engine(site, 60, at_node=True)
            else:
                engine = start_canned_engine(site)
            targets = {name: SYSTEMS[name].start(site, engine) for name in names}
            compare(site, targets, kind, MEASURES[kind], given)


if __name__ == "__main__":
    main()
