"""One request at engines: one after the other is asked until one has answered, or none can."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fabric_server.dialects import errors
from fabric_server.dialects.body import ParsedBody
from fabric_server.dialects.endpoints import CHAT, Endpoint
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.gateway.options import RAW, REASONING, RequestOptions
from fabric_server.gateway.requirements import build_requirements
from fabric_server.nodes.registry import Engine
from fabric_server.proxy.attempt import Attempt, Ending, Timeouts, upstream_lost
from fabric_server.proxy.continuation import Continuation
from fabric_server.proxy.hedging import Hedge
from fabric_server.proxy.outcomes import TRY_ELSEWHERE
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.routing.load_balancer import Choice
from protocol.aio.tunnel import Tunnel
from protocol.errors import Code
from protocol.messages import RequestHead

if TYPE_CHECKING:
    from fabric_server.gateway.gateway import Gateway

log = logging.getLogger("fabric.gateway")

MAX_TRIES = 3
_MAX_HEADER = 1024
"""Longer ones are not passed on: what opens a stream must fit into one frame."""


class RetryLoop:
    """``run`` returns when the request has its answer, and raises Refusal when there is none."""

    __slots__ = (
        "_ask",
        "_continuation",
        "_deadline",
        "_draft",
        "_endpoint",
        "_gateway",
        "_loop",
        "_raw",
        "_request",
        "_requirements",
        "_seam",
        "_size",
        "_whole",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        request: Request,
        endpoint: Endpoint,
        ask: ParsedBody,
        terms: RequestOptions,
        draft: RequestRecord,
    ) -> None:
        """Works out what is wanted; raises Refusal when nobody can do that."""
        body, key = request.body, draft.key
        self._gateway = gateway
        self._request = request
        self._endpoint = endpoint
        self._ask = ask
        self._draft = draft
        self._loop = asyncio.get_running_loop()
        self._whole = body.complete
        """Otherwise what is kept is the body's beginning, and can't be sent twice."""
        size = len(body.replay_buffer) if self._whole else body.length
        if size is not None and not self._whole and ask.patch is not None:
            start, stop, text = ask.patch
            size += len(text) - (stop - start)
        self._requirements, longer = build_requirements(
            request,
            endpoint,
            ask,
            size,
            key,
            terms,
            registry=gateway.registry,
            aliases=gateway.aliases,
        )
        self._size = None if size is None else size + longer
        self._deadline = request.arrived + terms.seconds
        self._raw = key.reasoning == "raw" if terms.raw is None else terms.raw
        self._continuation: Continuation | None = None
        wanted = key.failover == "continue" if terms.failover is None else terms.failover
        if wanted and self._whole and ask.stream and endpoint is CHAT:
            self._continuation = Continuation(body.replay_buffer)
        self._seam = False
        """What is asked for next is the rest of an answer."""

    async def run(self) -> None:
        gateway, requirements, continuation = self._gateway, self._requirements, self._continuation
        gateway.budget.earn()
        while True:
            choice, tunnel = await self._admit()
            exchange, ending = await self._attempt(choice, tunnel)
            if ending.refusal is not None and not self._request.response.finished:
                raise ending.refusal
            if ending.goes_on and continuation is not None:
                self._seam, requirements.kinds = True, continuation.kinds
                gateway.budget.spend()
                continue
            if exchange.relayed:
                return
            node = exchange.engine.node
            if ending.code == Code.LOST and not ending.left and node.reachable:
                requirements.tried.remove(node.id)  # only a tunnel was lost: it has another one
            again = ending.left or ending.code in TRY_ELSEWHERE
            if not again or not self._elsewhere():
                if self._seam:
                    raise upstream_lost()
                raise explain(ending, requirements.model, exchange.timeouts)
            gateway.budget.spend()
            gateway.metrics.retries += 1

    # ── who is asked ──────────────────────────────────────────────────────────────────────────

    async def _admit(self) -> tuple[Choice, Tunnel]:
        """An engine with one of its slots taken, and a tunnel to it."""
        admission, requirements, began = (
            self._gateway.admission,
            self._requirements,
            self._loop.time(),
        )
        try:
            while True:
                choice = (
                    admission.admit_now(requirements, began) if began < self._deadline else None
                )
                if choice is None:
                    choice = await admission.admit(requirements, self._deadline, self._request.id)
                tunnel = choice.engine.node.tunnel()
                if tunnel is not None:
                    break
                # It went away between being given and being taken.
                self._gateway.registry.release(choice.engine)
        except ApiError:
            if self._seam:
                raise upstream_lost() from None
            raise
        finally:
            self._draft.queued += self._loop.time() - began
        self._given(choice.engine)
        return choice, tunnel

    def _given(self, engine: Engine) -> None:
        """It is about to be asked."""
        if (breaker := engine.breakers.get(self._requirements.model)) is not None:
            breaker.begun(self._loop.time())
        self._draft.attempts += 1
        self._requirements.tried.append(engine.node.id)

    def _elsewhere(self) -> bool:
        """Whether somebody else could be asked now, from the beginning."""
        could = self._whole and self._draft.attempts < MAX_TRIES and self._gateway.budget.allows
        return could and self._gateway.admission.another(self._requirements)

    def _goes_on(self) -> bool:
        """Whether somebody else could be asked for the rest."""
        if self._continuation is None or self._draft.attempts >= MAX_TRIES:
            return False
        return self._gateway.budget.allows and self._continuation.possible

    # ── one attempt, or two at once ───────────────────────────────────────────────────────────

    async def _attempt(self, choice: Choice, tunnel: Tunnel) -> tuple[Attempt, Ending]:
        """Ask; returns whose ending it is, and how it went."""
        gateway, requirements, draft = self._gateway, self._requirements, self._draft
        question = self._request.body.replay_buffer
        if self._seam and self._continuation is not None:
            question = self._continuation.body(choice.engine.kind)
        affinity = gateway.outcomes.known.affinity
        affinity.remember(requirements.prefix, choice.engine)
        exchange = self._exchange(choice)
        draft.asks(exchange)
        exchange.begin(tunnel, self._head(exchange, question), question, ended=self._whole)
        after = None
        if self._whole and draft.attempts == 1:
            after = gateway.hedging.after(requirements.model, stream=self._ask.stream)
        if after is None:
            return exchange, await self._ending(exchange)
        with Hedge(exchange, self._hedge, gateway.deadlines, exchange.began_at + after):
            ending = await self._ending(exchange)
        if exchange.rival is not None and exchange.rival.ending is ending:
            exchange = exchange.rival
            affinity.remember(requirements.prefix, exchange.engine)
        return exchange, ending

    def _hedge(self, first: Attempt) -> None:
        """Ask a second engine while the first goes on, if one has a slot."""
        gateway, question = self._gateway, self._request.body.replay_buffer
        if not gateway.budget.allows:
            return
        choice = gateway.admission.admit_now(self._requirements, self._loop.time())
        if choice is None:
            return
        tunnel = choice.engine.node.tunnel()
        if tunnel is None:
            gateway.registry.release(choice.engine)
            return
        gateway.budget.spend()
        gateway.metrics.hedged += 1
        self._given(choice.engine)
        second = self._exchange(choice)
        first.race(second)
        second.begin(tunnel, self._head(second, question), question, ended=True)

    def _exchange(self, choice: Choice) -> Attempt:
        gateway = self._gateway
        return Attempt(
            self._request,
            choice.engine,
            self._ask,
            registry=gateway.registry,
            deadlines=gateway.deadlines,
            timeouts=gateway.timeouts.within(self._deadline - self._loop.time()),
            elsewhere=self._elsewhere,
            on_over=self._on_over,
            loop=self._loop,
            route=choice.why,
            cold=choice.cold,
            continuation=self._continuation,
            goes_on=self._goes_on,
            seam=self._seam,
        )

    def _head(self, exchange: Attempt, question: bytes) -> RequestHead:
        headers, endpoint = self._request.headers, self._endpoint
        passed = []
        for name, told in endpoint.passed:
            value = headers.get(name)
            if value and len(value) <= _MAX_HEADER:
                passed.append((told, value.decode("latin-1")))
        if self._raw:
            passed.append((REASONING.decode(), RAW.decode()))
        return RequestHead(
            self._request.id,
            exchange.engine.name,
            self._request.method,
            endpoint.path,
            passed,
            len(question) if self._whole else self._size,
            max(1, int(exchange.timeouts.total * 1000)),
            self._draft.attempts,
        )

    async def _ending(self, exchange: Attempt) -> Ending:
        upload = None if self._whole else self._loop.create_task(exchange.upload())
        try:
            return await exchange.done
        finally:
            if upload is not None:
                upload.cancel()
            exchange.cancel()
            if exchange.rival is not None:
                exchange.rival.cancel()

    # ── what came of it ───────────────────────────────────────────────────────────────────────

    def _on_over(self, exchange: Attempt, ending: Ending) -> None:
        gateway, requirements, draft = self._gateway, self._requirements, self._draft
        gateway.outcomes.judge(exchange, ending, requirements.model)
        if not self._seam:  # a rest tells nothing of how long answers take
            stream = self._ask.stream
            gateway.outcomes.learn(
                exchange, ending, requirements.model, gateway.hedging, stream=stream
            )
        if ending.code:
            _log_failure(self._request, exchange, ending)
        if exchange.rival is not None and exchange.rivalled:
            draft.asks(exchange.rival)
            return
        if exchange.relayed and exchange.rival is not None:
            gateway.metrics.hedges_won += exchange.engine.node.id != requirements.tried[0]
        self._note(exchange, ending)
        if exchange.relayed and not ending.goes_on:
            gateway.record(draft)

    def _note(self, exchange: Attempt, ending: Ending) -> None:
        gateway, draft = self._gateway, self._draft
        draft.exchange = None
        draft.usage = exchange.usage
        if not exchange.seam:
            draft.first_byte_at = exchange.first_byte_at
        elif exchange.relayed:
            draft.continued += 1
            gateway.metrics.continued += 1
        if exchange.relayed:  # others say nothing of how long answers take
            gateway.admission.learn(draft.model, self._loop.time() - exchange.began_at)
        draft.outcome = ending.outcome
        draft.error = ending.refusal.code if ending.refusal is not None else None
        if ending.code:
            draft.error = Code.name_of(ending.code)


def explain(ending: Ending, model: str, timeouts: Timeouts) -> ApiError:
    """What the user is told when nothing could be got for them."""
    if ending.code == Code.TIMEOUT:
        return errors.upstream_timeout(timeouts.first_byte)
    if ending.code in (Code.REFUSED, Code.DRAINING):
        return errors.no_capacity(model, 1.0)
    if ending.code == Code.FORBIDDEN:
        return errors.upstream_error("The node does not serve this path.")
    if ending.code == Code.LOST:
        return errors.upstream_error("The node was lost before it could answer.")
    return errors.upstream_error("The node's engine failed before it could answer.")


def _log_failure(request: Request, exchange: Attempt, ending: Ending) -> None:
    log.info(
        "attempt failed",
        extra={
            "request": request.id,
            "node": exchange.engine.node.id,
            "engine": exchange.engine.name,
            "code": Code.name_of(ending.code),
            "reason": ending.reason,
        },
    )
