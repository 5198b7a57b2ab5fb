"""Reads a request's options from its ``x-fabric-…`` headers: priority, timeout, regions, failover,
the weights of the model, and whether reasoning is split from the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fabric_server.dialects import errors
from fabric_server.proxy.request_options import RequestOptions
from fabric_server.routing.criteria import Priority
from fabric_server.routing.variants import WantedVariant
from protocol.regions import is_region
from protocol.weights import MIN_DIGEST, is_label, parse_digest

PRIORITY = b"x-fabric-priority"
TIMEOUT = b"x-fabric-timeout"
FAILOVER = b"x-fabric-failover"
REGION = b"x-fabric-region"
MAX_REGIONS = 16
QUANT = b"x-fabric-quant"
DIGEST = b"x-fabric-digest"
REASONING = b"x-fabric-reasoning"
"""Nodes read this header, too."""
RAW = b"raw"

_PRIORITIES = {one.name.lower().encode(): one for one in Priority}


_DEFAULTS = RequestOptions()
_HEADERS = frozenset({PRIORITY, TIMEOUT, FAILOVER, REGION, QUANT, DIGEST, REASONING})


def read_options(headers: Mapping[bytes, bytes], highest: str = "medium") -> RequestOptions:
    """Read the options; ``highest`` is the priority that the request's key allows at most.

    A header that asks for more gets that.  Raises ApiError: 400, naming the header that is wrong.
    """
    if _HEADERS.isdisjoint(headers) and highest != "low":
        return _DEFAULTS
    asked = _priority(headers.get(PRIORITY, b"medium"))
    return RequestOptions(
        allowed_priority(asked, highest),
        _seconds(headers.get(TIMEOUT, b"inf")),
        _failover(headers[FAILOVER]) if FAILOVER in headers else None,
        _regions(headers[REGION]) if REGION in headers else None,
        read_variant(headers),
        _raw(headers[REASONING]) if REASONING in headers else None,
    )


def allowed_priority(asked: Priority, highest: str) -> Priority:
    """Return the priority of a request that asks for one, and whose key allows ``highest``."""
    return max(asked, _PRIORITIES.get(highest.encode(), Priority.MEDIUM))


def _priority(text: bytes) -> Priority:
    found = _PRIORITIES.get(text.strip().lower())
    if found is None:
        name = PRIORITY.decode()
        raise errors.bad_field(name, f"{name} must be high, medium or low.")
    return found


def _failover(text: bytes) -> bool:
    value = text.strip().lower()
    if value not in (b"continue", b"off"):
        name = FAILOVER.decode()
        raise errors.bad_field(name, f"{name} must be continue or off.")
    return value == b"continue"


def refuse_regions(headers: Mapping[bytes, bytes]) -> None:
    """Refuse regions, with ApiError 400, where they would be ignored."""
    if REGION in headers:
        name = REGION.decode()
        message = f"{name} is not supported for jobs and batches. Ask the model directly."
        raise errors.bad_field(name, message)


def _regions(text: bytes) -> frozenset[str]:
    regions = [one.strip() for one in text.decode("latin-1").lower().split(",")]
    if len(regions) > MAX_REGIONS or not all(map(is_region, regions)):
        name = REGION.decode()
        message = f"{name} must be a list of up to {MAX_REGIONS} regions, such as eu-west,eu-north."
        raise errors.bad_field(name, message)
    return frozenset(regions)


def read_variant(headers: Mapping[bytes, bytes]) -> WantedVariant | None:
    """Read the weights that are asked for; None is any.  Raises ApiError 400."""
    if QUANT not in headers and DIGEST not in headers:
        return None
    quantization = headers.get(QUANT, b"").strip().decode("latin-1").lower()
    if QUANT in headers and not is_label(quantization):
        name = QUANT.decode()
        raise errors.bad_field(name, f"{name} must be the name of a quantization, such as Q4_K_M.")
    digest = parse_digest(headers.get(DIGEST, b"").strip().decode("latin-1"))
    if DIGEST in headers and not digest:
        name = DIGEST.decode()
        message = f"{name} must be a SHA-256 in hex, or at least its first {MIN_DIGEST} characters."
        raise errors.bad_field(name, message)
    return WantedVariant(quantization, digest)


def _raw(text: bytes) -> bool:
    value = text.strip().lower()
    if value not in (RAW, b"split"):
        name = REASONING.decode()
        raise errors.bad_field(name, f"{name} must be raw or split.")
    return value == RAW


def _seconds(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        name = TIMEOUT.decode()
        raise errors.bad_field(name, f"{name} must be a number of seconds greater than 0.")
    return seconds
