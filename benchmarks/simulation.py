"""Routing and admission among many nodes of mixed speed, simulated without engines or sockets.

    python -m benchmarks.simulation [--nodes 1000] [--requests 60000] [--load 0.7] [--seed 1]

The server's own Registry, Admission and Router run on an event loop whose clock jumps to whatever
comes next.  What is made up is the engines: prefill and decode at a node's own speed, slower the
more answers it gives at once, and a cache of so many tokens that keeps the conversations used
last; and the users: conversations by Zipf, each request a turn that continues one.  Every policy
meets the same nodes, the same arrivals and the same conversations.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import selectors
import time
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from benchmarks.choosing import MODEL, fleet
from fabric_server.dialects.errors import ApiError
from fabric_server.nodes.node import Engine
from fabric_server.nodes.registry import Registry
from fabric_server.routing.admission import Admission
from fabric_server.routing.choice import Choice
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.latency import tokens_per_second
from fabric_server.routing.load_balancer import LoadBalancer
from fabric_server.routing.prefix_affinity import BOUNDS
from fabric_server.routing.queues import QueueLimits

CONVERSATIONS = 10_000
ZIPF = 0.9
SPEEDS = ((0.35, 1.0), (0.35, 2.0), (0.2, 4.0), (0.1, 8.0))
"""Share of nodes, and how many times as fast as the slowest."""
SLOTS = (1, 2, 4, 8)
PREFILL = 800.0
DECODE = 20.0
"""Tokens a second of the slowest node, with one answer at a time."""
CROWDED = 0.15
"""How much longer everything takes for each other answer under way."""
CACHE = 24_000
"""Tokens that a node keeps for each of its slots."""
TURN = (60, 600)
"""Tokens that the user adds, and that are answered, at most and at least."""
START = (100, 3_000)
LONGEST = 16_000
BYTES_A_TOKEN = 4


# ── a loop without waiting ────────────────────────────────────────────────────────────────────


class _Jump(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout > 0:
            self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time passes only in jumps to the next thing that is due."""

    def __init__(self) -> None:
        selector = _Jump()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


# ── what is simulated ─────────────────────────────────────────────────────────────────────────


class Machine:
    """What a node has behind its engine."""

    def __init__(self, speed: float, slots: int) -> None:
        self.speed, self.slots = speed, slots
        self.busy = 0.0
        """Seconds of slots taken."""
        self._cache: OrderedDict[int, int] = OrderedDict()
        self._room = CACHE * slots

    def prompt(self, conversation: int, tokens: int) -> int:
        """It reads a prompt; returns how much of it was in the cache."""
        cached = self._cache.pop(conversation, 0)
        self._cache[conversation] = tokens
        self._room -= tokens - cached
        while self._room < 0 and len(self._cache) > 1:
            self._room += self._cache.popitem(last=False)[1]
        return min(cached, tokens)


@dataclass(slots=True)
class Turn:
    at: float
    conversation: int
    """Another number when it was begun afresh."""
    prompt: int
    answer: int


def turns(rng: Random, count: int, rate: float) -> list[Turn]:
    """What users will ask: whose turn comes next is drawn by Zipf, when by Poisson."""
    weights = list(accumulate(1 / (rank + 1) ** ZIPF for rank in range(CONVERSATIONS)))
    lengths = [0] * CONVERSATIONS
    lives = [0] * CONVERSATIONS
    at, made = 0.0, []
    for number in rng.choices(range(CONVERSATIONS), cum_weights=weights, k=count):
        at += rng.expovariate(rate)
        added = rng.randint(*TURN)
        if not lengths[number] or lengths[number] + added > LONGEST:
            lives[number] += 1
            lengths[number] = rng.randint(*START)
        prompt = lengths[number] + added
        answer = rng.randint(*TURN)
        made.append(Turn(at, number + CONVERSATIONS * lives[number], prompt, answer))
        lengths[number] = prompt + answer
    return made


def prefix(turn: Turn) -> tuple[int, ...]:
    """As ``prefix_hashes`` would: beginnings that all turns of a conversation share."""
    size = turn.prompt * BYTES_A_TOKEN
    return tuple(
        hash((turn.conversation, number)) for number, end in enumerate(BOUNDS) if end <= size
    )


# ── policies ──────────────────────────────────────────────────────────────────────────────────


class Simple(LoadBalancer):
    """One rule over all candidates that have room."""

    def __init__(self, registry: Registry, rng: Random, rule: str) -> None:
        super().__init__(registry.engine, rng)
        self._random, self._rule, self._next = rng, rule, 0

    def pick(
        self, candidates: Sequence[Engine], requirements: Requirements, now: float
    ) -> Choice | None:
        free = [engine for engine in candidates if engine.active < engine.slots]
        return Choice(self._pick(candidates, free, requirements), self._rule) if free else None

    def _pick(
        self, all_: Sequence[Engine], free: list[Engine], requirements: Requirements
    ) -> Engine:
        if self._rule == "round-robin":
            for _ in all_:
                self._next += 1
                engine = all_[self._next % len(all_)]
                if engine.active < engine.slots:
                    return engine
        elif self._rule == "least-connections":
            least = min(engine.active for engine in free)
            return self._random.choice([engine for engine in free if engine.active == least])
        elif self._rule == "prefix-only":
            found = self.state.affinity.find(requirements.prefix)
            engine_seen = self.state.find(*found[0]) if found else None
            if engine_seen is not None and engine_seen.active < engine_seen.slots:
                return engine_seen
        return self._random.choice(free)


