"""Keeps a node registered: one agent after the other, and two while a server is replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from fabric_client.identity import explain
from fabric_client.registration.agent import Agent
from fabric_client.registration.context import NodeContext
from fabric_client.registration.dialling import NotReached
from fabric_client.registration.pace import Pace
from fabric_client.registration.self_check import find
from protocol.control.link import LinkClosed
from protocol.errors import RemoteError
from protocol.messages import EngineReport
from runtime.background import in_own_task
from runtime.findings import Finding

log = logging.getLogger("fabric.supervisor")

SUCCESSOR_SECONDS = 0.5, 2.0
"""Bounds of the random wait between two looks for the successor of a server that leaves."""


class RegistrationLoop:
    """All registrations of a node.  Run ``run`` for as long as the node runs."""

    def __init__(self, context: NodeContext, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when what ``status`` shows may have changed."""
        self.linked = False
        """The node is registered with a server."""
        self.since = time.time()
        """Unix seconds at which ``linked`` changed."""
        self.reason = "starting"
        """The last reason not to be linked."""
        self.agents: list[Agent] = []
        """One while a server is there; more while one leaves and its successor is there."""
        self._context = context
        self._on_change = on_change
        self._unanswered = False
        """The last attempt failed because nobody answered."""
        self._server_address = ""

    @property
    def tunnels(self) -> int:
        """The number of open tunnels."""
        return sum(agent.tunnels.up for agent in self.agents if agent.tunnels is not None)

    def findings(self) -> list[Finding]:
        """Return what is found of the newest registration."""
        identity = self._context.identity
        return next((found for one in reversed(self.agents) if (found := find(one, identity))), [])

    @property
    def server_release(self) -> str:
        """The version of the server, empty while it is unknown."""
        told = (one.registered.release for one in self.agents if one.registered is not None)
        return next(told, "")

    def rename(self, name: str, region: str) -> None:
        """Register by another name or region, beside the registration that is there."""
        self._context = replace(self._context, name=name, region=region)
        for agent in self.agents:
            agent.change_context(self._context)

    def report(self, reports: list[EngineReport]) -> None:
        """Send all servers new reports of the engines."""
        for agent in self.agents:
            agent.report(reports)

    def leave(self, reason: str) -> None:
        """Take no new requests; what runs may finish."""
        for agent in self.agents:
            agent.leave(reason)

    def hang_up(self, reason: str) -> None:
        """Close all connections now; the next registration follows."""
        for agent in list(self.agents):
            agent.hang_up(reason)

    @property
    def server_addresses(self) -> list[str]:
        """The address at which the server was reached last; none before the first time."""
        for agent in self.agents:
            self._server_address = agent.server_address or self._server_address
        return [self._server_address] if self._server_address else []

    def network_changed(self) -> None:
        """Check all connections at once, and end all waits for the next attempt."""
        self._context.network.changed()
        for agent in list(self.agents):
            agent.challenge()

    async def run(self) -> None:
        """Register again and again.

        Raises RemoteError when the server has refused this node for good.
        """
        registrations: set[asyncio.Task[LinkClosed | None]] = set()
        try:
            await self._register_again(registrations)
        finally:
            for task in registrations:
                task.cancel()
            await asyncio.gather(*registrations, return_exceptions=True)
            await in_own_task(self._context.connections.close())

    async def _register_again(self, registrations: set[asyncio.Task[LinkClosed | None]]) -> None:
        loop = asyncio.get_running_loop()
        rng, network = self._context.rng, self._context.network
        pace = Pace(rng, network)
        older: set[asyncio.Task[LinkClosed | None]] = set()
        """Registrations with servers that leave."""
        while True:
            began = loop.time()
            agent = Agent(self._context, self._update)
            serving = loop.create_task(self._serve(agent))
            registrations.add(serving)
            serving.add_done_callback(registrations.discard)
            if await _server_leaves(agent, serving):
                older.add(serving)
                serving.add_done_callback(older.discard)
                continue
            closed = serving.result()
            refused = closed is not None and closed.by_peer and not closed.again
            if closed is not None and refused and not older:
                raise RemoteError(closed.code, closed.reason)
            if older:  # there is no hurry: users are still served by way of the old server
                log.debug("no successor yet", extra={"reason": self.reason})
                pace = Pace(rng, network)
                await asyncio.wait(older, timeout=rng.uniform(*SUCCESSOR_SECONDS))
                continue
            lasted = loop.time() - began
            wait = pace.next_wait(lasted, unanswered=self._unanswered)
            log.log(
                pace.log_level(self.reason, lasted),
                "not connected",
                extra={
                    "server": self._context.identity.host,
                    "reason": self.reason,
                    "again_in": round(wait, 1),
                },
            )
            await pace.sleep(wait)

    async def _serve(self, agent: Agent) -> LinkClosed | None:
        """Serve until the link is closed; return why, None if the server can't be reached."""
        self.agents.append(agent)
        self._unanswered = False
        closed = None
        try:
            closed = await agent.serve()
            self.reason = closed.reason
        except (OSError, TimeoutError) as error:
            self.reason = explain(error)
            self._unanswered = isinstance(error, NotReached) and error.unanswered
        except Exception as error:  # a defect must not end the node: the next registration follows
            self.reason = f"a registration failed: {str(error) or type(error).__name__}"
            log.exception("a registration failed")
        finally:
            self.agents.remove(agent)
            self._update()
        return closed

    def _update(self) -> None:
        linked = any(agent.registered is not None for agent in self.agents)
        if linked != self.linked:
            self.linked = linked
            self.since = time.time()
        self._on_change()


async def _server_leaves(agent: Agent, serving: asyncio.Task[LinkClosed | None]) -> bool:
    """Return True when the server announces that it leaves, False if the link is closed first."""
    leaving = asyncio.get_running_loop().create_task(agent.leaving.wait())
    try:
        await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    return not serving.done()
