"""On what terms a request is answered: what its headers say of its priority, its user's patience,
where it may go, what happens when its node is lost, and whether reasoning is told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fabric_server.dialects import errors
from fabric_server.proxy.request_options import RequestOptions
from fabric_server.routing.criteria import Priority
from protocol.regions import is_region

PRIORITY = b"x-fabric-priority"
TIMEOUT = b"x-fabric-timeout"
FAILOVER = b"x-fabric-failover"
REGION = b"x-fabric-region"
MAX_REGIONS = 16
REASONING = b"x-fabric-reasoning"
"""Nodes read it, too."""
RAW = b"raw"

_PRIORITIES = {one.name.lower().encode(): one for one in Priority}


_USUAL = RequestOptions()
_OURS = frozenset({PRIORITY, TIMEOUT, FAILOVER, REGION, REASONING})


def read_options(headers: Mapping[bytes, bytes]) -> RequestOptions:
    """Raises Refusal: 400, naming the header."""
    if _OURS.isdisjoint(headers):
        return _USUAL
    return RequestOptions(
        _priority(headers.get(PRIORITY, b"medium")),
        _seconds(headers.get(TIMEOUT, b"inf")),
        _failover(headers[FAILOVER]) if FAILOVER in headers else None,
        _regions(headers[REGION]) if REGION in headers else None,
        _raw(headers[REASONING]) if REASONING in headers else None,
    )


def _priority(text: bytes) -> Priority:
    found = _PRIORITIES.get(text.strip().lower())
    if found is None:
        name = PRIORITY.decode()
        raise errors.bad_field(name, f"{name} is one of high, medium, low.")
    return found


def _failover(text: bytes) -> bool:
    wanted = text.strip().lower()
    if wanted not in (b"continue", b"off"):
        name = FAILOVER.decode()
        raise errors.bad_field(name, f"{name} is continue or off.")
    return wanted == b"continue"


def refuse_regions(headers: Mapping[bytes, bytes]) -> None:
    """For what would lose sight of them: raises Refusal, 400, rather than to go anywhere."""
    if REGION in headers:
        name = REGION.decode()
        words = f"{name} can't be kept for jobs and batches: ask the model itself."
        raise errors.bad_field(name, words)


def _regions(text: bytes) -> frozenset[str]:
    regions = [one.strip() for one in text.decode("latin-1").lower().split(",")]
    if len(regions) > MAX_REGIONS or not all(map(is_region, regions)):
        name = REGION.decode()
        words = f"{name} is up to {MAX_REGIONS} regions with commas between them: eu-west,eu-north."
        raise errors.bad_field(name, words)
    return frozenset(regions)


def _raw(text: bytes) -> bool:
    wanted = text.strip().lower()
    if wanted not in (RAW, b"split"):
        name = REASONING.decode()
        raise errors.bad_field(name, f"{name} is raw or split.")
    return wanted == RAW


def _seconds(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        name = TIMEOUT.decode()
        raise errors.bad_field(name, f"{name} is a number of seconds, more than 0.")
    return seconds
