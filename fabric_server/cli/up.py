"""``fabric-server up``: run the server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fabric_server.config import PREFIX, Config
from runtime import logs
from runtime.flags import takes_settings
from runtime.output import make_directory
from runtime.run import Signals, run


@takes_settings(Config, PREFIX)
def up(
    settings: Config,
    json: Annotated[
        bool, typer.Option("--json", help="Print the ready message as JSON also on a terminal.")
    ] = False,
) -> int:
    """Run the server until it is stopped.

    Once all ports are open it prints a ready message on standard output: text on a terminal,
    otherwise one line of JSON:

    {"event": "ready", "version", "pid", "at", "data", "addresses": […], "ports": {"control",
    "proxy", "public", "api"}, "public_url", "local_url", "api_url", "ca_sha256"}

    The log goes to standard error. The first Ctrl-C or SIGTERM lets running requests finish, a
    second one cancels them. SIGHUP loads settings and certificates again, as 'fabric-server
    reload' does.

    With --takeover it takes over the ports of the server that runs with the same data; that one
    finishes its requests and exits. If none runs, --takeover changes nothing.
    """
    make_directory(settings.data)
    logs.configure(settings.log_level, json=settings.log_json)
    return run(lambda signals: _serve(settings, signals, json or not sys.stdout.isatty()))


async def _serve(settings: Config, signals: Signals, json: bool) -> None:
    from fabric_server.cli.serve import serve  # takes half a second, which other commands save

    await serve(settings, signals, json)
