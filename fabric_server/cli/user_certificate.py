"""The certificate that users see: which one it is, and what they need for it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from fabric_server.acme.findings import judge
from fabric_server.acme.state import AcmeFiles
from fabric_server.cli.endpoints import UserCertificate, last_start
from fabric_server.config import Config
from fabric_server.pki.certificates import Fact, fact
from runtime.findings import Finding
from runtime.output import moment
from runtime.settings import describe

WIDTH = 80
USE = "server, for users"
CLIENTS = (
    ("curl", "--cacert ca.pem, or CURL_CA_BUNDLE=ca.pem"),
    ("Python", "SSL_CERT_FILE=ca.pem: openai, anthropic, ollama, httpx"),
    ("", "REQUESTS_CA_BUNDLE=ca.pem: requests"),
    ("Node.js", "NODE_EXTRA_CA_CERTS=ca.pem"),
    ("Go, Rust", "SSL_CERT_FILE=ca.pem"),
    ("browsers", "import ca.pem as an authority (Firefox: its own settings;"),
    ("", "others: the system's store)"),
)
"""How each client takes the fabric's CA."""


def chosen(settings: Config) -> UserCertificate:
    """Return which certificate a server with these settings shows to users.

    A setting decides; without any, what the last start had, whose flags this command does not know.
    """
    set_here = {name for name, _, source in describe(settings) if source != "default"}
    last = last_start(settings.data)
    if last is not None and not set_here & {"public_certificate", "acme"}:
        return last.certificate
    return of_settings(settings)


def of_settings(settings: Config) -> UserCertificate:
    """Return which certificate the settings say that users see."""
    if settings.public_certificate is not None:
        return UserCertificate("file", str(settings.public_certificate.absolute()))
    if settings.acme:
        return UserCertificate("acme", str(AcmeFiles(settings.data).certificate.absolute()))
    return UserCertificate("fabric", str((settings.data / "certs" / "server.pem").absolute()))


def seen(settings: Config, which: UserCertificate) -> Fact:
    """Describe the certificate that users get now.  Raises ``CertificateProblem``."""
    path = Path(which.path)
    if which.of == "acme" and not path.exists():
        path = settings.data / "certs" / "server.pem"
    return fact(USE, path)


def acme_finding(data: Path, now: float) -> Finding | None:
    """Return why the ACME CA has not issued a certificate that is due; None if all is well."""
    files = AcmeFiles(data)
    return judge(files.state(), files.issued(), now)


def story(which: UserCertificate, found: Fact, ca: Path, *, short: bool = False) -> list[str]:
    """Say in lines of text what users see and need; ``short`` leaves out where it is shown."""
    awaited = which.of == "acme" and str(found.path.absolute()) != which.path
    if which.of == "fabric" or awaited:
        ends = "" if short else f", until {moment(found.ends)}"
        what = f"Users see the fabric's own certificate{ends}."
        if awaited:
            what += " The ACME CA has not issued one yet."
        lines = filled(what)
        lines += ["Their programs need the fabric's CA, and no other change:", f"  {ca}"]
        lines += [f"    {client:<9} {how}" for client, how in CLIENTS]
        return lines
    source = "of public_certificate" if which.of == "file" else "of the ACME CA"
    names = ", ".join(found.names)
    what = f"Users see the certificate {source} for {names}, until {moment(found.ends)}."
    issued = f"Issuer: {found.issuer}. Programs that trust it need nothing; nodes use the fabric's."
    return [*filled(what), *filled(issued)]


def filled(text: str) -> list[str]:
    """Return a sentence in lines that fit a terminal, with names and paths whole."""
    return textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)


def wrapped(label: str, values: Sequence[str]) -> list[str]:
    """Return a labelled list in lines that fit a terminal."""
    return textwrap.wrap(
        ", ".join(values),
        WIDTH,
        initial_indent=f"  {label:<8} ",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )
