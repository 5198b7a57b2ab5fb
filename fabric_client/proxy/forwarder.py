"""Takes the streams of all tunnels, and starts a request at an engine for each.

The server names an engine and a path; which engine that is, whether it serves that path, and
whether the node must translate, is decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fabric_client.engines.addresses import Address
from fabric_client.engines.discovery import Engine
from fabric_client.proxy.engine_request import EngineRequest
from fabric_client.proxy.preparation import MakeReasoning, Prepare, prepare, prepare_offered
from fabric_client.proxy.request_body import RequestBody
from fabric_client.proxy.response_body import ResponseBody
from fabric_client.proxy.slots import RegistrationSlots, SlotTable
from fabric_client.proxy.throughput import Throughput
from fabric_client.proxy.upload_limit import UploadLimit
from fabric_client.proxy.upstream import Pool
from fabric_client.translation.native_filters import unchanged
from fabric_client.translation.paths import PUBLIC_PATHS
from protocol.aio.node import NodeStream
from protocol.errors import Code
from protocol.messages import RequestHead
from runtime.workers import Workers

UNLIMITED = 2.0**40
"""Bytes per second for answers that have begun under a limit which is no more."""
GRACE_SECONDS = 2.0
"""Time after the start of a pause in which requests are still taken: the server sent them before it
was notified."""


class Forwarder:
    """All requests of a node.  ``accept`` takes the streams of one registration's tunnels."""

    def __init__(
        self,
        find: Callable[[str], Engine | None],
        on_trouble: Callable[[], None] = lambda: None,
        uploads: UploadLimit | None = None,
        reasoning: MakeReasoning | None = None,
    ) -> None:
        """``find`` gets an engine by its name; ``on_trouble`` is called when an engine has failed
        a request; ``reasoning`` makes the filter that every chat answer of an engine goes through
        before any translation."""
        self.slots = SlotTable()
        self.throughput = Throughput()
        self.workers = Workers()
        self.served = 0
        """Requests answered to the end."""
        self._find = find
        self._on_trouble = on_trouble
        self._uploads = uploads
        self._reasoning = reasoning
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Address, Pool] = {}
        self._running: set[EngineRequest] = set()
        self._worked_at = float("-inf")
        self._paused: str | None = None
        self._paused_at = 0.0
        self._idle = asyncio.Event()
        """Set when the last request has ended."""

    @property
    def active(self) -> int:
        """Requests that run, or wait for a slot."""
        return len(self._running)

    def worked_at(self, now: float) -> float:
        """Return when a request last ran here; ``now`` is the loop's time."""
        return now if self._running else self._worked_at

    def pause(self, reason: str | None) -> None:
        """Refuse new requests for the given reason; None takes them again."""
        if reason is not None and self._paused is None:
            self._paused_at = self._loop.time()
        self._paused = reason

    def limit_uploads(self, rate: float | None) -> None:
        """Send at most so many bytes of answers per second; None has no limit.

        Answers that have begun without a limit have none.
        """
        if self._uploads is not None:
            self._uploads.change(UNLIMITED if rate is None else rate)
        if rate is None:
            self._uploads = None
        elif self._uploads is None:
            loop = self._loop
            self._uploads = UploadLimit(rate, clock=loop.time, call_later=loop.call_later)

    async def idle(self) -> None:
        """Wait until nothing runs."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def accept(
        self, registration: RegistrationSlots, stream: NodeStream, head: RequestHead, ended: bool
    ) -> EngineRequest | None:
        """Start a request; ``protocol.aio.node.Accept`` once ``registration`` is bound."""
        path = head.path
        if head.method != "POST" or path not in PUBLIC_PATHS:
            stream.reset(Code.FORBIDDEN, f"{head.method} {path} is not served here")
            return None
        if self._paused is not None and self._loop.time() - self._paused_at > GRACE_SECONDS:
            stream.reset(Code.REFUSED, self._paused)
            return None
        engine = self._find(head.engine)
        if engine is None:
            stream.reset(Code.REFUSED, f"no engine '{head.engine}' here")
            return None
        if path not in engine.path_handlers:
            stream.reset(Code.REFUSED, f"engine '{head.engine}' does not serve {path}")
            return None
        slot = self.slots.claim(engine, registration)
        if slot is None:
            stream.reset(Code.REFUSED, f"all slots of engine '{head.engine}' are taken")
            return None
        request = EngineRequest(
            self,
            stream,
            slot,
            self._pool(engine),
            RequestBody(head, ended, self._preparation(engine, head)),
            ResponseBody(stream, self.throughput, self._uploads, self._loop.time),
        )
        self._running.add(request)
        if slot.held:
            request.begin()
        else:
            self.slots.wait(slot, request.begin)
        return request

    def close(self) -> None:
        """Break everything off; the engines see their clients hang up."""
        for request in list(self._running):
            request.fail(Code.DRAINING, "the node is shutting down")
        for pool in self._pools.values():
            pool.close()
        if self._uploads is not None:
            self._uploads.close()
        self.workers.close()

    # ── called by the requests ────────────────────────────────────────────────────────────────

    def on_ended(self, request: EngineRequest, *, answered: bool) -> None:
        self._running.discard(request)
        self._worked_at = self._loop.time()
        self.served += answered
        if not self._running:
            self._idle.set()
        self.slots.release(request.slot)

    def on_engine_trouble(self) -> None:
        self._on_trouble()

    def _preparation(self, engine: Engine, head: RequestHead) -> Prepare | None:
        """Return what prepares the request; None if it goes to the engine as it comes."""
        translate = engine.path_handlers[head.path]
        if engine.must_check_names():
            handler = translate or unchanged(head.path)
            return partial(prepare_offered, engine.offered, handler, self._reasoning, head)
        return translate and partial(prepare, translate, self._reasoning, head)

    def _pool(self, engine: Engine) -> Pool:
        address = engine.address
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = Pool(address, self._loop)
        pool.key = engine.key  # another one, perhaps, since the settings were read again
        return pool
