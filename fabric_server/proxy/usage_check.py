"""Checks the token counts that an engine reports of an answer, before anything believes them."""

from __future__ import annotations

import logging

from fabric_server.dialects.endpoints import CHAT
from fabric_server.edge.request import Request
from fabric_server.metering.plausible import Answered, believable
from fabric_server.metering.usage import BoundedUsage
from fabric_server.proxy.attempt import Attempt
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.load_balancer import model_report

log = logging.getLogger("fabric.gateway")

ALWAYS_PLAUSIBLE = 256
"""Tokens of an answer that any engine generates in a second, and any context holds."""


def check_usage(request: Request, attempt: Attempt, requirements: Requirements, now: float) -> None:
    """Bound the usage of an answer that is over."""
    answer = attempt.answer
    meter = answer.meter
    prompt, completion = meter.usage.prompt_tokens, meter.usage.completion_tokens
    prompt_bytes = max(request.body.received, requirements.sent_bytes)
    engine, endpoint = attempt.choice.engine, request.endpoint or CHAT
    limit = requirements.output_limit
    few = ALWAYS_PLAUSIBLE if limit is None else min(limit, ALWAYS_PLAUSIBLE)
    if (prompt or 0) <= prompt_bytes and (
        (completion or 0) <= meter.events or ((completion or 0) <= few and endpoint.generates)
    ):
        return
    report = model_report(engine, requirements.model)
    began = request.arrived if answer.is_rest else attempt.clock.began_at
    answered = Answered(
        prompt_bytes=prompt_bytes,
        media=requirements.media,
        events=meter.events,
        seconds=now - began,
        limit=limit,
        context=None if report is None else report.context_length,
        generates=endpoint.generates,
    )
    meter.usage = believable(meter.usage, answered)
    if not isinstance(meter.usage, BoundedUsage):
        return
    engine.implausible_usage += 1
    if engine.implausible_usage == 1:  # one line for each registration; the metric counts
        names = {"request": request.id, "node": engine.node.id, "engine": engine.name}
        log.warning("usage is not plausible", extra={**names, "model": requirements.model})
