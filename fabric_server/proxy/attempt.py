"""One attempt at one engine: from the opened stream to the answer's last byte, by callback.

Until the first byte of the answer's body nothing of it has reached the client, so that another node
can be tried.  Later failures are reported inside the answer: as an error event in a stream, and by
a cut connection otherwise; never by an answer that only looks complete.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.large_body import LargeBody
from fabric_server.edge.slices import feed_slices
from fabric_server.net.deadlines import Deadlines
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.answer_writer import AnswerWriter
from fabric_server.proxy.clock import AttemptClock
from fabric_server.proxy.ending import Ending, broken, incomplete
from fabric_server.proxy.outcome_rules import (
    ANSWERED,
    ERROR_EVENT,
    LOST_HEDGE,
    NOT_CONTINUED,
    REQUEST_LIMIT,
    SERVER_LIMIT,
    TOO_LARGE_BODY,
    Rule,
    rule_of_code,
    rule_of_status,
)
from fabric_server.proxy.transcript import NotContinued
from fabric_server.routing.choice import Choice, Opener
from protocol.aio.server import ServerStream
from protocol.errors import Code
from protocol.messages import Figures, RequestHead, ResponseHead

SMALL_BODY = 1024 * 1024
"""Bytes of a body that every node takes."""
CONFIRM_SECONDS = 30.0
"""Seconds in which a node must confirm a RESET; then its tunnel is closed, for slots can't wait."""
NO_STREAM = "the answer is not a stream, but the client has the head of one"


class AttemptOwner(Protocol):
    """The retry loop, as its attempts see it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def can_retry(self) -> bool:
        """Return whether another engine could be asked now, from the beginning."""

    def race(self, attempt: Attempt) -> None:
        """Let a second engine compete with ``attempt``, which goes on, if one has a slot."""

    def can_continue(self, attempt: Attempt) -> bool:
        """Return whether another engine could be asked for the rest of its broken answer."""

    def on_attempt_over(self, attempt: Attempt, ending: Ending) -> None:
        """Take note of the ending; called once, before the client has the answer's last byte."""


