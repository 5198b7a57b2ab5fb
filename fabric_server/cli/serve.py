"""The server of ``fabric-server up``, and its ready message.

``up`` imports this module when it has found nothing wrong: to import what a server needs takes
longer than to tell an error.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from random import Random

import msgspec

from fabric_server.app import App
from fabric_server.cli import user_certificate
from fabric_server.cli.endpoints import Ports, Ready, remember
from fabric_server.config import Config
from fabric_server.net.takeover import Predecessor, TakeoverServer
from fabric_server.reload import reload
from protocol.names import SERVER_NAME
from runtime.flags import read_again
from runtime.output import program, say, say_json
from runtime.run import Signals, unless_stopped
from runtime.settings import describe
from runtime.version import COMPILED, VERSION

log = logging.getLogger("fabric.server")

_LOCAL = {"::", "0.0.0.0", "::1", "127.0.0.1", "localhost"}  # noqa: S104 - compared with, not bound


async def serve(settings: Config, signals: Signals, json: bool) -> None:
    """Run a server until a signal or a successor ends it.

    Raises ``CertificateProblem``, ``BackendError``, ``PortProblem`` or ``TakeoverProblem``.
    """
    app = App(settings, rng=Random())  # noqa: S311 - spreads load, guards nothing
    door = TakeoverServer(settings.data, app, settings.host, lambda: reload(app, read_again))
    predecessor = await Predecessor.find(settings.data) if settings.takeover else None
    try:
        # The start may wait for back ends, so a signal must be able to end it.
        await unless_stopped(signals, _start(app, predecessor))
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


async def _start(app: App, predecessor: Predecessor | None) -> None:
    await app.start(predecessor)
    if predecessor is not None:
        await app.take_over(predecessor)
        predecessor.close()


async def _announce(app: App, json: bool) -> None:
    ready = _ready(app)
    remember(app.config.data, ready)
    about = {"address": ready.addresses[0], "compiled": COMPILED}
    log.info("ready", extra={**about, **msgspec.to_builtins(ready.ports)})
    # The reader of standard output may be gone.
    with suppress(OSError):
        if json:
            say_json(ready, line=True)
            sys.stdout.flush()
        else:
            _print_banner(app.config, ready, await _missing(app))


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
        api_url=f"https://{SERVER_NAME if ports.api == ports.one else host}:{ports.api}",
        ca_sha256=app.tls.certificates.fingerprint.hex(),
        certificate=user_certificate.of_settings(config),
    )


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────


async def _missing(app: App) -> list[tuple[str, str]]:
    """List what does not exist yet, each with the command that creates it."""
    missing = []
    keys = await app.backends.store.keys()
    if not any(key.revoked_at is None and not key.management for key in keys):
        missing.append(("key", "keys create NAME"))
    if not any(node.revoked_at is None for node in await app.backends.store.nodes()):
        missing.append(("node", "nodes invite"))
    return missing


def _print_banner(config: Config, ready: Ready, missing: list[tuple[str, str]]) -> None:
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