POLICIES = ("random", "round-robin", "least-connections", "prefix-only", "fabric")


# ── the run ───────────────────────────────────────────────────────────────────────────────────


class Run:
    def __init__(self, policy: str, nodes: int, seed: int, asked: list[Turn]) -> None:
        rng = Random(seed)
        speeds = rng.choices([s for _, s in SPEEDS], [share for share, _ in SPEEDS], k=nodes)
        slots = rng.choices(SLOTS, k=nodes)
        self._asked = asked
        self._registry = fleet(nodes, lambda number: slots[number])
        self._machines = {
            engine: Machine(speed, engine.slots)
            for engine, speed in zip(self._registry.candidates(MODEL), speeds, strict=True)
        }
        balancer = (
            LoadBalancer(self._registry.engine, rng)
            if policy == "fabric"
            else Simple(self._registry, rng, policy)
        )
        self._state = balancer.state
        self._admission = Admission(
            self._registry,
            rng=rng,
            limits=QueueLimits(10_000, 10_000, 600.0),
            clock=lambda: asyncio.get_running_loop().time(),
            balancer=balancer,
        )
        self.first_bytes: list[tuple[int, float]] = []
        self.waited = self.refused = self.cached = self.prompts = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for number, turn in enumerate(self._asked):
                await asyncio.sleep(turn.at - loop.time())
                group.create_task(self._request(number, turn))
        self.seconds = loop.time()

    async def _request(self, number: int, turn: Turn) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        requirements = Requirements(MODEL, prefix=prefix(turn), tokens=turn.prompt)
        try:
            choice = await self._admission.admit(requirements)
        except ApiError:
            self.refused += 1
            return
        engine = choice.engine
        machine, state = self._machines[engine], self._state
        state.affinity.remember(requirements.prefix, engine)
        given = loop.time()
        cached = machine.prompt(turn.conversation, turn.prompt)
        crowd = 1.0 + CROWDED * (engine.active - 1)
        await asyncio.sleep((turn.prompt - cached) / (PREFILL * machine.speed) * crowd + 0.05)
        first = loop.time()
        await asyncio.sleep(turn.answer / (DECODE * machine.speed) * crowd)
        now = loop.time()
        rate = tokens_per_second(turn.answer, now - first)
        state.latency.update(engine, MODEL, first - given, rate, now=now)
        machine.busy += now - given
        self._registry.release(engine, choice.key_id)
        if number >= len(self._asked) // 5:  # the first fifth only warms up
            self.first_bytes.append((number, first - began))
            self.waited += given > began
            self.cached += cached
            self.prompts += turn.prompt

    def row(self) -> tuple[float, float, float, float, float]:
        """p50, p99, hits, fairness, share that waited."""
        times = sorted(seconds for _, seconds in self.first_bytes)
        shares = [machine.busy / machine.slots for machine in self._machines.values()]
        jain = sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
        return (
            times[len(times) // 2],
            times[len(times) * 99 // 100],
            self.cached / self.prompts,
            jain,
            self.waited / len(times),
        )


def on_virtual_loop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


def rate_for(load: float, nodes: int) -> float:
    """Requests a second that would keep so large a share of all slots busy, were none cached and
    each node given what its speed and slots are worth."""
    speed = sum(share * speed for share, speed in SPEEDS)
    slots = sum(SLOTS) / len(SLOTS)
    crowd = 1.0 + CROWDED * (slots * load - 1) if slots * load > 1 else 1.0
    prompt, answer = 6_000.0, sum(TURN) / 2
    return load * nodes * slots * speed / ((prompt / PREFILL + answer / DECODE) * crowd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--load", type=float, nargs="+", default=[0.3, 0.6, 0.8])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", nargs="+", default=POLICIES, choices=POLICIES)
    given = parser.parse_args()
    for load in given.load:
        rate = rate_for(load, given.nodes)
        asked = turns(Random(given.seed), given.requests, rate)
        print(f"\n{given.nodes} nodes, {len(asked)} requests, {rate:.0f}/s, load {load}\n")
        print("| policy | first byte p50, s | p99, s | cache hits | fairness | waited | run, s |")
        print("|---|---|---|---|---|---|---|")
        for policy in given.policy:
            gc.collect()
            run, began = Run(policy, given.nodes, given.seed, asked), time.perf_counter()
            on_virtual_loop(run.run())
            p50, p99, hits, jain, waited = run.row()
            print(
                f"| {policy} | {p50:.2f} | {p99:.2f} | {hits:.1%} | {jain:.2f} | {waited:.1%} "
                f"| {time.perf_counter() - began:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
