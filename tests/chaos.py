"""A fabric on which everything is killed, stopped and cut off, and users who look closely.

    python -m tests.chaos [--seconds 600] [--seed 1] [--streams 200]

A server, six nodes behind a network that fails, six engines, and so many users at once.  Each
answer must be complete and correct, or an error that its user can tell, in time; at the end all is
idle and the ledger has one row for each request that finished.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random, SystemRandom
from typing import Protocol

import aiohttp

from fabric_client.owner import state
from fabric_server.storage.connect import open_store
from ledger.records import LedgerEntry
from tests.engine import BusyEngine, Json, Plan, Request
from tests.faults import TO_NODE, TO_SERVER, Connection, FaultProxy
from tests.questions import Seen, Wrong, ask, is_question, pieces, question
from tests.stack import READY, Alone, Process

NODES = 6
MODELS = ("tiny", "other")
SLOTS = 64
"""Of each node: so that all users find room on a few."""
QUEUE_SECONDS = 5.0
FIRST_BYTE_SECONDS = 20.0
DEADLINE = 60.0
"""For each answer: twice in line, twice a first byte or a tunnel found dead, a frozen server."""
CALM_SECONDS = 60.0
"""In which everybody is back once nothing is broken any more: nodes wait up to 30 s between two
tries."""


class Others(Protocol):
    """Those who use the fabric beside the users of this module."""

    async def run(self, stack: Alone, manager: str) -> None:
        """Use it, with a management key, until cancelled."""

    def reply(self, asked: Json) -> Plan:
        """Return what engines answer them."""


class Engines:
    """What all scripted engines answer."""

    def __init__(self, rng: Random, gap: float, others: Others | None) -> None:
        self._rng = rng
        self._gap = gap
        self._others = others

    def __call__(self, asked: Json) -> Plan:
        if self._others is not None and not is_question(asked):
            return self._others.reply(asked)
        gap = self._gap * self._rng.choice((0.0, 0.2, 1.0, 2.0))
        return Plan(
            chunks=pieces(asked),
            gap=gap if asked["stream"] else 0,
            first_byte_delay=self._rng.choice((0.0, 0.0, 5 * self._gap)),
        )


class Users:
    """Ask without end, and count how it ended."""

    def __init__(self, url: str, keys: Sequence[str], rng: Random) -> None:
        """Each time with one of ``keys``."""
        self.seen: list[Seen] = []
        self.wrong: list[str] = []
        self.endings: Counter[str] = Counter()
        self.longest = 0.0
        """Seconds that any of them had to wait for an answer's end."""
        self._url = f"{url}/v1/chat/completions"
        self._keys = keys
        self._rng = rng
        self._leaving = asyncio.Event()
        self._number = 0

    def leave(self) -> None:
        """Ask nothing more; what was asked is waited for."""
        self._leaving.set()

    async def stay(self) -> None:
        async with session() as own:
            while not self._leaving.is_set():
                seen = await self.ask(own)
                if seen is not None and seen.ending not in ("complete", "broken"):
                    pause = self._rng.uniform(0.1, 0.5)  # as clients do, before they try again
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._leaving.wait(), pause)

    async def ask(self, own: aiohttp.ClientSession) -> Seen | None:
        """None when what came was wrong."""
        rng = self._rng
        self._number += 1
        body = question(
            f"t{self._number}",
            rng.choice((1, 5, 20, 40)),
            model=rng.choice(MODELS),
            stream=rng.random() < 0.75,
            padding=rng.choice((0, 0, 0, 100, 100, 20_000, 20_000, 400_000)),
        )
        began = time.monotonic()
        try:
            seen = await ask(own, self._url, rng.choice(self._keys), body, deadline=DEADLINE)
        except Wrong as wrong:
            self.endings["WRONG"] += 1
            self.wrong.append(str(wrong))
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
        self.seen.append(seen)
        self.endings[f"{seen.ending} {seen.code}".strip()] += 1
        return seen


def session() -> aiohttp.ClientSession:
    """For plain HTTP, which the server takes from its own machine: users' TLS is not the matter."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


class Part:
    """What is broken by one at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()


