"""Driver of a state machine on an asyncio transport: bytes in, bytes out, and one timer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from protocol.aio.tls import tune

log = logging.getLogger("fabric.wire")

CLOSING_SECONDS = 5.0
"""Time in which a closed connection may send its last frames."""


class Machine(Protocol):
    """Interface that ``tunnel.connection.Connection`` and ``control.link.Link`` share."""

    closed: bool
    deadline: float

    def has_output(self) -> bool: ...
    def receive(self, data: bytes, now: float) -> None: ...
    def challenge(self, now: float) -> None: ...
    def lost(self, reason: str) -> None: ...
    def handle_timer(self, now: float) -> None: ...
    def data_to_send(self) -> list[bytes | memoryview]: ...
    def events(self) -> Sequence[Any]: ...


class Driver:
    """An ``AsyncioProtocol`` that writes once per turn of the loop, however many the commands.

    Subclasses give commands to the machine and call ``flush_soon``.
    """

    def __init__(self, machine: Machine, loop: asyncio.AbstractEventLoop) -> None:
        self._machine = machine
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._flush_due = False
        self._ending = False
        self._inbox: deque[Any] = deque()
        self._on: dict[type, Callable[[Any], None]] = {}
        """Handlers of the machine's events, by type."""
        self._armed = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self.peer = ""
        """Address of the other side, for logs; when it is not set before, the transport's."""
        self.closing_seconds = CLOSING_SECONDS
        self.error: Exception | None = None
        """Exception that ended the transport, such as the peer's TLS alert."""
        self.among: set[Driver] | None = None
        """Set that has this driver from the beginning of its transport to the end."""
        self.on_lost: Callable[[], None] = _do_nothing
        """Called when the transport is closed and its descriptor free."""

    def _on_defect(self, event: Any) -> None:
        """Handle that the handler of an event has raised, in its ``except`` clause."""
        raise NotImplementedError

    def peer_certificate(self) -> dict[str, Any]:
        """Return ``ssl.SSLSocket.getpeercert``; empty without TLS."""
        if self._transport is None:
            return {}
        return self._transport.get_extra_info("peercert") or {}

    def peer_certificate_der(self) -> bytes:
        """Return the peer's certificate in DER; empty without TLS."""
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        return b"" if tls is None else tls.getpeercert(binary_form=True) or b""

    @property
    def closed(self) -> bool:
        """Return whether the last frames are sent, or on their way."""
        return self._machine.closed

    def challenge(self) -> None:
        """Give the peer up unless it responds at once: the path to it may be gone."""
        self._machine.challenge(self._loop.time())
        self.flush_soon()

    def hang_up(self) -> None:
        """Drop the connection at once, without a last frame."""
        if self._transport is not None:
            self._transport.abort()

    # ── asyncio calls these ───────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        tune(transport)
        peer = transport.get_extra_info("peername")
        if not self.peer:
            self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "in process"
        self._arm()
        self.flush_soon()
        if self.among is not None:
            self.among.add(self)

    def data_received(self, data: bytes) -> None:
        self._machine.receive(data, self._loop.time())
        self._deliver_all()
        if not self._flush_due and (self._machine.has_output() or self._machine.closed):
            self.flush_soon()
        if self._machine.deadline < self._armed:
            self._arm()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.error = exc
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.among is not None:
            self.among.discard(self)
        self.on_lost()
        self._machine.lost(f"connection lost: {exc}" if exc else "connection closed")
        self._deliver_all()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.flush_soon()

    # ── the turn ──────────────────────────────────────────────────────────────────────────────

    def flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        machine, transport = self._machine, self._transport
        if transport is None:
            return
        while not self._paused or machine.closed:  # the last frames don't wait
            pieces = machine.data_to_send()
            if not pieces:
                break
            transport.write(b"".join(pieces))
            if not machine.has_output():  # mostly: costs less than to ask for nothing
                break
        self._deliver_all()
        if machine.deadline < self._armed:
            self._arm()
        if not machine.closed or self._ending:
            return
        if machine.has_output():  # closed by a handler just now
            self.flush_soon()
            return
        self._ending = True
        if not transport.is_closing():  # asyncio's TLS can't be aborted after a second close
            transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self.closing_seconds, transport.abort)

    def _deliver_all(self) -> None:
        # A handler may close the machine, which delivers again from within: earlier events are
        # still delivered first, and none after the last one.
        events = self._machine.events()
        if not events:
            return
        inbox = self._inbox
        inbox.extend(events)
        while inbox:
            event = inbox.popleft()
            try:
                self._on[type(event)](event)
            except Exception:
                self._on_defect(event)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = self._machine.deadline
        if self._armed != float("inf") and self._transport is not None:
            self._timer = self._loop.call_at(self._armed, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._machine.handle_timer(self._loop.time())
        self._deliver_all()
        self._arm()
        self.flush_soon()


def _do_nothing() -> None:
    pass
