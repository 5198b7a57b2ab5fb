"""One request on its way to engines: one after the other is asked until one has answered."""

from __future__ import annotations

import logging

from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import CHAT
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.nodes.node import Engine
from fabric_server.proxy.answer_writer import AnswerWriter
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.charge import charge
from fabric_server.proxy.clock import AttemptClock, Timeouts
from fabric_server.proxy.continuation import CONTINUING_KINDS, Continuation
from fabric_server.proxy.ending import Ending
from fabric_server.proxy.hedging import HedgeTimer
from fabric_server.proxy.outcome_rules import Counts
from fabric_server.proxy.request_options import RAW_REASONING, RequestOptions
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.proxy.usage_check import check_usage
from fabric_server.routing.choice import Choice, Opener
from fabric_server.routing.criteria import EngineTerms, Requirements
from fabric_server.routing.load_balancer import model_report
from fabric_server.routing.variants import BegunAnswer, variant_of
from protocol.errors import Code
from protocol.messages import RequestHead

log = logging.getLogger("fabric.gateway")

MAX_TRIES = 3
_MAX_HEADER = 1024
"""Longer headers are not forwarded: what opens a stream must fit into one frame."""


class RetryLoop:
    """``run`` returns when the request has its answer, and raises ApiError when there is none."""

    __slots__ = (
        "_broken",
        "_continuation",
        "_deadline",
        "_endpoint",
        "_raw",
        "_record",
        "_request",
        "_requirements",
        "_size",
        "_suspects",
        "_upstream",
        "_whole",
        "loop",
    )  # fmt: skip

    def __init__(
        self,
        upstream: UpstreamContext,
        record: RequestRecord,
        requirements: Requirements,
        options: RequestOptions,
        size: int | None,
    ) -> None:
        """``size`` is the body's, in bytes; None is not known."""
        request, key = record.request, record.key
        self._upstream = upstream
        self._request = request
        self._endpoint = request.endpoint or CHAT
        self._record = record
        self._requirements = requirements
        self.loop = upstream.loop
        self._whole = request.body.flowing is None
        """Otherwise the replay buffer has only the body's beginning: it can't be sent twice."""
        self._size = size
        self._deadline = request.arrived + options.seconds
        self._raw = key.reasoning == "raw" if options.raw is None else options.raw
        self._continuation: Continuation | None = None
        failover = key.failover == "continue" if options.failover is None else options.failover
        if failover and self._whole and record.parsed.stream and self._endpoint.path == CHAT.path:
            self._continuation = Continuation(request.body.replay_buffer)
        self._broken: ApiError | None = None
        """Set when an answer has broken off and the next attempt is asked for its rest: the error
        for the client if no engine has it."""
        self._suspects: list[tuple[Engine, Ending]] | None = None
        """Attempts that failed, perhaps by the request's own fault."""

    async def run(self) -> None:
        upstream, requirements, continuation = (
            self._upstream,
            self._requirements,
            self._continuation,
        )
        upstream.budget.earn()
        while True:
            choice, opener = self._admit_now() or await self._admit()
            self._note_try(choice.engine)
            attempt, ending = await self._try(choice, opener)
            if ending.error is not None and not self._request.response.finished:
                raise ending.error
            if ending.to_continue and continuation is not None:
                self._broken = ending.told
                if continuation.has_text:
                    _require_same_weights(requirements, attempt.choice)
                upstream.budget.spend()
                continue
            if attempt.answer.started:
                return
            if attempt.choice.refused and self._whole and self._record.attempts < MAX_TRIES:
                continue
            node = attempt.choice.engine.node
            if ending.code == Code.LOST and node.reachable and not node.remote:
                # Only a tunnel was lost: the node has another one.
                requirements.excluded_nodes.remove(node.id)
            if not ending.rule.elsewhere or not self.can_retry():
                if self._broken is not None:
                    raise self._broken
                raise explain(ending, requirements.model, attempt.clock.timeouts)
            upstream.budget.spend()
            upstream.metrics.retries += 1

    # ── which engine ──────────────────────────────────────────────────────────────────────────

    def _admit_now(self) -> tuple[Choice, Opener] | None:
        """Take a slot of an engine, and what opens a stream to it, if one is free."""
        now = self.loop.time()
        if now >= self._deadline:
            return None
        choice = self._upstream.admission.admit_now(self._requirements, now)
        if choice is None:
            return None
        opener = choice.opener(now)
        if opener is None:  # closed a moment ago
            self._upstream.registry.release(choice.engine, choice.key_id)
            return None
        return choice, opener

    async def _admit(self) -> tuple[Choice, Opener]:
        """Wait for a slot of an engine, and what opens a stream to it."""
        admission, requirements = self._upstream.admission, self._requirements
        began = self.loop.time()
        try:
            while True:
                choice = await admission.admit(requirements, self._deadline, self._request.id)
                opener = choice.opener(self.loop.time())
                if opener is not None:
                    return choice, opener
                # The tunnel closed between the slot being given and being used.
                self._upstream.registry.release(choice.engine, choice.key_id)
        except ApiError:
            if self._broken is not None:
                raise self._broken from None
            raise
        finally:
            self._record.queued += self.loop.time() - began

    def _note_try(self, engine: Engine) -> None:
        if engine.breakers:
            requirements = self._requirements
            for breaker in engine.breakers.of(requirements.model, requirements.path):
                breaker.on_attempt(self.loop.time())
        self._record.attempts += 1
        self._requirements.excluded_nodes.append(engine.node.id)

    def can_retry(self) -> bool:
        upstream = self._upstream
        if not self._whole or self._record.attempts >= MAX_TRIES or not upstream.budget.allows:
            return False
        return upstream.admission.has_alternative(self._requirements)

    def race(self, attempt: Attempt) -> None:
        """Let a second engine compete with ``attempt``; ``AttemptOwner``'s."""
        if self._whole and self._broken is None and self._record.attempts < MAX_TRIES:
            self._start_hedge(attempt)

    def can_continue(self, attempt: Attempt) -> bool:
        if self._continuation is None or self._record.attempts >= MAX_TRIES:
            return False
        return (
            self._upstream.budget.allows
            and self._continuation.possible
            and not _has_changed(attempt.choice, self._requirements.model)
        )

    # ── one attempt, or two at once ───────────────────────────────────────────────────────────

    async def _try(self, choice: Choice, opener: Opener) -> tuple[Attempt, Ending]:
        """Ask an engine; return whose ending it is, and the ending."""
        upstream, requirements, record = self._upstream, self._requirements, self._record
        body = self._request.body.replay_buffer
        if self._broken is not None and self._continuation is not None:
            body = self._continuation.body(choice.engine.kind)
        affinity = upstream.outcomes.known.affinity
        affinity.remember(requirements.prefix, choice.engine)
        attempt = self._new_attempt(choice)
        record.set_attempt(attempt)
        attempt.begin(opener, self._head(attempt, body), body, ended=self._whole)
        del body  # it may be large, and the answer may take long
        after = None
        if self._whole and record.attempts == 1:
            after = upstream.hedging.after(requirements.model, stream=record.parsed.stream)
        if after is None:
            winner, ending = await self._ending(attempt)
        else:
            hedge_at = attempt.clock.began_at + after
            with HedgeTimer(attempt, self._start_hedge, upstream.deadlines, hedge_at):
                winner, ending = await self._ending(attempt)
        if winner is not attempt:
            affinity.remember(requirements.prefix, winner.choice.engine)
        return winner, ending

    def _start_hedge(self, first: Attempt) -> None:
        """Ask a second engine while the first goes on, if one has a slot; never a third."""
        upstream, body = self._upstream, self._request.body.replay_buffer
        if first.hedge is not None or not upstream.budget.allows:
            return
        admitted = self._admit_now()
        if admitted is None:
            return
        choice, opener = admitted
        upstream.budget.spend()
        upstream.metrics.hedged += 1
        self._note_try(choice.engine)
        second = self._new_attempt(choice)
        first.add_hedge(second)
        second.begin(opener, self._head(second, body), body, ended=True)

    def _new_attempt(self, choice: Choice) -> Attempt:
        upstream, now = self._upstream, self.loop.time()
        return Attempt(
            self,
            choice,
            AnswerWriter(
                self._request,
                self._record.parsed.usage_requested,
                choice,
                self._continuation,
                is_rest=self._broken is not None,
            ),
            AttemptClock(upstream.timeouts.within(self._deadline - now), now),
            upstream.registry,
            upstream.deadlines,
        )

    def _head(self, attempt: Attempt, body: bytes) -> RequestHead:
        headers, endpoint = self._request.headers, self._endpoint
        forwarded = []
        for name, node_name in endpoint.forwarded_headers:
            value = headers.get(name)
            if value and len(value) <= _MAX_HEADER:
                forwarded.append((node_name, value.decode("latin-1")))
        if self._raw:
            forwarded.append(RAW_REASONING)
        return RequestHead(
            self._request.id,
            attempt.choice.engine.name,
            self._request.method,
            endpoint.path,
            forwarded,
            len(body) if self._whole else self._size,
            max(1, int(attempt.clock.timeouts.total * 1000)),
            self._record.attempts,
        )

    async def _ending(self, attempt: Attempt) -> tuple[Attempt, Ending]:
        """Wait for the end of an attempt, or of its hedge; return whose ending it is, and which."""
        flowing = self._request.body.flowing
        upload = None if flowing is None else self.loop.create_task(attempt.upload(flowing))
        hedge: Attempt | None = None
        try:
            ending = await attempt.done
        finally:
            if upload is not None:
                upload.cancel()
            attempt.cancel()
            if (hedge := attempt.hedge) is not None:
                hedge.cancel()
                attempt.hedge = hedge.hedge = None  # they were a reference circle
        return (attempt if hedge is None or hedge.ending is not ending else hedge), ending

    # ── how it ended ──────────────────────────────────────────────────────────────────────────

    def _judge(self, attempt: Attempt, ending: Ending) -> None:
        """Report the engine's end, and that others' failures were not this request's fault."""
        counts, requirements = ending.rule.counts, self._requirements
        outcomes, account = self._upstream.outcomes, self._record.key.account
        engine, began_at = attempt.choice.engine, attempt.clock.began_at
        outcomes.update_breaker(engine, began_at, ending, requirements, account)
        if counts is Counts.SUSPICION:
            self._suspects = [*(self._suspects or ()), (attempt.choice.engine, ending)]
        elif counts is Counts.SUCCESS and self._suspects:
            for suspect, its_ending in self._suspects:
                outcomes.confirm(suspect, its_ending, requirements)
            self._suspects = None

    def on_attempt_over(self, attempt: Attempt, ending: Ending) -> None:
        upstream, record, answer = self._upstream, self._record, attempt.answer
        requirements, stream = self._requirements, record.parsed.stream
        check_usage(self._request, attempt, requirements, self.loop.time())
        self._judge(attempt, ending)
        if self._broken is None:  # the rest of an answer does not show how long answers take
            upstream.outcomes.update_latency(
                attempt, ending, requirements.model, upstream.hedging, stream=stream
            )
        if ending.code:
            _log_failure(self._request, attempt, ending)
        if attempt.hedge is not None and attempt.hedge_runs:
            record.set_attempt(attempt.hedge)
            return
        metrics = upstream.metrics
        if answer.started:
            if attempt.hedge is not None:
                other = attempt.hedge.clock
                metrics.hedges_won += attempt.clock.began_at > other.began_at
            metrics.continued += answer.is_rest
            upstream.admission.record_service_time(
                requirements.model, self.loop.time() - attempt.clock.began_at
            )  # attempts without an answer do not show how long answers take
        charge(record, attempt, ending, requirements)
        record.end_attempt(attempt, ending)
        if answer.started and not ending.to_continue:
            upstream.ledger.write(record)


