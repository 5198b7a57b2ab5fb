"""``fabric-client run``: the node, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from fabric_client.cli import of_the_node
from fabric_client.config import Config
from fabric_client.identity import Identity
from fabric_client.owner import state
from fabric_client.owner.process_lock import only_one
from runtime import logs, run
from runtime.output import make_directory
from runtime.run import Signals

if TYPE_CHECKING:
    from fabric_client.supervisor import Supervisor

log = logging.getLogger("fabric.node")

LEAVE_SECONDS = 60.0
"""How long running answers may finish when the node is told to stop."""


@of_the_node
def run_(settings: Config) -> int:
    """Answer what the server sends, with the engines of this machine.

    The log goes to standard error.  The first Ctrl-C or SIGTERM lets running answers finish for a
    minute, the second does not; 'fabric-client drain' lets them take their time.  Exit code 3: the
    server has refused this node for good.
    """
    return run_node(settings)


def run_node(settings: Config, make: Callable[..., Supervisor] | None = None) -> int:
    """``make`` is ``Supervisor`` unless given.

    Raises ``NotJoined``, ``Taken``, or ``RemoteError`` when refused for good.
    """
    logs.configure(settings.log_level, json=settings.log_json)
    identity = Identity.load(settings.data)
    make_directory(settings.data)
    with only_one(settings.data):
        state.forget(settings.data)
        return run.run(lambda signals: _serve(settings, identity, signals, make))


async def _drained(supervisor: Supervisor) -> None:
    """Returns when the owner wanted this run to end and its work is done."""
    await supervisor.drain_requested.wait()
    await supervisor.leave(None)


async def _serve(
    settings: Config,
    identity: Identity,
    signals: Signals,
    make: Callable[..., Supervisor] | None,
) -> None:
    from fabric_client.supervisor import Supervisor  # takes time that other commands need not

    supervisor = (make or Supervisor)(settings, identity, rng=Random())  # noqa: S311 - spreads load only
    loop = asyncio.get_running_loop()
    working = loop.create_task(supervisor.run())
    stopping = loop.create_task(signals.stop.wait())
    draining = loop.create_task(_drained(supervisor))
    tasks = (working, stopping, draining)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        if stopping.done():
            log.info("leaving", extra={"seconds": LEAVE_SECONDS})
            await supervisor.leave(LEAVE_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        log.info("stopped")
