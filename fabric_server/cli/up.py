"""``fabric-server up``: the server, and what it says once it is ready."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fabric_server.cli.endpoints import Ports, Ready, remember
from fabric_server.config import PREFIX, Config
from fabric_server.net.takeover import Door, Predecessor
from fabric_server.reload import reload
from runtime import logs
from runtime.flags import read_again, takes_settings
from runtime.output import make_directory, program, say, say_json
from runtime.run import Signals, run, unless_stopped
from runtime.settings import describe
from runtime.version import VERSION

if TYPE_CHECKING:
    from fabric_server.app import App

log = logging.getLogger("fabric.server")

_LOCAL = {"::", "0.0.0.0", "::1", "127.0.0.1", "localhost"}  # noqa: S104 - compared with, not bound


@takes_settings(Config, PREFIX)
def up(
    settings: Config,
    json: Annotated[
        bool, typer.Option("--json", help="Say so in JSON also when this is a terminal.")
    ] = False,
) -> int:
    """Run the server until it is told to stop.

    Once all ports are open it says so on standard output: for people on a terminal, otherwise as
    one line of JSON:

    {"event": "ready", "version", "pid", "at", "data", "addresses": […], "ports": {"control",
    "proxy", "public", "api"}, "public_url", "local_url", "api_url", "ca_sha256"}

    The log goes to standard error.  The first Ctrl-C or SIGTERM lets running answers finish, the
    second does not; SIGHUP loads settings and certificates again, as 'fabric-server reload' does.

    With --takeover it takes the ports over from the server that runs with the same data, which
    finishes what it has begun and ends; when none runs, it starts as without.
    """
    make_directory(settings.data)
    logs.configure(settings.log_level, json=settings.log_json)
    return run(lambda signals: _serve(settings, signals, json or not sys.stdout.isatty()))


async def _serve(settings: Config, signals: Signals, json: bool) -> None:
    from fabric_server.app import App  # takes half a second that other commands need not

    app = App(settings, rng=Random())  # noqa: S311 - spreads load, guards nothing
    door = Door(settings.data, app, settings.host, lambda: reload(app, read_again))
    predecessor = await Predecessor.find(settings.data) if settings.takeover else None
    try:
        # It may be waiting for its back ends.
        await unless_stopped(signals, _begin(app, predecessor))
        if signals.stop.is_set():
            return

        def on_hangup() -> None:
            reload(app, read_again)

        signals.on_hangup = on_hangup
        await door.open()
        await _announce(app, json)
        await app.run(signals.stop)
        await app.drain()
    finally:
        if predecessor is not None:
            predecessor.close()
        await door.close()
        await app.stop()
        log.info("stopped")


async def _begin(app: App, predecessor: Predecessor | None) -> None:
    await app.start(predecessor)
    if predecessor is not None:
        await app.take_over(predecessor)
        predecessor.close()


async def _announce(app: App, json: bool) -> None:
    ready = _ready(app)
    remember(app.config.data, ready)
    log.info("ready", extra={"address": ready.addresses[0], **msgspec.to_builtins(ready.ports)})
    # Whoever started the server may no longer read what it says.
    with suppress(OSError):
        if json:
            say_json(ready, line=True)
            sys.stdout.flush()
        else:
            _say_banner(app.config, ready, await _missing(app))


def _ready(app: App) -> Ready:
    config = app.config
    ports = Ports(**{name: listener.port for name, listener in app.listeners.items()})
    addresses = list(config.names())
    host = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    local = bool(_LOCAL & set(config.host))
    return Ready(
        event="ready",
        version=VERSION,
        pid=os.getpid(),
        at=time.time(),
        data=str(config.data.absolute()),
        addresses=addresses,
        ports=ports,
        public_url=f"https://{host}:{ports.public}/v1",
        local_url=f"http://localhost:{ports.public}/v1" if local else None,
        api_url=f"https://{host}:{ports.api}",
        ca_sha256=app.certificates.fingerprint.hex(),
    )


# ── for people ────────────────────────────────────────────────────────────────────────────────


async def _missing(app: App) -> list[tuple[str, str]]:
    """What there is none of yet, and the command that makes one."""
    missing = []
    keys = await app.store.keys()
    if not any(key.revoked_at is None and not key.management for key in keys):
        missing.append(("key", "keys create NAME"))
    if not any(node.revoked_at is None for node in await app.store.nodes()):
        missing.append(("node", "nodes invite"))
    return missing


def _say_banner(config: Config, ready: Ready, missing: list[tuple[str, str]]) -> None:
    host = ready.addresses[0]
    say(f"\nFabric {ready.version} is up.\n")
    say(f"  public   {ready.public_url}   the OpenAI API, for users")
    if ready.local_url is not None:
        say(f"           {ready.local_url}   the same, on this machine")
    say(f"  api      {ready.api_url}   for operators and enrolment")
    say(f"  control  {host} {ready.ports.control}   for nodes: links")
    say(f"  proxy    {host} {ready.ports.proxy}   for nodes: tunnels")
    say(f"  CA       sha256 {ready.ca_sha256}\n")
    command = " ".join([program("fabric-server"), "{}", *_which_server(config)])
    for thing, words in missing:
        say(f"  There is no {thing} yet:  {command.format(words)}")
    say()


def _which_server(config: Config) -> list[str]:
    """The flags with which another command means this server."""
    return [
        f"--{name} {getattr(config, name)}"
        for name, _, source in describe(config)
        if name in ("data", "store") and source != "default"
    ]
