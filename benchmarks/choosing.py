"""What one choice costs among many candidates, in microseconds; no sockets.

python -m benchmarks.choosing [CANDIDATES]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
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


def measure(what: str, work: Callable[[], object], rounds: int = 7, times: int = 2_000) -> float:
    """The best of some rounds, in processor time, printed: others use this machine as well."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - began) / times * 1e6)
    best = min(found)
    print(f"{what:<58} {best:7.2f} µs")
    return best


def main(count: int) -> None:
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

    print(f"{count} candidates")
    measure("nothing known, all idle", lambda: pick(seen))
    for engine in engines:
        balancer.state.latency.update(engine, MODEL, rng.random(), 33.0, now=0.0)
    busy(0.0)
    measure("all measured, tools needed, prompt seen by nobody", pick)
    balancer.state.affinity.remember(prefix, engines[count // 2])
    engines[count // 2].active = 0
    measure("the same, prompt seen before", pick)
    for share in (0.5, 0.9, 0.99):
        busy(share)
        measure(f"the same, {share:.0%} of the engines full", pick)
    busy(1.0)
    measure("all full", pick)
    for engine in engines:
        engine.active, engine.node.draining = 0, True
    measure("all drained: room, and out of reach", pick, times=200)
    for engine in engines:
        engine.node.draining = False
    measure("hashes of a prompt of 2 KiB", lambda: prefix_hashes(body))
    measure("hashes of a prompt of 32 KiB", lambda: prefix_hashes(body[:-3] * 16))
    affinity, engine = balancer.state.affinity, engines[0]
    measure("remembering who was given it", lambda: affinity.remember(prefix, engine))
    latency = balancer.state.latency
    measure("learning", lambda: latency.update(engine, MODEL, 0.3, 33.0, now=0.0))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
