"""A control link on a transport."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Any, Protocol, get_args

from protocol.aio.driver import Driver
from protocol.control.link import Link, LinkClosed
from protocol.errors import Code
from protocol.messages import Message

log = logging.getLogger("fabric.link")


class LinkOwner(Protocol):
    def on_message(self, link: LinkDriver, message: Message) -> None: ...
    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None: ...


class LinkDriver(Driver):
    """Asyncio protocol of port 17000, on both sides."""

    def __init__(self, owner: LinkOwner, loop: asyncio.AbstractEventLoop, *, rng: Random) -> None:
        self.link = Link(now=loop.time(), rng=rng)
        super().__init__(self.link, loop)
        self.owner = owner
        self._on |= dict.fromkeys(get_args(Message), self._on_message)
        self._on[LinkClosed] = self._on_closed

    def __repr__(self) -> str:
        return f"<LinkDriver {self.peer} {self.link!r}>"

    def send(self, message: Message) -> None:
        self.link.send(message)
        self.flush_soon()

    def close(self, code: int, reason: str, *, again: bool = True) -> None:
        """Close with ``Refused``; ``on_closed`` of the owner is called before this returns."""
        self.link.close(code, reason, again=again)
        self._deliver_all()
        self.flush_soon()

    def _on_message(self, message: Message) -> None:
        self.owner.on_message(self, message)

    def _on_closed(self, closed: LinkClosed) -> None:
        self.owner.on_closed(self, closed)

    def _on_defect(self, event: Any) -> None:
        log.exception("link owner failed", extra={"peer": self.peer})
        self.link.close(Code.INTERNAL, "defect")
        self.flush_soon()
