"""Keeps the tunnels of one registration open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fabric_client.identity import explain
from fabric_client.registration.context import NodeContext
from fabric_client.registration.dialling import NotReached, dial_server
from fabric_client.registration.pace import Pace
from protocol.aio.node import Accept, NodeTunnel
from protocol.errors import Code
from protocol.messages import Registered
from protocol.names import TUNNEL_ALPN, tunnels_name
from protocol.tunnel.resume import KEEP_SECONDS

log = logging.getLogger("fabric.tunnels")

LEAVE_SECONDS = 60.0


class Tunnels:
    """Dials as many tunnels as the server wants, and each again when it is lost.

    Owns them (``protocol.aio.node.NodeTunnelOwner``).  Run ``run`` for as long as the registration
    lasts; afterwards tunnels that still carry streams live on until those have ended.

    What a lost tunnel leaves behind waits ``KEEP_SECONDS`` in the resume table for the server to
    ask for it on another tunnel, which may be one of the next registration.
    """

    def __init__(
        self,
        context: NodeContext,
        registered: Registered,
        accept: Accept,
        on_change: Callable[[], None],
    ) -> None:
        self._context = context
        self._registered = registered
        self._accept = accept
        self._on_change = on_change
        self._wanted = asyncio.Queue[None]()
        self._count = 0
        self._redials = True
        self._open: dict[NodeTunnel, asyncio.Future[str]] = {}
        self._none_since = asyncio.get_running_loop().time()

    @property
    def up(self) -> int:
        return len(self._open)

    def seconds_without(self, now: float) -> float:
        """Return for how long none has been open; ``now`` is of the loop's clock."""
        return 0.0 if self._open else now - self._none_since

    def keep(self, count: int) -> None:
        """Keep at least so many open from now on."""
        while self._count < count:
            self._count += 1
            self._wanted.put_nowait(None)

    def stop_redialing(self) -> None:
        """Let tunnels that are lost from now on be: another server answers on the port."""
        self._redials = False

    async def run(self) -> None:
        """Keep the tunnels open until cancelled."""
        self.keep(self._registered.tunnels)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._wanted.get()
                    group.create_task(self._keep_one())
        finally:
            self.drain("the link is closed")

    def drain(self, reason: str) -> None:
        """Take no new streams; each tunnel closes behind its last one."""
        for tunnel in list(self._open):
            tunnel.drain(reason, LEAVE_SECONDS)

    def challenge(self) -> None:
        """Give those up whose server does not respond at once: the network has changed."""
        for tunnel in list(self._open):
            tunnel.challenge()

    def close(self, reason: str) -> None:
        for tunnel in list(self._open):
            tunnel.close(Code.NONE, reason)

    async def _keep_one(self) -> None:
        loop = asyncio.get_running_loop()
        pace = Pace(self._context.rng, self._context.network)
        while self._redials:
            began = loop.time()
            unanswered = False
            try:
                reason = await self._one(loop)
            except (OSError, TimeoutError) as error:
                reason = explain(error)
                unanswered = isinstance(error, NotReached) and error.unanswered
            lasted = loop.time() - began
            wait = pace.next_wait(lasted, unanswered=unanswered)
            level = min(pace.log_level(reason, lasted), logging.INFO)
            log.log(level, "tunnel down", extra={"reason": reason, "again_in": round(wait, 1)})
            await pace.sleep(wait)

    async def _one(self, loop: asyncio.AbstractEventLoop) -> str:
        """Open a tunnel and stay until it is closed; returns why it was."""
        async with self._context.network.interrupts():
            tunnel, _, _ = await dial_server(
                lambda: self._tunnel(loop),
                self._context,
                (self._registered.proxy_port,),
                TUNNEL_ALPN,
                server_name=tunnels_name(self._registered.server_name),
            )
        closed = self._open[tunnel] = loop.create_future()
        if tunnel.connection.closed:
            del self._open[tunnel]
            return "closed at once"
        tunnel.hello(self._registered.session)
        self._on_change()
        reason = await asyncio.shield(closed)
        return reason if tunnel.error is None else explain(tunnel.error)

    def _tunnel(self, loop: asyncio.AbstractEventLoop) -> NodeTunnel:
        rng, accept = self._context.rng, self._accept
        if not self._registered.resume:
            return NodeTunnel(self, loop, rng=rng, accept=accept)
        # Drawn, not counted: a server may still remember a tunnel of the process before this one.
        number = rng.randrange(1, 2**63)
        return NodeTunnel(
            self,
            loop,
            rng=rng,
            accept=accept,
            number=number,
            resume_table=self._context.resume_table,
        )

    # ── called by a tunnel ────────────────────────────────────────────────────────────────────

    def on_drain(self, tunnel: NodeTunnel, reason: str, seconds: float) -> None:
        log.debug("tunnel drains", extra={"reason": reason})

    def on_closed(self, tunnel: NodeTunnel, code: int, reason: str) -> None:
        if tunnel.connection.number:
            loop = asyncio.get_running_loop()
            loop.call_later(KEEP_SECONDS, tunnel.abandon, "not resumed in time")
        closed = self._open.pop(tunnel, None)
        if closed is not None and not self._open:
            self._none_since = asyncio.get_running_loop().time()
        if closed is not None:
            closed.set_result(f"{Code.name_of(code)}: {reason}" if code else reason)
            self._on_change()
