"""Requests that other servers have forwarded to this one, their home: it chooses the engine, and
passes bytes between the two tunnels without reading them.

Credit goes through: what the other server does not take, the node is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric_server.nodes.node import Engine
from fabric_server.proxy.attempt import CONFIRM_SECONDS
from fabric_server.proxy.ending import Ending
from fabric_server.proxy.outcome_rules import (
    CLIENT_GONE,
    Counts,
    Rule,
    rule_of_code,
    rule_of_status,
)
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import Choice, Opener
from fabric_server.routing.criteria import Requirements
from protocol.aio.node import NodeStream
from protocol.aio.server import ServerStream
from protocol.errors import Code, LocalError
from protocol.mesh import ForwardedRequest, ForwardedResponse
from protocol.messages import Figures, RequestHead, ResponseHead

FORWARDED = "forwarded"
"""The account of all of them where suspicions are counted: those of one client must not look like
those of several, and whose they are is not told."""
NO_FIGURES = Figures(0.0, 0.0, 0)
_STREAMED = ("text/event-stream", "application/x-ndjson")


class ForwardedWork:
    """One forwarded request; the handler of its stream at the node."""

    __slots__ = (
        "_began",
        "_choice",
        "_first_byte_at",
        "_given_up",
        "_head",
        "_held",
        "_node_stream",
        "_on_over",
        "_opening",
        "_requirements",
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
        self._requirements = requirements
        self._choice = choice
        self._on_over = on_over
        self._began = upstream.loop.time()
        self._node_stream: ServerStream | None = None
        """None before the beginning of the body has come: it leaves with the stream's opening."""
        self._opening: tuple[Opener, RequestHead]
        self._unsent = 0
        """Bytes of the request's body that the node's tunnel has no room for yet."""
        self._untaken = 0
        """Bytes of the answer that the other server has not taken yet."""
        self._given_up: int | None = None
        """The code with which the other server has ended it."""
        self._head: ForwardedResponse | None = None
        """The answer's."""
        self._held: bytes | None = None
        """The first piece of an answer that is no stream, while it and the head are kept: mostly
        that is all of it, and leaves at once."""
        self._first_byte_at: float | None = None
        self.deadline = float("inf")

    def begin(self, opener: Opener, head: ForwardedRequest, *, ended: bool) -> None:
        """Ask the engine; the body is still to come, unless ``ended``."""
        engine, requirements = self._choice.engine, self._requirements
        if engine.breakers:
            for breaker in engine.breakers.of(requirements.model, requirements.path):
                breaker.on_attempt(self._began)
        self._upstream.outcomes.known.affinity.remember(requirements.prefix, engine)
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
        try:
            self._node_stream = opener.open(head, self, body, ended=ended)
        except LocalError as error:  # closed a moment ago
            self.on_reset(Code.LOST, str(error))

    # ── what comes from the other server ──────────────────────────────────────────────────────

    def on_body(self, data: bytes, ended: bool) -> None:
        if self._node_stream is None:
            self._stream.consumed(len(data))
            self._open(data, ended=ended)
        elif self._node_stream.send(data, ended):
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
        upstream = self._upstream
        self.deadline = upstream.loop.time() + CONFIRM_SECONDS
        upstream.deadlines.add(self)
        self._node_stream.reset(code, reason)

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
        self._head = ForwardedResponse(head.status, head.headers, engine.node.id, engine.name)
        if _is_stream(head):
            self._stream.send_head(self._head)
        else:
            self._held = b""

    def on_data(self, data: bytes, ended: bool) -> None:
        if self._first_byte_at is None:
            self._first_byte_at = self._upstream.loop.time()
        held, node_stream = self._held, self._node_stream
        assert node_stream is not None
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
        self._release()
        head, held = self._head, self._held
        if head is None or self._given_up is not None:  # END has crossed the RESET
            self._judge(self._rule_when_given_up(), "")
            self._stream.confirm_reset()
            return
        self._judge(rule_of_status(head.status), f"the engine answered {head.status}")
        if held is None:
            self._stream.end(figures)
        else:
            self._stream.answer(head, held, figures)

    def on_reset(self, code: int, reason: str) -> None:
        self._release()
        stream, engine = self._stream, self._choice.engine
        if self._given_up is not None:
            self._judge(self._rule_when_given_up(), reason)
            stream.confirm_reset()
            return
        self._judge(rule_of_code(code), reason)
        if self._head is not None:
            self._send_held()
            stream.reset(code, reason)
            return
        # RESET has no room for the engine's name, without which it would be asked again.
        code, reason = code or Code.INTERNAL, reason[:1000]
        head = ForwardedResponse(503, [], engine.node.id, engine.name, code, reason)
        stream.send_head(head)
        stream.end(NO_FIGURES)

    # ── what it tells of the engine ───────────────────────────────────────────────────────────

    def _rule_when_given_up(self) -> Rule:
        head = self._head
        if head is not None and head.status >= 300:
            return rule_of_status(head.status)
        if self._given_up == Code.ENGINE_FAILED:  # the other server has read its answer
            return rule_of_code(Code.ENGINE_FAILED)
        return CLIENT_GONE

    def _judge(self, rule: Rule, reason: str) -> None:
        """Update the engine's circuit breakers and latency estimates."""
        upstream, requirements, choice = self._upstream, self._requirements, self._choice
        outcomes, now, engine = upstream.outcomes, upstream.loop.time(), choice.engine
        latency, model, first = outcomes.known.latency, requirements.model, self._first_byte_at
        ending = Ending("", reason=reason, rule=rule)
        outcomes.update_breaker(engine, self._began, ending, requirements, FORWARDED)
        if rule.slow:
            latency.penalize(engine, model, now=now)
        elif rule.counts is not Counts.SUCCESS or first is None:
            latency.observe_nothing(engine, model, now=now)
        else:
            streamed = self._head is not None and _is_stream(self._head)
            seconds = first - self._began if streamed else None
            latency.update(engine, model, seconds, None, now=now, cold=choice.cold_start)
            upstream.admission.record_service_time(model, now - self._began)

    def _release(self) -> None:
        upstream, choice = self._upstream, self._choice
        upstream.deadlines.discard(self)
        self._on_over(choice.engine)
        upstream.registry.release(choice.engine, choice.key_id)


def _is_stream(head: ResponseHead) -> bool:
    for name, value in head.headers:
        if name == "content-type":
            return value.startswith(_STREAMED)
    return False


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
