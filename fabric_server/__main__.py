"""``fabric-server``: its commands and their exit codes.

Exit codes: 0 for success; 1 for a defect; 2 for what the operator can fix (input, settings, a port
in use), with one sentence on standard error; 130 after Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from fabric_server.backup.problem import BackupProblem
from fabric_server.cli import Json, accounts, certs, db, guard, keys, nodes, retention
from fabric_server.cli.backup import backup
from fabric_server.cli.doctor import doctor
from fabric_server.cli.init import init
from fabric_server.cli.reload import reload
from fabric_server.cli.requests import requests, usage
from fabric_server.cli.restore import restore
from fabric_server.cli.service import install_service, uninstall_service
from fabric_server.cli.up import up
from fabric_server.config import PREFIX, Config
from fabric_server.net.descriptor_plan import make_plan
from fabric_server.net.listener import PortProblem
from fabric_server.net.takeover import TakeoverProblem
from fabric_server.pki.certificates import CertificateProblem
from runtime import output
from runtime.descriptors import allow_many_files, open_files_limit
from runtime.errors import BackendError
from runtime.extras import require
from runtime.flags import about_settings, takes_settings
from runtime.output import say, say_json, say_table
from runtime.settings import SettingsError, describe
from runtime.version import VERSION

app = output.commands("Run and manage the server, which sends clients' requests to nodes.")
app.command(epilog=about_settings(PREFIX, Config))(up)
app.command()(init)
app.command()(reload)
app.command()(backup)
app.command()(restore)
app.command()(requests)
app.command()(usage)
app.command()(doctor)
app.command()(install_service)
app.command()(uninstall_service)
app.add_typer(accounts.app, name="accounts")
app.add_typer(keys.app, name="keys")
app.add_typer(nodes.app, name="nodes")
app.add_typer(certs.app, name="certs")
app.add_typer(db.app, name="db")
app.add_typer(retention.app, name="retention")
app.add_typer(guard.app, name="guard")


@app.command(epilog=about_settings(PREFIX, Config))
@takes_settings(Config, PREFIX)
def check_config(settings: Config, json: Json = False) -> None:
    """Show all settings, with their values and sources.

    Numbers of connections that are not set are what this machine's limit of open files allows.
    """
    allow_many_files()
    limit = open_files_limit()
    planned = make_plan(limit, settings).settings
    described = [
        (name, str(planned[name]), f"ulimit -n {limit}")
        if name in planned and getattr(settings, name) != planned[name]
        else (name, value, source)
        for name, value, source in describe(settings)
    ]
    if json:
        say_json([{"name": n, "value": value, "source": source} for n, value, source in described])
    else:
        say_table(("setting", "value", "from"), described)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(VERSION)
        raise typer.Exit
    require("prometheus_client", "fabric-server")


def main() -> NoReturn:
    output.main(
        app,
        "fabric-server",
        {
            SettingsError: output.WRONG,
            BackendError: output.WRONG,
            BackupProblem: output.WRONG,
            CertificateProblem: output.WRONG,
            TakeoverProblem: output.WRONG,
            PortProblem: output.WRONG,
        },
    )


if __name__ == "__main__":
    main()
