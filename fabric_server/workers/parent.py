"""The parent of a server's workers: it holds the ports, and serves no request itself.

start     the first worker alone, which makes what is missing; then the others; then the ports
run       hands connections on, starts workers again, answers ``fabric-server`` commands
drain     closes the ports, has all workers finish their requests, and then end together: until
          the last request has ended, its engine may be behind any of them
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import msgspec

from fabric_server.app.introduction import Introduction
from fabric_server.app.listeners import NODE_PORTS, USER_PORTS
from fabric_server.app.succession import take_over, wait_for_end
from fabric_server.config import Config
from fabric_server.net.client_hello import ClientHello
from fabric_server.net.takeover import Predecessor, WorkerStatus
from fabric_server.reload import RELOADABLE
from fabric_server.workers.counter import Counter
from fabric_server.workers.doors import Doors
from fabric_server.workers.messages import (
    Begun,
    Needs,
    Order,
    OrderKind,
    Question,
    Registered,
    Start,
    States,
)
from fabric_server.workers.pairs import Pairs
from fabric_server.workers.parent_metrics import own_metrics
from fabric_server.workers.process import END_SECONDS, Worker, WorkerProblem
from fabric_server.workers.spread import home, least_loaded
from runtime import logs
from runtime.background import BackgroundTasks, log_failure
from runtime.flags import merge, read_again
from runtime.settings import SettingsError

log = logging.getLogger("fabric.workers")

START_SECONDS = 300.0
"""How long the first start of a worker may take; the first one's changes the database's schema."""
HOLD_SECONDS = 5.0
"""How long a node's connection waits for a worker that is being started."""
SORTING_SECONDS = 1.0
"""How long connections that are looked at may delay the end."""


