"""One attempt at one engine: from the opened stream to the answer's last byte, by callback.

Until the first byte of the answer's body nothing of it has reached the user, so that another node
can be tried.  After it, what goes wrong is told inside the answer: as an error event in a stream,
and by a cut connection otherwise; never by an answer that only looks complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from fabric_server.dialects.body import ParsedBody
from fabric_server.dialects.endpoints import CHAT
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Headers, Request
from fabric_server.metering.openai import Meter, NoMeter, Usage
from fabric_server.net.deadlines import Deadlines
from fabric_server.nodes.registry import Engine, Registry
from fabric_server.proxy.continuation import Continuation
from fabric_server.proxy.transcript import NotContinued
from protocol.aio.tunnel import Stream, Tunnel
from protocol.errors import Code
from protocol.messages import Figures, RequestHead, ResponseHead

_RESPONSE_HEADERS = frozenset({"content-type", "content-language", "retry-after"})
_STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
CONFIRM_SECONDS = 30.0
"""When a RESET is not confirmed in this time, the node's tunnel is closed: slots can't wait."""
NO_STREAM = "the answer is not the stream that was begun"
_LOOKS_PER_IDLE = 4
"""How finely silence is measured: a look at the clock costs more than most of an answer's bytes."""
WHOLE_ANSWER = 256 * 1024
"""Unstreamed answers up to this size reach the user whole or not at all: until then another node
can be asked."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each part of an answer may take, in seconds."""

    first_byte: float
    stall: float
    """After so long without a first byte another node is asked, if one has room."""
    idle: float
    """Silence in the middle of an answer; noticed up to a quarter later."""
    slow_reader: float
    """A user who does not read."""
    total: float

    def within(self, seconds: float) -> Timeouts:
        """For a user who has no more than so much."""
        if seconds >= self.total:
            return self
        seconds = max(seconds, 0.001)
        return replace(self, first_byte=min(self.first_byte, seconds), total=seconds)


@dataclass(slots=True)
class Ending:
    """How an attempt went."""

    outcome: str
    """A ledger outcome."""
    code: int = Code.NONE
    reason: str = ""
    refusal: ApiError | None = None
    """The user's own body or key was at fault."""
    left: bool = False
    """Given up although it might still have come, because another node has room."""
    goes_on: bool = False
    """The user has part of the answer, and is to get the rest from another node."""
    beaten: bool = False
    """Its rival was quicker, or is what is left of the two."""


