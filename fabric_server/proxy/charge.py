"""Decides what a request is charged: what its engines told, and estimates of what they did not.

A client that hangs up before the engine has told its figures has got tokens all the same.  Without
an estimate it would pay nothing, and a limit of tokens would not limit it.
"""

from __future__ import annotations

from fabric_server.dialects.endpoints import CHAT
from fabric_server.metering import estimate
from fabric_server.metering.usage import BoundedUsage, EstimatedUsage
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.ending import Ending
from fabric_server.proxy.outcome_rules import REQUEST_LIMIT
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.routing.criteria import Requirements


def charge(
    record: RequestRecord, attempt: Attempt, ending: Ending, requirements: Requirements
) -> None:
    """Note what the request costs, now that this attempt is over."""
    answer, earlier = attempt.answer, record.usage
    told, meter = answer.meter.usage, answer.meter
    if answer.started and meter.complete and told.prompt_tokens and told.completion_tokens:
        if earlier is None:  # as nearly all are
            record.usage = told
            return
    elif not _is_charged(record, attempt, ending):
        record.usage = earlier or told
        return
    prompt = told.prompt_tokens or (earlier and earlier.prompt_tokens)
    completion, estimated = _completion(record, attempt, requirements.output_limit)
    if not prompt:
        prompt, estimated = _prompt(record, requirements), True
        if not prompt and not completion:  # nothing was asked: an engine was to load its model
            record.usage = told
            return
    if estimated or isinstance(earlier, EstimatedUsage):
        record.usage = EstimatedUsage(prompt, completion, bounded=isinstance(told, BoundedUsage))
    else:
        record.usage = type(told)(prompt, completion)


def _is_charged(record: RequestRecord, attempt: Attempt, ending: Ending) -> bool:
    """Return whether an attempt costs anything: its answer has reached the client in part, or an
    engine has worked until the client, or the request's own time limit, ended it."""
    request, answer = record.request, attempt.answer
    if not (request.endpoint or CHAT).metered or answer.status >= 300:
        return False
    meter = answer.meter
    if answer.started:  # an engine's error alone costs nothing
        return not meter.failed or estimate.has_text(meter.sample)
    by_client = ending.outcome == "cancelled" and ending.error is None and not ending.lost_hedge
    return request.body.complete and (by_client or ending.rule is REQUEST_LIMIT)


def _completion(
    record: RequestRecord, attempt: Attempt, limit: int | None
) -> tuple[int | None, bool]:
    """Return the tokens of the answer, in all its parts, and whether they were estimated now."""
    answer, meter = attempt.answer, attempt.answer.meter
    told, events, earlier = meter.usage.completion_tokens, meter.events - meter.before, 0
    if record.usage is not None:
        earlier = record.usage.completion_tokens or 0
        if earlier == meter.before + 1:  # the transcript leaves out the first event: it has no text
            earlier = meter.before
    if (record.request.endpoint or CHAT).streams is None:
        return told, False
    if told is not None:
        told -= meter.before  # of the engine's own part
        believed = meter.complete and (told or not estimate.has_text(meter.sample))
        # Figures that come with each event are as good; those of a first event are not.
        if believed or (told and 2 * told >= events):
            return earlier + told, False
    if not answer.bytes_received:
        return earlier or None, False
    if answer.streamed:
        passed = answer.bytes_received - meter.aside
        tokens = estimate.streamed_tokens(passed, events, meter.sample)
    else:
        tokens = estimate.whole_tokens(answer.bytes_received, meter.sample)
    if limit is not None:
        tokens = min(tokens, max(limit, events))
    return earlier + tokens, True


def _prompt(record: RequestRecord, requirements: Requirements) -> int:
    if requirements.prompt:
        return estimate.prompt_tokens(requirements.prompt)
    size = max(record.request.body.received, requirements.sent_bytes)
    return requirements.media_tokens or estimate.tokens_of(size)
