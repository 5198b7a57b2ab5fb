"""A fabric of 10,000 nodes and 20 servers on paper, from measured unit costs; no sockets.

    python -m benchmarks.fabric_scale [--nodes N] [--servers N] [--requests N] [--keys N] [--json]

Measured here, in some seconds of processor time: decoding a heartbeat and encoding its record, and
what a digest costs both sides.  An idle node's memory is that of the last run in ``results/``; what
a heartbeat costs with TLS, pings and the kernel is from ``benchmarks.heartbeats``.  The rest
follows from these and the defaults of settings, with nodes and requests spread evenly, and each
server connected to each other one.  TLS between servers, the kernel's part of it, and requests
themselves are not in it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from benchmarks.choosing import SECONDS, measure
from benchmarks.consumer import heartbeats
from fabric_server.auth.authenticator import DEFAULT_TIMES
from fabric_server.config import Config
from fabric_server.mesh.digest import TICK_SECONDS, WHOLE_SECONDS, Digest, DigestSender
from fabric_server.mesh.peer import Peer
from fabric_server.nodes.node import Node
from fabric_server.nodes.registry import Registry
from fabric_server.storage.cached_keys import CHECK_SECONDS
from fabric_server.storage.change_feed import POLL_SECONDS
from ledger.batch_writer import BatchOptions
from protocol import messages
from protocol.control.link import LENGTH, Link
from protocol.mesh import DigestUpdate, Unpacker
from protocol.messages import EngineReport, ModelReport, Register

RESULTS = Path(__file__).with_name("results")
SLOTS = 4
MODELS, OFFERS, REGIONS = 60, 40, ("eu", "us", "asia")
"""Models of all nodes; different sets of them that nodes offer; where nodes are."""
WHOLE_HEARTBEAT_US = 200.0
"""The figure of ``python -m benchmarks.heartbeats`` with 10,000 nodes, on 2026-11-21."""
BUSY = 0.1
"""Share of the engines whose load changes between two digests."""


class Stream:
    """The stream of a digest, as far as its sender goes."""

    def __init__(self) -> None:
        self.sent = b""

    def send_head(self, head: object) -> None:
        """Do nothing."""

    def send(self, data: bytes) -> bool:
        self.sent = data
        return True


class Costs(NamedTuple):
    """Microseconds of processor time, and bytes."""

    heartbeat_us: float
    refresh_us: float
    """Looking at all engines of one server."""
    tell_us: float
    """A message that tells changes, for one other server."""
    take_us: float
    tell_whole_us: float
    take_whole_us: float
    rows: int
    message_bytes: int
    whole_bytes: int
    node_bytes: int
    """Memory of an idle node at its server."""


def heartbeat_cost(seconds: float) -> float:
    """Return the microseconds for a heartbeat from the link's bytes to its record's."""
    (record,) = heartbeats(1, 0.0)
    payload = messages.encode(record.heartbeat)
    data = LENGTH.pack(len(payload)) + payload
    link, now = Link(now=0.0, rng=Random(1)), 0.0

    def read_one() -> None:
        nonlocal now
        now += 15.0
        link.receive(data, now)
        (heartbeat,) = link.events()
        messages.encode(type(record)(record.node_id, 1, 1, now, heartbeat))

    return measure(read_one, seconds)


def fleet(count: int) -> Registry:
    """Return the nodes of one server, which offer different models."""
    rng, registry = Random(1), Registry()
    names = [f"family-{number}:{size}b" for number in range(MODELS // 3) for size in (3, 8, 70)]
    offers = [
        [
            ModelReport(name, 2**32, 32_768, True, ["completion", "tools"])
            for name in rng.sample(names, rng.randint(1, 4))
        ]
        for _ in range(OFFERS)
    ]
    tunnel = cast(Any, SimpleNamespace(connection=SimpleNamespace(usable=True, active=0)))
    for number in range(count):
        report = EngineReport("engine", "vllm", True, SLOTS, rng.choice(offers))
        register = Register(1, "0", "", "benchmark", [report], rng.choice(REGIONS))
        node = Node(f"node_{number}", 1, register, cast(Any, object()), 0.0)
        node.tunnels.append(tunnel)
        registry.add(node)
        registry.report(node, [report])
    return registry


def digest_costs(count: int, seconds: float) -> dict[str, Any]:
    """Return what the digest of one server with so many nodes costs."""
    rng, registry = Random(1), fleet(count)
    engines = [engine for node in registry.nodes() for engine in node.engines.values()]
    digest, stream = Digest(registry), Stream()
    sender = DigestSender(cast(Any, stream), Counter())
    unpacker = Unpacker[DigestUpdate](DigestUpdate)
    elsewhere = SimpleNamespace(registry=Registry(), loop=SimpleNamespace(time=lambda: 0.0))
    peer = Peer("home", cast(Any, elsewhere), digest, lambda: None, cast(Any, None))
    now = 0.0

    def load() -> None:
        for engine in rng.sample(engines, max(1, int(len(engines) * BUSY))):
            engine.active = rng.randrange(SLOTS + 1)

    def tell(seconds: float) -> None:
        nonlocal now
        now += seconds
        sender.send(digest, {}, now)

    def take(message: bytes) -> None:
        for update in unpacker.feed(message):
            peer.on_digest(update)

    digest.refresh()
    tell_whole = measure(lambda: tell(WHOLE_SECONDS), seconds)
    whole = stream.sent
    take_whole = measure(lambda: take(whole), seconds)
    states, changes = list[dict[str, Any]](), list[bytes]()
    for _ in range(2):
        load()
        digest.refresh()
        states.append(digest.rows)
    turns = cycle((0, 1))

    def tell_changes() -> None:
        digest.rows = states[next(turns)]
        tell(1e-6)

    tell_part = measure(tell_changes, seconds)
    for _ in range(2):
        tell_changes()
        changes.append(stream.sent)
    return {
        "refresh_us": measure(digest.refresh, seconds),
        "tell_us": tell_part,
        "take_us": measure(lambda: take(changes[next(turns)]), seconds),
        "tell_whole_us": tell_whole,
        "take_whole_us": take_whole,
        "rows": len(digest.rows),
        "message_bytes": len(changes[0]),
        "whole_bytes": len(whole),
    }


def node_bytes() -> tuple[int, str]:
    """Return an idle node's memory at its server, and the day on which it was measured."""
    for file in sorted(RESULTS.glob("*.json"), reverse=True):
        measured = json.loads(file.read_text("utf-8"))["results"].get("fabric", {}).get("nodes")
        if measured is not None:
            return int(measured["memory_per_node"]), file.stem
    raise SystemExit(f"no file in {RESULTS} has an idle node's memory: run make bench ARGS=--save")


