"""Requests that wait at another server, in its queue: what both sides have of them.

The waiting has a stream of its own.  When the home has a slot it holds it for a moment, in which
the request itself is to come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fabric_server.dialects.errors import ApiError
from fabric_server.mesh.forwarded import NO_FIGURES
from fabric_server.nodes.node import Engine
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import Choice, forwarded_requirements
from protocol import mesh
from protocol.aio.node import NodeStream
from protocol.aio.server import ServerStream
from protocol.errors import Code
from protocol.mesh import (
    Declined,
    ForwardedRequest,
    ForwardedResponse,
    Granted,
    Queued,
    Unpacker,
    WaitMessage,
)
from protocol.messages import UNREADABLE, Figures, ResponseHead

log = logging.getLogger("fabric.mesh")

GRANT_SECONDS = 5.0
"""How long a slot is held for a request that has waited."""
POSITION_SECONDS = 1.0
"""Interval at which a position is told again, if it has changed."""


class Waiting:
    """A request of another server that waits here; the handler of its stream."""

    def __init__(
        self,
        upstream: UpstreamContext,
        stream: NodeStream,
        head: ForwardedRequest,
        row_of: Callable[[Engine], str],
        on_slot: Callable[[str, int], None],
        on_over: Callable[[str], None],
    ) -> None:
        """``on_slot`` is called with the row in which it has got a slot (1) or left it (-1),
        ``on_over`` with its request's id when nothing is left of it."""
        self._upstream = upstream
        self._stream = stream
        self._head = head
        self._row_of = row_of
        self._on_slot = on_slot
        self._on_over = on_over
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None
        self._choice: Choice | None = None
        self._row = ""
        """The row of the engine, when that was chosen."""
        self._stopped = False
        stream.send_head(ForwardedResponse(200, []))
        self._task = upstream.loop.create_task(self._wait())
        self._tell_position()

    async def _wait(self) -> None:
        upstream, head, stream = self._upstream, self._head, self._stream
        deadline = upstream.loop.time() + head.deadline_ms / 1000
        requirements = forwarded_requirements(head)
        try:
            choice = await upstream.admission.admit(requirements, deadline, head.request_id)
        except ApiError as error:
            told = Declined(error.status, error.code, error.message, error.type, error.retry_after)
            stream.send(mesh.pack(told))
            self._end()
            return
        except Exception:
            log.exception(
                "a forwarded request can't wait here: report this defect",
                extra={"request": head.request_id},
            )
            self._end()
            return
        self._choice = choice
        self._row = self._row_of(choice.engine)
        self._on_slot(self._row, 1)
        if self._stopped:
            self._leave_slot()
            return
        stream.send(mesh.pack(Granted(self._row)))
        self._set_timer(GRANT_SECONDS, self._end)

    def take(self) -> Choice | None:
        """Return the slot, for the request itself; None if there is none any more."""
        choice, self._choice = self._choice, None
        if choice is not None:
            self._on_slot(self._row, -1)
            self._end()
        return choice

    def _tell_position(self) -> None:
        position = self._upstream.admission.position(self._head.request_id)
        if position is not None and position != self._told:
            self._told = position
            self._stream.send(mesh.pack(Queued(position)))
        self._set_timer(POSITION_SECONDS, self._tell_position)

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._upstream.loop.call_later(seconds, then)

    def _end(self) -> None:
        self._stream.end(NO_FIGURES)
        self._leave_slot()

    def _leave_slot(self) -> None:
        choice, self._choice = self._choice, None
        if choice is not None:
            self._on_slot(self._row, -1)
            self._upstream.registry.release(choice.engine, choice.key_id)
        if self._timer is not None:
            self._timer.cancel()
        self._on_over(self._head.request_id)

    # ── events of the stream ──────────────────────────────────────────────────────────────────

    def on_data(self, data: bytes, ended: bool) -> None:
        self._stream.consumed(len(data))

    def on_writable(self) -> None:
        """Do nothing: what it says is little."""

    def on_reset(self, code: int, reason: str) -> None:
        self._stopped = True
        self._task.cancel()  # admission gives a slot back that it got in the same turn
        self._leave_slot()
        self._stream.confirm_reset()


class PeerLost(Exception):
    """The other server is gone, or leaves."""


class WaitingElsewhere:
    """A request of this server that waits at another; the handler of its stream."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.granted: asyncio.Future[str] = loop.create_future()
        """The row of the digest whose slot it has got; or ``ApiError`` or ``PeerLost``."""
        self.position: int | None = None
        """The position that was told last."""
        self.stream: ServerStream
        self._unpacker = Unpacker[WaitMessage](WaitMessage, limit=65_536)

    def on_head(self, head: ResponseHead) -> None:
        """Do nothing: messages follow."""

    def on_data(self, data: bytes, ended: bool) -> None:
        self.stream.consumed(len(data))
        try:
            for message in self._unpacker.feed(data):
                self._on_message(message)
        except UNREADABLE as error:
            self._fail(PeerLost(f"a message can't be read: {error}"))
            self.stream.reset(Code.PROTOCOL, "a message can't be read")

    def _on_message(self, message: WaitMessage) -> None:
        match message:
            case Queued(position=position):
                self.position = position
            case Granted(row=row):
                if not self.granted.done():
                    self.granted.set_result(row)
            case Declined() as told:
                error = ApiError(
                    told.status,
                    told.code,
                    told.message,
                    type=told.kind,
                    retry_after=told.retry_after,
                )
                self._fail(error)

    def on_end(self, figures: Figures) -> None:
        self._fail(PeerLost("the other server has ended the wait"))

    def on_reset(self, code: int, reason: str) -> None:
        self._fail(PeerLost(reason))

    def on_stuck(self) -> None:
        """Do nothing: it is lost if the other server stays silent."""

    def on_writable(self) -> None:
        """Do nothing: it says nothing."""

    def _fail(self, error: Exception) -> None:
        if not self.granted.done():
            self.granted.set_exception(error)
