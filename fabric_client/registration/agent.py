"""One registration of this node: the link, and what is said on it."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from fabric_client.engines.watcher import loaded_models
from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.registration.tunnels import Tunnels
from protocol import messages
from protocol.aio.link import LinkDriver
from protocol.aio.tls import dial
from protocol.control.link import LinkClosed
from protocol.errors import Code
from protocol.messages import (
    EngineReport,
    Engines,
    Heartbeat,
    Leaving,
    Message,
    Register,
    Registered,
    Renew,
    Renewed,
)
from protocol.names import CONTROL_ALPN
from protocol.tunnel.resume import ResumeTable

log = logging.getLogger("fabric.agent")

REGISTER_SECONDS = 10.0
RENEWAL_CHECK_SECONDS = 600.0
LEAVE_SECONDS = 60.0
TELL_SECONDS = 0.1
"""How often the server is told of slots that others hold: links are no place for a torrent."""


class Agent:
    """Owns one link (``protocol.aio.link.LinkOwner``).  ``serve`` is called once.

    ``supervisor.Supervisor`` makes one agent after the other, for ever: the next one when this one
    has ended, or beside it when ``leaving`` is set.
    """

    def __init__(
        self,
        *,
        name: str,
        region: str,
        release: str,
        identity: Identity,
        reports: Callable[[], list[EngineReport]],
        devices: Machine,
        forwarder: Forwarder,
        rng: Random,
        on_change: Callable[[], None],
        keeper: ResumeTable,
    ) -> None:
        """``reports`` gives what the server is told of the engines.

        ``on_change`` is called when what ``status`` shows may have changed."""
        self.registered: Registered | None = None
        self.tunnels: Tunnels | None = None
        self.leaving = asyncio.Event()
        """Set when the server has said that it leaves: it is served on until it closes the link."""
        self._name = name
        self._region = region
        self._release = release
        self._identity = identity
        self._reports = reports
        self._devices = devices
        self._forwarder = forwarder
        self._slots = forwarder.slots.register(self._on_slots)
        self._told_elsewhere: dict[str, int] = {}
        self._telling: asyncio.TimerHandle | None = None
        self._rng = rng
        self._on_change = on_change
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._link: LinkDriver | None = None
        self._answer: asyncio.Future[Registered | LinkClosed] = self._loop.create_future()
        self._closed: asyncio.Future[LinkClosed] = self._loop.create_future()

    async def serve(self) -> LinkClosed:
        """Register and serve until the link is closed; returns why it was.

        Raises OSError or TimeoutError when the server can't be reached.
        """
        try:
            link = self._link = await dial(
                lambda: LinkDriver(self, self._loop, rng=self._rng),
                self._identity.host,
                self._identity.control_port,
                self._identity.context(CONTROL_ALPN),
            )
            return await self._register(link)
        finally:
            self._slots.close()
            if self._telling is not None:
                self._telling.cancel()

    async def _register(self, link: LinkDriver) -> LinkClosed:
        self._told_elsewhere = self._slots.elsewhere()
        link.send(
            Register(
                messages.VERSION,
                self._release,
                self._name,
                f"{platform.system()} {platform.machine()}",
                self._slots.adjust(self._reports()),
                self._region,
            )
        )
        try:
            async with asyncio.timeout(REGISTER_SECONDS):
                answer = await self._answer
            if isinstance(answer, LinkClosed):
                if isinstance(link.error, OSError):
                    raise link.error  # the server's TLS alert arrives after our handshake
                return answer
            return await self._live(link, answer)
        finally:
            link.close(Code.NONE, "this node hangs up")

    def report(self, reports: list[EngineReport]) -> None:
        """Tell the server what the engines are like now."""
        if self._link is not None and self.registered is not None:
            self._link.send(Engines(self._slots.adjust(reports)))

    def _on_slots(self) -> None:
        if self._telling is None and self.registered is not None:
            self._tell_elsewhere()

    def _tell_elsewhere(self) -> None:
        self._telling = None
        elsewhere = self._slots.elsewhere()
        if elsewhere != self._told_elsewhere:
            self._told_elsewhere = elsewhere
            self.report(self._reports())
            self._telling = self._loop.call_later(TELL_SECONDS, self._tell_elsewhere)

    def leave(self, reason: str) -> None:
        """Take no new requests; what runs may finish."""
        if self._link is not None:
            self._link.send(Leaving(reason, LEAVE_SECONDS))
        if self.tunnels is not None:
            self.tunnels.drain(reason)

    def hang_up(self, reason: str) -> None:
        """Close everything now, because what is open is worth nothing any more."""
        if self.tunnels is not None:
            self.tunnels.close(reason)
        if self._link is not None:
            self._link.close(Code.NONE, reason)

    # ── what the link tells ───────────────────────────────────────────────────────────────────

    def on_message(self, link: LinkDriver, message: Message) -> None:
        if isinstance(message, Registered):
            if not self._answer.done():
                self._answer.set_result(message)
        elif isinstance(message, messages.Tunnels):
            if self.tunnels is not None:
                self.tunnels.keep(message.count)
        elif isinstance(message, Renewed):
            self._keep_certificate(message.certificate)
        elif isinstance(message, Leaving):
            log.info("server is leaving", extra={"reason": message.reason})
            if self.tunnels is not None:
                self.tunnels.settle()
            self.leaving.set()
        else:
            link.close(Code.PROTOCOL, f"{type(message).__name__} from a server")

    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None:
        if not self._answer.done():
            self._answer.set_result(closed)
        if not self._closed.done():
            self._closed.set_result(closed)

    def _keep_certificate(self, pem: str) -> None:
        try:
            self._identity.store_certificate(pem)
        except (OSError, ValueError) as error:  # the present one is good for weeks; we ask again
            log.error("certificate not renewed", extra={"reason": str(error)})
        else:
            log.info("certificate renewed", extra={"node": self._identity.node_id})

    # ── while registered ──────────────────────────────────────────────────────────────────────

    async def _live(self, link: LinkDriver, registered: Registered) -> LinkClosed:
        self.registered = registered
        log.info("registered", extra={"node": registered.node_id, "epoch": registered.epoch})
        tunnels = self.tunnels = Tunnels(
            self._identity,
            registered,
            partial(self._forwarder.accept, self._slots),
            self._rng,
            self._on_change,
            self._keeper,
        )
        self._on_change()
        self._on_slots()  # what has changed since `Register` was written
        work = [
            self._loop.create_task(coroutine)
            for coroutine in (
                tunnels.run(),
                self._beat(link, registered),
                self._renew(link),
            )
        ]
        try:
            waited: list[asyncio.Future[Any]] = [*work, self._closed]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                if task.done():
                    task.result()  # none of them ends by itself but by a defect
            return self._closed.result()
        finally:
            self.registered = None
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self._on_change()

    async def _beat(self, link: LinkDriver, registered: Registered) -> None:
        seq = 0
        while True:
            seq += 1
            link.send(await self._heartbeat(seq))
            self._on_change()
            await asyncio.sleep(registered.heartbeat_seconds)

    async def _heartbeat(self, seq: int) -> Heartbeat:
        reports = self._reports()
        # In a thread, because a GPU's driver may hang.
        sample = await asyncio.to_thread(self._devices.sample, self._loop.time())
        return Heartbeat(
            seq=seq,
            at=time.time(),
            slots=sum(report.slots for report in reports),
            active=self._forwarder.active,
            engines_healthy=sum(report.healthy for report in reports),
            engines=len(reports),
            loaded_models=loaded_models(reports),
            **sample.fields(),
        )

    async def _renew(self, link: LinkDriver) -> None:
        while True:
            if self._identity.renewal_due(time.time()):
                link.send(Renew(self._identity.request()))
            await asyncio.sleep(min(RENEWAL_CHECK_SECONDS, self._identity.lifetime / 20))
