"""The same server and the same node without what makes them more than a way: the switch.

    python -m benchmarks.bare server      as `fabric-server up`, settings from the environment
    python -m benchmarks.bare node        as `fabric-client run`
    python -m benchmarks.bare chat-node   the same, and chat as it is: read whole, reasoning sorted

Off on the server: aliases, the choice of an engine (the first with a free slot takes all), hashes
of prompts, needs, lines and their deadlines, breaker, what is learnt from answers, retries,
continuing, comments, and streams that outlive their tunnel.  Off on the node: reasoning, and every
look into a question.  `systems.Bare` also keeps the ledger's entries off the disk.  What is left:
TLS, keys, limits of a connection, metering, the ledger, credit, deadlines of an answer.

`bare` in `systems.py` has all of that off; `bare-routing` only what the server does to choose
engines and to keep answers alive, so that spool and reasoning are on.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from random import Random

from fabric_client.cli.run import run_node
from fabric_client.config import PREFIX as OF_A_NODE
from fabric_client.config import Config as NodeConfig
from fabric_client.engines.discovery import Engine
from fabric_client.engines.watcher import Watcher
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.supervisor import Supervisor
from fabric_server.app import App
from fabric_server.config import PREFIX as OF_A_SERVER
from fabric_server.config import Config as ServerConfig
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import Endpoint
from fabric_server.gateway.gateway import Gateway
from fabric_server.proxy.answer_writer import AnswerWriter
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.clock import AttemptClock
from fabric_server.proxy.ending import Ending
from fabric_server.proxy.request_options import RequestOptions
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.proxy.retries import explain
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import Choice
from protocol.messages import RequestHead
from runtime import logs, run
from runtime.run import Signals
from runtime.settings import load


class Once:
    """The owner of an attempt that is not followed by another."""

    def __init__(self, record: RequestRecord, upstream: UpstreamContext) -> None:
        self._record = record
        self._upstream = upstream
        self.loop = upstream.loop

    def can_retry(self) -> bool:
        return False

    def race(self, attempt: Attempt) -> None:
        """No second engine competes."""

    def can_continue(self, attempt: Attempt) -> bool:
        return False

    def on_attempt_over(self, attempt: Attempt, ending: Ending) -> None:
        record = self._record
        record.usage, record.outcome = attempt.answer.meter.usage, ending.outcome
        record.first_byte_at = attempt.first_byte_at
        if attempt.answer.started:
            self._upstream.ledger.write(record)


class BareGateway(Gateway):
    """The first engine that has room, once."""

    async def _forward(
        self, record: RequestRecord, endpoint: Endpoint, options: RequestOptions
    ) -> None:
        request, parsed, upstream = record.request, record.parsed, self.upstream
        candidates = upstream.registry.candidates(parsed.model)
        engine = next((one for one in candidates if one.has_room), None)
        tunnel = None if engine is None else engine.node.tunnel(self._loop.time())
        if engine is None or tunnel is None:
            raise errors.no_capacity(parsed.model, 1.0)
        choice = record.choice = Choice(engine, "", key_id=record.key.id)
        upstream.registry.take(engine, choice.key_id, self._loop.time())
        record.attempts = 1
        attempt = Attempt(
            Once(record, upstream),
            choice,
            AnswerWriter(request, parsed.usage_requested, choice),
            AttemptClock(upstream.timeouts, self._loop.time()),
            upstream.registry,
            upstream.deadlines,
        )
        body, flowing = request.body.replay_buffer, request.body.flowing
        size = len(body) if flowing is None else request.body.length
        passed = [("content-type", "application/json")]
        path, milliseconds = endpoint.path, int(upstream.timeouts.total * 1000)
        head = RequestHead(request.id, engine.name, "POST", path, passed, size, milliseconds)
        attempt.begin(tunnel, head, body, ended=flowing is None)
        upload = None if flowing is None else self._loop.create_task(attempt.upload(flowing))
        try:
            ending = await attempt.done
        finally:
            if upload is not None:
                upload.cancel()
            attempt.cancel()
        if not attempt.answer.started:
            raise explain(ending, parsed.model, upstream.timeouts)

    def _keepalive(self, record: RequestRecord, endpoint: Endpoint) -> AbstractContextManager[None]:
        return nullcontext()


class BareApp(App):
    make_gateway = BareGateway

    async def start_bare(self) -> None:
        await self.start()
        links = self.control_plane.links
        links.settings = replace(links.settings, resume=False)
        self.control_plane.registry.on_room = lambda node: None


class BareSupervisor(Supervisor):
    def make_forwarder(self, watcher: Watcher) -> Forwarder:
        def find(name: str) -> Engine | None:
            engine = watcher.engine(name)
            if engine is not None and any(engine.path_handlers.values()):
                engine.path_handlers = dict.fromkeys(engine.path_handlers)
            return engine

        return Forwarder(find, watcher.poke)


class ChatSupervisor(BareSupervisor):
    make_forwarder = Supervisor.make_forwarder


async def serve(settings: ServerConfig, signals: Signals) -> None:
    app = BareApp(settings, rng=Random())
    try:
        await app.start_bare()
        await app.run(signals.stop)
    finally:
        await app.stop()


def main() -> int:
    if sys.argv[1] == "server":
        settings = load(ServerConfig, file=None, environ=os.environ, flags={}, prefix=OF_A_SERVER)
        logs.configure(settings.log_level)
        return run.run(lambda signals: serve(settings, signals))
    node = load(NodeConfig, file=None, environ=os.environ, flags={}, prefix=OF_A_NODE)
    return run_node(node, BareSupervisor if sys.argv[1] == "node" else ChatSupervisor)


if __name__ == "__main__":
    raise SystemExit(main())
