"""A request's way on the node: from its stream to the engine, and the answer's way back.

The server names an engine and a path; where that engine is, that the path is one of a few, and
whether the node must translate, is decided here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fabric_client.engines.addresses import Address
from fabric_client.engines.discovery import Engine
from fabric_client.proxy.buffered_exchange import BufferedEngineRequest
from fabric_client.proxy.exchange import EngineRequest
from fabric_client.proxy.slots import RegistrationSlots
from fabric_client.proxy.throughput import Throughput
from fabric_client.proxy.upload_limit import UploadLimit
from fabric_client.proxy.upstream import Pool
from fabric_client.translation import ResponseFilter
from fabric_client.translation.paths import PUBLIC_PATHS
from protocol.aio.tunnel import Stream
from protocol.errors import Code
from protocol.messages import RequestHead

GRACE_SECONDS = 2.0
"""For so long after a pause has begun, requests are still taken: they were sent before word of it
reached the server."""


class Forwarder:
    """Takes the streams of all tunnels, each by way of its registration's ``RegistrationSlots``."""

    def __init__(
        self,
        find: Callable[[str], Engine | None],
        on_trouble: Callable[[], None] = lambda: None,
        uploads: UploadLimit | None = None,
        reasoning: Callable[[], ResponseFilter] | None = None,
    ) -> None:
        """``on_trouble`` is called when an engine has failed a request; ``uploads`` holds answers
        to the most that this node sends; ``reasoning`` makes what every chat answer of an engine
        goes through, before any translation."""
        self._find = find
        self.loop = asyncio.get_running_loop()
        self.on_trouble = on_trouble
        self.uploads = uploads
        self.reasoning = reasoning
        self._pools: dict[Address, Pool] = {}
        self.running: set[EngineRequest] = set()
        self.served = 0
        self.speed = Throughput()
        self._shares: list[RegistrationSlots] = []
        self._line: deque[EngineRequest] = deque()
        """Taken, but waiting for a slot that another registration's request holds."""
        self._worked_at = float("-inf")
        self._paused: str | None = None
        self._paused_at = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        return len(self.running)

    def worked_at(self, now: float) -> float:
        """When a request last ran here, on the loop's clock."""
        return now if self.running else self._worked_at

    def pause(self, problem: str | None) -> None:
        """Take nothing new, for the reason that is told; None: again."""
        if problem is not None and self._paused is None:
            self._paused_at = self.loop.time()
        self._paused = problem

    async def idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    def share(self, on_change: Callable[[], None]) -> RegistrationSlots:
        """For one registration more; ``on_change``: what others hold may have changed."""
        share = RegistrationSlots(self, on_change)
        self._shares.append(share)
        return share

    def tidy_shares(self) -> None:
        self._shares = [share for share in self._shares if share.open or share.running]

    def engines_in_use(self) -> set[Engine]:
        return {forward.engine for forward in self.running if forward.begun}

    def took(self, forward: EngineRequest) -> None:
        self.running.add(forward)
        self._idle.clear()

    def began(self) -> None:
        if len(self._shares) > 1:
            self._tell_shares()

    def ended(self, forward: EngineRequest) -> None:
        self.running.discard(forward)
        self._worked_at = self.loop.time()
        if not self.running:
            self._idle.set()
        if self._line:
            self._begin_next(forward)
        if len(self._shares) > 1:
            self.tidy_shares()
            self._tell_shares()

    def _begin_next(self, ended: EngineRequest) -> None:
        if not ended.begun:
            self._line.remove(ended)
            return
        engine = ended.engine
        for forward in self._line:
            if forward.engine is engine and engine.active < max(1, engine.slots):
                self._line.remove(forward)
                forward.begin()
                return

    def _tell_shares(self) -> None:
        for share in self._shares:
            if share.open:
                share.on_change()

    def accept(
        self, stream: Stream, head: RequestHead, ended: bool, share: RegistrationSlots
    ) -> EngineRequest | None:
        if head.method != "POST" or head.path not in PUBLIC_PATHS:
            stream.reset(Code.FORBIDDEN, f"{head.method} {head.path} is not served here")
            return None
        if self._paused is not None:
            late = self.loop.time() - self._paused_at
            if late > GRACE_SECONDS:
                stream.reset(Code.REFUSED, self._paused)
                return None
        engine = self._find(head.engine)
        if engine is None:
            stream.reset(Code.REFUSED, f"no engine '{head.engine}' here")
            return None
        if head.path not in engine.path_handlers:
            stream.reset(Code.REFUSED, f"engine '{head.engine}' can't be asked {head.path}")
            return None
        slots = max(1, engine.slots)
        full = engine.active >= slots
        if full and share.running_at(engine) + self._waiting(engine, share) >= slots:
            stream.reset(Code.REFUSED, "all its slots are taken")
            return None
        pool = self._pool(engine.address)
        translate = engine.path_handlers[head.path]
        if translate is None:
            forward = EngineRequest(self, stream, head, engine, pool, ended, share)
        else:
            forward = BufferedEngineRequest(
                self, stream, head, engine, pool, ended, share, translate
            )
        self.took(forward)
        if full:  # of others' requests, of which its server had not heard yet
            self._line.append(forward)
        else:
            forward.begin()
        return forward

    def _waiting(self, engine: Engine, share: RegistrationSlots) -> int:
        return sum(one.engine is engine and one.share is share for one in self._line)

    def close(self) -> None:
        """Break everything off; the engines see their clients hang up."""
        for forward in list(self.running):
            forward.fail(Code.DRAINING, "the node is shutting down")
        for pool in self._pools.values():
            pool.close()
        if self.uploads is not None:
            self.uploads.close()

    def _pool(self, address: Address) -> Pool:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = Pool(address, self.loop)
        return pool