class Attempt:
    """Handles one stream (``protocol.aio.server.AnswerHandler``); ``done`` is its ending.

    The engine's slot is given back when the node reports that the work has stopped, which may be
    later.
    """

    __slots__ = (
        "_deadlines",
        "_loop",
        "_owner",
        "_registry",
        "_stream",
        "_unacked_bytes",
        "_writable",
        "answer",
        "choice",
        "clock",
        "deadline",
        "done",
        "ending",
        "first_byte_at",
        "hedge",
    )

    def __init__(
        self,
        owner: AttemptOwner,
        choice: Choice,
        answer: AnswerWriter,
        clock: AttemptClock,
        registry: Registry,
        deadlines: Deadlines,
    ) -> None:
        self._owner = owner
        self.choice = choice
        self.answer = answer
        self.clock = clock
        self._registry = registry
        self._deadlines = deadlines
        self._loop = owner.loop
        self._stream: ServerStream | None = None
        self._writable: asyncio.Event | None = None
        self._unacked_bytes = 0
        """Bytes written that the client has not taken yet; the node has got no credit for them."""
        self.done: asyncio.Future[Ending] = self._loop.create_future()
        self.ending: Ending | None = None
        """Set once nothing more comes of it; the node may still be at work."""
        self.first_byte_at: float | None = None
        self.hedge: Attempt | None = None
        """Another attempt for the same request, at the same time.  Whichever has its first byte
        first is the answer; until then neither touches the request."""
        self.deadline = clock.next_stall_check(clock.began_at)

    # ── what the retry loop calls ─────────────────────────────────────────────────────────────

    @property
    def hedge_runs(self) -> bool:
        """Another attempt may still bring the answer."""
        return self.hedge is not None and self.hedge.ending is None

    def add_hedge(self, hedge: Attempt) -> None:
        """Let ``hedge``, which has not begun, compete for the answer.

        ``done`` of both is then the ending of the one that answers, or of the last that failed.
        """
        self.hedge, hedge.hedge = hedge, self
        hedge.done = self.done

    def begin(self, opener: Opener, head: RequestHead, body: bytes, *, ended: bool) -> None:
        self._stream = opener.open(head, self, body, ended=ended)
        self._deadlines.add(self)

    async def upload(self, flowing: LargeBody) -> None:
        """Send what is still to come of the body, as fast as the node takes it.

        The end goes out only when all of it has been read, so that no engine begins before.
        """
        body, stream = self.answer.request.body, self._stream
        assert stream is not None
        try:
            while True:
                if self.first_byte_at is None:
                    self.deadline = self.clock.restart_first_byte(self._loop.time())
                data, ended = body.take(), body.complete  # more may come while this is read
                await feed_slices(flowing, data)
                if ended:
                    self.answer.usage_requested = flowing.end().usage_requested
                room = stream.send(flowing.take(), ended)
                body.passed_on += len(data)
                if ended:
                    return
                if not room:
                    self._writable = asyncio.Event()
                    await self._writable.wait()
                await body.more()
        except ApiError as error:
            self._refuse(error)

    def cancel(self) -> None:
        """End it because the client has gone; does nothing when it is over."""
        if self.ending is None:
            delivered = self.answer.delivered
            self._finish(Ending("ok", rule=ANSWERED) if delivered else Ending("cancelled"))
            self._reset(Code.CANCELLED, "the client has disconnected")

    def cancel_with(self, error: ApiError) -> None:
        """End it, and its hedge, with an error for the client; does nothing when it is over."""
        if self.ending is not None:
            return
        if self.hedge is not None:
            self.hedge.cancel_as_loser()
        if self.answer.started:
            self._end_broken(error, Ending("cancelled", error=error))
        else:
            self._finish(Ending("cancelled", error=error))
        self._reset(Code.CANCELLED, error.code)

    def cancel_as_loser(self) -> None:
        """End it because its hedge is the answer; does nothing when it is over."""
        if self.ending is None:
            self._finish(Ending("cancelled", rule=LOST_HEDGE, lost_hedge=True))
            self._reset(Code.CANCELLED, "another node answered first")

    # ── what the stream reports ───────────────────────────────────────────────────────────────

    def on_writable(self) -> None:
        if self._writable is not None:
            self._writable.set()

    def on_head(self, head: ResponseHead) -> None:
        if self.ending is not None:
            return
        if head.status < 300 or not self._refuse_status(head.status):
            self.answer.read_head(head)

    def _refuse_status(self, status: int) -> bool:
        """End the attempt for an engine's error that is not passed on; False where it is."""
        rule, reason = rule_of_status(status), f"the engine answered {status}"
        if rule.elsewhere and (self.hedge_runs or self._owner.can_retry()):
            ending = Ending("failed", Code.ENGINE_DOWN, reason, rule=rule, status=status)
        elif self.answer.is_rest:
            self._reject_rest(reason)
            return True
        elif rule.own_words:
            ending = Ending("engine_error", Code.ENGINE_FAILED, reason, rule=rule, status=status)
        else:
            return False
        self._finish(ending)
        self._reset(Code(ending.code), reason)
        return True

    def on_data(self, data: bytes, ended: bool) -> None:
        stream, answer, count = self._stream, self.answer, len(data)
        assert stream is not None
        if self.ending is not None:
            stream.consumed(count)
            return
        if self.first_byte_at is None:
            if answer.misfit:
                self._give_up(Code.ENGINE_FAILED, NO_STREAM)
                return
            self._on_first_byte()
        answer.bytes_received += count
        if answer.announced is not None and answer.bytes_received > answer.announced:
            self._give_up(Code.ENGINE_FAILED, "the answer is longer than announced")
            return
        try:
            data = answer.meter.feed(data)
        except NotContinued as error:
            self._reject_rest(str(error))
            return
        response = answer.request.response
        if not answer.streamed:
            answer.hold(data)
        else:
            if not answer.started:
                answer.start()
            if data:
                response.write(data)
                answer.last_written = data
        if response.paused:
            if not self._unacked_bytes:
                self.clock.throttled = True
                self.deadline = self._loop.time() + self.clock.timeouts.slow_reader
            self._unacked_bytes += count
        else:
            stream.consumed(count)

    def on_end(self, figures: Figures) -> None:
        self._release_slot()
        if self.ending is not None:
            return
        answer = self.answer
        if answer.bytes_received < (answer.announced or 0):
            self._fail(Code.ENGINE_FAILED, "the answer is shorter than announced")
            return
        if self.first_byte_at is None:
            if answer.status == 200 and answer.announced is None:
                self._fail(Code.ENGINE_FAILED, "the answer was empty")
                return
            if answer.misfit:
                self._fail(Code.ENGINE_FAILED, NO_STREAM)
                return
            self._on_first_byte()
        try:
            rest = answer.meter.end()
        except NotContinued as error:
            self._fail(Code.REFUSED, str(error), NOT_CONTINUED)
            return
        meter = answer.meter
        if answer.streamed and not meter.complete and self._owner.can_continue(self):
            self._suspend(incomplete())
            return
        answer.flush(rest)
        if answer.status >= 300:
            ending = Ending("engine_error", rule=rule_of_status(answer.status))
        elif meter.failed:
            reason = "the engine reported an error"
            ending = Ending("failed", Code.ENGINE_FAILED, reason, rule=ERROR_EVENT)
        elif not meter.complete:
            lost = broken("incomplete", "The answer ended before it was complete.")
            self._end_broken(lost, incomplete())
            return
        else:
            ending = Ending("ok", rule=ANSWERED)
        self._finish(ending)
        answer.request.response.finish()

    def on_stuck(self) -> None:
        """Ask another node, too, while the tunnel is lost or silent and no answer has begun."""
        if self.ending is None and self.first_byte_at is None and self.hedge is None:
            self._owner.race(self)

    def on_reset(self, code: int, reason: str) -> None:
        self._release_slot()
        if self.ending is not None:
            return
        rule = rule_of_code(code)
        if code == Code.TIMEOUT and self.clock.ended(self._loop.time()):
            rule = REQUEST_LIMIT
        elif code == Code.TOO_LARGE:
            body = self.answer.request.body
            if max(body.received, body.length or 0) > SMALL_BODY:
                rule = TOO_LARGE_BODY
        self._fail(code, reason, rule)

    # ── what the client's connection and the clock report ─────────────────────────────────────

    def _on_drained(self) -> None:
        count, self._unacked_bytes = self._unacked_bytes, 0
        if count and self._stream is not None:
            self.deadline = self.clock.on_progress(self._loop.time(), self.answer.bytes_received)
            self._stream.consumed(count)

    def expire(self, now: float) -> None:
        if self.ending is not None:
            if self._stream is not None:
                self._stream.give_up("a RESET was not confirmed in time")
        elif self._unacked_bytes:
            self._give_up(Code.SLOW_READER, "the client reads too slowly")
        elif self.first_byte_at is None:
            self._check_first_byte(now)
        elif reason := self.clock.check(now, self.answer.bytes_received):
            self._give_up(Code.TIMEOUT, reason, self._passed_limit(now))
        else:
            self.deadline = self.clock.next_idle_check(now)

    def _check_first_byte(self, now: float) -> None:
        if self.clock.first_byte_overdue(now):
            self._give_up(Code.TIMEOUT, "no first byte in time", self._passed_limit(now))
        else:  # it may be loading its model, or reading the prompt: it goes on
            self.deadline = self.clock.next_stall_check(now)
            if self.hedge is None:
                self._owner.race(self)

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _on_first_byte(self) -> None:
        if self.hedge is not None:
            self.hedge.cancel_as_loser()
        self.answer.request.response.on_drained = self._on_drained
        now = self.first_byte_at = self._loop.time()
        self.deadline = self.clock.on_progress(now, self.answer.bytes_received)

    def _passed_limit(self, now: float) -> Rule:
        """Return whose time limit has passed: the request's own, or the server's for engines."""
        body = self.answer.request.body
        client_sends = not body.complete and not body.buffered
        return REQUEST_LIMIT if client_sends or self.clock.ended(now) else SERVER_LIMIT

    def _give_up(self, code: Code, reason: str, rule: Rule | None = None) -> None:
        """Fail, and order the node to stop."""
        self._fail(code, reason, rule)
        self._reset(code, reason)

    def _reject_rest(self, reason: str) -> None:
        """Give up an engine that works, but does not continue another engine's answer."""
        self._fail(Code.REFUSED, reason, NOT_CONTINUED)
        self._reset(Code.CANCELLED, reason)

    def _reset(self, code: Code, reason: str) -> None:
        """Order the node to stop; ``on_reset`` or ``on_end`` will report that it has."""
        assert self._stream is not None
        self.deadline = self._loop.time() + CONFIRM_SECONDS
        self._deadlines.add(self)
        self._stream.reset(code, reason)

    def _fail(self, code: int, reason: str, rule: Rule | None = None) -> None:
        """End a failed attempt; the client sees the failure only if the answer has started."""
        answer, rule = self.answer, rule or rule_of_code(code)
        ending = Ending("timeout" if code == Code.TIMEOUT else "failed", code, reason, rule=rule)
        if code == Code.TIMEOUT:
            ending.timed_out = self.clock.overdue or "its time at the node was over"
        if not answer.started:
            self._finish(ending)
        elif code == Code.SLOW_READER:
            self._finish(ending)
            answer.request.response.abort()
        elif answer.delivered:
            self._finish(Ending("ok", rule=ANSWERED))
            answer.request.response.finish()
        elif self._owner.can_continue(self):
            self._suspend(ending)
        elif answer.write_final_chunk():
            self._finish(Ending("ok", rule=rule))
            answer.request.response.finish()
        else:
            self._end_broken(ending.told, ending)

    def _suspend(self, ending: Ending) -> None:
        """Leave the rest of the answer to another node."""
        ending.to_continue = True
        self.answer.request.response.suspend()
        self._finish(ending)

    def _end_broken(self, error: ApiError, ending: Ending) -> None:
        """End an answer that has started, so that the client can tell that it is broken."""
        in_stream = self.answer.write_error(error)
        self._finish(ending)
        if in_stream:
            self.answer.request.response.finish()
        else:
            self.answer.request.response.abort()

    def _finish(self, ending: Ending) -> None:
        """Report the ending.  Nothing more will be written; what was written leaves after this."""
        self.ending = ending
        self._deadlines.discard(self)
        self.answer.request.response.on_drained = None
        try:
            self._owner.on_attempt_over(self, ending)
        finally:  # a defect in the bookkeeping must not leave the request waiting for ever
            if not self.hedge_runs and not self.done.done():  # cancelled with the request's task
                self.done.set_result(ending)

    def _refuse(self, error: ApiError) -> None:
        """End it because the request's body is wrong, or does not come."""
        if self.ending is not None:
            return
        ending = Ending("refused", error=error)
        if self.answer.started:
            self._end_broken(error, ending)
        else:
            self._finish(ending)
        self._reset(Code.CANCELLED, "the request's body can't be sent to its end")

    def _release_slot(self) -> None:
        """Give the slot back, once: nothing runs at the node any more."""
        self._deadlines.discard(self)
        if self._stream is None:  # a defect while its end was handled: the end is reported again
            return
        self._stream = None
        self._registry.release(self.choice.engine, self.choice.key_id)
