"""Makes the heartbeats that a registered node sends."""

from __future__ import annotations

import asyncio
import time

from fabric_client.engines.watcher import loaded_models
from fabric_client.registration.context import NodeContext
from protocol.messages import Heartbeat


async def make_heartbeat(context: NodeContext, seq: int) -> Heartbeat:
    """Measure the machine, and count what the engines do."""
    reports = context.reports()
    now = asyncio.get_running_loop().time()
    sample = await asyncio.to_thread(context.machine.sample, now)  # a GPU's driver may hang
    return Heartbeat(
        seq=seq,
        at=time.time(),
        slots=sum(report.slots for report in reports),
        active=context.forwarder.active,
        engines_healthy=sum(report.healthy for report in reports),
        engines=len(reports),
        loaded_models=loaded_models(reports),
        **sample.fields(),
    )
