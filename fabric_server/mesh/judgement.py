"""The judgement of an engine by a forwarded request: what its home sees of how it answers."""

from __future__ import annotations

from fabric_server.proxy.ending import Ending
from fabric_server.proxy.outcome_rules import (
    CLIENT_GONE,
    SERVER_LIMIT,
    UNREAD_STREAM,
    Counts,
    Rule,
    rule_of_code,
    rule_of_status,
)
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.choice import Choice
from fabric_server.routing.criteria import Requirements
from protocol.errors import Code
from protocol.messages import ResponseHead

FORWARDED = "forwarded"
"""The account of all of them where suspicions are counted: those of one client must not look like
those of several, and whose they are is not told."""
LIMIT_MARGIN = 1.0
"""Seconds before a request's own time limit in which a timeout may be that limit's: the other
server counts from another moment."""
_STREAMED = ("text/event-stream", "application/x-ndjson")
_MARKERS = (b"[DONE]", b'"done":true', b"message_stop", b"response.completed")
"""One of them is in the last piece of a stream that has come to its end."""
_ERROR = b'"error":{'


class Judgement:
    """The judgement of one answer: its home notes what it sees, and counts it for the engine."""

    __slots__ = (
        "_announced",
        "_began",
        "_choice",
        "_ends_at",
        "_first_byte_at",
        "_last",
        "_received",
        "_requirements",
        "_status",
        "_upstream",
        "is_asked",
        "streamed",
    )

    def __init__(
        self, upstream: UpstreamContext, requirements: Requirements, choice: Choice
    ) -> None:
        self._upstream = upstream
        self._requirements = requirements
        self._choice = choice
        self._began = upstream.loop.time()
        self._ends_at = self._began
        """The time at which the request's own limit is over, about."""
        self.is_asked = False
        """The whole body of the request has come."""
        self._status = 0
        self._announced: int | None = None
        """The content-length."""
        self.streamed = False
        self._received = 0
        self._last = b""
        """The answer's last piece so far."""
        self._first_byte_at: float | None = None

    def begin(self, deadline_ms: int) -> None:
        """Note that the engine is asked, by a request that has so much time."""
        engine, requirements = self._choice.engine, self._requirements
        self._ends_at = self._began + deadline_ms / 1000
        if engine.breakers:
            for breaker in engine.breakers.of(requirements.model, requirements.path):
                breaker.on_attempt(self._began)
        self._upstream.outcomes.known.affinity.remember(requirements.prefix, engine)

    def on_head(self, head: ResponseHead) -> None:
        self._status = head.status
        for name, value in head.headers:
            if name == "content-type":
                self.streamed = value.lower().startswith(_STREAMED)
            elif (
                name == "content-length" and value.isascii() and value.isdigit() and len(value) < 16
            ):
                self._announced = int(value)
        if self.streamed:
            self._announced = None

    def on_data(self, data: bytes) -> None:
        if self._first_byte_at is None:
            self._first_byte_at = self._upstream.loop.time()
        self._received += len(data)
        self._last = data

    # ── the end ───────────────────────────────────────────────────────────────────────────────

    def take_end(self) -> None:
        """Judge an answer that the node has ended."""
        status, announced = self._status, self._announced
        rule, reason = rule_of_status(status), f"the engine answered {status}"
        if self._received < (announced or 0):
            rule, reason = rule_of_code(Code.ENGINE_FAILED), "the answer is shorter than announced"
        elif status == 200 and announced is None and not self._received:
            rule, reason = rule_of_code(Code.ENGINE_FAILED), "the answer was empty"
        elif rule.counts is Counts.SUCCESS and self.streamed and not self._is_complete():
            rule = UNREAD_STREAM
        self._take(rule, reason)

    def _is_complete(self) -> bool:
        last = self._last
        return _ERROR not in last and any(marker in last for marker in _MARKERS)

    def take_reset(self, code: int, reason: str) -> None:
        """Judge an answer that the node has not ended."""
        self._take(rule_of_code(code), reason)

    def take_given_up(self, code: int, reason: str) -> None:
        """Judge an answer that the other server has given up with ``code``."""
        if self._status >= 300:
            rule = rule_of_status(self._status)
        elif code == Code.ENGINE_FAILED:  # it has read the answer
            rule = rule_of_code(code)
        elif code == Code.TIMEOUT and self.is_asked and not self._near_limit:
            rule = SERVER_LIMIT
        else:
            rule = CLIENT_GONE
        self._take(rule, reason)

    @property
    def _near_limit(self) -> bool:
        return self._upstream.loop.time() >= self._ends_at - LIMIT_MARGIN

    def _take(self, rule: Rule, reason: str) -> None:
        """Update the engine's circuit breakers and latency estimates."""
        upstream, requirements, choice = self._upstream, self._requirements, self._choice
        outcomes, now, engine = upstream.outcomes, upstream.loop.time(), choice.engine
        latency, model, first = outcomes.known.latency, requirements.model, self._first_byte_at
        ending = Ending("", reason=reason, rule=rule)
        outcomes.update_breaker(engine, self._began, ending, requirements, FORWARDED)
        if rule.slow:
            latency.penalize(engine, model, now=now)
        elif (rule.counts is not Counts.SUCCESS and rule is not UNREAD_STREAM) or first is None:
            latency.observe_nothing(engine, model, now=now)
        else:
            seconds = first - self._began if self.streamed else None
            latency.update(engine, model, seconds, None, now=now, cold=choice.cold_start)
            upstream.admission.record_service_time(model, now - self._began)
