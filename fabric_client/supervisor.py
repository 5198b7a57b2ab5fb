"""Runs a whole node: its engines, its registrations, its pauses, and the state that it shows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from random import Random

import aiohttp

from fabric_client.config import Config
from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import DEFAULT_PORTS, EngineSettings
from fabric_client.engines.engine_key import EngineKey
from fabric_client.engines.watcher import Watcher
from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity
from fabric_client.owner import state
from fabric_client.owner.pause_monitor import PauseMonitor, PauseSettings
from fabric_client.owner.schedule import parse_schedule
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.reasoning import ReasoningFilter
from fabric_client.registration.context import NodeContext
from fabric_client.registration.network_watch import network_changes
from fabric_client.registration.registration_loop import RegistrationLoop
from fabric_client.reload import NodeSettings
from protocol.engine_changes import EngineChanges
from protocol.messages import EngineReport
from protocol.tunnel.resume import ResumeTable
from runtime import logs
from runtime.background import BackgroundTasks
from runtime.findings import Finding, FindingLog, disk, problems

log = logging.getLogger("fabric.supervisor")

_ENGINES = frozenset({"engine", "engine_key_file", "discover", "slots", "models", "max_num_ctx"})
"""Settings that the engines are looked after by."""
SLEEP_CHECK_SECONDS = 5.0
"""Time between two comparisons of the clocks."""
SLEPT_SECONDS = 20.0
"""A wall clock this far ahead of the machine's running time means that it was asleep."""
PAUSE_CHECK_SECONDS = 0.5
"""Time between two looks at the owner's commands and hours."""
FINDINGS_SECONDS = 2.0
"""Time between two looks for problems of the connection and the machine."""
SETTINGS_CHECK_SECONDS = 1.0
"""Time between two looks at the settings file."""
WORK_SECONDS = 5.0
"""Least time between two writes of the state because of work done."""


