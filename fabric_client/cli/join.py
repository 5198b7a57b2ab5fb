"""``fabric-client join``: make this machine a node of the server that made a token."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import sys
from pathlib import Path
from typing import Annotated

import typer

from fabric_client.cli import TOKEN, Json, of_the_node, start_command
from fabric_client.cli.run import run_node
from fabric_client.config import PREFIX, Config
from fabric_client.identity import Identity, NotJoined
from fabric_client.owner.process_lock import is_running
from protocol.join import Token, parse
from runtime.flags import about_settings
from runtime.output import Failure, make_directory, note, one_command, program, say_json
from runtime.settings import describe

app = one_command()


@app.command(epilog=about_settings(PREFIX, Config))
@of_the_node
def join(
    settings: Config,
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN",
            envvar=TOKEN,
            help="The join token, from 'fabric-server nodes invite'; - reads standard input.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Join as a new node; the old identity is lost.")
    ] = False,
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="Then run. If this machine has already joined this server, just run."
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Join a server, with a token from its operator.

    A token admits one machine, once. On the command line it can be seen by other users of this
    machine and stays in the shell's history; give - or set the variable to avoid that.
    """
    from fabric_client.registration import (
        join as enrol,  # slow to import: not for --help and errors
    )

    text = sys.stdin.readline() if token == "-" else token  # noqa: S105 - no secret
    if text is None:
        raise Failure(f"give the join token, or - to read it from standard input, or set {TOKEN}.")
    identity = None
    if run and not replace:
        identity = _joined_before(settings.data, parse(text))
    models, proxies = _given_models(settings), settings.proxies()
    if identity is not None:
        if models is not None:
            identity.remember_models(models)
        note(f"Already joined {identity.host} as {identity.node_id}.")
    else:
        if replace and is_running(settings.data):
            raise Failure(f"the node in {settings.data} is running: stop it before replacing it.")
        make_directory(settings.data)  # before the token is used up
        try:
            identity = asyncio.run(
                enrol.join(
                    text,
                    settings.data,
                    name=settings.name,
                    models=models,
                    replace=replace,
                    proxies=proxies,
                )
            )
        except enrol.JoinError as error:
            raise Failure(str(error)) from None
        name = settings.called(identity.name)
        note(f"Joined {identity.host} as {identity.node_id}, “{name}”.")
    if (offer := settings.offers(identity.models)).patterns is not None:
        note(f"Models that will be offered: {offer}.")
    if json:
        say_json(
            {
                "node_id": identity.node_id,
                "name": settings.called(identity.name),
                "server": f"{identity.host}:{identity.control_port}",
                "directory": str(settings.data.absolute()),
            },
            line=run,
        )
    if run:
        return run_node(settings)
    note(f"Next:  {_run_command(settings)}")
    return 0


def _given_models(settings: Config) -> tuple[str, ...] | None:
    """Return the patterns to remember: those of a file are there at the next start anyway."""
    if settings.models is None:
        return None
    source = next(source for name, _, source in describe(settings) if name == "models")
    return settings.models if source.startswith(("--", PREFIX)) else None


def _joined_before(directory: Path, token: Token) -> Identity | None:
    """Return the identity here if the authority that the token names has issued it."""
    try:
        identity = Identity.load(directory)
        authority = ssl.PEM_cert_to_DER_cert((directory / "ca.pem").read_text())
    except (NotJoined, OSError, ValueError):
        return None
    return identity if hashlib.sha256(authority).digest() == token.ca_sha256 else None


def _run_command(settings: Config) -> str:
    command = start_command(settings.data)
    if command.endswith("service"):
        return command  # which starts it, and has its data
    given = [
        f"--{name} {getattr(settings, name)}"
        for name, _, source in describe(settings)
        if name in ("data", "name") and source.startswith("--")
    ]
    return " ".join([program("fabric-client"), "run", *given])
