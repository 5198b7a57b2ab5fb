"""Options of a request that its client has chosen by headers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fabric_server.routing.criteria import Priority
from fabric_server.routing.variants import WantedVariant

RAW_REASONING = ("x-fabric-reasoning", "raw")
"""The header that orders a node to leave reasoning as the engine writes it."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of one request; ``gateway.options`` reads them."""

    priority: Priority = Priority.MEDIUM
    seconds: float = math.inf
    """Time from the request's arrival to the last byte of its answer."""
    failover: bool | None = None
    """Whether a stream that is lost is continued on another node; None: as its key says."""
    regions: frozenset[str] | None = None
    """Regions of the nodes that may be asked; None is all."""
    variant: WantedVariant | None = None
    """The weights that engines must have; None is any."""
    raw: bool | None = None
    """Whether reasoning stays as the engine wrote it; None: as its key says."""
