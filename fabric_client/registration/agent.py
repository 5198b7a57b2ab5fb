"""One registration of this node: its link, and the messages on it."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable
from typing import Any

import msgspec

from fabric_client.registration.context import NodeContext
from fabric_client.registration.dialling import dial_server
from fabric_client.registration.heartbeat import make_heartbeat
from fabric_client.registration.slot_reports import SlotReports
from fabric_client.registration.tunnels import Tunnels
from protocol import messages
from protocol.aio.link import LinkDriver
from protocol.control.link import LinkClosed
from protocol.errors import Code
from protocol.messages import (
    EngineReport,
    Engines,
    Leaving,
    Message,
    Register,
    Registered,
    Renew,
    Renewed,
)
from protocol.names import CONTROL_ALPN, NAMED_ALPN
from runtime.version import VERSION

log = logging.getLogger("fabric.agent")

REGISTER_SECONDS = 10.0
RENEWAL_CHECK_SECONDS = 600.0
LEAVE_SECONDS = 60.0


class Agent:
    """Owns one link (``protocol.aio.link.LinkOwner``).  ``serve`` is called once.

    ``RegistrationLoop`` makes one agent after the other: the next one when this one has ended, or
    beside it when ``leaving`` is set.
    """

    def __init__(self, context: NodeContext, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when what ``status`` shows may have changed."""
        self.registered: Registered | None = None
        self.registered_at = 0.0
        """Time of the loop at which it was registered."""
        self.tunnels: Tunnels | None = None
        self.leaving = asyncio.Event()
        """Set when the node is to register anew, beside this agent: the server has announced that
        it leaves, or the node has a new key.  The server is served until it closes the link."""
        self._context = context
        self._on_change = on_change
        self._slots = SlotReports(context.forwarder, self._send_reports)
        self._has_next_key = context.identity.keys.uses_next
        """True if this agent's connections use a key that the server may not know yet."""
        self._loop = asyncio.get_running_loop()
        self._link: LinkDriver | None = None
        self._closed_early: dict[LinkDriver, LinkClosed] = {}
        """Links that were closed while the server was dialled, of which there may be several."""
        self._answer: asyncio.Future[Registered | LinkClosed] = self._loop.create_future()
        self._closed: asyncio.Future[LinkClosed] = self._loop.create_future()

    async def serve(self) -> LinkClosed:
        """Register and serve until the link is closed; return why it was.

        Raises OSError or TimeoutError when the server can't be reached.
        """
        try:
            async with self._context.network.interrupts():
                link, host, port = await dial_server(
                    lambda: LinkDriver(self, self._loop, rng=self._context.rng),
                    self._context,
                    self._context.identity.control_ports,
                    CONTROL_ALPN,
                    NAMED_ALPN,
                )
            self._link = link
            if link in self._closed_early:
                self.on_closed(link, self._closed_early[link])
            self._closed_early.clear()
            return await self._register(link, host, port)
        finally:
            self._slots.close()

    async def _register(self, link: LinkDriver, host: str, port: int) -> LinkClosed:
        context = self._context
        link.send(
            Register(
                messages.VERSION,
                VERSION,
                context.name,
                f"{platform.system()} {platform.machine()}",
                self._slots.adjust(context.reports()),
                context.region,
                context.instance,
            )
        )
        try:
            async with asyncio.timeout(REGISTER_SECONDS):
                answer = await self._answer
            if isinstance(answer, LinkClosed):
                if isinstance(link.error, OSError):
                    raise link.error  # the server's TLS alert arrives after our handshake
                return self._without_next_key(answer)
            self._learn_addresses(host, port, answer)
            return await self._stay(link, answer)
        finally:
            link.close(Code.NONE, "this node hangs up")
            if self.tunnels is None:  # it did not register: perhaps it can at another name
                context.identity.put_last(host)

    def _learn_addresses(self, host: str, port: int, registered: Registered) -> None:
        identity = self._context.identity
        try:
            if identity.learn_hosts(host, registered.hosts):
                log.info("the server's names have changed", extra={"hosts": identity.hosts})
            if identity.learn_ports(port, registered.control_port, registered.api_port):
                log.info("the server's ports have changed", extra={"ports": identity.control_ports})
        except OSError as error:  # a full disk: they are told again at the next registration
            log.warning("the server's addresses were not written", extra={"reason": str(error)})

    def change_context(self, context: NodeContext) -> None:
        """Register by the name and the region of ``context``: anew, if it has registered."""
        if self.registered is None:
            self._context = context
        else:
            self.leaving.set()

    def report(self, reports: list[EngineReport]) -> None:
        """Send the server new reports of the engines."""
        if self._link is not None and self.registered is not None:
            self._link.send(Engines(self._slots.adjust(reports)))

    def _send_reports(self) -> None:
        self.report(self._context.reports())

    def leave(self, reason: str) -> None:
        """Take no new requests; what runs may finish."""
        if self._link is not None:
            self._link.send(Leaving(reason, LEAVE_SECONDS))
        if self.tunnels is not None:
            self.tunnels.drain(reason)

    def hang_up(self, reason: str) -> None:
        """Close all connections now, because they have become useless."""
        if self.tunnels is not None:
            self.tunnels.close(reason)
        if self._link is not None:
            self._link.close(Code.NONE, reason)

    @property
    def server_address(self) -> str:
        """The address of the server's machine, empty while there is no link."""
        return "" if self._link is None else self._link.peer.rpartition(":")[0]

    def challenge(self) -> None:
        """Give connections up whose server does not respond at once: the network has changed."""
        if self._link is not None:
            self._link.challenge()
        if self.tunnels is not None:
            self.tunnels.challenge()

    # ── called by the link ────────────────────────────────────────────────────────────────────

    def on_message(self, link: LinkDriver, message: Message) -> None:
        if isinstance(message, Registered):
            if not self._answer.done():
                self.registered_at = self._loop.time()
                self._answer.set_result(message)
        elif isinstance(message, messages.Tunnels):
            if self.tunnels is not None:
                self.tunnels.keep(message.count)
        elif isinstance(message, Renewed):
            self._store_certificate(message.certificate)
        elif isinstance(message, Leaving):
            log.info("server is leaving", extra={"reason": message.reason})
            if self.tunnels is not None:
                self.tunnels.stop_redialing()
            self.leaving.set()
        else:
            link.close(Code.PROTOCOL, f"{type(message).__name__} from a server")

    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None:
        if self._link is None:
            self._closed_early[link] = closed
        if link is not self._link:
            return
        if not self._answer.done():
            self._answer.set_result(closed)
        if not self._closed.done():
            self._closed.set_result(closed)

    def _store_certificate(self, pem: str) -> None:
        identity = self._context.identity
        try:
            has_new_key = identity.store_certificate(pem)
        except (OSError, ValueError) as error:  # the present one is good for weeks; ask again
            log.error("certificate not renewed", extra={"reason": str(error)})
            return
        log.info("certificate renewed", extra={"node": identity.node_id, "new_key": has_new_key})
        if has_new_key:
            self.leaving.set()  # the server drops the old key when the new one has registered

    # ── while registered ──────────────────────────────────────────────────────────────────────

    async def _stay(self, link: LinkDriver, registered: Registered) -> LinkClosed:
        self.registered = registered
        self._confirm_key()
        log.info("registered", extra={"node": registered.node_id, "epoch": registered.epoch})
        tunnels = self.tunnels = Tunnels(
            self._context, registered, self._slots.accept, self._on_change
        )
        self._on_change()
        self._slots.start()
        work = [
            self._loop.create_task(coroutine)
            for coroutine in (
                tunnels.run(),
                self._send_heartbeats(link, registered.heartbeat_seconds),
                self._renew(link, new_keys=registered.new_keys),
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

    def _without_next_key(self, closed: LinkClosed) -> LinkClosed:
        """Return to the key before if the server does not know the next one."""
        unknown = closed.by_peer and closed.code == Code.UNAUTHORISED and not closed.again
        if not unknown or not self._has_next_key:
            return closed
        self._context.identity.drop_next_key()
        return msgspec.structs.replace(closed, again=True)

    def _confirm_key(self) -> None:
        try:
            if self._has_next_key:
                self._context.identity.keys.confirm_next()
        except OSError as error:  # both keys are on the disk: done at the next registration
            log.warning("the node's key before was not deleted", extra={"reason": str(error)})

    async def _send_heartbeats(self, link: LinkDriver, every: float) -> None:
        seq = 0
        while True:
            seq += 1
            link.send(await make_heartbeat(self._context, seq))
            self._on_change()
            await asyncio.sleep(every)

    async def _renew(self, link: LinkDriver, *, new_keys: bool) -> None:
        identity = self._context.identity
        while True:
            if identity.renewal_due(time.time()):
                try:
                    link.send(Renew(identity.request(new_key=new_keys)))
                except (OSError, ValueError) as error:  # a full disk; the present one is good
                    log.error("certificate not renewed", extra={"reason": str(error)})
            await asyncio.sleep(min(RENEWAL_CHECK_SECONDS, identity.lifetime / 20))
