"""Keeps a node registered: whatever ends a registration, the next one follows."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from random import Random

import aiohttp

from fabric_client.config import Config
from fabric_client.engines.addresses import parse_address
from fabric_client.engines.watcher import Watcher
from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity, explain
from fabric_client.owner import control, state
from fabric_client.owner.pause_policy import GpuUse, reason_to_pause, told_paused
from fabric_client.owner.schedule import parse_schedule
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.proxy.upload_limit import UploadLimit
from fabric_client.reasoning import ReasoningFilter
from fabric_client.registration.agent import Agent
from fabric_client.registration.backoff import Backoff
from protocol.control.link import LinkClosed
from protocol.errors import RemoteError
from protocol.messages import EngineReport
from protocol.tunnel.resume import ResumeTable
from runtime.version import VERSION

log = logging.getLogger("fabric.supervisor")

NAP_SECONDS = 5.0
"""How often the clocks are compared, in seconds."""
SLEPT_SECONDS = 20.0
"""A wall clock this far ahead of the machine's running time means that it was asleep."""
HEED_SECONDS = 0.5
"""How often it is looked whether the owner has said something, and what time it is."""
TELL_SECONDS = 5.0
"""How often the work done is told at most."""
SUCCESSOR_SECONDS = 0.5, 2.0
"""While a server that leaves is still there, its successor is looked for so often."""
FEEL_SECONDS = 2.0
"""How often battery and GPU are looked at, if they matter."""


