"""``fabric-server certs``: show the server's certificates."""

from __future__ import annotations

from dataclasses import asdict

from fabric_server.cli import Json, require_data
from fabric_server.config import PREFIX, Config
from fabric_server.pki.certificates import Fact, fact
from runtime.flags import takes_settings
from runtime.output import commands, moment, say, say_json

app = commands("Show the certificates.")


@app.command()
@takes_settings(Config, PREFIX, only=("data", "public_certificate", "public_key"))
def show(settings: Config, json: Json = False) -> None:
    """Show the certificates in use: names, expiry dates and fingerprints."""
    facts = _facts(settings)
    if json:
        say_json([asdict(one) for one in facts])
        return
    for one in facts:
        say(f"{one.use}: {one.path}")
        say(f"  subject  {one.subject}")
        say(f"  issuer   {one.issuer}")
        if one.names:
            say(f"  names    {', '.join(one.names)}")
        say(f"  key      {one.key}")
        say(f"  valid    {moment(one.begins)} to {moment(one.ends)}")
        say(f"  sha256   {one.sha256}")


def _facts(settings: Config) -> list[Fact]:
    """Read the certificates.  Raises ``CertificateProblem``, or ``Failure`` without any."""
    require_data(settings)
    directory = settings.data / "certs"
    facts = [
        fact("CA of the fabric", directory / "ca.pem"),
        fact("server, for nodes", directory / "server.pem"),
    ]
    if settings.public_certificate is not None:
        facts.append(fact("server, for users", settings.public_certificate))
    return facts