class NodePart(Part):
    def __init__(
        self, name: str, engine: BusyEngine, proxy: FaultProxy, process: Process, data: Path
    ) -> None:
        super().__init__(name)
        self.engine = engine
        self.proxy = proxy
        self.process = process
        self.data = data
        self.engine_lock = asyncio.Lock()
        self.path_lock = asyncio.Lock()


class Chaos:
    """What goes wrong, by chance."""

    def __init__(self, rng: Random, stack: Alone, nodes: Sequence[NodePart], pace: float) -> None:
        """``pace`` is the mean time between two faults, in seconds."""
        self.done: Counter[str] = Counter()
        self._rng = rng
        self._stack = stack
        self._nodes = nodes
        self._pace = pace
        self._server = Part("server")
        self._faults: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [
            (4, "node killed", self._kill_node),
            (4, "node frozen", self._freeze_node),
            (20, "connection", self._hurt_connection),
            (3, "path lost", self._lose_path),
            (5, "engine killed", self._kill_engine),
            (1, "server killed", self._kill_server),
            (1, "server frozen", self._freeze_server),
        ]

    async def rage(self, seconds: float) -> None:
        """Returns when all that was broken is whole again, or at least was started again."""
        until = time.monotonic() + seconds
        weights = [weight for weight, *_ in self._faults]
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._rng.expovariate(1 / self._pace))
                if time.monotonic() >= until:
                    break
                [(_, name, fault)] = self._rng.choices(self._faults, weights)
                group.create_task(self._do(name, fault))
        for node in self._nodes:
            for connection in list(node.proxy.connections):
                if connection.faulty:
                    connection.reset()

    async def _do(self, name: str, fault: Callable[[], Awaitable[None]]) -> None:
        await fault()
        self.done[name] += 1

    def _some(self) -> NodePart:
        return self._rng.choice(self._nodes)

    async def _kill_node(self) -> None:
        node, pause = self._some(), self._rng.uniform(0.0, 2.0)
        async with node.lock:
            await node.process.kill()
            await asyncio.sleep(pause)
            await node.process.begin()

    async def _freeze_node(self) -> None:
        node, pause = self._some(), self._rng.choice((0.5, 3.0, 12.0))
        async with node.lock:
            node.process.signal(signal.SIGSTOP)
            await asyncio.sleep(pause)
            node.process.signal(signal.SIGCONT)

    async def _hurt_connection(self) -> None:
        rng, node = self._rng, self._some()
        connections = node.proxy.tunnels * 3 + node.proxy.links
        if not connections:
            return
        connection = rng.choice(connections)
        direction = rng.choice((TO_SERVER, TO_NODE))
        fault = rng.choice(("cut", "reset", "hole", "stall", "corrupt", "dribble", "delay"))
        self.done[fault] += 1
        _FAULTS[fault](connection, direction)
        await asyncio.sleep(rng.choice((0.5, 4.0, 15.0)))
        if connection.faulty:
            rng.choice((connection.heal, connection.reset))()

    async def _lose_path(self) -> None:
        """The router is off, and on again."""
        node, pause = self._some(), self._rng.choice((1.0, 5.0, 12.0))
        async with node.path_lock:
            node.proxy.dark = True
            node.proxy.each(Connection.black_hole)
            await asyncio.sleep(pause)
            node.proxy.dark = False
            node.proxy.each(self._rng.choice((Connection.heal, Connection.reset)))

    async def _kill_engine(self) -> None:
        node, pause = self._some(), self._rng.uniform(0.2, 3.0)
        async with node.engine_lock:
            await node.engine.stop()
            await asyncio.sleep(pause)
            await node.engine.start()

    async def _kill_server(self) -> None:
        pause = self._rng.uniform(0.0, 1.0)
        async with self._server.lock:
            await self._stack.server.kill()
            await asyncio.sleep(pause)
            await self._stack.server.begin()
            await self._stack.server.said(READY)

    async def _freeze_server(self) -> None:
        pause = self._rng.choice((0.5, 2.0, 7.0))
        async with self._server.lock:
            self._stack.server.signal(signal.SIGSTOP)
            await asyncio.sleep(pause)
            self._stack.server.signal(signal.SIGCONT)