class Supervisor:
    """A whole node.  ``run`` ends by cancellation, or raises RemoteError when the server has
    refused this node for good."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        *,
        rng: Random,
        clock: Callable[[], float] = time.time,
        nap: float = NAP_SECONDS,
        devices: Machine | None = None,
    ) -> None:
        """``clock`` gives Unix seconds; with the loop's own time it is looked at every ``nap``
        seconds, to notice that the machine was asleep.  ``devices`` are the machine's own unless
        given."""
        self._config = config
        self._identity = identity
        self._rng = rng
        self._clock = clock
        self._nap = nap
        self._devices = devices or Machine(config.data, now=asyncio.get_running_loop().time())
        self._name = config.called(identity.name)
        self._run = secrets.token_hex(8)
        self._control = control.Watched(config.data)
        self._schedule = parse_schedule(config.schedule)
        self._gpu = GpuUse(config.pause_gpu_percent or 100.0, config.pause_gpu_seconds)
        self._on_battery = False
        self._paused: str | None = None
        self.drained = asyncio.Event()
        """Set when the owner wants this run to end: ``leave``, then end it."""
        self._agents: list[Agent] = []
        """One; two or more while a server leaves and its successor is there."""
        self._watcher: Watcher | None = None
        self._forwarder: Forwarder | None = None
        self._linked_since = time.time()
        self._told_served, self._told_at = 0, 0.0
        """What the state said last, and when."""
        self._was_linked = False
        self._reason = "starting"

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            watcher = self._watcher = Watcher(
                session,
                [parse_address(text) for text in self._config.engine],
                discover=self._config.discovers,
                slots=self._config.slots,
            )
            forwarder = self._forwarder = self.make_forwarder(watcher)
            if self._config.pause_on_battery:
                self._on_battery = await asyncio.to_thread(self._devices.on_battery)
            self._heed(watcher, forwarder)
            await watcher.refresh()
            for report in watcher.reports:
                log.info(
                    "engine",
                    extra={
                        "engine": report.name,
                        "healthy": report.healthy,
                        "models": [model.name for model in report.models],
                        "slots": report.slots,
                        "problem": report.problem,
                    },
                )
            if not watcher.reports:
                log.warning(
                    "no engine found: start Ollama, vLLM, llama-server or LM Studio, or name one "
                    "with --engine URL"
                )
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch(watcher))
                    group.create_task(self._notice_sleep())
                    group.create_task(self._heed_always(watcher, forwarder))
                    group.create_task(self._feel_gpu(forwarder))
                    group.create_task(self._feel_battery())
                    group.create_task(self._stay_registered(watcher, forwarder, group))
            except* RemoteError as errors:
                raise errors.exceptions[0] from None
            finally:
                forwarder.close()
                self._write_state()

    def make_forwarder(self, watcher: Watcher) -> Forwarder:
        return Forwarder(watcher.engine, watcher.poke, self._uploads(), ReasoningFilter)

    def poke(self) -> None:
        """Look at the engines now: something may have changed."""
        if self._watcher is not None:
            self._watcher.poke()

    async def leave(self, seconds: float | None) -> None:
        """Take no new requests, and wait for those that run, at most so long; None is as long as
        they take."""
        for agent in self._agents:
            agent.leave("the node is shutting down")
        forwarder = self._forwarder
        if forwarder is not None:
            try:
                async with asyncio.timeout(seconds):
                    await forwarder.idle()
            except TimeoutError:
                log.warning("requests broken off", extra={"count": forwarder.active})

    # ── what runs all the time ────────────────────────────────────────────────────────────────

    async def _watch(self, watcher: Watcher) -> None:
        async for reports in watcher.watch():
            for agent in self._agents:
                agent.report(told_paused(reports, self._problem))
            self._write_state()

    async def _heed_always(self, watcher: Watcher, forwarder: Forwarder) -> None:
        while True:
            await asyncio.sleep(HEED_SECONDS)
            self._heed(watcher, forwarder)
            if (
                forwarder.served != self._told_served
                and self._clock() >= self._told_at + TELL_SECONDS
            ):
                self._write_state()

    def _heed(self, watcher: Watcher, forwarder: Forwarder) -> None:
        """Pause, go on, or end, as the owner said and set."""
        before, heard = self._problem, self._control.said.at
        if trouble := self._control.look():
            log.warning("what the owner said can't be read", extra={"reason": trouble})
        if self._control.said.drain == self._run:
            self.drained.set()
        now = self._clock()
        self._paused = reason_to_pause(
            now=now,
            wall=datetime.fromtimestamp(now),
            control=self._control.said,
            schedule=self._schedule,
            hours=", ".join(self._config.schedule),
            on_battery=self._on_battery,
            gpu_busy=self._gpu.busy,
        )
        if self._problem != before:
            log.info(self._problem or "goes on")
            forwarder.pause(self._problem)
            for agent in self._agents:
                agent.report(told_paused(watcher.reports, self._problem))
        if self._problem != before or self._control.said.at != heard:
            self._write_state()

    @property
    def _problem(self) -> str | None:
        """Why the server is to send nothing."""
        if self.drained.is_set():
            return "draining: it finishes what runs, and ends"
        return None if self._paused is None else f"paused: {self._paused}"

    async def _feel_gpu(self, forwarder: Forwarder) -> None:
        loop = asyncio.get_running_loop()
        while self._config.pause_gpu_percent is not None:
            # In a thread, because a GPU's driver may hang; then what was known stays known.
            percent = await asyncio.to_thread(self._devices.gpu_percent, loop.time())
            now = loop.time()
            self._gpu.saw(now, percent, forwarder.worked_at(now))
            await asyncio.sleep(FEEL_SECONDS)

    async def _feel_battery(self) -> None:
        while self._config.pause_on_battery:
            await asyncio.sleep(FEEL_SECONDS)
            self._on_battery = await asyncio.to_thread(self._devices.on_battery)

    def _uploads(self) -> UploadLimit | None:
        if self._config.upload_limit is None:
            return None
        loop = asyncio.get_running_loop()
        return UploadLimit(self._config.upload_limit, clock=loop.time, call_later=loop.call_later)

    async def _notice_sleep(self) -> None:
        """What was open before a sleep is worth nothing after it: the router has forgotten it."""
        loop = asyncio.get_running_loop()
        ahead = self._clock() - loop.time()
        while True:
            await asyncio.sleep(self._nap)
            now_ahead = self._clock() - loop.time()
            if now_ahead - ahead > SLEPT_SECONDS and self._agents:
                log.info("the machine was asleep", extra={"seconds": round(now_ahead - ahead)})
                for agent in list(self._agents):
                    agent.hang_up("the machine was asleep")
            ahead = now_ahead

    async def _stay_registered(
        self, watcher: Watcher, forwarder: Forwarder, group: asyncio.TaskGroup
    ) -> None:
        """One registration after the other; with a server that leaves, the next one beside it."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._rng)
        keeper = ResumeTable()
        older: set[asyncio.Task[LinkClosed | None]] = set()

        def reports() -> list[EngineReport]:
            return told_paused(watcher.reports, self._problem)

        while True:
            began = loop.time()
            agent = Agent(
                name=self._name,
                region=self._config.region,
                release=VERSION,
                identity=self._identity,
                reports=reports,
                devices=self._devices,
                forwarder=forwarder,
                rng=self._rng,
                on_change=self._on_change,
                keeper=keeper,
            )
            serving = group.create_task(self._serve(agent))
            if await _leaves_first(agent, serving):
                older.add(serving)
                serving.add_done_callback(older.discard)
                continue
            closed = serving.result()
            refused = closed is not None and closed.by_peer and not closed.again
            if closed is not None and refused and not older:
                raise RemoteError(closed.code, closed.reason)
            if older:  # nobody need hurry, and users lack nothing
                log.debug("no successor yet", extra={"reason": self._reason})
                backoff = Backoff(self._rng)
                await asyncio.wait(older, timeout=self._rng.uniform(*SUCCESSOR_SECONDS))
                continue
            wait = backoff.wait(loop.time() - began)
            log.warning(
                "not connected",
                extra={
                    "server": self._identity.host,
                    "reason": self._reason,
                    "again_in": round(wait, 1),
                },
            )
            await asyncio.sleep(wait)

    async def _serve(self, agent: Agent) -> LinkClosed | None:
        """Until the link is closed; returns why it was, None when the server can't be reached."""
        self._agents.append(agent)
        closed = None
        try:
            closed = await agent.serve()
            self._reason = closed.reason
        except (OSError, TimeoutError) as error:
            self._reason = explain(error)
        finally:
            self._agents.remove(agent)
            self._on_change()
        return closed

    # ── for `fabric-client status` ────────────────────────────────────────────────────────────

    def _on_change(self) -> None:
        linked = any(agent.registered is not None for agent in self._agents)
        if linked != self._was_linked:
            self._was_linked = linked
            self._linked_since = time.time()
        self._write_state()

    def _write_state(self) -> None:
        watcher, forwarder = self._watcher, self._forwarder
        assert watcher is not None
        assert forwarder is not None
        self._told_served, self._told_at = forwarder.served, self._clock()
        tunnels = sum(agent.tunnels.up for agent in self._agents if agent.tunnels is not None)
        state.write(
            self._config.data,
            state.State(
                pid=os.getpid(),
                at=time.time(),
                node_id=self._identity.node_id,
                name=self._name,
                server=f"{self._identity.host}:{self._identity.control_port}",
                linked=self._was_linked,
                since=self._linked_since,
                reason="" if self._was_linked else self._reason,
                tunnels=tunnels,
                active=forwarder.active,
                served=forwarder.served,
                tokens=forwarder.throughput.tokens,
                tokens_per_second=forwarder.throughput.per_second(
                    asyncio.get_running_loop().time()
                ),
                engines=watcher.reports,
                run=self._run,
                paused=self._paused or "",
                draining=self.drained.is_set(),
                heard=self._control.said.at,
            ),
        )


async def _leaves_first(agent: Agent, serving: asyncio.Task[LinkClosed | None]) -> bool:
    """Whether its server says that it leaves before the link is closed: waits for either."""
    leaving = asyncio.get_running_loop().create_task(agent.leaving.wait())
    try:
        await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    return not serving.done()
