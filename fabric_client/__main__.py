"""``fabric-client``: the commands, and how they end.

Exit codes: 0 done; 1 a defect; 2 a problem that the user can fix (input, settings, a server that is
away), explained in one sentence on standard error; 3 refused by the server for good, and from
``status``: not linked; 130 ended by Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from protocol.errors import RemoteError
from runtime import output
from runtime.output import say
from runtime.version import VERSION

COMMANDS = {
    "join": ("join:app", "Join a server, with a token from its operator."),
    "run": ("run:app", "Run the node: serve requests with this machine's engines."),
    "status": ("status:status", "Show the node's connection, work and engines."),
    "doctor": (
        "doctor:doctor",
        "Check what this node needs, and say what to do about what is wrong.",
    ),
    "pause": ("pause:pause", "Stop taking new requests for a while."),
    "resume": ("pause:resume", "Resume serving."),
    "drain": ("drain:drain", "Finish running requests, then stop the node."),
    "reload": ("reload:reload", "Have the running node read its settings again."),
    "fingerprint": (
        "fingerprint:fingerprint",
        "Show the fingerprint of the CA that this node trusts, and of its own certificate.",
    ),
    "chat": ("chat:chat", "Talk to a model through the server."),
    "install-service": (
        "service:install_service",
        "Install the node as a service that starts with this machine, "
        "and start it if it has joined.",
    ),
    "uninstall-service": ("service:uninstall_service", "Stop the service and remove it."),
}
"""The place of each command in ``fabric_client.cli``, and the first sentence of its help."""

app = output.commands("A Fabric node: serves requests with the inference engines of this machine.")
output.add_commands(app, "fabric_client.cli", COMMANDS)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(VERSION)
        raise typer.Exit


def main() -> NoReturn:
    output.main(app, "fabric-client", {RemoteError: output.REFUSED})


if __name__ == "__main__":
    main()