def measured(nodes: int, seconds: float) -> Costs:
    """Measure for a server with so many nodes, each cost for some seconds of processor time."""
    memory, _ = node_bytes()
    digest = digest_costs(nodes, seconds)
    return Costs(heartbeat_us=heartbeat_cost(seconds), **digest, node_bytes=memory)


class Extent(NamedTuple):
    """The fabric that is calculated."""

    nodes: int = 10_000
    servers: int = 20
    requests: float = 5_000.0
    """A second, at all servers."""
    keys: int = 2_000
    """Keys in use at each server."""

    @property
    def here(self) -> int:
        """Return the nodes of one server."""
        return -(-self.nodes // self.servers)


def derive(extent: Extent, costs: Costs) -> Iterator[tuple[str, str, float, float]]:
    """Yield each row's name for programs and people, for one server and for all of them."""
    config, writer = Config(), BatchOptions()
    servers, others, here = extent.servers, extent.servers - 1, extent.here
    ticks, wholes = 1 / TICK_SECONDS, 1 / WHOLE_SECONDS
    beats = here / config.heartbeat_seconds
    sent = others * (ticks * costs.message_bytes + wholes * costs.whole_bytes)
    digests = (
        ticks * costs.refresh_us
        + others * ticks * (costs.tell_us + costs.take_us)
        + others * wholes * (costs.tell_whole_us + costs.take_whole_us)
    )
    entries = extent.requests / servers
    records = entries + beats
    batches = max(records / writer.batch_size, 1 / writer.batch_seconds)
    polls = 1 / POLL_SECONDS
    gets = extent.keys / DEFAULT_TIMES.valid_seconds

    def row(name: str, what: str, one: float) -> tuple[str, str, float, float]:
        return name, what, one, one * servers

    yield row("nodes", "nodes", here)
    yield row("links", "connections: links", here)
    yield row("tunnels", "connections: tunnels", here * config.tunnels)
    yield row("mesh_connections", "connections: other servers, two each", others * 2)
    yield row("memory_mib", "memory of idle nodes, MiB", here * costs.node_bytes / 2**20)
    yield row("heartbeats", "heartbeats, a second", beats)
    yield row("heartbeats_percent", "  % of a core", beats * costs.heartbeat_us / 1e4)
    yield row(
        "whole_heartbeats_percent", "  with TLS and the kernel", beats * WHOLE_HEARTBEAT_US / 1e4
    )
    yield row("digests", "digests sent, a second, while no row is full", others * (ticks + wholes))
    yield row("digests_kib", "  KiB a second", sent / 1024)
    yield row("digests_percent", "  % of a core, told and taken", digests / 1e4)
    yield row("store_records", "store: rows written, a second", records)
    yield row("store_batches", "store: transactions for them, a second", batches)
    yield row("store_polls", "store: looks for changes, a second", polls)
    yield row("redis", "Redis: look-ups of keys and checks, a second", gets + 1 / CHECK_SECONDS)


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def main() -> None:
    default = Extent()
    parser = argparse.ArgumentParser(description="A large fabric on paper, from measured costs.")
    parser.add_argument("--nodes", type=int, default=default.nodes)
    parser.add_argument("--servers", type=int, default=default.servers)
    parser.add_argument("--requests", type=float, default=default.requests, help="a second, of all")
    parser.add_argument("--keys", type=int, default=default.keys, help="in use at each server")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="of processor time for each unit cost"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args()
    if given.servers < 1 or given.nodes < given.servers:
        parser.error("give at least one server, and a node for each")
    extent = Extent(given.nodes, given.servers, given.requests, given.keys)
    costs = measured(extent.here, given.seconds)
    rows = list(derive(extent, costs))
    if given.json:
        each = {name: {"server": one, "all": both} for name, _, one, both in rows}
        print(json.dumps({"extent": extent._asdict(), "costs": costs._asdict(), "derived": each}))
        return
    print(f"{extent.nodes:,} nodes, {extent.servers:,} servers, {extent.requests:,g} requests/s")
    print(f"{'':<48}{'one server':>15}{'all':>15}")
    for _, what, one, both in rows:
        print(f"{what:<48}{figure(one):>15}{figure(both):>15}")
    print(f"measured, for a server with {extent.here:,} nodes in {costs.rows:,} rows:")
    print(f"  heartbeat {costs.heartbeat_us:.1f} µs; digest: look {costs.refresh_us:,.0f} µs,")
    print(f"  changes {costs.tell_us:,.0f} + {costs.take_us:,.0f} µs, {costs.message_bytes:,} B;")
    print(f"  all rows {costs.tell_whole_us:,.0f} + {costs.take_whole_us:,.0f} µs,"
          f" {costs.whole_bytes:,} B")  # fmt: skip
    print(f"an idle node's {costs.node_bytes:,} bytes are of {node_bytes()[1]}")


if __name__ == "__main__":
    main()
