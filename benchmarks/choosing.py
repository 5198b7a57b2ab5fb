"""What one choice costs among many candidates, in microseconds; no sockets.

    python -m benchmarks.choosing [CANDIDATES] [--json]

Each row takes half a second of processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from fabric_server.nodes.registry import Node, Registry
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.load_balancer import LoadBalancer
from fabric_server.routing.prefix_affinity import prefix_hashes
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
ROUND_SECONDS = 0.1
BATCH = 20


def measure(work: Callable[[], object]) -> float:
    """Microseconds of processor time, the best of some rounds: others use this machine as well."""
    found = []
    for _ in range(ROUNDS):
        began, times = time.process_time(), 0
        while (spent := time.process_time() - began) < ROUND_SECONDS:
            for _ in range(BATCH):
                work()
            times += BATCH
        found.append(spent / times * 1e6)
    return round(min(found), 2)


def rows(count: int) -> Iterator[tuple[str, str, float]]:
    """What is measured, as a name for programs and one for people, and the microseconds."""
    rng = Random(1)
    registry = fleet(count, lambda number: SLOTS)
    engines = registry.candidates(MODEL)
    balancer = LoadBalancer(registry.engine, rng)
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

    def pick(requirements: Requirements = requirements) -> None:
        balancer.pick(engines, requirements, 0.0)

    yield "unknown", "nothing known, all idle", measure(lambda: pick(seen))
    for engine in engines:
        balancer.state.latency.update(engine, MODEL, rng.random(), 33.0, now=0.0)
    busy(0.0)
    yield "idle", "all measured, tools needed, prompt seen by nobody", measure(pick)
    balancer.state.affinity.remember(prefix, engines[count // 2])
    engines[count // 2].active = 0
    yield "seen", "the same, prompt seen before", measure(pick)
    for share in (0.5, 0.9, 0.99):
        busy(share)
        yield f"full_{share * 100:.0f}", f"the same, {share:.0%} of the engines full", measure(pick)
    busy(1.0)
    yield "all_full", "all full", measure(pick)
    for engine in engines:
        engine.active, engine.node.draining = 0, True
    yield "drained", "all drained: room, and out of reach", measure(pick)
    for engine in engines:
        engine.node.draining = False
    yield "hashes_2k", "hashes of a prompt of 2 KiB", measure(lambda: prefix_hashes(body))
    yield (
        "hashes_32k",
        "hashes of a prompt of 32 KiB",
        measure(lambda: prefix_hashes(body[:-3] * 16)),
    )
    affinity, engine = balancer.state.affinity, engines[0]
    yield (
        "remember",
        "remembering who was given it",
        measure(lambda: affinity.remember(prefix, engine)),
    )
    latency = balancer.state.latency
    yield "learn", "learning", measure(lambda: latency.update(engine, MODEL, 0.3, 33.0, now=0.0))


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
