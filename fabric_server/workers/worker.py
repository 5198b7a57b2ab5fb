"""The program of a worker: a whole server, whose connections come from its parent.

    python -m fabric_server.workers.worker DESCRIPTOR

``DESCRIPTOR`` is its end of the channel; ``messages.Start`` comes on its standard input.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from random import Random

import msgspec

from fabric_server.admin.health import HealthHandlers
from fabric_server.app import App
from fabric_server.auth.bank import Need
from fabric_server.auth.leases import Leases
from fabric_server.config import Config
from fabric_server.mesh.mesh import Mesh
from fabric_server.net.addresses import parse
from fabric_server.net.connection_budget import Peer
from fabric_server.reload import reload
from fabric_server.workers.channel import Channel
from fabric_server.workers.messages import (
    MAX_LINES,
    Arrived,
    Begun,
    Drained,
    Failed,
    Granted,
    Handed,
    Joined,
    Leaving,
    Load,
    Message,
    Needs,
    Order,
    OrderKind,
    Parted,
    Question,
    Registered,
    Report,
    Start,
    States,
)
from fabric_server.workers.shares import share
from protocol.names import worker_name
from runtime import logs
from runtime.errors import Problem
from runtime.flags import read_again
from runtime.run import Signals, run, unless_stopped

log = logging.getLogger("fabric.workers")

REPORT_SECONDS = 0.1
"""Time between two looks for something to report."""


class WorkerSeat:
    """The worker's place (``app.seat.Seat``), and its end of the channel."""

    def __init__(self, start: Start, sock: socket.socket, signals: Signals) -> None:
        self.name = f"w{start.number}"
        self.first = start.number == 0
        self.server_name = worker_name(start.number)
        self.ports: Mapping[str, int] = start.ports
        self.states: Mapping[str, str] = {}
        self.nodes = 0
        self.channel = Channel(sock, self)
        self.count = start.count
        self.leases = Leases(self._tell_bank, asyncio.get_running_loop().time)
        self._signals = signals
        self._app: App | None = None
        self._mesh: Mesh | None = None
        self._stopping = False
        """The parent knows that this worker ends."""
        self._with_others = False
        """All workers end."""
        self._exit = asyncio.Event()

    async def serve(self, app: App) -> None:
        """Take connections until the parent or a signal ends this, and let requests finish."""
        self._app = app
        app.control_plane.links.registrar.on_registered = lambda *about: self.channel.send(
            Registered(*about)
        )
        mesh = self._mesh = app.open_mesh(self.name, lambda peer: self.channel.send(Parted(peer)))
        loop = asyncio.get_running_loop()
        self.channel.send(Begun(await app.introduce()))
        log.info("worker serves", extra={"pid": os.getpid()})
        reporting = loop.create_task(self._report(app, mesh))
        try:
            await app.run(self._signals.stop)
            if not self._stopping:
                self.channel.send(Leaving())
            await app.drain(with_others=self._with_others)
            self.leases.close()
            self.channel.send(Drained())
            await self._exit.wait()
        except Exception:
            self.channel.send(Leaving())  # a defect: no more connections while the rest is stopped
            raise
        finally:
            reporting.cancel()

    async def metrics_of_others(self) -> Mapping[str, bytes]:
        answer = await self.channel.ask("metrics")
        return msgspec.msgpack.decode(answer, type=dict[str, bytes])

    # ── called by the channel ─────────────────────────────────────────────────────────────────

    def on_message(self, message: Message, files: Sequence[int]) -> None:
        if isinstance(message, Handed):
            socks = [socket.socket(fileno=file) for file in files]  # each has an owner at once
            for arrived, sock in zip(message.connections, socks, strict=False):
                self._admit(arrived, sock)
        elif isinstance(message, Joined):
            assert self._mesh is not None, "workers that serve are connected"
            self._mesh.connect(message.peer, socket.socket(fileno=files[0]))
        elif isinstance(message, Registered):
            assert self._app is not None, "workers that serve are told"
            links = self._app.control_plane.links
            links.on_registered_elsewhere(*msgspec.structs.astuple(message))
        elif isinstance(message, Granted):
            self.leases.on_answer(message.grants, message.recalls)
        elif isinstance(message, States):
            self.states, self.nodes = message.states, message.nodes
        elif isinstance(message, Order):
            self._obey(message.what)

    async def on_ask(self, what: Question) -> bytes:
        app = self._app
        assert app is not None, "the parent asks those that serve"
        if what == "metrics":
            return await app.admin.metrics.own()
        return msgspec.msgpack.encode(self.reload(app))

    def on_closed(self) -> None:
        if not self._stopping:
            log.error("the parent has ended, so this worker ends when its requests have")
        self._end()
        self._exit.set()

    def reload(self, app: App) -> dict[str, object]:
        """Load settings and certificates again, as ``fabric_server.reload`` does."""
        return reload(app, self._read_again)

    def _tell_bank(self, needs: Sequence[Need]) -> None:
        for at in range(0, len(needs), MAX_LINES):
            self.channel.send(Needs(needs[at : at + MAX_LINES]))

    def _read_again(self, settings: Config) -> Config:
        return share(read_again(settings), self.count)

    def _admit(self, arrived: Arrived, sock: socket.socket) -> None:
        assert self._app is not None, "connections are handed to workers that serve"
        sock.setblocking(False)
        via = None
        if arrived.peeked:
            via = Peer(parse(arrived.address))
            if arrived.client:
                via.stand_for(parse(arrived.client))
        self._app.listeners[arrived.port].admit(sock, arrived.address, via)

    def _obey(self, what: OrderKind) -> None:
        app = self._app
        if what == "exit":
            self._exit.set()
        elif what == "hurry":
            self._end()
            signal.raise_signal(signal.SIGTERM)  # the second: what runs is cancelled
        elif what == "stop" or (what == "yield_users" and app is None):
            self._with_others = True
            self._end()
        elif app is None:
            log.debug("an order came before this worker serves; it comes again", extra={"of": what})
        elif what == "yield_nodes":
            app.yield_nodes()
        elif what == "keep_nodes":
            app.keep_nodes()
        elif what == "reload":
            self.reload(app)
        else:
            self._stopping = self._with_others = True
            app.yield_users()

    def _end(self) -> None:
        self._stopping = True
        self._signals.stop.set()

    async def _report(self, app: App, mesh: Mesh) -> None:
        sources = dataclasses.replace(app.admin.context.health, seat=None)
        health = HealthHandlers(sources)
        last = None
        while True:
            _, ready = await health.ready()
            nodes = app.control_plane.count_reachable()
            report = Report(
                ready.status,
                nodes,
                nodes + mesh.count_nodes(),
                {
                    name: Load(listener.budget.used, listener.accepted)
                    for name, listener in app.listeners.items()
                },
            )
            if report != last:
                self.channel.send(report)
                last = report
            await asyncio.sleep(REPORT_SECONDS)


async def serve(start: Start, sock: socket.socket, signals: Signals) -> None:
    """Run a worker to its end; the parent is told why it could not start."""
    seat = WorkerSeat(start, sock, signals)
    settings = share(start.settings, start.count)
    app = App(settings, rng=Random(), seat=seat)  # noqa: S311 - spreads load, guards nothing
    try:
        await unless_stopped(signals, app.start())
        if not signals.stop.is_set():
            await seat.serve(app)
    except Problem as error:
        seat.channel.send(Failed(str(error)))
    finally:
        await app.stop()
        seat.channel.close()


def main() -> None:
    """Run a worker."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    start: Start = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the parent
    logs.label(worker=f"w{start.number}")
    logs.configure(start.settings.log_level, json=start.settings.log_json)
    sys.exit(run(lambda signals: serve(start, sock, signals)))


if __name__ == "__main__":
    main()
