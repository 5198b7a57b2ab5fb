"""The server of ``fabric-server up``, and its ready message.

``up`` imports this module when it has found nothing wrong: to import what a server needs takes
longer than to tell an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import msgspec

from fabric_server.app import App
from fabric_server.app.introduction import Introduction
from fabric_server.cli import user_certificate
from fabric_server.cli.endpoints import Ports, Ready, remember
from fabric_server.config import Config
from fabric_server.net.takeover import Predecessor, TakeoverServer
from fabric_server.reload import reload
from fabric_server.workers.parent import Parent
from protocol.names import SERVER_NAME
from runtime.background import log_failure
from runtime.flags import read_again
from runtime.output import program, say, say_json
from runtime.run import Signals, unless_stopped
from runtime.settings import describe
from runtime.version import COMPILED, VERSION

log = logging.getLogger("fabric.server")

_LOCAL = {"::", "0.0.0.0", "::1", "127.0.0.1", "localhost"}  # noqa: S104 - compared with, not bound


async def serve(settings: Config, signals: Signals, json: bool) -> None:
    """Run a server until a signal or a successor ends it.

    Raises ``CertificateProblem``, ``BackendError``, ``PortProblem``, ``WorkerProblem`` or
    ``TakeoverProblem``.
    """
    server, load_again = _make(settings)
    door = TakeoverServer(settings.data, server, settings.host, load_again)
    predecessor = await Predecessor.find(settings.data) if settings.takeover else None
    loads: set[asyncio.Task[None]] = set()
    try:
        # The start may wait for back ends, so a signal must be able to end it.
        await unless_stopped(signals, _start(server, predecessor))
        if signals.stop.is_set():
            return

        def on_hangup() -> None:
            load = asyncio.get_running_loop().create_task(_until_loaded(load_again))
            loads.add(load)
            load.add_done_callback(loads.discard)
            load.add_done_callback(log_failure)

        signals.on_hangup = on_hangup
        await door.open()
        await _announce(settings, server, json)
        await server.run(signals.stop)
        await server.drain()
    finally:
        if predecessor is not None:
            predecessor.close()
        await door.close()
        await server.stop()
        log.info("stopped")


def _make(settings: Config) -> tuple[App | Parent, Callable[[], Awaitable[Mapping[str, Any]]]]:
    """Return the server, and what loads its settings and certificates again."""
    rng = Random()  # noqa: S311 - spreads load, guards nothing
    if settings.worker_count() > 1:
        parent = Parent(settings, rng=rng)
        return parent, parent.reload
    app = App(settings, rng=rng)

    async def load_again() -> Mapping[str, Any]:
        return reload(app, read_again)

    return app, load_again


async def _until_loaded(load_again: Callable[[], Awaitable[object]]) -> None:
    await load_again()


async def _start(server: App | Parent, predecessor: Predecessor | None) -> None:
    await server.start(predecessor)
    if predecessor is not None:
        await server.take_over(predecessor)
        predecessor.close()


async def _announce(config: Config, server: App | Parent, json: bool) -> None:
    about = await server.introduce()
    ready = _ready(config, server, about)
    remember(config.data, ready)
    fields = {"address": ready.addresses[0], "compiled": COMPILED}
    log.info("ready", extra={**fields, **msgspec.to_builtins(ready.ports)})
    # The reader of standard output may be gone.
    with suppress(OSError):
        if json:
            say_json(ready, line=True)
            sys.stdout.flush()
        else:
            _print_banner(config, ready, about.missing)


def _ready(config: Config, server: App | Parent, about: Introduction) -> Ready:
    ports = Ports(**server.listeners.numbers)
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
        api_url=f"https://{SERVER_NAME if ports.api == ports.one else host}:{ports.api}",
        ca_sha256=about.ca_sha256,
        certificate=user_certificate.of_settings(config),
    )


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────


def _print_banner(config: Config, ready: Ready, missing: Sequence[tuple[str, str]]) -> None:
    host = ready.addresses[0]
    say(f"\nFabric {ready.version} is up.\n")
    say(f"  public   {ready.public_url}   the OpenAI API, for users")
    if ready.local_url is not None:
        say(f"           {ready.local_url}   the same, on this machine")
    opened = config.ports()
    if "one" in opened:
        say(f"  one      {host} {ready.ports.one}   for users and nodes, and for joining")
    if "api" in opened:
        say(f"  api      {ready.api_url}   for operators and enrolment")
    if "control" in opened:
        say(f"  control  {host} {ready.ports.control}   for nodes: links")
    if "proxy" in opened:
        say(f"  proxy    {host} {ready.ports.proxy}   for nodes: tunnels")
    say(f"  CA       sha256 {ready.ca_sha256}\n")
    found = user_certificate.seen(config, ready.certificate)
    ca = config.data / "certs" / "ca.pem"
    for line in user_certificate.story(ready.certificate, found, ca.absolute(), short=True):
        say(f"  {line}")
    say()
    command = " ".join([program("fabric-server"), "{}", *_server_flags(config)])
    for thing, words in missing:
        say(f"  There is no {thing} yet:  {command.format(words)}")
    say()


def _server_flags(config: Config) -> list[str]:
    """List the flags with which other commands use this server's directory and store."""
    return [
        f"--{name} {getattr(config, name)}"
        for name, _, source in describe(config)
        if name in ("data", "store") and source != "default"
    ]
