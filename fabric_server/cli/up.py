"""``fabric-server up``: run the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fabric_server.cli.endpoints import last_start
from fabric_server.cli.init import remember
from fabric_server.config import PREFIX, Config
from fabric_server.data_directory import has_authority
from fabric_server.net.sockets import bind
from fabric_server.net.takeover import TakeoverProblem, running_server
from runtime import logs
from runtime.extras import require
from runtime.flags import about_settings, takes_settings
from runtime.output import make_directory, moment, one_command
from runtime.run import Signals, run

app = one_command()


@app.command(epilog=about_settings(PREFIX, Config))
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
    "proxy", "public", "api", and with --one-port "one"}, "public_url", "local_url", "api_url",
    "ca_sha256", "certificate": {"of", "path"}}

    The log goes to standard error. The first Ctrl-C or SIGTERM lets running requests finish, a
    second one cancels them. SIGHUP loads settings and certificates again, as 'fabric-server
    reload' does.

    A directory without a server's data gets a new CA and a new store. The addresses are remembered
    for later starts without --address.

    With --takeover it takes over the ports of the server that runs with the same data; that one
    finishes its requests and exits. If none runs, --takeover changes nothing.
    """
    if settings.acme:
        require("acme", "acme")
        settings.names_to_certify()
    if not settings.takeover:
        _refuse_second(settings.data)
    if not has_authority(settings.data):
        _check_ports(settings)
    make_directory(settings.data)
    remember(settings)
    logs.configure(settings.log_level, json=settings.log_json)
    return run(lambda signals: _serve(settings, signals, json or not sys.stdout.isatty()))


def _refuse_second(data: Path) -> None:
    """Raise ``TakeoverProblem`` if a server runs with this directory."""
    running = running_server(data)
    if running is None:
        return
    about = [f"process {running.pid}"] if running.pid else []
    last = last_start(data)
    if last is not None and running.pid in (0, last.pid):
        about += [f"Fabric {last.version}", f"since {moment(last.at)}", last.public_url]
    raise TakeoverProblem(
        f"a server runs with {data} already ({', '.join(about) or 'it does not say more'}). Start "
        "with --takeover to replace it without an outage; a second server needs another --data."
    )


def _check_ports(settings: Config) -> None:
    """Raise ``PortProblem`` if a port is taken, before the data of a new server are made.

    Most likely another server runs here, with another directory: data in this one would mislead
    the commands that find it.
    """
    for name, number in settings.ports().items():
        sockets, _ = bind(settings.host, number, setting=f"{name}_port")
        for sock in sockets:
            sock.close()


async def _serve(settings: Config, signals: Signals, json: bool) -> None:
    from fabric_server.cli.serve import serve  # slow to import: not for --help and errors

    await serve(settings, signals, json)
