"""``fabric-server install-service`` and ``uninstall-service``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fabric_server.cli import Json, data_command
from fabric_server.config import PREFIX, Config
from fabric_server.data_directory import has_authority
from runtime.flags import chosen_file, read
from runtime.output import Failure
from runtime.services.description import Service, ServiceProblem
from runtime.services.install import (
    Machine,
    choose_data,
    install,
    is_one_file,
    not_passed_on,
    program_command,
    uninstall,
)
from runtime.settings import describe

NAME = "fabric-server"

System = Annotated[
    bool | None,
    typer.Option(
        "--system/--user",
        help="A service of the machine, or of your own. Default: of the machine for root.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; do nothing.")]


@data_command
def install_service(
    settings: Config,
    system: System = None,
    run_as: Annotated[
        str | None,
        typer.Option(metavar="USER", help="User of a system service (default: systemd's own)."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Install the server as a service that starts with this machine, and start it.

    With systemd or launchd. A system service's data are in /var/lib/fabric-server unless --data is
    given; commands that you type find them. Its other settings are those of its settings file:
    neither flags nor variables of this shell are passed on, and no secret is in a unit. Run it
    again after a change of ports: those below 1024 need a privilege. Doing it twice changes
    nothing.
    """
    names = not_passed_on(settings, PREFIX)
    if names:
        raise Failure(
            f"the service would not get {', '.join(names)} from this shell: write the settings to "
            "fabric.toml in its data directory, unset the variables, and run this again."
        )
    machine = Machine()
    try:
        service = _service(settings, machine, system, run_as)
    except ServiceProblem as problem:
        raise Failure(str(problem)) from None
    install(service, machine, start=True, dry_run=dry_run, json=json)


@data_command
def uninstall_service(
    settings: Config, system: System = None, dry_run: DryRun = False, json: Json = False
) -> None:
    """Stop the service and remove it. The server's data stay."""
    machine = Machine()
    service = _described(settings, machine.is_administrator() if system is None else system, None)
    uninstall(service, machine, dry_run=dry_run, json=json)


def _service(settings: Config, machine: Machine, system: bool | None, user: str | None) -> Service:
    system = machine.is_administrator() if system is None else system
    if user is not None and not system:
        raise Failure("--run-as is for a service of the system: leave out --user.")
    data = settings.data.absolute()
    if dict((name, source) for name, _, source in describe(settings))["data"] == "default":
        data = choose_data(NAME, data, machine, system=system, has_data=has_authority)
    # Settings are read as the service will read them: its directory may hold a settings file.
    file = chosen_file(settings)
    own = read(Config, PREFIX, environ={}, flags={"data": str(data)}, file=file)
    return _described(own, system, user, file)


def _described(
    settings: Config, system: bool, user: str | None, file: Path | None = None
) -> Service:
    command = program_command(NAME)
    acme = settings.acme_http_port if settings.acme and settings.acme_kind == "http-01" else 0
    ports = (*settings.ports().values(), acme)
    return Service(
        name=NAME,
        about="Fabric server",
        command=(*command, "up"),
        reload=(*command, "reload"),
        data_variable=f"{PREFIX}DATA",
        data=settings.data.absolute(),
        config=None if file is None else (f"{PREFIX}CONFIG", str(file.absolute())),
        system=system,
        user=user,
        one_file=is_one_file(),
        low_ports=any(0 < port < 1024 for port in ports),
        stop_seconds=int(settings.drain_seconds) + 30,
    )