class Problems:
    """The problems that a running node has found, as ``status`` shows them."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self._log = FindingLog(log)

    def update(self, findings: list[Finding]) -> bool:
        """Take all findings as they are now; log and return whether the problems are others."""
        self._log.update(findings)
        before, self.found = self.found, problems(findings)
        return [one.code for one in before] != [one.code for one in self.found]


class Supervisor:
    """A whole node.

    ``run`` ends by cancellation, or raises RemoteError when the server has refused this node for
    good.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        *,
        rng: Random,
        clock: Callable[[], float] = time.time,
        sleep_check: float = SLEEP_CHECK_SECONDS,
        machine: Machine | None = None,
    ) -> None:
        """``clock`` gives Unix seconds; it is compared with the loop's own time every
        ``sleep_check`` seconds, to notice that the machine was asleep.  ``machine`` is a stand-in
        for this machine."""
        self._settings = NodeSettings(config)
        self._identity = identity
        self._rng = rng
        self._clock = clock
        self._sleep_check = sleep_check
        self._machine = machine or Machine(config.data, now=asyncio.get_running_loop().time())
        self.tasks = BackgroundTasks(rng)
        self._run_id = secrets.token_hex(8)
        self._pause = PauseMonitor(
            config.data,
            _pause_settings(config),
            self._machine,
            run=self._run_id,
            clock=clock,
        )
        self.drain_requested = self._pause.drain_requested
        """Set when the owner wants this run to end: ``leave``, then end it."""
        self._watcher: Watcher | None = None
        self._forwarder: Forwarder | None = None
        self._registrations: RegistrationLoop | None = None
        self._written = 0, 0.0
        """Requests served according to the last state written, and when that was."""
        self._problems = Problems()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            watcher = make_watcher(session, self._config, self._identity.models)
            self._watcher = watcher
            forwarder = self._forwarder = self.make_forwarder(watcher)
            registrations = self._registrations = self._make_registrations(watcher, forwarder)
            await self._pause.read_battery()
            self._check_pause(watcher, forwarder, registrations)
            await watcher.refresh()
            _log_engines(watcher.reports)
            _log_offer(watcher)
            try:
                for name, work in (
                    ("engines", lambda: self._watch_engines(watcher, registrations)),
                    ("settings", self._watch_settings),
                    ("sleep", lambda: self._notice_sleep(registrations)),
                    ("network", lambda: self._watch_network(registrations)),
                    ("pause", lambda: self._watch_pause(watcher, forwarder, registrations)),
                    ("gpu", lambda: self._pause.watch_gpu(forwarder.worked_at)),
                    ("battery", self._pause.watch_battery),
                    ("findings", lambda: self._watch_findings(registrations)),
                ):
                    self.tasks.start(name, work)
                await registrations.run()
            finally:
                await self.tasks.stop()
                forwarder.close()
                self._write_state()

    def make_forwarder(self, watcher: Watcher) -> Forwarder:
        forwarder = Forwarder(watcher.engine, watcher.poke, None, ReasoningFilter)
        forwarder.limit_uploads(self._config.upload_limit)
        return forwarder

    @property
    def _config(self) -> Config:
        return self._settings.config

    def reload(self) -> None:
        """Read the settings again, and use those that have changed; an error changes none."""
        result = self._settings.read_again()
        if result.applied:
            self._apply(set(result.applied))

    def poke(self) -> None:
        """Ask the engines now: something may have changed."""
        if self._watcher is not None:
            self._watcher.poke()

    async def leave(self, seconds: float | None) -> None:
        """Take no new requests, and wait for those that run, at most so long; None has no limit."""
        if self._registrations is not None:
            self._registrations.leave("the node is shutting down")
        forwarder = self._forwarder
        if forwarder is not None:
            try:
                async with asyncio.timeout(seconds):
                    await forwarder.idle()
            except TimeoutError:
                log.warning("requests were cut off", extra={"count": forwarder.active})

    def _make_registrations(self, watcher: Watcher, forwarder: Forwarder) -> RegistrationLoop:
        context = NodeContext(
            identity=self._identity,
            name=self._config.called(self._identity.name),
            region=self._config.region,
            machine=self._machine,
            forwarder=forwarder,
            reports=lambda: self._pause.apply(watcher.reports),
            resume_table=ResumeTable(),
            rng=self._rng,
            proxies=self._config.proxies(),
            instance=self._run_id,
        )
        if context.proxies.proxy is not None:
            proxy = context.proxies.proxy
            extra = {"proxy": str(proxy), "from": proxy.source}
            log.info("the server is reached through a proxy", extra=extra)
        return RegistrationLoop(context, self._write_state)

    # ── run for as long as the node ───────────────────────────────────────────────────────────

    async def _watch_engines(self, watcher: Watcher, registrations: RegistrationLoop) -> None:
        held_back = watcher.held_back
        changes = EngineChanges(watcher.reports)
        async for reports in watcher.watch():
            for message, about in changes.compare(reports):
                log.info(message, extra=about)
            if watcher.held_back != held_back:
                held_back = watcher.held_back
                _log_offer(watcher)
            registrations.report(self._pause.apply(reports))
            self._write_state()

    async def _watch_settings(self) -> None:
        while True:
            await asyncio.sleep(SETTINGS_CHECK_SECONDS)
            if self._settings.file_has_changed():
                self.reload()
                self._write_state()

    def _apply(self, names: set[str]) -> None:
        """Use settings that have changed; what has begun is not interrupted."""
        config = self._config
        watcher, forwarder, registrations = self._watcher, self._forwarder, self._registrations
        if names & {"log_level", "log_json"}:
            logs.configure(config.log_level, json=config.log_json)
        self._pause.change(_pause_settings(config))
        if watcher is None or forwarder is None or registrations is None:
            return  # it is still being made, of the settings as they are now
        if "upload_limit" in names:
            forwarder.limit_uploads(config.upload_limit)
        if names & _ENGINES:
            configure_engines(watcher, config, self._identity.models)
            registrations.report(self._pause.apply(watcher.reports))
        if names & {"name", "region"}:
            registrations.rename(config.called(self._identity.name), config.region)

    async def _watch_pause(
        self, watcher: Watcher, forwarder: Forwarder, registrations: RegistrationLoop
    ) -> None:
        while True:
            await asyncio.sleep(PAUSE_CHECK_SECONDS)
            self._check_pause(watcher, forwarder, registrations)
            served, at = self._written
            if forwarder.served != served and not 0 <= self._clock() - at < WORK_SECONDS:
                self._write_state()

    def _check_pause(
        self, watcher: Watcher, forwarder: Forwarder, registrations: RegistrationLoop
    ) -> None:
        """Pause, resume or drain, as the owner commanded and set."""
        pause = self._pause
        before, back_at, acknowledged = pause.problem, pause.back_at, pause.acknowledged
        pause.check()
        if pause.take_reload():
            self.reload()
        if pause.problem != before:
            log.info(pause.problem or "resumed")
            forwarder.pause(pause.problem)
        if (pause.problem, pause.back_at) != (before, back_at):
            registrations.report(pause.apply(watcher.reports))
        if pause.problem != before or pause.acknowledged != acknowledged:
            self._write_state()

    async def _watch_findings(self, registrations: RegistrationLoop) -> None:
        while True:
            await asyncio.sleep(FINDINGS_SECONDS)
            free = await asyncio.to_thread(shutil.disk_usage, self._config.data)
            found = [*registrations.findings(), disk(str(self._config.data), free.free)]
            if self._problems.update(found):
                self._write_state()

    async def _notice_sleep(self, registrations: RegistrationLoop) -> None:
        """Hang up after the machine was asleep: its router has forgotten the connections."""
        loop = asyncio.get_running_loop()
        ahead = self._clock() - loop.time()
        while True:
            await asyncio.sleep(self._sleep_check)
            now_ahead = self._clock() - loop.time()
            if now_ahead - ahead > SLEPT_SECONDS and registrations.agents:
                log.info("the machine was asleep", extra={"seconds": round(now_ahead - ahead)})
                registrations.hang_up("the machine was asleep")
            ahead = now_ahead

    async def _watch_network(self, registrations: RegistrationLoop) -> None:
        changes = network_changes(lambda: registrations.server_addresses)
        async with contextlib.aclosing(changes):
            async for addresses in changes:
                log.info("the network has changed", extra={"addresses": addresses})
                registrations.network_changed()

    # ── for `fabric-client status` ────────────────────────────────────────────────────────────

    def _write_state(self) -> None:
        watcher, forwarder, registrations = self._watcher, self._forwarder, self._registrations
        assert watcher is not None
        assert forwarder is not None
        assert registrations is not None
        self._written = forwarder.served, self._clock()
        identity, throughput = self._identity, forwarder.throughput
        state.write(
            self._config.data,
            state.State(
                pid=os.getpid(),
                at=time.time(),
                node_id=identity.node_id,
                name=self._config.called(identity.name),
                server=f"{identity.host}:{identity.control_port}",
                linked=registrations.linked,
                since=registrations.since,
                reason="" if registrations.linked else registrations.reason,
                tunnels=registrations.tunnels,
                active=forwarder.active,
                served=forwarder.served,
                tokens=throughput.tokens,
                tokens_per_second=throughput.per_second(asyncio.get_running_loop().time()),
                engines=watcher.reports,
                run=self._run_id,
                paused=self._pause.reason or "",
                draining=self.drain_requested.is_set(),
                heard=self._pause.acknowledged,
                reloaded=self._settings.result,
                offers=watcher.offer.patterns,
                held_back=watcher.held_back,
                server_release=registrations.server_release,
                findings=self._problems.found,
            ),
        )


