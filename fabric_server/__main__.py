"""``fabric-server``: its commands and their exit codes.

Exit codes: 0 for success; 1 for a defect; 2 for what the operator can fix (input, settings, a port
in use), with one sentence on standard error; 130 after Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from runtime import output
from runtime.extras import require
from runtime.output import say
from runtime.version import VERSION

COMMANDS = {
    "up": ("up:app", "Run the server until it is stopped."),
    "init": (
        "init:init",
        "Make a server's data: its CA, its certificate and the tables of its store.",
    ),
    "reload": ("reload:reload", "Reload the running server's settings and certificates."),
    "status": (
        "status:status",
        "Show the server that runs with the data directory, and its workers.",
    ),
    "backup": (
        "backup:backup",
        "Write one file with all that this server needs, while it runs or not.",
    ),
    "restore": (
        "restore:restore",
        "Put back what 'backup' wrote, into an empty data directory and an empty store.",
    ),
    "requests": (
        "requests:requests",
        "List finished requests, oldest first: the newest ones that fit the options.",
    ),
    "usage": ("requests:usage", "Sum requests and tokens from the ledger."),
    "doctor": (
        "doctor:doctor",
        "Check what this server needs, and say what to do about what is wrong.",
    ),
    "install-service": (
        "service:install_service",
        "Install the server as a service that starts with this machine, and start it.",
    ),
    "uninstall-service": ("service:uninstall_service", "Stop the service and remove it."),
    "check-config": ("check_config:app", "Show all settings, with their values and sources."),
    "accounts": ("accounts:app", "Create, list, disable and enable accounts."),
    "keys": ("keys:app", "Create, list, set, disable, enable and revoke keys."),
    "nodes": ("nodes:app", "Invite, list, show, drain, undrain, settle and revoke nodes."),
    "certs": ("certs:app", "Show the certificates."),
    "db": ("db:app", "Migrate the store's schema, and show its state."),
    "retention": ("retention:app", "Show what the store keeps, and delete what is too old."),
    "guard": ("guard:app", "Drop floods of connections in the kernel (Linux, as root)."),
}
"""The place of each command in ``fabric_server.cli``, and the first sentence of its help."""

app = output.commands("Run and manage the server, which sends clients' requests to nodes.")
output.add_commands(app, "fabric_server.cli", COMMANDS)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(VERSION)
        raise typer.Exit
    require("prometheus_client", "fabric-server")


def main() -> NoReturn:
    output.main(app, "fabric-server")


if __name__ == "__main__":
    main()
