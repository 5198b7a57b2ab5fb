"""Questions between servers, for what each of them alone knows: what runs there, what is connected.

A server answers with rows of its own, never with those of others, so a question makes one hop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Self

from msgspec import Raw, Struct

from fabric_server.mesh.forwarded import NO_FIGURES
from fabric_server.mesh.tunnels import OpeningTunnel
from fabric_server.mesh.waiting import PeerLost
from protocol import mesh, messages
from protocol.aio.node import NodeStream
from protocol.aio.server import ServerStream
from protocol.errors import Code
from protocol.mesh import ForwardedRequest, ForwardedResponse, Unpacker, View
from protocol.messages import UNREADABLE, Figures, ResponseHead

log = logging.getLogger("fabric.mesh")

MAX_QUESTIONS = 32
"""Questions to a server at once, with those that it has not answered in time and not given up."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one server to another."""

    view: str
    """The name of the view, or of what is to be done."""
    about: str = ""
    """The id of one request or node; empty: all."""
    by: str = ""
    """The id of the management key for which it is asked."""

    def head(self) -> ForwardedRequest:
        return ForwardedRequest(
            self.about, "", "GET", self.view, [], 0, 0, purpose=mesh.ASK, key_id=self.by
        )

    @classmethod
    def of(cls, head: ForwardedRequest) -> Self:
        return cls(head.path, head.request_id, head.key_id)


Answer = Callable[[Question], Awaitable[Iterable[Struct]]]
"""Returns this server's own rows; none for a question that it does not know."""


def make_view(rows: Iterable[Struct]) -> View:
    """Encode rows, as many as a view may have."""
    encoded, size = list[Raw](), 0
    for row in rows:
        one = messages.encode(row)
        size += len(one)
        if len(encoded) == mesh.MAX_VIEW_ROWS or size > mesh.MAX_VIEW:
            return View(encoded, complete=False)
        encoded.append(Raw(one))
    return View(encoded)


class Answering:
    """The answer to another server's question; the handler of its stream."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: NodeStream,
        answer: Answer,
        question: Question,
    ) -> None:
        """One that is not awaited any more when it is read is not answered, and does nothing."""
        self._stream = stream
        self._task = loop.create_task(self._answer(answer, question))

    async def _answer(self, answer: Answer, question: Question) -> None:
        stream = self._stream
        try:
            view = make_view(await answer(question))
        except Exception:
            log.exception("a question of another server was not answered: report this defect")
            stream.reset(Code.INTERNAL, "it failed to answer: see its log")
            return
        stream.send_head(ForwardedResponse(200, []))
        stream.send(mesh.pack(view))
        stream.end(NO_FIGURES)

    # ── events of the stream ──────────────────────────────────────────────────────────────────

    def on_data(self, data: bytes, ended: bool) -> None:
        self._stream.consumed(len(data))

    def on_writable(self) -> None:
        """Do nothing: the whole answer is sent at once."""

    def on_reset(self, code: int, reason: str) -> None:
        self._task.cancel()
        self._stream.confirm_reset()


class Asking:
    """A question of this server; the handler of its stream."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_over: Callable[[Asking], None]) -> None:
        """``on_over`` is called when the stream has ended."""
        self.view: asyncio.Future[View] = loop.create_future()
        """The answer, or ``PeerLost``."""
        self.stream: ServerStream
        self._on_over = on_over
        self._unpacker = Unpacker[View](View)

    def on_head(self, head: ResponseHead) -> None:
        """Do nothing: the view follows."""

    def on_data(self, data: bytes, ended: bool) -> None:
        self.stream.consumed(len(data))
        try:
            for view in self._unpacker.feed(data):
                if not self.view.done():
                    self.view.set_result(view)
        except UNREADABLE as error:
            self._fail(f"its answer can't be read: {error}")

    def on_end(self, figures: Figures) -> None:
        self._on_over(self)
        self._fail("it has ended its answer early")

    def on_reset(self, code: int, reason: str) -> None:
        self._on_over(self)
        self._fail(reason or "its connection is lost")

    def on_stuck(self) -> None:
        """Do nothing: the question has a time limit."""

    def on_writable(self) -> None:
        """Do nothing: the question is sent at once."""

    def _fail(self, reason: str) -> None:
        if not self.view.done():
            self.view.set_exception(PeerLost(reason))


class Questions:
    """The questions that go to one other server and come from it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Answer) -> None:
        self._loop = loop
        self._answer = answer
        self._open = set[Asking]()
        """Questions of this server whose streams are open there."""

    async def ask(self, tunnel: OpeningTunnel | None, question: Question, seconds: float) -> View:
        """Return the other server's view.  Raises ``PeerLost`` with the reason if there is none in
        time."""
        if tunnel is None or not tunnel.connection.usable:
            raise PeerLost("it leaves or is not connected yet, and is asked nothing")
        if len(self._open) == MAX_QUESTIONS:
            raise PeerLost(f"it has {MAX_QUESTIONS} questions to answer already")
        asking = Asking(self._loop, self._open.discard)
        stream = asking.stream = tunnel.forward(question.head(), asking, None, ended=True)
        self._open.add(asking)
        try:
            async with asyncio.timeout(seconds):
                return await asking.view
        except TimeoutError:
            raise PeerLost(f"it has not answered within {seconds:g} s") from None
        finally:
            if asking in self._open:
                stream.reset(Code.CANCELLED, "the answer is not awaited any more")

    def accept(self, stream: NodeStream, head: ForwardedRequest) -> Answering:
        """Answer a question of the other server."""
        return Answering(self._loop, stream, self._answer, Question.of(head))