_FAULTS: dict[str, Callable[[Connection, str], None]] = {
    "cut": lambda connection, _: connection.cut(),
    "reset": lambda connection, _: connection.reset(),
    "hole": lambda connection, _: connection.black_hole(),
    "stall": lambda connection, direction: connection.stall(direction),
    "corrupt": lambda connection, direction: connection.corrupt(direction),
    "dribble": lambda connection, _: connection.dribble(),
    "delay": lambda connection, _: connection.delay(0.3),
}


# ── one run ─────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def fabric(
    directory: Path, engines: Engines, host: str
) -> AsyncIterator[tuple[Alone, list[NodePart]]]:
    settings = {
        "host": host,
        "queue_timeout": str(QUEUE_SECONDS),
        "first_byte_timeout": str(FIRST_BYTE_SECONDS),
        "heartbeat_seconds": "2",
    }
    async with AsyncExitStack() as exits:
        stack = await exits.enter_async_context(Alone(directory, **settings))

        async def part(number: int) -> NodePart:
            name = f"node{number}"
            # Half of them serve both models.
            models = MODELS if number % 2 else MODELS[number // 2 % 2 :][:1]
            engine = await exits.enter_async_context(BusyEngine(models=models, ollama=True))
            engine.reply = engines
            proxy = await exits.enter_async_context(stack.faults(f"127.0.5.{number + 1}"))
            flags = ("--slots", str(SLOTS))
            process = await stack.join(engine.url, name, *flags, via=proxy.host)
            return NodePart(name, engine, proxy, process, stack.node_data(name))

        yield stack, [await part(number) for number in range(NODES)]


async def run(
    directory: Path,
    *,
    seconds: float,
    seed: int,
    streams: int,
    pace: float = 0.7,
    host: str = "127.0.0.1",
    beside: Others | None = None,
) -> str:
    """Raises AssertionError; returns a summary."""
    rng = Random(seed)
    # Some thousand pieces a second, whatever the number of streams, are what two cores can do.
    engines = Engines(Random(rng.random()), streams / 1500, beside)
    async with fabric(directory, engines, host) as (stack, nodes):
        create = ("keys", "create", "crowd")
        made = [await stack.command(*create, *more) for more in ((), ("--failover", "continue"))]
        manager = (await stack.command("keys", "create", "boss", "--management"))["text"]
        url = f"http://127.0.0.1:{stack.ports['public']}"
        users = Users(url, [key["text"] for key in made], Random(rng.random()))
        chaos = Chaos(Random(rng.random()), stack, nodes, pace)
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(users.stay())
            more = None if beside is None else group.create_task(beside.run(stack, manager))
            await chaos.rage(seconds)
            users.leave()
            if more is not None:
                more.cancel()
        summary = _summary(users, chaos)
        assert not users.wrong, f"{summary}\nwrong: {users.wrong[:5]}"
        errors = [error for node in nodes for error in node.engine.errors]
        assert not errors, f"{summary}\nthe engines of this test have failed: {errors[:5]}"
        await _all_back(stack, nodes, users, manager)
        await _all_idle(stack, nodes, manager)
        await stack.server.stop()  # what its spool held is in the store by now
        summary += "\n" + _account(await _ledger(stack), users.seen)
    return summary


def _summary(users: Users, chaos: Chaos) -> str:
    lines = [f"{sum(users.endings.values())} requests, the longest took {users.longest:.1f} s"]
    for title, counts in (("ended", users.endings), ("done to them", chaos.done)):
        told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        lines.append(f"{title}: {told}")
    return "\n".join(lines)


async def _figures(stack: Alone, manager: str) -> dict[str, float]:
    url = f"http://127.0.0.1:{stack.ports['api']}/metrics"
    headers = {"authorization": f"Bearer {manager}"}
    async with session() as own, own.get(url, headers=headers) as answer:
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    words = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in words}