def _require_same_weights(requirements: Requirements, begun: Choice) -> None:
    """Let only engines continue an answer that have the weights by which it was begun."""
    terms = requirements.terms
    if begun.report is None or (terms is not None and terms.begun is not None):
        return  # continued once more: as the first part was
    requirements.terms = EngineTerms(
        CONTINUING_KINDS,
        None if terms is None else terms.variant,
        BegunAnswer(begun.engine.kind, begun.report),
    )


def _has_changed(choice: Choice, model: str) -> bool:
    """Return whether the engine reports other weights than when it was chosen: it is not known
    then which of them wrote what it has answered."""
    chosen, now = choice.report, model_report(choice.engine, model)
    return chosen is None or (now is not None and variant_of(now) != variant_of(chosen))


def explain(ending: Ending, model: str, timeouts: Timeouts) -> ApiError:
    """Return the error for a client that no engine could answer."""
    if ending.rule.own_words:
        return errors.engine_refused(ending.status)
    if ending.code == Code.TIMEOUT:
        return errors.upstream_timeout(timeouts.first_byte)
    if ending.code in (Code.REFUSED, Code.DRAINING):
        return errors.no_capacity(model, 1.0)
    if ending.code == Code.FORBIDDEN:
        return errors.upstream_error("The node does not serve this path.")
    if ending.code == Code.LOST:
        return errors.upstream_error("The node was lost before it could answer.")
    return errors.upstream_error("The node's engine failed before it could answer.")


def _log_failure(request: Request, attempt: Attempt, ending: Ending) -> None:
    log.info(
        "attempt failed",
        extra={
            "request": request.id,
            "node": attempt.choice.node_id,
            "engine": attempt.choice.engine_name,
            "code": Code.name_of(ending.code),
            "reason": ending.reason,
        },
    )
