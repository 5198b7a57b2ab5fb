"""``fabric-client install-service`` and ``uninstall-service``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fabric_client.cli import Json
from fabric_client.cli.run import LEAVE_SECONDS
from fabric_client.cli.signal_node import of_the_directory
from fabric_client.config import PREFIX, Config
from fabric_client.identity import Identity, NotJoined
from runtime.flags import chosen_file
from runtime.output import REFUSED, WRONG, Failure, note
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

NAME = "fabric-client"

System = Annotated[
    bool | None,
    typer.Option(
        "--system/--user",
        help="A service of the machine, or of your own. Default: of the machine for root.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; do nothing.")]


@of_the_directory
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
    """Install the node as a service that starts with this machine, and start it if it has joined.

    With systemd, launchd or Windows' task scheduler. A system service's data are in
    /var/lib/fabric-client unless --data is given; commands that you type find them. Its settings
    are those in fabric.toml there: variables of this shell are not passed on. A node that the
    server has refused for good is not started again. Doing it twice changes nothing.
    """
    names = not_passed_on(settings, PREFIX)
    if not settings.proxy and (proxy := settings.proxies().proxy) is not None:
        names.append(proxy.source)
    if names:
        raise Failure(
            f"the service would not get {', '.join(names)} from this shell: write the settings to "
            "fabric.toml in its data directory, unset the variables, and run this again."
        )
    machine = Machine()
    system = machine.is_administrator() if system is None else system
    if run_as is not None and not system:
        raise Failure("--run-as is for a service of the system: leave out --user.")
    data = settings.data.absolute()
    try:
        if dict((name, source) for name, _, source in describe(settings))["data"] == "default":
            data = choose_data(NAME, data, machine, system=system, has_data=_has_joined)
    except ServiceProblem as problem:
        raise Failure(str(problem)) from None
    service = _service(data, system, run_as, chosen_file(settings))
    joined = _has_joined(data)
    install(service, machine, start=joined, dry_run=dry_run, json=json)
    if not joined and not dry_run:
        note("It has not joined a server yet: run 'fabric-client join TOKEN', then this again.")


@of_the_directory
def uninstall_service(
    settings: Config, system: System = None, dry_run: DryRun = False, json: Json = False
) -> None:
    """Stop the service and remove it. The node's data stay: its key and its certificate."""
    machine = Machine()
    system = machine.is_administrator() if system is None else system
    service = _service(settings.data.absolute(), system, None, None)
    uninstall(service, machine, dry_run=dry_run, json=json)


def _has_joined(data: Path) -> bool:
    try:
        Identity.load(data)
    except NotJoined:
        return False
    return True


def _service(data: Path, system: bool, user: str | None, file: Path | None) -> Service:
    command = program_command(NAME)
    return Service(
        name=NAME,
        about="Fabric node",
        command=(*command, "run"),
        reload=(*command, "reload"),
        data_variable=f"{PREFIX}DATA",
        data=data,
        config=None if file is None else (f"{PREFIX}CONFIG", str(file.absolute())),
        system=system,
        user=user,
        final_codes=(WRONG, REFUSED),
        final_flag="--as-service",
        one_file=is_one_file(),
        devices=True,
        stop_seconds=int(LEAVE_SECONDS) + 30,
    )
