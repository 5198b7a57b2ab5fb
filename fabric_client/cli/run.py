"""``fabric-client run``: run the node until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Annotated, Protocol

import typer

from fabric_client.cli import of_the_node
from fabric_client.config import PREFIX, Config
from fabric_client.identity import Identity, NotJoined
from fabric_client.owner import state
from fabric_client.owner.process_lock import AlreadyRunning, hold_lock
from protocol.errors import RemoteError
from runtime import garbage, logs, run
from runtime.flags import about_settings
from runtime.output import make_directory, note, one_command
from runtime.run import Signals

log = logging.getLogger("fabric.node")

LEAVE_SECONDS = 60.0
"""Time in which running requests may finish after the first signal."""


class Node(Protocol):
    """The part of ``supervisor.Supervisor`` that is needed here."""

    drain_requested: asyncio.Event

    async def run(self) -> None: ...
    def reload(self) -> None: ...
    async def leave(self, seconds: float | None) -> None: ...


app = one_command()


@app.command("run", epilog=about_settings(PREFIX, Config))
@of_the_node
def run_(
    settings: Config,
    as_service: Annotated[
        bool,
        typer.Option(
            "--as-service",
            help="End with exit code 0 where a restart would change nothing, for launchd.",
        ),
    ] = False,
) -> int:
    """Run the node: serve requests with this machine's engines.

    Logs to standard error. The first Ctrl-C or SIGTERM gives running requests a minute to finish, a
    second one stops at once; 'fabric-client drain' gives them all the time they need. SIGHUP reads
    the settings again, as 'fabric-client reload' does. Exit code 3: the server has refused this
    node for good.
    """
    try:
        return run_node(settings)
    except (RemoteError, NotJoined, AlreadyRunning) as error:
        if not as_service:
            raise
        note(f"fabric-client: {error}")
        return 0


def run_node(settings: Config, make: Callable[..., Node] | None = None) -> int:
    """Run a node that has joined; ``make`` is ``Supervisor`` unless given.

    Raises ``NotJoined``, ``AlreadyRunning``, or ``RemoteError`` when refused for good.
    """
    logs.configure(settings.log_level, json=settings.log_json)
    identity = Identity.load(settings.data)
    make_directory(settings.data)
    with hold_lock(settings.data):
        state.forget(settings.data)
        return run.run(lambda signals: _serve(settings, identity, signals, make))


async def _drain(node: Node) -> None:
    """Return when the owner has ordered a drain and the work is done."""
    await node.drain_requested.wait()
    await node.leave(None)


async def _serve(
    settings: Config,
    identity: Identity,
    signals: Signals,
    make: Callable[..., Node] | None,
) -> None:
    from fabric_client.supervisor import Supervisor  # slow to import: not for --help and errors

    node: Node = (make or Supervisor)(settings, identity, rng=Random())  # noqa: S311 - spreads load only
    signals.on_hangup = node.reload
    garbage.collect_rarely()
    loop = asyncio.get_running_loop()
    working = loop.create_task(node.run())
    stopping = loop.create_task(signals.stop.wait())
    draining = loop.create_task(_drain(node))
    tasks = (working, stopping, draining)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        if stopping.done():
            log.info("leaving", extra={"seconds": LEAVE_SECONDS})
            await node.leave(LEAVE_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        log.info("stopped")