class Parent:
    """All workers, and the ports: ``start``, ``run``, ``drain`` and ``stop`` it as an ``App``."""

    def __init__(self, config: Config, *, rng: Random) -> None:
        self.config = config
        self.listeners = Doors(config, self)
        self.workers: list[Worker] = []
        self.pairs = Pairs(self.workers)
        self.counter = Counter(self.workers, config.worker_count())
        self.succeeded = asyncio.Event()
        """Set when another server has taken over."""
        self.tasks = BackgroundTasks(rng)
        self._running: list[asyncio.Task[None]] = []
        self._accepting = False
        """Clients are accepted while there are workers."""
        self._stopping = False
        self._yielding = False
        """The nodes are sent to a successor."""
        self._about = Introduction("", ())
        self._states = States({}, 0)
        """The workers' states, as all workers were told last."""

    # ── starting ──────────────────────────────────────────────────────────────────────────────

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Open the ports and start the workers.

        Without a predecessor, connections are accepted then.  Raises ``PortProblem`` or
        ``WorkerProblem``.
        """
        self.listeners.open_all(self.config, predecessor)
        count, ports = self.config.worker_count(), self.listeners.numbers
        for number in range(count):
            self.workers.append(Worker(Start(self.config, number, count, ports), self))
        first, *others = self.workers
        self._run(first)
        self._about = (await _first_start(first)).about
        for worker in others:
            self._run(worker)
        for worker in others:
            await _first_start(worker)
        self.tasks.start("kernel_blocklist", self.listeners.blocklist.run)
        log.info("workers serve; each counts the limits of keys itself", extra={"count": count})
        if predecessor is None:
            self._accepting = True
            self.listeners.resume((*NODE_PORTS, *USER_PORTS))

    def _run(self, worker: Worker) -> None:
        task = asyncio.get_running_loop().create_task(worker.run())
        task.add_done_callback(log_failure)
        self._running.append(task)

    async def take_over(self, predecessor: Predecessor) -> None:
        """Take the predecessor's nodes and clients: see ``succession.take_over``."""
        await take_over(predecessor, self.listeners, self._count_known)
        self._accepting = True

    def count_nodes(self) -> int:
        """Count the nodes that requests can be sent to."""
        return sum(worker.report.nodes for worker in self.workers)

    def _count_known(self) -> int:
        """Count the nodes that requests at any worker can be sent to."""
        return min((one.report.known for one in self.workers if one.takes), default=0)

    # ── which worker (``doors.Spread``) ───────────────────────────────────────────────────────

    def for_user(self, port: str) -> Worker | None:
        ready = [worker for worker in self.workers if worker.takes]
        if port == "api":  # what it shows is the first worker's, and it asks the others
            return next(iter(ready), None)
        return least_loaded(ready, port)

    async def for_node(self, port: str, hello: ClientHello | None) -> Worker | None:
        number = home(hello)
        if number is None:
            worker = least_loaded((one for one in self.workers if not one.failing), port)
        else:
            worker = self.workers[number if number < len(self.workers) else 0]
        if worker is not None and not worker.begun.is_set() and port == "control":
            try:
                async with asyncio.timeout(HOLD_SECONDS):
                    await worker.begun.wait()
            except TimeoutError:
                worker = None
        if worker is None and number is None:
            worker = least_loaded((one for one in self.workers if one.takes), port)
        return worker

    # ── called by the workers ─────────────────────────────────────────────────────────────────

    def on_begun(self, worker: Worker) -> None:
        self.pairs.join(worker)
        if self._yielding:
            worker.send(Order("yield_nodes"))

    def on_registered(self, worker: Worker, registered: Registered) -> None:
        for one in self.workers:
            if one is not worker and one.begun.is_set():
                one.send(registered)

    def on_needs(self, worker: Worker, needs: Needs) -> None:
        self.counter.on_needs(worker, needs)

    def on_ended(self, worker: Worker) -> None:
        self.counter.on_ended(worker)

    def on_parted(self, worker: Worker, peer: str) -> None:
        self.pairs.on_lost(worker, peer)

    def on_change(self) -> None:
        states = States({one.name: one.report.state for one in self.workers}, self.count_nodes())
        if states != self._states:
            self._states = states
            for one in self.workers:
                if one.begun.is_set():
                    one.send(states)
        if self._accepting and not self._stopping:
            # Without workers, connections wait in the kernel's queues.
            if any(one.takes for one in self.workers):
                self.listeners.resume(USER_PORTS)
            else:
                self.listeners.pause(USER_PORTS)

    async def on_ask(self, worker: Worker, what: Question) -> bytes:
        others = [one for one in self.workers if one is not worker and one.begun.is_set()]
        answers = await self._ask(others, what)
        return msgspec.msgpack.encode({**answers, "parent": own_metrics(self).encode()})

    async def _ask(self, workers: Sequence[Worker], what: Question) -> dict[str, bytes]:
        """Return the answers of those that have given one, by their ids."""
        given = await asyncio.gather(*(one.ask(what) for one in workers), return_exceptions=True)
        answers = {}
        for one, answer in zip(workers, given, strict=True):
            if isinstance(answer, bytes):
                answers[one.name] = answer
            elif isinstance(answer, TimeoutError | ConnectionError):
                reason = str(answer) or "no answer in time"
                log.warning("a worker does not answer", extra={"of": one.name, "reason": reason})
            else:
                raise answer
        return answers

    # ── commands (``takeover.RunningServer``) ─────────────────────────────────────────────────

    def yield_nodes(self) -> int:
        """Send the nodes to a successor, and return how many there are."""
        self.listeners.pause(NODE_PORTS)
        self._yielding = True
        self._order("yield_nodes")
        return self.count_nodes()

    def keep_nodes(self) -> None:
        """Undo ``yield_nodes``: the successor has failed."""
        if not self._stopping:
            self._yielding = False
            self._order("keep_nodes")
            self.listeners.resume(NODE_PORTS)

    def yield_users(self) -> None:
        """Leave new connections to a successor that has nodes; ``run`` returns."""
        self._stop_restarting()
        self.listeners.pause(USER_PORTS)
        self._order("yield_users")
        self.succeeded.set()

    async def introduce(self) -> Introduction:
        """Describe this server, which has started."""
        return self._about

    def status(self) -> list[WorkerStatus]:
        """Describe the workers."""
        return [
            WorkerStatus(
                one.name,
                one.pid,
                one.report.state,
                one.since,
                one.restarts,
                one.report.nodes,
                {port: load.open for port, load in one.loads.items()},
            )
            for one in self.workers
        ]

    async def reload(self) -> Mapping[str, Any]:
        """Have all workers load settings and certificates again; return the first one's result.

        Certificates count as loaded if all have loaded them.
        """
        try:
            loaded = read_again(self.config)
            self.config = merge(self.config, loaded, RELOADABLE)
            logs.configure(self.config.log_level, json=self.config.log_json)
        except SettingsError:
            pass  # each worker logs it, and the result says so
        for worker in self.workers:
            worker.on_reload(self.config)
        answers = await self._ask([one for one in self.workers if one.begun.is_set()], "reload")
        results = [msgspec.msgpack.decode(answer) for answer in answers.values()]
        if not results:
            return {
                "applied": [],
                "needs_restart": [],
                "certificates": False,
                "error": "no worker answers; see the log",
            }
        return {**results[0], "certificates": all(one["certificates"] for one in results)}

    def _order(self, what: OrderKind) -> None:
        for worker in self.workers:
            worker.send(Order(what))

    # ── running and stopping ──────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Wait until ``stop`` is set or a successor has taken over."""
        await wait_for_end(stop, self.succeeded)

    async def drain(self) -> None:
        """Stop accepting, and have all workers let their requests finish."""
        self._stop_restarting()
        succeeded = self.succeeded.is_set()
        # Without a successor the API port stays open: it shows that the server drains.
        self.listeners.stop_accepting((*NODE_PORTS, *(USER_PORTS if succeeded else ("public",))))
        try:
            async with asyncio.timeout(SORTING_SECONDS):
                await self.listeners.handshakes_done()
        except TimeoutError:
            log.debug("connections that say nothing are closed")
        if not succeeded:
            self._order("stop")
        waits = [one.drained.wait() for one in self.workers]
        try:
            async with asyncio.timeout(self.config.drain_seconds + END_SECONDS):
                await asyncio.gather(*waits)
        except TimeoutError:
            log.warning("workers are ended that are not done after drain_seconds")

    def _stop_restarting(self) -> None:
        self._stopping = True
        for worker in self.workers:
            worker.stopping.set()

    async def stop(self) -> None:
        """End the workers, and close the ports."""
        self._stop_restarting()
        self.pairs.close()
        self.counter.close()
        await self.listeners.close()
        await self.tasks.stop()
        for worker in self.workers:
            worker.send(Order("exit" if worker.drained.is_set() else "hurry"))
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=END_SECONDS)
        for worker in self.workers:
            worker.kill()
        if late:
            log.error("workers did not end and were killed", extra={"count": len(late)})
            await asyncio.wait(late, timeout=END_SECONDS)


async def _first_start(worker: Worker) -> Begun:
    """Wait until a worker serves for the first time.  Raises ``WorkerProblem``."""
    try:
        async with asyncio.timeout(START_SECONDS):
            return await worker.first
    except TimeoutError:
        raise WorkerProblem(
            f"worker {worker.name} (process {worker.pid}) does not serve after "
            f"{START_SECONDS:.0f} seconds; its log says how far it came."
        ) from None
