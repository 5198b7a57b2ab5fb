"""What one choice costs among many candidates, in microseconds; no sockets.

    python -m benchmarks.choosing [CANDIDATES] [--json]

Choices are made as for a request: a slot is taken and given back.  Each row takes half a second of
processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import replace

from fabric_server.nodes.circuit_breaker import FAILURES
from fabric_server.nodes.node import Node
from fabric_server.nodes.registry import Registry
from fabric_server.routing.admission import Admission
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.prefix_affinity import prefix_hashes
from fabric_server.routing.queues import QueueLimits
from protocol.messages import EngineReport, ModelReport, Register

MODEL = "tiny"
SLOTS = 4


def fleet(count: int, slots: Callable[[int], int], kind: str = "vllm") -> Registry:
    """A registry of nodes with one engine each, all reachable."""
    registry = Registry()
    tunnel = cast(Any, SimpleNamespace(connection=SimpleNamespace(usable=True, active=0)))
    for number in range(count):
        card = ModelReport(MODEL, 2**32, 32_768, True, ["completion", "tools"])
        report = EngineReport("engine", kind, True, slots(number), [card])
        register = Register(1, "0", f"node_{number}", "benchmark", [report])
        node = Node(f"node_{number}", 1, register, cast(Any, object()), 0.0)
        node.tunnels.append(tunnel)
        registry.add(node)
        registry.report(node, [report])
    return registry


ROUNDS = 5
SECONDS = 0.5
BATCH = 20


def measure(work: Callable[[], object], seconds: float = SECONDS) -> float:
    """Microseconds of processor time, the best of some rounds: others use this machine as well."""
    found = []
    for _ in range(ROUNDS):
        began, times = time.process_time(), 0
        while (spent := time.process_time() - began) < seconds / ROUNDS:
            for _ in range(BATCH):
                work()
            times += BATCH
        found.append(spent / times * 1e6)
    return round(min(found), 2)


def rows(count: int) -> Iterator[tuple[str, str, float]]:
    """Yield each measure's name for programs, its name for people, and the microseconds."""
    rng = Random(1)
    registry = fleet(count, lambda number: SLOTS)
    engines = list(registry.candidates(MODEL))
    limits = QueueLimits(1_000, 1_000, 60.0)
    admission = Admission(registry, rng=rng, limits=limits, clock=lambda: 0.0)
    state = admission.balancer.state
    body = b'{"model":"tiny","messages":[{"role":"user","content":"%b"}]}' % bytes(
        rng.choices(b"abcdefghijklmnopqrstuvwxyz ", k=2048)
    )
    prefix = prefix_hashes(body)
    requirements = Requirements(
        MODEL, "key", capabilities=frozenset({"tools"}), prefix=prefix, tokens=500
    )
    seen = Requirements(MODEL, "key")

    def busy(share: float) -> None:
        for engine in engines:
            engine.active = SLOTS if rng.random() < share else rng.randrange(SLOTS)

    def choose(requirements: Requirements = requirements) -> None:
        choice = admission.admit_now(requirements, 0.0)
        if choice is not None:
            registry.release(choice.engine, choice.key_id)

    yield "unknown", "nothing known, all idle", measure(lambda: choose(seen))
    for engine in engines:
        state.latency.update(engine, MODEL, rng.random(), 33.0, now=0.0)
    busy(0.0)
    yield "idle", "all measured, tools needed, prompt seen by nobody", measure(choose)
    yield from changes(registry, choose)
    state.affinity.remember(prefix, engines[count // 2])
    engines[count // 2].active = 0
    yield "seen", "the same, prompt seen before", measure(choose)
    for share in (0.5, 0.9, 0.99):
        busy(share)
        yield (
            f"full_{share * 100:.0f}",
            f"the same, {share:.0%} of the engines full",
            measure(choose),
        )
    busy(1.0)
    yield "all_full", "all full", measure(choose)
    yield (
        "alternative",
        "all full, is there an alternative",
        measure(lambda: admission.has_alternative(requirements)),
    )
    for engine in engines:
        engine.active, engine.node.draining = 0, True
    yield "drained", "all drained: room, and out of reach", measure(choose)
    for engine in engines:
        engine.node.draining = False
    yield "hashes_2k", "hashes of a prompt of 2 KiB", measure(lambda: prefix_hashes(body))
    yield (
        "hashes_32k",
        "hashes of a prompt of 32 KiB",
        measure(lambda: prefix_hashes(body[:-3] * 16)),
    )
    affinity, engine = state.affinity, engines[0]
    yield (
        "remember",
        "remembering who was given it",
        measure(lambda: affinity.remember(prefix, engine)),
    )
    latency = state.latency
    yield "learn", "learning", measure(lambda: latency.update(engine, MODEL, 0.3, 33.0, now=0.0))


def changes(registry: Registry, choose: Callable[[], None]) -> Iterator[tuple[str, str, float]]:
    """Choices while breakers are open, and while nodes come, go and report."""
    nodes = registry.nodes()
    first = nodes[0].engines["engine"]

    def fail(share: float) -> None:
        for node in nodes[: max(1, int(len(nodes) * share))]:
            breaker = node.engines["engine"].breaker((MODEL, ""))
            for _ in range(FAILURES):
                breaker.record_failure(0.0)

    fail(0.0)
    yield "breaker", "one circuit breaker open", measure(choose)
    fail(0.4)
    yield "breakers_40", "the breakers of 40% of the engines open", measure(choose)
    fail(1.0)
    yield "breakers", "all breakers open", measure(choose)
    for node in nodes:
        node.engines["engine"].breakers.clear()
    reports = [replace(first.report, models=[ModelReport(name)]) for name in (MODEL, "other")]
    number = 0

    def report() -> None:
        nonlocal number
        number += 1
        registry.report(nodes[0], [reports[number % 2]])

    def come_and_go() -> None:
        registry.remove(nodes[0])
        nodes[0].link = cast(Any, object())
        registry.add(nodes[0])

    yield "report", "a report of other models, and no choice", measure(report)
    yield "reported", "a choice after each such report", measure(lambda: (report(), choose()))
    yield "node", "a node that leaves and comes back, and no choice", measure(come_and_go)
    yield "came_back", "a choice after each such node", measure(lambda: (come_and_go(), choose()))
    registry.report(nodes[0], [first.report])


def main() -> None:
    parser = argparse.ArgumentParser(description="What one choice costs among many candidates.")
    parser.add_argument("candidates", nargs="?", type=int, default=1_000)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args()
    found = {}
    for name, what, microseconds in rows(given.candidates):
        found[f"{name}_us"] = microseconds
        if not given.json:
            print(f"{what:<58} {microseconds:7.2f} µs", flush=True)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
