"""Requests that other servers have forwarded to this one, their home: it chooses the engine, and
passes bytes between the two tunnels as they are.

Credit goes through: what the other server does not take, the node is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric_server.mesh.judgement import Judgement
from fabric_server.nodes.node import Engine
from fabric_server.proxy.attempt import CONFIRM_SECONDS
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import Choice, Opener
from fabric_server.routing.criteria import Requirements
from protocol import messages
from protocol.aio.node import NodeStream
from protocol.aio.server import ServerStream
from protocol.errors import Code, LocalError
from protocol.mesh import ForwardedRequest, ForwardedResponse
from protocol.messages import Figures, RequestHead, ResponseHead
from protocol.tunnel.frames import MAX_HEAD

NO_FIGURES = Figures(0.0, 0.0, 0)


class ForwardedWork:
    """One forwarded request; the handler of its stream at the node."""

    __slots__ = (
        "_choice",
        "_failure",
        "_given_up",
        "_head",
        "_held",
        "_judgement",
        "_node_stream",
        "_on_over",
        "_opening",
        "_over",
        "_stream",
        "_unsent",
        "_untaken",
        "_upstream",
        "deadline",
    )

    def __init__(
        self,
        upstream: UpstreamContext,
        stream: NodeStream,
        requirements: Requirements,
        choice: Choice,
        on_over: Callable[[Engine], None],
    ) -> None:
        """``choice`` holds a slot; ``on_over`` is called when it is free again."""
        self._upstream = upstream
        self._stream = stream
        self._choice = choice
        self._judgement = Judgement(upstream, requirements, choice)
        self._on_over = on_over
        self._over = False
        """The slot is free again."""
        self._node_stream: ServerStream | None = None
        """None before the beginning of the body has come: it leaves with the stream's opening."""
        self._opening: tuple[Opener, RequestHead]
        self._unsent = 0
        """Bytes of the request's body that the node's tunnel has no room for yet."""
        self._untaken = 0
        """Bytes of the answer that the other server has not taken yet."""
        self._given_up: int | None = None
        """The code with which the other server has ended it."""
        self._failure: tuple[int, str] | None = None
        """Why the node was told to stop, if not by the other server."""
        self._head: ForwardedResponse | None = None
        """The answer's."""
        self._held: bytes | None = None
        """The first piece of an answer that is no stream, while it and the head are kept: mostly
        that is all of it, and leaves at once."""
        self.deadline = float("inf")

    def begin(self, opener: Opener, head: ForwardedRequest, *, ended: bool) -> None:
        """Ask the engine; the body is still to come, unless ``ended``."""
        engine = self._choice.engine
        self._judgement.begin(head.deadline_ms)
        own = RequestHead(
            head.request_id,
            engine.name,
            head.method,
            head.path,
            head.headers,
            head.body_size,
            head.deadline_ms,
            head.attempt,
        )
        self._opening = opener, own
        if ended:
            self._open(b"", ended=True)

    def _open(self, body: bytes, *, ended: bool) -> None:
        opener, head = self._opening
        self._judgement.is_asked = ended
        try:
            self._node_stream = opener.open(head, self, body, ended=ended)
        except LocalError as error:  # closed a moment ago
            self.on_reset(Code.LOST, str(error))

    # ── what comes from the other server ──────────────────────────────────────────────────────

    def on_body(self, data: bytes, ended: bool) -> None:
        if self._node_stream is None:
            self._stream.consumed(len(data))
            self._open(data, ended=ended)
            return
        self._judgement.is_asked = ended
        if self._node_stream.send(data, ended):
            self._stream.consumed(len(data))
        else:
            self._unsent += len(data)

    def on_answer_taken(self) -> None:
        count, self._untaken = self._untaken, 0
        if count and self._node_stream is not None:
            self._node_stream.consumed(count)

    def give_up(self, code: int, reason: str) -> None:
        """Have the node stop; the other server is told when it has."""
        self._given_up = code
        if self._node_stream is None:
            self.on_reset(code, reason)
            return
        self._stop_node(code, reason)

    def expire(self, now: float) -> None:
        assert self._node_stream is not None
        self._node_stream.give_up("a RESET was not confirmed in time")

    # ── what comes from the node ──────────────────────────────────────────────────────────────

    def on_writable(self) -> None:
        count, self._unsent = self._unsent, 0
        if count:
            self._stream.consumed(count)

    def on_stuck(self) -> None:
        """Do nothing: the node's other tunnel takes the stream over, or it is lost soon."""

    def on_head(self, head: ResponseHead) -> None:
        if self._given_up is not None:
            return
        engine = self._choice.engine
        answer = ForwardedResponse(head.status, head.headers, engine.node.id, engine.name)
        if len(messages.encode(answer)) > MAX_HEAD:
            self._fail(Code.PROTOCOL, "the answer's head is too large to be passed on")
            return
        self._head = answer
        self._judgement.on_head(head)
        if self._judgement.streamed:
            self._stream.send_head(answer)
        else:
            self._held = b""

    def _fail(self, code: Code, reason: str) -> None:
        """Have the node stop; the other server is told the reason when it has."""
        self._failure = code, reason
        self._stop_node(code, reason)

    def _stop_node(self, code: int, reason: str) -> None:
        """Have the node stop: ``on_reset`` or ``on_end`` reports that it has."""
        assert self._node_stream is not None
        self.deadline = self._upstream.loop.time() + CONFIRM_SECONDS
        self._upstream.deadlines.add(self)
        self._node_stream.reset(code, reason)

    def on_data(self, data: bytes, ended: bool) -> None:
        held, node_stream = self._held, self._node_stream
        assert node_stream is not None
        if self._head is None:  # of an answer that is given up
            node_stream.consumed(len(data))
            return
        self._judgement.on_data(data)
        if held is not None:
            if not held and self._given_up is None:
                self._held = data
                node_stream.consumed(len(data))
                return
            self._send_held()
        if self._stream.send(data):
            node_stream.consumed(len(data))
        else:
            self._untaken += len(data)

    def _send_held(self) -> None:
        held, self._held = self._held, None
        if held is not None and self._head is not None:
            self._stream.send_head(self._head)
            self._stream.send(held)

    def on_end(self, figures: Figures) -> None:
        head, held = self._head, self._held
        if head is None or self._given_up is not None:  # END has crossed the RESET
            self.on_reset(Code.NONE, "")
            return
        self._release()
        self._judgement.take_end()
        if held is None:
            self._stream.end(figures)
        else:
            self._stream.answer(head, held, figures)

    def on_reset(self, code: int, reason: str) -> None:
        stream = self._stream
        if self._over:  # a defect while its end was told
            stream.reset(code, reason)
            return
        self._release()
        code, reason = self._failure or (code, reason)
        try:
            self._tell_reset(code, reason)
        except Exception:  # the other server must not wait for ever
            stream.reset(Code.INTERNAL, "defect")
            raise

    def _tell_reset(self, code: int, reason: str) -> None:
        stream, engine = self._stream, self._choice.engine
        if self._given_up is not None:
            self._judgement.take_given_up(self._given_up, reason)
            stream.confirm_reset()
            return
        self._judgement.take_reset(code, reason)
        if self._head is not None:
            self._send_held()
            stream.reset(code, reason)
            return
        # RESET has no room for the engine's name, without which it would be asked again.
        code, reason = code or Code.INTERNAL, reason[:1000]
        head = ForwardedResponse(503, [], engine.node.id, engine.name, code, reason)
        stream.send_head(head)
        stream.end(NO_FIGURES)

    def _release(self) -> None:
        """Give the slot back: nothing runs at the node any more.  Called once."""
        self._over = True
        upstream, choice = self._upstream, self._choice
        upstream.deadlines.discard(self)
        self._on_over(choice.engine)
        upstream.registry.release(choice.engine, choice.key_id)


class ForwardedBody:
    """The handler of a forwarded request's stream from the other server."""

    __slots__ = ("_work",)

    def __init__(self, work: ForwardedWork) -> None:
        self._work = work

    def on_data(self, data: bytes, ended: bool) -> None:
        self._work.on_body(data, ended)

    def on_writable(self) -> None:
        self._work.on_answer_taken()

    def on_reset(self, code: int, reason: str) -> None:
        self._work.give_up(code, reason)
