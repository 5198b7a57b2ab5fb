"""Each fault of the network, at each moment of a request, on nodes with one tunnel and with two.

All cases run side by side: each has a node, an engine, a model and a way to the server of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.engine import Json, Plan, Request, ScriptedEngine
from tests.fabric import Fabric, RunningNode
from tests.faults import TO_NODE, TO_SERVER, Connection, FaultProxy
from tests.questions import Seen, ask, pieces, question, reply

FAULTS: dict[str, Callable[[Connection], None]] = {
    "cut": Connection.cut,
    "reset": Connection.reset,
    "black hole": Connection.black_hole,
    "stall to server": lambda connection: connection.stall(TO_SERVER),
    "stall to node": lambda connection: connection.stall(TO_NODE),
    "corrupt": Connection.corrupt,
    "dribble": Connection.dribble,
    "delay": lambda connection: connection.delay(0.2),
}
HARMLESS = ("dribble", "delay")
"""Nothing is lost, it only takes longer."""
SILENT = ("black hole", "stall to server", "stall to node")
"""Only time tells."""

IDLE = "idle"
FIRST = "before the first byte"
FIRST_OF_TWO = "before the first byte, with another node"
MIDDLE = "mid-stream"
END = "at the end"
LINK = "mid-stream, on the link"
MOMENTS = (IDLE, FIRST, FIRST_OF_TWO, MIDDLE, END)


def expected(fault: str, moment: str, tunnels: int) -> dict[str, set[str]]:
    """Return the endings that a request may have for its user, each with those in the ledger.

    A complete and correct answer is allowed wherever an error is.
    """
    whole = {"complete": {"ok"}}
    if fault in HARMLESS:
        return whole
    if moment in (FIRST_OF_TWO, LINK):
        return whole
    if moment in (IDLE, FIRST):
        # Broken: the stream had begun with comments, for it had to wait.
        lost = {"failed", "refused", "timeout"}
        return {**whole, "refused": lost, "broken": lost}
    if moment in (MIDDLE, END):
        return {**whole, "broken": {"failed"}}
    raise AssertionError(moment)


NOTICED = 10.0
"""Seconds in which a tunnel with streams is known to be dead."""
LATENESS = 8.0
"""For two busy cores."""
HEALED = 80.0
"""An idle tunnel that is silently dead on the node's side only: three intervals of 15 s ± 20 %, and
then it is dialled anew."""
PADDING = 6000
"""Bytes of a question, by which the tunnel that carries it is known from those that do not."""
COUNT = 12


@dataclass
class Case:
    fault: str
    moment: str
    tunnels: int
    number: int

    def __str__(self) -> str:
        return f"{self.fault}, {self.moment}, tunnels={self.tunnels}"

    @property
    def model(self) -> str:
        return f"model-{self.number}"


class Gated:
    """An engine that sends the right pieces, but stops before one of them until it is released."""

    def __init__(self, before: int) -> None:
        self.gate = asyncio.Event()
        self._before = before

    def __call__(self, asked: Json) -> Plan:
        right = pieces(asked)
        if not self._before:
            return Plan(chunks=right, hold=self.gate)
        return Plan(chunks=[*right[: self._before], self.gate, *right[self._before :]])


class Bench:
    """One server, and the state that its cases share."""

    def __init__(self, fabric: Fabric, spare: ScriptedEngine, spare_node: RunningNode) -> None:
        self.fabric = fabric
        self.spare = spare
        self.spare_node = spare_node
        self.session: aiohttp.ClientSession
        self.asked: list[tuple[Case, str, Seen]] = []
        """Every request that was ever asked here, with the moment at which it was hurt."""

    async def ask(
        self,
        case: Case,
        token: str,
        moment: str = IDLE,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Seen:
        body = question(token, COUNT, model=case.model, stream=True, padding=PADDING)
        seen = await ask(
            self.session, "/v1/chat/completions", self.fabric.key, body, on_text=on_text
        )
        assert seen.ending in expected(case.fault, moment, case.tunnels), seen
        assert seen.request_id, seen
        self.asked.append((case, moment, seen))
        return seen

    async def share(self, model: str) -> None:
        """Let the other node serve this model too, from now on."""
        self.spare.models = [*self.spare.models, model]
        self.spare_node.supervisor.poke()
        async with asyncio.timeout(20):
            while len(self.fabric.app.control_plane.registry.candidates(model)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def run_case(case: Case, bench: Bench) -> str:
    """Run a case and return what happened, in a line.  Raises AssertionError."""
    async with ScriptedEngine(models=[case.model]) as engine:
        host = f"127.0.{1 + case.tunnels}.{1 + case.number}"
        async with bench.fabric.faults(host) as proxy:
            node = await bench.fabric.join(engine.url, name=case.model, via=host)
            try:
                return await _hurt(case, bench, engine, proxy)
            finally:
                await node.stop()
                bench.fabric.nodes.remove(node)


async def _hurt(case: Case, bench: Bench, engine: ScriptedEngine, proxy: FaultProxy) -> str:
    began = time.monotonic()
    if case.moment == IDLE:
        engine.reply = Gated(0)
        engine.reply.gate.set()
        FAULTS[case.fault](proxy.tunnels[0])
        # As many as there are tunnels, so that one of them meets the fault.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(bench.ask(case, f"t{case.number}i{number}"))
                for number in range(case.tunnels)
            ]
        endings = [task.result() for task in tasks]
    else:
        endings = [await _hurt_request(case, bench, engine, proxy)]
    took = time.monotonic() - began
    assert took < NOTICED + LATENESS, f"{endings} took {took:.1f} s"
    healed = await _heals(case, bench, engine)
    for request in engine.requests:
        assert await request.ended(1) in ("answered", "aborted"), request
    return f"{'/'.join(seen.ending for seen in endings):20} {took:5.1f} s, well in {healed:5.1f} s"


async def _hurt_request(
    case: Case, bench: Bench, engine: ScriptedEngine, proxy: FaultProxy
) -> Seen:
    """Inject the fault into the tunnel that carries the request."""
    stop = {MIDDLE: COUNT // 2, LINK: COUNT // 2, END: COUNT}.get(case.moment, 0)
    plan = engine.reply = Gated(stop)
    there = asyncio.Event()
    right = pieces(question(f"t{case.number}", COUNT, model="", stream=True))
    so_far = "".join(right[:stop])

    def on_text(text: str) -> None:
        if text == so_far:
            there.set()

    before = {tunnel: tunnel.directions[TO_NODE].count for tunnel in proxy.tunnels}
    asking = asyncio.create_task(bench.ask(case, f"t{case.number}", case.moment, on_text))
    request = await engine.started(20)
    if stop:
        async with asyncio.timeout(20):
            await there.wait()
    carries = [one for one in before if one.directions[TO_NODE].count - before[one] > PADDING]
    assert len(carries) == 1, f"{before} {proxy.tunnels}"
    if case.moment == FIRST_OF_TWO:
        await bench.share(case.model)
    if case.moment == LINK:
        await _hurt_link(case, bench, proxy)
        plan.gate.set()
        return await asking
    FAULTS[case.fault](carries[0])
    if case.fault in HARMLESS or case.moment == END:
        plan.gate.set()
        return await asking
    # The engine is about to say nothing more: whoever asked is told nevertheless, and it is.
    done, _ = await asyncio.wait([asking], timeout=NOTICED + LATENESS / 2)
    if done:
        await _stopped(request, asking.result())
    plan.gate.set()
    return await asking


async def _hurt_link(case: Case, bench: Bench, proxy: FaultProxy) -> None:
    """Inject the fault into the link; wait for the new registration if the fault shows at once."""
    [link] = proxy.links
    [engine] = bench.fabric.app.control_plane.registry.candidates(case.model)
    FAULTS[case.fault](link)
    if case.fault in ("cut", "reset"):
        async with asyncio.timeout(20):
            while True:
                node = bench.fabric.app.control_plane.registry.node(engine.node.id)
                if node is not None and node is not engine.node and node.tunnels:
                    return
                await asyncio.sleep(0.02)  # the node's doing: no event for it here


async def _stopped(request: Request, seen: Seen) -> None:
    """Check that no engine works on abandoned requests, once the server or the node can know."""
    assert await request.ended(NOTICED + LATENESS) == "aborted", (request, seen)


async def _heals(case: Case, bench: Bench, engine: ScriptedEngine) -> float:
    """Return the seconds until a request is answered again, without intervention."""
    if isinstance(engine.reply, Gated):
        engine.reply.gate.set()
    began = time.monotonic()
    number = 0
    while True:
        number += 1
        seen = await bench.ask(case, f"t{case.number}h{number}")
        took = time.monotonic() - began
        if seen.ending == "complete":
            return took
        assert took < HEALED, seen
        await asyncio.sleep(0.2)  # as a client would, before it tries again


async def figures(bench: Bench) -> dict[str, float]:
    fabric = bench.fabric
    headers = {"authorization": f"Bearer {fabric.management_key}"}
    url = f"{fabric.api}/metrics"
    async with bench.session.get(url, headers=headers, ssl=fabric.trust()) as answer:
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    words = (line.split(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in words}


IDLE_FIGURES = (
    "fabric_streams",
    "fabric_slots_active",
    "fabric_requests_active",
    "fabric_requests_waiting",
)


async def _quiet(bench: Bench) -> None:
    """Check that neither the server nor the nodes have any state left."""
    found: dict[str, float] = {}
    try:
        async with asyncio.timeout(40):
            while not found or any(found[name] for name in IDLE_FIGURES):
                found = await figures(bench)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError({name: found[name] for name in IDLE_FIGURES}) from None


async def _accounted(bench: Bench) -> None:
    """Check that each request has one row with the ending that its user saw."""
    rows = {entry.request_id: entry for entry in await bench.fabric.ledger()}
    assert len(await bench.fabric.ledger()) == len(rows) == len(bench.asked)
    for case, moment, seen in bench.asked:
        entry = rows[seen.request_id]
        assert entry.status == seen.status, (case, entry)
        allowed = expected(case.fault, moment, case.tunnels)[seen.ending]
        assert entry.outcome in allowed, (case, moment, entry)


@asynccontextmanager
async def bench_of(directory: Path, tunnels: int) -> AsyncIterator[Bench]:
    """Provide a bench; at exit all that was started on it must have ended."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as exits:
        spare = await exits.enter_async_context(ScriptedEngine(models=["spare"]))
        spare.reply = reply
        fabric = await exits.enter_async_context(
            Fabric(directory, tunnels=tunnels, tunnels_most=tunnels)
        )
        bench = Bench(fabric, spare, await fabric.join(spare.url, name="spare", slots=64))
        connector = aiohttp.TCPConnector(limit=0)
        bench.session = await exits.enter_async_context(
            aiohttp.ClientSession(fabric.plain, connector=connector)
        )
        yield bench
        await _quiet(bench)
        await _accounted(bench)
    async with asyncio.timeout(10):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


