"""The context that the gateway hands down to its retry loops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fabric_server.net.deadlines import Deadlines
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.clock import Timeouts
from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.metrics import Metrics
from fabric_server.proxy.outcomes import OutcomeReporter
from fabric_server.proxy.request_record import LedgerWriter
from fabric_server.proxy.retry_budget import RetryBudget
from fabric_server.routing.admission import Admission


@dataclass(slots=True)
class UpstreamContext:
    """The parts that all requests share on their way to engines.  Made once per gateway, inside the
    running loop; ``timeouts`` alone is replaced, when settings are loaded again."""

    registry: Registry
    admission: Admission
    deadlines: Deadlines
    metrics: Metrics
    ledger: LedgerWriter
    timeouts: Timeouts
    hedging: Hedging = field(default_factory=Hedging)
    budget: RetryBudget = field(default_factory=RetryBudget)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    """The running loop: to ask for it costs each request a system call on Python 3.11."""
    outcomes: OutcomeReporter = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = OutcomeReporter(self.admission.balancer.state, self.registry, self.loop)
