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
from fabric_server.dialects.body import ParsedBody
from fabric_server.dialects.endpoints import Endpoint
from fabric_server.edge.request import Request
from fabric_server.gateway.gateway import Gateway
from fabric_server.gateway.options import RequestOptions
from fabric_server.proxy.attempt import Attempt, Ending
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.proxy.retries import explain
from protocol.messages import RequestHead
from runtime import logs, run
from runtime.run import Signals
from runtime.settings import load


class BareGateway(Gateway):
    """The first engine that has room, once."""

    async def _relay(
        self,
        request: Request,
        endpoint: Endpoint,
        ask: ParsedBody,
        terms: RequestOptions,
        draft: RequestRecord,
    ) -> None:
        engine = next((one for one in self.registry.candidates(ask.model) if one.has_room), None)
        tunnel = None if engine is None else engine.node.tunnel()
        if engine is None or tunnel is None:
            raise errors.no_capacity(ask.model, 1.0)
        engine.active += 1
        draft.attempts, draft.node_id, draft.engine = 1, engine.node.id, engine.name

        def over(exchange: Attempt, ending: Ending) -> None:
            draft.usage, draft.outcome = exchange.usage, ending.outcome
            draft.first_byte_at = exchange.first_byte_at
            if exchange.relayed:
                self.record(draft)

        exchange = Attempt(
            request,
            engine,
            ask,
            registry=self.registry,
            deadlines=self.deadlines,
            timeouts=self.timeouts,
            elsewhere=lambda: False,
            on_over=over,
            loop=self._loop,
        )
        body, whole = request.body.replay_buffer, request.body.complete
        size = len(body) if whole else request.body.length
        passed = [("content-type", "application/json")]
        path, milliseconds = endpoint.path, int(self.timeouts.total * 1000)
        head = RequestHead(request.id, engine.name, "POST", path, passed, size, milliseconds)
        exchange.begin(tunnel, head, body, ended=whole)
        upload = None if whole else self._loop.create_task(exchange.upload())
        try:
            ending = await exchange.done
        finally:
            if upload is not None:
                upload.cancel()
            exchange.cancel()
        if not exchange.relayed:
            raise explain(ending, ask.model, self.timeouts)

    def _comments(
        self, request: Request, endpoint: Endpoint, ask: ParsedBody
    ) -> AbstractContextManager[None]:
        return nullcontext()


class BareApp(App):
    make_gateway = BareGateway

    async def start_bare(self) -> None:
        await self.start()
        self.links.resumes = False
        self.registry.on_room = lambda node: None


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