async def side_by_side(cases: Sequence[Case], work: Callable[[Case], Awaitable[str]]) -> None:
    """Run all to their end, then raise the failures together."""
    results = await asyncio.gather(*map(work, cases), return_exceptions=True)
    failures = []
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, BaseException):
            result.add_note(str(case))
            failures.append(result)
        print(f"{case!s:70} {'FAILED' if isinstance(result, BaseException) else result}")
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases", failures)


# In two halves, because a server lets thirty machines join in a minute, and not more.
@pytest.mark.parametrize("silent", [False, True], ids=["loud", "silent"])
@pytest.mark.parametrize("tunnels", [1, 2])
async def test_every_fault_at_every_moment_ends_in_a_whole_answer_or_an_error(
    tmp_path: Path, tunnels: int, silent: bool
) -> None:
    faults = [fault for fault in FAULTS if (fault in SILENT) == silent]
    names = [(fault, moment) for fault in faults for moment in MOMENTS]
    cases = [Case(*name, tunnels, number) for number, name in enumerate(names)]
    async with bench_of(tmp_path, tunnels) as bench:
        await side_by_side(cases, lambda case: run_case(case, bench))


async def test_no_fault_of_the_link_costs_an_answer(tmp_path: Path) -> None:
    """Tunnels carry on while the node registers again, or its loss is not noticed yet."""
    cases = [Case(fault, LINK, 2, number) for number, fault in enumerate(FAULTS)]
    async with bench_of(tmp_path, 2) as bench:
        await side_by_side(cases, lambda case: run_case(case, bench))