def make_watcher(
    session: aiohttp.ClientSession, config: Config, joined_with: Sequence[str] | None
) -> Watcher:
    """Return what looks after the engines that the settings name.

    ``joined_with`` are the patterns that ``join`` was given.
    """
    watcher = Watcher(session)
    configure_engines(watcher, config, joined_with)
    return watcher


def configure_engines(watcher: Watcher, config: Config, joined_with: Sequence[str] | None) -> None:
    """Have the engines looked after that the settings name, and no others."""
    addresses = [parse_address(text) for text in config.engine]
    keys = zip(addresses, map(EngineKey, config.engine_key_file), strict=False)
    settings = EngineSettings(
        slots=config.slots,
        offer=config.offers(joined_with),
        max_num_ctx=config.max_num_ctx,
        keys=dict(keys),
    )
    watcher.configure(addresses, DEFAULT_PORTS if config.discovers else (), settings)


def _pause_settings(config: Config) -> PauseSettings:
    return PauseSettings(
        schedule=parse_schedule(config.schedule),
        on_battery=config.pause_on_battery,
        gpu_percent=config.pause_gpu_percent,
        gpu_seconds=config.pause_gpu_seconds,
    )


def _log_engines(reports: list[EngineReport]) -> None:
    for report in reports:
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
    if not reports:
        log.warning(
            "no engine found: start Ollama, vLLM, llama-server or LM Studio, or name one with "
            "--engine URL"
        )


def _log_offer(watcher: Watcher) -> None:
    """Log what the owner's choice holds back, and if that leaves nothing."""
    for engine, models in watcher.held_back.items():
        log.info(
            "models held back",
            extra={"engine": engine, "models": {one.name: one.reason for one in models}},
        )
    if watcher.offer.patterns is not None and not any(one.models for one in watcher.reports):
        log.warning(
            "nothing is offered, so no requests will come: the setting models matches no model",
            extra={"offers": str(watcher.offer)},
        )