class Attempt:
    """Handles one stream (``protocol.aio.tunnel.AnswerHandler``); ``done`` tells how it ended.

    The engine's slot is given back when the node says that the work has stopped, which may be
    later.
    """

    __slots__ = (
        "_announced",
        "_checked_bytes",
        "_continuation",
        "_deadlines",
        "_elsewhere",
        "_endpoint",
        "_first_byte_due",
        "_goes_on",
        "_headers",
        "_heard_at",
        "_held",
        "_held_size",
        "_limit_at",
        "_loop",
        "_meter",
        "_on_over",
        "_owed",
        "_registry",
        "_room",
        "_stream",
        "_streamed",
        "_usage_asked",
        "_written",
        "began_at",
        "bytes_seen",
        "cold",
        "deadline",
        "done",
        "ending",
        "engine",
        "first_byte_at",
        "relayed",
        "request",
        "rival",
        "route",
        "seam",
        "status",
        "timeouts",
    )

    def __init__(
        self,
        request: Request,
        engine: Engine,
        ask: ParsedBody,
        *,
        registry: Registry,
        deadlines: Deadlines,
        timeouts: Timeouts,
        elsewhere: Callable[[], bool],
        on_over: Callable[[Attempt, Ending], None],
        loop: asyncio.AbstractEventLoop,
        route: str = "",
        cold: bool = False,
        continuation: Continuation | None = None,
        goes_on: Callable[[], bool] = lambda: False,
        seam: bool = False,
    ) -> None:
        """``elsewhere`` tells whether somebody else could be asked when this engine answers 5xx.

        ``on_over`` is told the ending before the user has the last byte of the answer.  ``route``
        is told the user: why this engine; ``cold`` is whether it has to load the model first.
        ``goes_on`` tells whether another node may be asked for the rest of an answer that breaks
        off, and ``seam`` that this is such a rest.
        """
        self.request = request
        self.done: asyncio.Future[Ending] = loop.create_future()
        self.relayed = False
        """Something of the answer has reached the user; comments are nothing of it."""
        self.first_byte_at: float | None = None
        self.bytes_seen = 0
        self.status = 0
        """The engine's."""
        self._endpoint = request.endpoint or CHAT
        self.engine = engine
        self.route = route
        self.cold = cold
        self.rival: Attempt | None = None
        """Another attempt for the same request, at the same time.  Whichever has its first byte
        first is the answer; until then neither touches the request."""
        self._usage_asked = ask.usage_asked
        self._registry = registry
        self._deadlines = deadlines
        self.timeouts = timeouts
        self._elsewhere = elsewhere
        self._on_over = on_over
        self._loop = loop
        self.seam = seam
        self._continuation = continuation
        self._goes_on = goes_on
        self._headers: Headers = [(b"x-fabric-route", route.encode())] if route else []
        self._meter: Meter = NoMeter()
        self._streamed = False
        self._announced: int | None = None
        self._held: list[bytes] = []
        """An unstreamed answer so far, or the end of one that is too large for that, until the node
        says that it is over."""
        self._held_size = 0
        self._written = b""
        """What the user got last of a stream."""
        self.ending: Ending | None = None
        """How it went, once nothing more comes of it; the node may still be at work."""
        self._owed = 0
        """Bytes passed on that the user has not taken yet, and the node not been credited for."""
        self._stream: Stream | None = None
        self._room: asyncio.Event | None = None
        now = self.began_at = loop.time()
        self._limit_at = now + timeouts.total
        self._checked_bytes = 0
        self._heard_at = now
        self._first_byte_due = now + timeouts.first_byte
        self.deadline = now + min(timeouts.stall, timeouts.first_byte)

    # ── what the gateway calls ────────────────────────────────────────────────────────────────

    @property
    def usage(self) -> Usage:
        return self._meter.usage

    @property
    def rivalled(self) -> bool:
        """Another attempt may still bring the answer."""
        return self.rival is not None and self.rival.ending is None

    def race(self, rival: Attempt) -> None:
        """Let ``rival``, which has not begun, try to be the answer as well.  ``done`` of both is
        then the ending of the one that is, or of the last that failed."""
        self.rival, rival.rival = rival, self
        rival.done = self.done

    def begin(self, tunnel: Tunnel, head: RequestHead, body: bytes, *, ended: bool) -> None:
        stream = self._stream = tunnel.open(head, self, ended=ended and not body)
        if body:
            stream.send(body, ended)
        self._deadlines.add(self)

    async def upload(self) -> None:
        """Send what is still to come of the body, as fast as the node takes it."""
        body, stream = self.request.body, self._stream
        assert stream is not None
        try:
            while True:
                if self.first_byte_at is None:
                    patient_until = self._loop.time() + self.timeouts.first_byte
                    self._first_byte_due = self.deadline = min(patient_until, self._limit_at)
                data, ended = body.take(), body.complete
                room = stream.send(data, ended)
                if ended:
                    return
                if not room:
                    self._room = asyncio.Event()
                    await self._room.wait()
                await body.more()
        except ApiError as refusal:
            self._finish(Ending("refused", refusal=refusal))
            self._reset(Code.CANCELLED, "the request's body broke off")

    def cancel(self) -> None:
        """The user has gone; does nothing when the attempt is over."""
        if self.ending is None:
            self._finish(Ending("ok" if self._is_whole else "cancelled"))
            self._reset(Code.CANCELLED, "the user has hung up")

    def cut(self, refusal: ApiError) -> None:
        """The user may not go on; does nothing when the attempt is over."""
        if self.ending is not None:
            return
        if self.rival is not None:
            self.rival.lose()
        if self.relayed:
            self._end_broken(refusal, Ending("cancelled", refusal=refusal))
        else:
            self._finish(Ending("cancelled", refusal=refusal))
        self._reset(Code.CANCELLED, refusal.code)

    def lose(self) -> None:
        """The other attempt is the answer; does nothing when this one is over."""
        if self.ending is None:
            self._finish(Ending("cancelled", beaten=True))
            self._reset(Code.CANCELLED, "another node was quicker")

    # ── what the stream tells ─────────────────────────────────────────────────────────────────

    def on_writable(self) -> None:
        if self._room is not None:
            self._room.set()

    def on_head(self, head: ResponseHead) -> None:
        if self.ending is not None:
            return
        if head.status >= 500 and (self.rivalled or self._elsewhere()):
            self._give_up(Code.ENGINE_DOWN, f"the engine answered {head.status}")
            return
        if head.status >= 300 and self.seam:
            self._decline(f"the engine answered {head.status}")
            return
        self.status, endpoint = head.status, self._endpoint
        for name, value in head.headers:
            if name == "content-length":
                # Longer numbers are no lengths, and take Python long to read.
                if value.isascii() and value.isdigit() and len(value) < 16:
                    self._announced = int(value)
            elif name in _RESPONSE_HEADERS and value.isprintable():
                self._headers.append((name.encode(), value.encode("latin-1", "replace")))
                if name == "content-type" and endpoint.streams is not None:
                    self._streamed = value.lower().startswith(endpoint.streams)
        if self._streamed:
            self._headers += _STREAM_HEADERS
            self._announced = None  # our share may be taken out
        if head.status < 300:
            if self._streamed:
                self._meter = endpoint.stream_meter(self._usage_asked)
                if self._continuation is not None:
                    kind = self.engine.kind
                    self._meter = self._continuation.meter(self._meter, kind, seam=self.seam)
            else:
                self._meter = endpoint.body_meter()
                if endpoint.rewritten:
                    self._announced = None

    def on_data(self, data: bytes, ended: bool) -> None:
        stream = self._stream
        assert stream is not None
        count = len(data)
        if self.ending is not None:
            stream.consumed(count)
            return
        if self.first_byte_at is None:
            if self._unfit:
                self._give_up(Code.ENGINE_FAILED, NO_STREAM)
                return
            self._first_byte()
        self.bytes_seen += count
        if self._announced is not None and self.bytes_seen > self._announced:
            self._give_up(Code.ENGINE_FAILED, "the answer is longer than announced")
            return
        try:
            data = self._meter.feed(data)
        except NotContinued as fault:
            self._decline(str(fault))
            return
        response = self.request.response
        if not self._streamed:
            self._hold(data)
        else:
            if not self.relayed:
                self._start()
            if data:
                response.write(data)
                self._written = data
        if response.paused:
            if not self._owed:
                self.deadline = self._loop.time() + self.timeouts.slow_reader
            self._owed += count
        else:
            stream.consumed(count)

    def on_end(self, figures: Figures) -> None:
        self._gone()
        if self.ending is not None:
            return
        if self.bytes_seen < (self._announced or 0):
            self._break(Code.ENGINE_FAILED, "the answer is shorter than announced")
            return
        if self.first_byte_at is None:
            if self.status == 200 and self._announced is None:
                self._break(Code.ENGINE_FAILED, "the answer was empty")
                return
            if self._unfit:
                self._break(Code.ENGINE_FAILED, NO_STREAM)
                return
            self._first_byte()
        request = self.request
        try:
            self._held.append(self._meter.end())
        except NotContinued as fault:
            self._break(Code.REFUSED, str(fault))
            return
        if self._streamed and not self._meter.complete and self._goes_on():
            self._leave_off(Ending("incomplete", Code.ENGINE_FAILED, "no terminal marker"))
            return
        if not self.relayed:
            if self._announced is None and not self._streamed:  # all of it is here
                self._announced = sum(map(len, self._held))
            self._start()
        request.response.write(b"".join(self._held))
        if self.status >= 300:
            ending = Ending("engine_error")
        elif self._meter.failed:
            ending = Ending("failed", Code.ENGINE_FAILED, "the engine reported an error")
        elif not self._meter.complete:
            said = _broken("incomplete", "The answer ended before it was complete.")
            self._end_broken(said, Ending("incomplete", Code.ENGINE_FAILED, "no terminal marker"))
            return
        else:
            ending = Ending("ok")
        self._finish(ending)
        request.response.finish()

    def on_stuck(self) -> None:
        """Its tunnel is lost, or may be: before the answer has begun, another node is sooner."""
        unanswered = self.ending is None and self.first_byte_at is None
        if unanswered and not self.rivalled and self._elsewhere():
            self._leave("failed", Code.LOST, "the node is out of reach, and another one has room")

    def on_reset(self, code: int, reason: str) -> None:
        self._gone()
        if self.ending is None:
            self._break(code, reason)

    # ── what the user's connection and the clock tell ─────────────────────────────────────────

    def _on_drained(self) -> None:
        owed, self._owed = self._owed, 0
        if owed and self._stream is not None:
            self._hear(self._loop.time())
            self._stream.consumed(owed)

    def expire(self, now: float) -> None:
        if self.ending is not None:
            assert self._stream is not None
            self._stream.give_up("a RESET was not confirmed")
        elif self._owed:
            self._give_up(Code.SLOW_READER, "the user does not read")
        elif self.first_byte_at is None:
            self._await_first_byte(now)
        elif now >= self._limit_at:
            self._give_up(Code.TIMEOUT, "the answer took too long")
        elif self.bytes_seen != self._checked_bytes:
            self._hear(now)
        elif now - self._heard_at >= self.timeouts.idle:
            self._give_up(Code.TIMEOUT, "the engine fell silent")
        else:
            self._look_again(now)

    def _await_first_byte(self, now: float) -> None:
        if now >= self._first_byte_due:
            self._give_up(Code.TIMEOUT, "no first byte in time")
        elif not self.rivalled and self._elsewhere():
            self._leave("timeout", Code.TIMEOUT, "no first byte yet, and another node has room")
        else:
            self.deadline = min(now + self.timeouts.stall, self._first_byte_due)

    def _hear(self, now: float) -> None:
        self._heard_at = now
        self._checked_bytes = self.bytes_seen
        self._look_again(now)

    def _look_again(self, now: float) -> None:
        self.deadline = min(now + self.timeouts.idle / _LOOKS_PER_IDLE, self._limit_at)

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    @property
    def _unfit(self) -> bool:
        """The user has got the head of a stream, and this is neither one nor an error."""
        return self.request.response.comments_sent and self.status < 300 and not self._streamed

    @property
    def _is_whole(self) -> bool:
        """Only the news that this was all is missing; the user has seen that it was."""
        return self.relayed and self._meter.done and not self._meter.failed

    def _first_byte(self) -> None:
        if self.rival is not None:
            self.rival.lose()
        self.request.response.on_drained = self._on_drained
        now = self.first_byte_at = self._loop.time()
        self._hear(now)

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > WHOLE_ANSWER and self.bytes_seen != self._announced:
            if not self.relayed:
                self._start()
            self.request.response.write(b"".join(self._held))
            self._held.clear()
            self._held_size = 0

    def _start(self) -> None:
        """From here on this is the user's answer."""
        self.relayed = True
        self.request.body.replay_buffer = b""
        if self.seam:
            self.request.send_comment("continued on another node")
        self.request.start_response(self.status, self._headers, self._announced)

    def _give_up(self, code: Code, reason: str) -> None:
        self._break(code, reason)
        self._reset(code, reason)

    def _leave(self, outcome: str, code: Code, reason: str) -> None:
        """It might still come, but elsewhere it comes sooner."""
        self._finish(Ending(outcome, code, reason, left=True))
        self._reset(Code.CANCELLED if code is Code.LOST else code, reason)  # LOST is never sent

    def _decline(self, reason: str) -> None:
        """The engine is well, but does not go on with another's answer."""
        self._break(Code.REFUSED, reason)
        self._reset(Code.CANCELLED, reason)

    def _reset(self, code: Code, reason: str) -> None:
        """Order the node to stop; ``on_reset`` or ``on_end`` will tell that it has."""
        assert self._stream is not None
        self.deadline = self._loop.time() + CONFIRM_SECONDS
        self._deadlines.add(self)
        self._stream.reset(code, reason)

    def _break(self, code: int, reason: str) -> None:
        """The attempt has failed: tell the user, if anything of it has reached them."""
        ending = Ending("timeout" if code == Code.TIMEOUT else "failed", code, reason)
        if not self.relayed:
            self._finish(ending)
        elif code == Code.SLOW_READER:
            self._finish(ending)
            self.request.response.abort()
        elif self._is_whole:
            self._finish(Ending("ok"))
            self.request.response.finish()
        elif self._goes_on():
            self._leave_off(ending)
        elif rest := self._last_words():
            self.request.response.write(rest)
            self._finish(Ending("ok"))
            self.request.response.finish()
        else:
            self._end_broken(upstream_lost(), ending)

    def _leave_off(self, ending: Ending) -> None:
        """The user is to have the rest from another node."""
        ending.goes_on = True
        self.request.response.suspend()
        self._finish(ending)

    def _last_words(self) -> bytes:
        """What is missing of an answer that has all its tokens."""
        if self._continuation is None or self._usage_asked:  # its prompt's tokens are not known
            return b""
        return self._continuation.last_words()

    def _end_broken(self, said: ApiError, ending: Ending) -> None:
        """End a broken answer so that the user can tell."""
        request = self.request
        if self._streamed or request.response.comments_sent:
            # Half an event that was held back is of no use; one that was not must be ended.
            torn = request.dialect.separator if self._meter.torn else b""
            request.response.write(torn + said.event(request.dialect, request.id, self._written))
            self._finish(ending)
            request.response.finish()
        else:
            self._finish(ending)
            request.response.abort()

    def _finish(self, ending: Ending) -> None:
        """Nothing more will be written.  What was is still here: it leaves after this."""
        self.ending = ending
        self._deadlines.discard(self)
        self.request.response.on_drained = None
        self._on_over(self, ending)
        if not self.rivalled and not self.done.done():  # a cancelled gateway has cancelled it
            self.done.set_result(ending)

    def _gone(self) -> None:
        """Nothing runs at the node any more."""
        self._deadlines.discard(self)
        self._registry.release(self.engine)


def upstream_lost() -> ApiError:
    return _broken("upstream_lost", "The node was lost in the middle of the answer.")


def _broken(code: str, message: str) -> ApiError:
    return ApiError(502, code, message, type="server_error")
