"""``fabric-server certs``: show the server's certificates."""

from __future__ import annotations

import time
from dataclasses import asdict

from fabric_server.cli import Json, require_data
from fabric_server.cli.user_certificate import (
    acme_finding,
    chosen,
    seen,
    story,
    wrapped,
)
from fabric_server.config import PREFIX, Config
from fabric_server.pki.certificates import Fact, fact
from runtime.doctor import lines
from runtime.flags import takes_settings
from runtime.output import commands, moment, say, say_json
from runtime.shown import one_line

app = commands("Show the certificates.")


@app.command()
@takes_settings(Config, PREFIX, only=("data", "public_certificate", "public_key"))
def show(settings: Config, json: Json = False) -> None:
    """Show the certificates in use, which of them users see, and what their programs need.

    Users see the fabric's own, the file of public_certificate, or an ACME CA's: what the settings
    say or, without any of these, what the last start had.
    """
    require_data(settings)
    directory = settings.data / "certs"
    which = chosen(settings)
    user = seen(settings, which)
    facts = [
        fact("CA of the fabric", directory / "ca.pem"),
        fact("server, for nodes", directory / "server.pem"),
    ]
    own = user.path.absolute() == facts[1].path.absolute()
    if not own:
        facts.append(user)
    problem = acme_finding(settings.data, time.time()) if which.of == "acme" else None
    if json:
        shown = [{**asdict(one), "users": one.sha256 == user.sha256} for one in facts]
        say_json(
            [
                {**one, "users_need": directory / "ca.pem" if own and one["users"] else None}
                for one in shown
            ]
        )
        return
    for one in facts:
        _say_fact(one)
    say()
    for line in story(which, user, (directory / "ca.pem").absolute()):
        say(one_line(line))
    if problem is not None:
        for line in lines(problem, 80):
            say(line)


def _say_fact(one: Fact) -> None:
    say(f"{one.use}: {one.path}")
    say(f"  subject  {one_line(one.subject)}")
    say(f"  issuer   {one_line(one.issuer)}")
    for line in wrapped("names", one.names):
        say(one_line(line))
    say(f"  key      {one.key}")
    say(f"  valid    {moment(one.begins)} to {moment(one.ends)}")
    say(f"  sha256   {one.sha256}")
