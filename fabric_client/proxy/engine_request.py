"""One request at its engine: the request there, the response back, by callback."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Protocol

from fabric_client.offer.admission import NotOffered
from fabric_client.offer.error_filter import ErrorFilter
from fabric_client.proxy.decoder import Decoder
from fabric_client.proxy.off_loop import Failed, end_in_worker, prepare_in_worker
from fabric_client.proxy.preparation import OFF_LOOP, prepare_whole
from fabric_client.proxy.prepared import Prepared
from fabric_client.proxy.request_body import MAX_BODY, MAX_REPLAY, RequestBody
from fabric_client.proxy.response_body import ResponseBody, passed_head
from fabric_client.proxy.slots import Slot
from fabric_client.proxy.upstream import EngineConnection, Pool
from fabric_client.translation import LocalReply
from fabric_client.translation.local_reply import error_reply
from protocol.aio.node import NodeStream
from protocol.errors import Code
from protocol.messages import Figures, ResponseHead
from runtime.worker_process import Work
from runtime.workers import Workers

log = logging.getLogger("fabric.forward")

_OF_ENCODED = ("content-encoding", "content-length")
_REFUSED_FIELDS = frozenset({400, 422})
"""Statuses of engines that refuse a field of the body."""


class RequestOwner(Protocol):
    """The part of the forwarder that a request needs."""

    workers: Workers
    """Reads bodies and answers that are large."""

    def on_ended(self, request: EngineRequest, *, answered: bool) -> None:
        """The request is over, and its slot to be released."""

    def on_engine_trouble(self) -> None:
        """An engine has failed a request, or refused one so that it must have changed."""


class EngineRequest:
    """Handles one stream (``StreamHandler``) and its response (``ResponseHandler``).

    ``begin`` is called when its slot has been acquired.  A body that ``prepare`` must see whole is
    then sent in one write once it is complete; any other goes to the engine as it comes.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_decoder",
        "_over",
        "_owner",
        "_pool",
        "_responded",
        "_response",
        "_started",
        "_stream",
        "_task",
        "_unacked",
        "_undecided",
        "on_response_body",
        "slot",
    )

    def __init__(
        self,
        owner: RequestOwner,
        stream: NodeStream,
        slot: Slot,
        pool: Pool,
        body: RequestBody,
        response: ResponseBody,
    ) -> None:
        self.slot = slot
        self.on_response_body = response.add
        """Bound here, so that a piece of the response costs no call more."""
        self._owner = owner
        self._stream = stream
        self._pool = pool
        self._body = body
        self._response = response
        self._connection: EngineConnection | None = None
        self._task: asyncio.Task[None] | None = None
        """Connects, or waits for a worker."""
        self._started = False
        """The request's head was written to ``_connection``."""
        self._unacked = 0
        """Bytes received for which the server gets no new credit until the engine takes more."""
        self._responded = False
        self._undecided = False
        """The response's body decides what its head is."""
        self._decoder: Decoder | None = None
        """Set if the engine has compressed its response."""
        self._over = False

    def begin(self) -> None:
        """Start: the slot is held now."""
        body = self._body
        if body.prepare is None:
            self._connect()
        elif (body.head.body_size or 0) > MAX_BODY:
            self._reply_too_large()
        elif body.ended:
            self._prepare()

    # ── called by the stream ──────────────────────────────────────────────────────────────────

    def on_data(self, data: bytes, ended: bool) -> None:
        body, connection = self._body, self._connection
        if body.prepare is not None and (self._over or self._responded):
            return  # it was too large
        if not body.add(data, ended):
            self.fail(Code.PROTOCOL, "the body is longer than announced")
        elif body.prepare is not None:
            self._stream.consumed(len(data))
            if body.received > MAX_BODY:
                self._reply_too_large()
            elif ended and self.slot.held:  # otherwise when it begins
                self._prepare()
        elif connection is None:
            self._unacked += len(data)  # bounded by the stream's credit
        else:
            if self._started:
                connection.write(body.encode(data))
            else:
                self._write_start(connection)
            if body.received > MAX_REPLAY:
                body.forget()
            if connection.paused:
                self._unacked += len(data)
            else:
                self._stream.consumed(len(data))

    def on_writable(self) -> None:
        self._response.on_writable()

    def on_reset(self, code: int, reason: str) -> None:
        log.debug("cancelled", extra={"request": self._body.head.request_id, "reason": reason})
        self._stop()
        self._stream.confirm_reset()

    # ── called by the connection to the engine ────────────────────────────────────────────────

    def on_response_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        body = self._body
        if not self._pool.accepts_usage and self._learns_of_usage(status):
            return
        self._responded = True
        body.forget()
        if status >= 300 and self._connection is not None:  # of the engine, not ours
            if status < 400:
                reason = f"the engine redirects ({status}): nodes don't follow"
                self.fail(Code.ENGINE_FAILED, reason)
                return
            offered = self.slot.engine.offered
            self._response.filter = ErrorFilter(offered.private, body.head.path)
        for name, value in headers:
            if name == "content-encoding" and value.strip().lower() not in ("", "identity"):
                if not self._decode(value):
                    return
                headers = [one for one in headers if one[0] not in _OF_ENCODED]
                break
        translate = self._response.filter
        if translate is not None:
            if body.translated:  # the length in the other dialect is known at the end only
                headers = [one for one in headers if one[0] != "content-length"]
            decided = translate.head(status, headers)
            if decided is None:
                self._undecided = True
                if self._decoder is None:
                    self.on_response_body = self._on_undecided_body
                return
            status, headers = decided
        self._stream.send_head(passed_head(status, headers))

    def _learns_of_usage(self, status: int) -> bool:
        """Learn whether the engine takes ``stream_options``, which was our addition; return whether
        it is asked again, without."""
        body, pool = self._body, self._pool
        if status < 300:
            if body.usage is not None:
                pool.accepts_usage = True
            elif body.usage_dropped:
                pool.remember_refusal()
        elif status in _REFUSED_FIELDS and not body.usage_dropped and body.drop_usage():
            self._ask_again()
            return True
        return False

    def _ask_again(self) -> None:
        log.info(
            "engine refused a request: asked again without stream_options",
            extra={"request": self._body.head.request_id, "engine": self.slot.engine.name},
        )
        connection, self._connection = self._connection, None
        self._response.connection = None
        if connection is not None:
            connection.abort()
        self._task = asyncio.create_task(self._connect_anew())

    def _on_undecided_body(self, data: bytes) -> None:
        """Take a piece of a body that decides what the head is."""
        translate = self._response.filter
        assert translate is not None
        passed = translate.feed(data)
        if not passed:
            self._response.held += len(data)
        data = passed
        if translate.decided is not None:
            self._undecided = False
            if self._decoder is None:
                self.on_response_body = self._response.add
            self._stream.send_head(passed_head(*translate.decided))
        if data:
            self._response.add_translated(data)

    def _decode(self, encoding: str) -> bool:
        """Decode the body from now on; False if that is impossible."""
        try:
            self._decoder = Decoder(encoding)
        except ValueError as error:
            self.fail(Code.ENGINE_FAILED, str(error))
            return False
        self.on_response_body = self._on_encoded_body
        return True

    def _on_encoded_body(self, data: bytes) -> None:
        assert self._decoder is not None
        try:
            data = self._decoder.feed(data)
        except ValueError as error:
            self.fail(Code.ENGINE_FAILED, str(error))
            return
        if data and self._undecided:
            self._on_undecided_body(data)
        elif data:
            self._response.add(data)

    def _decide(self) -> None:
        """End a filter whose head is still held."""
        translate, self._response.filter = self._response.filter, None
        assert translate is not None
        rest = translate.end()
        assert translate.decided is not None
        if self._response.limited is None:
            self._response.count_whole(rest)
            self._end_response(passed_head(*translate.decided), rest)
        else:
            self._send_decided(translate.decided, [rest] if rest else [])
            self._end_response()

    async def _end_in_worker(self) -> None:
        """End a filter that holds much of the answer, in a worker, and then the answer."""
        try:
            self._send_decided(*await end_in_worker(self._owner.workers, self._response))
        except Failed as failed:
            self.fail(failed.code, failed.reason)
        else:
            self._end_response()

    def _send_decided(
        self, decided: tuple[int, list[tuple[str, str]]] | None, rest: list[bytes]
    ) -> None:
        """Send what the end of a filter has decided and returned."""
        if self._undecided:
            self._undecided = False
            assert decided is not None
            self._stream.send_head(passed_head(*decided))
        for piece in rest:
            self._response.add(piece)

    def on_response_end(self) -> None:
        if self._decoder is not None:
            try:
                self._decoder.end()
            except ValueError as error:
                self.fail(Code.ENGINE_FAILED, str(error))
                return
        if isinstance(said := self._response.filter, ErrorFilter) and said.shows_change:
            self._owner.on_engine_trouble()
        if self._response.held > OFF_LOOP and self._response.filter is not None:
            self._task = asyncio.create_task(self._end_in_worker())
            return
        if self._undecided:
            self._decide()
        else:
            self._end_response()

    def _end_response(self, head: ResponseHead | None = None, body: bytes = b"") -> None:
        """End the answer; with ``head`` that is all of it, and nothing of it is sent yet."""
        figures = self._response.end()
        connection, self._connection = self._connection, None
        self._response.connection = None
        limited = self._response.limited
        if limited is not None and limited.pending:
            limited.end(lambda: self._end(figures))
        else:
            # Before its connection is free: the request that begins now must not take that while
            # its parser is at work.
            self._finish(answered=True)
        if connection is not None:
            connection.release(connection.reusable and self._body.ended)
        if self._over and head is not None:
            self._stream.answer(head, body, figures)
        elif self._over:
            self._stream.end(figures)

    def on_response_lost(self, reason: str) -> None:
        connection = self._connection
        if self._responded:
            self.fail(Code.ENGINE_FAILED, reason)
        elif connection is not None and connection.may_be_stale and self._body.replayable:
            self._connection = self._response.connection = None
            self._task = asyncio.create_task(self._connect_anew())
        else:
            self.fail(Code.ENGINE_DOWN, reason)

    def on_upstream_writable(self) -> None:
        unacked, self._unacked = self._unacked, 0
        if unacked:
            self._stream.consumed(unacked)

    # ── steps ─────────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        """Make the engine's request of the whole body, or reply to it here."""
        body = self._body
        assert body.prepare is not None
        prepare, with_usage = body.prepare, not self._pool.accepts_usage
        if body.received > OFF_LOOP:
            work = partial(prepare_whole, prepare, with_usage)
            self._task = asyncio.create_task(self._prepare_in_worker(work))
            return
        try:
            prepared, whole = prepare_whole(prepare, with_usage, b"".join(body.take()))
        except NotOffered as error:  # its server knows what is offered: the offer has just changed
            self.fail(Code.REFUSED, str(error))
            return
        self._send_prepared(prepared, [whole])

    async def _prepare_in_worker(self, work: Work) -> None:
        try:
            self._send_prepared(*await prepare_in_worker(self._owner.workers, self._body, work))
        except Failed as failed:
            self.fail(failed.code, failed.reason)

    def _send_prepared(self, prepared: Prepared, pieces: list[bytes]) -> None:
        if prepared.reply is not None:
            return self._reply(prepared.reply)
        self._body.replace(prepared.path, pieces, prepared.usage)
        if prepared.usage is not None and self._pool.refuses_usage:
            self._body.drop_usage()
        self._response.filter = prepared.response_filter
        return self._connect()

    def _connect(self) -> None:
        connection = None if self._body.outgrows_replay() else self._pool.take()
        if connection is not None:
            self._use(connection)
        else:
            self._task = asyncio.create_task(self._connect_anew())

    async def _connect_anew(self) -> None:
        try:
            connection = await self._pool.connect()
        except (OSError, TimeoutError) as error:
            reason = str(error) or "it did not answer in time"
            self.fail(Code.ENGINE_DOWN, f"engine '{self.slot.engine.name}' is down: {reason}")
            return
        if self._over:
            connection.abort()
        else:
            self._use(connection)

    def _use(self, connection: EngineConnection) -> None:
        self._connection = self._response.connection = connection
        self._started = False
        connection.attach(self)
        if self._body.ended or self._body.received:
            self._write_start(connection)
            if self._unacked:
                self.on_upstream_writable()

    def _write_start(self, connection: EngineConnection) -> None:
        """Write the head and what there is of the body at once: mostly that is all of it."""
        self._started = True
        for piece in self._body.encode_start(self._pool.prefix, self._pool.fields()):
            connection.write(piece)

    def _reply(self, reply: LocalReply) -> None:
        """Respond without asking the engine."""
        size = ("content-length", str(len(reply.body)))
        self.on_response_head(reply.status, [*reply.headers, size])
        self.on_response_body(reply.body)
        self.on_response_end()

    def _reply_too_large(self) -> None:
        message = f"The request body exceeds {MAX_BODY >> 20} MiB, the most that a node reads."
        self._reply(error_reply(self._body.head.path, 413, message))

    # ── ends ──────────────────────────────────────────────────────────────────────────────────

    def fail(self, code: Code, reason: str) -> None:
        """Stop, and reset the stream with the reason."""
        if self._over:
            return
        log.info(
            "request failed",
            extra={
                "request": self._body.head.request_id,
                "engine": self.slot.engine.name,
                "code": Code.name_of(code),
                "reason": reason,
            },
        )
        self._stop()
        self._stream.reset(code, reason)
        if code in (Code.ENGINE_DOWN, Code.ENGINE_FAILED):
            self._owner.on_engine_trouble()

    def _end(self, figures: Figures) -> None:
        self._finish(answered=True)
        self._stream.end(figures)

    def _stop(self) -> None:
        if not self._over:
            self._finish(answered=False)
            if self._connection is not None:
                self._connection.abort()

    def _finish(self, *, answered: bool) -> None:
        self._over = True
        self.on_response_body = self._response.add  # a method of its own would be a circle
        self._owner.on_ended(self, answered=answered)
        if self._response.limited is not None:
            self._response.limited.close()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