async def _until(what: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Until ``what`` finds nothing to complain of."""
    problem: object = "not asked"
    try:
        async with asyncio.timeout(seconds):
            while problem := await what():  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # other processes bring it about
    except TimeoutError:
        raise AssertionError(f"still after {seconds} s: {problem}") from None


async def _all_back(stack: Alone, nodes: Sequence[NodePart], users: Users, manager: str) -> None:
    for node in nodes:
        assert node.process.code is None, (node.name, node.process.lines[-10:])

    async def missing() -> object:
        figures = await _figures(stack, manager)
        names = ("fabric_nodes_connected", 'fabric_engines{state="healthy"}', "fabric_tunnels")
        found = {name: figures[name] for name in names}
        return None if list(found.values()) == [NODES, NODES, NODES * 2] else found

    await _until(missing, CALM_SECONDS)
    async with session() as own:
        for seen in await asyncio.gather(*(users.ask(own) for _ in range(5 * NODES))):
            assert seen is not None and seen.ending == "complete", (seen, users.wrong)


async def _all_idle(stack: Alone, nodes: Sequence[NodePart], manager: str) -> None:
    names = (
        "fabric_streams",
        "fabric_slots_active",
        "fabric_requests_active",
        "fabric_requests_waiting",
    )

    async def busy() -> object:
        figures = await _figures(stack, manager)
        found: dict[str, object] = {name: figures[name] for name in names if figures[name]}
        for node in nodes:
            told = state.read(node.data)
            if told is None or told.active:
                found[node.name] = told
            running = [one for one in node.engine.requests if one.outcome is None]
            if running:
                found[f"engine of {node.name}"] = "\n".join(
                    _told(one, stack, node) for one in running
                )
        return "\n".join(f"{name}: {value}" for name, value in found.items())

    await _until(busy, 40.0)


def _told(request: Request, stack: Alone, node: NodePart) -> str:
    """Return all that is known of a request at an engine for which nobody should wait any more."""
    state = "connection ended" if request.hung_up else "connection open"
    said = [
        f"{who}: {line}"
        for who, process in (("server", stack.server), (node.name, node.process))
        for line in process.lines
        if request.id and request.id in line
    ]
    return "\n".join((f"{request}, {state}, body of {len(request.body)} bytes", *said))


async def _ledger(stack: Alone) -> list[LedgerEntry]:
    store = await open_store(stack.store_url)
    try:
        return list(await store.requests(limit=10_000_000))
    finally:
        await store.close()


def _account(entries: Sequence[LedgerEntry], seen: Sequence[Seen]) -> str:
    rows = {entry.request_id: entry for entry in entries}
    assert len(rows) == len(entries)
    ids = [one.request_id for one in seen if one.request_id]
    assert len(ids) == len(set(ids)), "two requests of one name"
    ended = [one for one in seen if one.ending in ("complete", "refused", "broken")]
    # Refused before its key was known, while the store was away: there is nobody to bill.
    known = [one for one in ended if one.code != "keys_unavailable"]
    missing = [one for one in known if one.request_id not in rows]
    assert not missing, f"ended, and not in the ledger: {missing[:5]}"
    unlike = []
    for one in seen:
        entry = rows.get(one.request_id)
        if entry is None:
            continue  # a server was killed in the middle of it
        fits = {
            "complete": ("ok",),
            "refused": ("refused", "failed", "timeout", "cancelled"),
            "broken": ("failed", "incomplete", "timeout"),
            "cut": ("failed", "timeout", "cancelled", "ok"),
        }
        # A stream that has waited for over 2 s has its head when it is refused.
        refused_late = one.ending == "broken" and one.code == entry.error == "queue_timeout"
        if entry.outcome not in fits[one.ending] and not (
            refused_late and entry.outcome == "refused"
        ):
            unlike.append((one, entry))
    assert not unlike, unlike[:5]
    outcomes = Counter(entry.outcome for entry in entries)
    told = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    continued = Counter(entry.outcome for entry in entries if entry.continued)
    return f"ledger: {told}; went on at another node: {dict(continued)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**31))
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    # Scripted engines whose callers hang up in mid-answer are no news here.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    print(f"again: python -m tests.chaos --seed {options.seed} --streams {options.streams}")
    with tempfile.TemporaryDirectory(prefix="fabric-chaos-") as directory:
        work = run(
            Path(directory), seconds=options.seconds, seed=options.seed, streams=options.streams
        )
        try:
            print(asyncio.run(work))
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
