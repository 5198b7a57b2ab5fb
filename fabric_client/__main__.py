"""``fabric-client``: the commands, and how they end.

Exit codes: 0 done; 1 a defect; 2 a problem that the user can fix (input, settings, a server that is
away), explained in one sentence on standard error; 3 refused by the server for good, and from
``status``: not linked; 130 ended by Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from fabric_client.cli.chat import chat
from fabric_client.cli.doctor import doctor
from fabric_client.cli.drain import drain
from fabric_client.cli.fingerprint import fingerprint
from fabric_client.cli.join import join
from fabric_client.cli.pause import pause, resume
from fabric_client.cli.reload import reload
from fabric_client.cli.run import run_
from fabric_client.cli.service import install_service, uninstall_service
from fabric_client.cli.status import status
from fabric_client.config import PREFIX, Config
from fabric_client.identity import NotJoined
from fabric_client.owner.process_lock import AlreadyRunning
from protocol.errors import RemoteError
from protocol.join import BadToken
from runtime import output
from runtime.flags import about_settings
from runtime.output import say
from runtime.settings import SettingsError
from runtime.version import VERSION

app = output.commands("A Fabric node: serves requests with the inference engines of this machine.")
app.command(epilog=about_settings(PREFIX, Config))(join)
app.command("run", epilog=about_settings(PREFIX, Config))(run_)
app.command()(status)
app.command()(doctor)
app.command()(pause)
app.command()(resume)
app.command()(drain)
app.command()(reload)
app.command()(fingerprint)
app.command()(chat)
app.command()(install_service)
app.command()(uninstall_service)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(VERSION)
        raise typer.Exit


def main() -> NoReturn:
    output.main(
        app,
        "fabric-client",
        {
            SettingsError: output.WRONG,
            BadToken: output.WRONG,
            NotJoined: output.WRONG,
            AlreadyRunning: output.WRONG,
            RemoteError: output.REFUSED,
        },
    )


if __name__ == "__main__":
    main()
